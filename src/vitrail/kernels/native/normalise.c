/* Group normalisation, channels last, with the SiLU that follows it in the same pass over memory. */
#include "vector.h"

#define CHUNK 64 /* pixels of one item and of one float32 sum */

typedef struct {
    const float *x, *weight, *bias;
    float *y;
    double *sums;
    float *scale;
    long pixels, c, chunks;
    int activate;
} Norm;

static void sums_item(void *context, long item, int thread) {
    const Norm *n = context;
    (void)thread;
    const long picture = item / n->chunks, from = item % n->chunks * CHUNK;
    const long to = from + CHUNK < n->pixels ? from + CHUNK : n->pixels;
    const float *x = n->x + picture * n->pixels * n->c;
    double *sum = n->sums + item * 2 * n->c, *square = sum + n->c;
    for (long c = 0; c < n->c; c += LANES) {
        const long some = n->c - c < LANES ? n->c - c : LANES;
        /* moments about the picture's first pixel: a large mean costs no digits */
        const vec about = load_some(x + c, some);
        vec s = zero(), q = zero();
        for (long p = from; p < to; p++) {
            const vec v = load_some(x + p * n->c + c, some) - about;
            s += v;
            q += v * v;
        }
        for (long l = 0; l < some; l++) {
            sum[c + l] = s[l];
            square[c + l] = q[l];
        }
    }
}

static void apply_item(void *context, long item, int thread) {
    const Norm *n = context;
    (void)thread;
    const long picture = item / n->chunks, from = item % n->chunks * CHUNK;
    const long to = from + CHUNK < n->pixels ? from + CHUNK : n->pixels;
    const float *scale = n->scale + picture * 2 * n->c, *shift = scale + n->c;
    for (long p = from; p < to; p++) {
        const long at = (picture * n->pixels + p) * n->c;
        for (long c = 0; c < n->c; c += LANES) {
            const long some = n->c - c;
            vec v = load_some(n->x + at + c, some) * load_some(scale + c, some) + load_some(shift + c, some);
            if (n->activate) v = silu(v);
            store_some(n->y + at + c, v, some);
        }
    }
}

/* Floats of scratch memory that vitrail_group_norm needs. */
long vitrail_group_norm_scratch(long pictures, long pixels, long c) {
    return pictures * 2 * c * (1 + 2 * ((pixels + CHUNK - 1) / CHUNK)) + 2;
}

/* y = (x - mean) / sqrt(variance + eps) * weight + bias for each picture and group of c / groups channels, then
   SiLU if `activate`. x, y (pictures, pixels, c). y null: only the factors and summands of the channels are
   made, table (pictures, 2, c), for a convolution that applies them as it reads. */
void vitrail_group_norm(const float *x, long pictures, long pixels, long c, long groups, const float *weight,
                        const float *bias, double eps, int activate, float *y, float *table, float *scratch,
                        int threads) {
    const long chunks = (pixels + CHUNK - 1) / CHUNK, width = c / groups;
    double *sums = (double *)(((uintptr_t)scratch + 7) / 8 * 8);
    float *scale = y ? (float *)(sums + pictures * chunks * 2 * c) : table;
    Norm work = {.x = x, .weight = weight, .bias = bias, .y = y, .sums = sums, .scale = scale, .pixels = pixels,
                 .c = c, .chunks = chunks, .activate = activate};
    vitrail_share(sums_item, &work, pictures * chunks, threads);
    for (long p = 0; p < pictures; p++)
        for (long g = 0; g < groups; g++) {
            const float *about = x + p * pixels * c + g * width;
            double mean = 0, square = 0;
            for (long i = 0; i < width; i++) {
                double s = 0, q = 0;
                for (long k = 0; k < chunks; k++) {
                    s += sums[(p * chunks + k) * 2 * c + g * width + i];
                    q += sums[((p * chunks + k) * 2 + 1) * c + g * width + i];
                }
                /* back to moments about the group's own first value */
                const double shift = (double)about[i] - about[0];
                mean += s + shift * pixels;
                square += q + 2 * shift * s + shift * shift * pixels;
            }
            mean /= (double)width * pixels;
            double variance = square / ((double)width * pixels) - mean * mean;
            if (variance < 0) variance = 0;
            const double rate = 1.0 / __builtin_sqrt(variance + eps);
            for (long i = 0; i < width; i++) {
                const double a = rate * (weight ? weight[g * width + i] : 1.0f);
                scale[p * 2 * c + g * width + i] = (float)a;
                scale[(p * 2 + 1) * c + g * width + i] =
                    (float)((bias ? bias[g * width + i] : 0.0f) - (mean + about[0]) * a);
            }
        }
    if (y) vitrail_share(apply_item, &work, pictures * chunks, threads);
}
