/* Vectors of float32 as wide as the machine has them, the packed matrix product, and work shared by threads.

   Everything is written in GCC's vector extensions, so one source serves AVX-512 (16 floats), AVX2 (8) and
   any other machine (4). A loop over "rows" or "panels" with a constant bound is unrolled by the compiler. */
#ifndef VITRAIL_VECTOR_H
#define VITRAIL_VECTOR_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#define ROWS 14 /* rows of one register tile: 14 x 2 sums + 2 loads + broadcasts fill 32 registers */
#elif defined(__AVX__)
#define LANES 8
#define ROWS 6 /* 6 x 2 sums + 2 loads + broadcasts fill 16 registers */
#elif defined(__aarch64__)
#define LANES 4
#define ROWS 12
#else
#define LANES 4
#define ROWS 6
#endif

#define PANEL (2 * LANES) /* columns of one packed panel */
#define DEPTH 64          /* inner dimension of one block of the left-hand side */
#define PACKED_HEAD (PANEL * 4) /* bytes before the rows of a packed panel: the scale of each column */
#define PACKED_ROW (PANEL * 3)  /* bytes of a row of a packed panel */
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef float vec_at __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));

INLINE vec load(const float *p) { return *(const vec_at *)p; }
INLINE void store(float *p, vec v) { *(vec_at *)p = v; }
INLINE vec splat(float x) { return x - (vec){0}; }
INLINE vec zero(void) { return (vec){0}; }

/* First `count` floats of p, the rest 0. */
INLINE vec load_some(const float *p, long count) {
    if (count >= LANES) return load(p);
    vec v = zero();
    if (count > 0) memcpy(&v, p, (size_t)count * 4);
    return v;
}
INLINE void store_some(float *p, vec v, long count) {
    if (count >= LANES) store(p, v);
    else if (count > 0) memcpy(p, &v, (size_t)count * 4);
}

/* Half a row of a packed panel: whole numbers of 24 bits, upper 16 bits of all columns first, then the lower 8.
   Times the scales of the columns they are the weights, to 2^-24 of the largest of each column. */
INLINE vec unpacked(const uint8_t *row, int half) {
    const uint8_t *upper = row + half * LANES * 2, *lower = row + PANEL * 2 + half * LANES;
#if defined(__AVX512F__)
    const __m512i high = _mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)upper));
    const __m512i low = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)lower));
    return (vec)_mm512_cvtepi32_ps(_mm512_or_si512(_mm512_slli_epi32(high, 8), low));
#elif defined(__AVX2__)
    const __m256i high = _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)upper));
    const __m256i low = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)lower));
    return (vec)_mm256_cvtepi32_ps(_mm256_or_si256(_mm256_slli_epi32(high, 8), low));
#else
    int16_t high[LANES];
    memcpy(high, upper, sizeof high);
    vec v;
    for (int l = 0; l < LANES; l++) v[l] = (float)(high[l] * 256 + lower[l]);
    return v;
#endif
}

INLINE vec choose(ivec mask, vec yes, vec no) { return (vec)(((ivec)yes & mask) | ((ivec)no & ~mask)); }
/* The second where one is not a number. */
#if defined(__AVX512F__)
INLINE vec largest(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vec smallest(vec a, vec b) { return (vec)_mm512_min_ps((__m512)a, (__m512)b); }
#elif defined(__AVX__)
INLINE vec largest(vec a, vec b) { return (vec)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE vec smallest(vec a, vec b) { return (vec)_mm256_min_ps((__m256)a, (__m256)b); }
#else
INLINE vec largest(vec a, vec b) { return choose(a > b, a, b); }
INLINE vec smallest(vec a, vec b) { return choose(a < b, a, b); }
#endif

/* max(v, 0) + slope * min(v, 0) */
INLINE vec leaky(vec v, float slope) {
    return choose(v < 0, slope * v, v);
}

/* 2^x, relative error 2e-7; x below -126 counts as -126, above 127 as 127. */
INLINE vec exp2_of(vec x) {
    x = smallest(splat(127.0f), largest(splat(-126.0f), x)); /* what is not a number stays so */
    const vec shift = splat(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    const vec rounded = x + shift, n = rounded - shift, f = x - n;
    vec p = splat(1.5403530e-4f);
    p = p * f + 1.3333558e-3f;
    p = p * f + 9.6181291e-3f;
    p = p * f + 5.5504109e-2f;
    p = p * f + 2.4022651e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.0f;
    const ivec power = ((ivec)rounded - (ivec)shift) << 23;
    return (vec)((ivec)p + power);
}

#define LOG2E 1.4426950408889634f

INLINE vec silu(vec x) { return x / (1.0f + exp2_of(x * -LOG2E)); }

/* x * Phi(x); the error function by Abramowitz and Stegun 7.1.26, absolute error 1.5e-7. */
INLINE vec gelu(vec x) {
    const vec size = largest(x, -x) * 0.70710678118654752f;
    const vec t = 1.0f / (1.0f + 0.3275911f * size);
    vec p = splat(1.061405429f);
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const vec tail = 0.5f * p * t * exp2_of(size * size * -LOG2E); /* 1 - Phi(|x|) */
    return x * choose(x < 0, tail, 1.0f - tail);
}

/* ---- threads: the caller hands over the process's own OpenMP (the one torch runs on), or nothing ---- */

typedef void (*parallel_call)(void (*)(void *), void *, unsigned, unsigned);
extern parallel_call vitrail_parallel;

typedef struct {
    void (*body)(void *context, long item, int thread);
    void *context;
    long items;
    long next;
    int threads;
} Work;

/* Run body(context, 0 .. items-1, thread) on up to `threads` threads; items are taken in order. */
void vitrail_share(void (*body)(void *, long, int), void *context, long items, int threads);

/* ---- matrix product of one register tile ---- */

/* c (m rows of PANEL, ldc apart) = or += sum over blocks of a (m rows of DEPTH, contiguous) times b (depth x PANEL).
   Blocks of a are `a_block` floats apart; b is contiguous. */
INLINE void tile_product(const int m, long depth, const float *a, long a_block, const float *b, float *c,
                         long ldc, int add) {
    vec s[ROWS][2];
    UNROLL
    for (int r = 0; r < m; r++) {
        s[r][0] = add ? load(c + r * ldc) : zero();
        s[r][1] = add ? load(c + r * ldc + LANES) : zero();
    }
    while (depth > 0) {
        const long n = depth < DEPTH ? depth : DEPTH;
        for (long i = 0; i < n; i++) {
            const vec b0 = load(b), b1 = load(b + LANES);
            b += PANEL;
            UNROLL
            for (int r = 0; r < m; r++) {
                const vec x = splat(a[r * DEPTH + i]);
                s[r][0] += x * b0;
                s[r][1] += x * b1;
            }
        }
        a += a_block;
        depth -= n;
    }
    UNROLL
    for (int r = 0; r < m; r++) {
        store(c + r * ldc, s[r][0]);
        store(c + r * ldc + LANES, s[r][1]);
    }
}

/* Rows of one panel in register tiles of nearly equal height. */
void vitrail_panel(long rows, long depth, const float *a, long a_block, const float *b, float *c, long ldc,
                   int add);

#endif
