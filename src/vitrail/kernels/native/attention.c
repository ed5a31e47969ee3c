/* softmax(q k^T * scale) v in blocks, never all scores at once (Dao et al. 2022, Rabe and Staats 2021).

   Everything lies transposed, PANEL queries beside each other: scores, maxima and sums of a query stay in one
   lane, the scores are already packed for the second product, and heads of 40 waste no lane. */
#include "vector.h"

#define KEYS 256   /* keys of one block */
#define PANELS 8   /* panels of queries that share a block of keys */

typedef struct {
    const float *q, *k, *v;
    float *out, *keys, *values, *own;
    long heads, queries, count, width, blocks, q_stride, k_stride, v_stride, q_batch, k_batch, v_batch;
    long first, round, size, own_size, groups;
    float scale;
} Attention;

/* One head: k -> [width in blocks of 64][key][64]; v -> [key in blocks of 64][width][64]. */
static void pack_item(void *context, long item, int thread) {
    const Attention *w = context;
    (void)thread;
    const long slices = (w->count + KEYS - 1) / KEYS;
    const long local = item / slices, from = item % slices * KEYS;
    const long to = from + KEYS < w->count ? from + KEYS : w->count;
    const long head = w->first + local, batch = head / w->heads, part = head % w->heads * w->width;
    float *keys = w->keys + local * w->size, *values = w->values + local * w->size;
    for (long key = from; key < to; key++) {
        const float *k = w->k + batch * w->k_batch + key * w->k_stride + part;
        const float *v = w->v + batch * w->v_batch + key * w->v_stride + part;
        for (long i = 0; i < w->width; i += DEPTH)
            memcpy(keys + (i / DEPTH * w->count + key) * DEPTH, k + i,
                   (size_t)(w->width - i < DEPTH ? w->width - i : DEPTH) * 4);
        float *column = values + key / DEPTH * w->width * DEPTH + key % DEPTH;
        for (long i = 0; i < w->width; i++) column[i * DEPTH] = v[i];
    }
}

static void attend_item(void *context, long item, int thread) {
    const Attention *w = context;
    const long local = item / w->groups, head = w->first + local, batch = head / w->heads;
    const long part = head % w->heads * w->width, begin = item % w->groups * PANELS * PANEL;
    const long left = w->queries - begin, panels = left >= PANELS * PANEL ? PANELS : (left + PANEL - 1) / PANEL;
    const float *keys = w->keys + local * w->size, *values = w->values + local * w->size;
    float *q = w->own + thread * w->own_size, *o = q + PANELS * w->width * PANEL;
    float *s = o + PANELS * w->width * PANEL, *top = s + KEYS * PANEL, *sum = top + PANELS * PANEL;
    for (long p = 0; p < panels; p++)
        for (long l = 0; l < PANEL; l++) {
            const long query = begin + p * PANEL + l;
            const float *line = w->q + batch * w->q_batch + (query < w->queries ? query : w->queries - 1) * w->q_stride;
            for (long i = 0; i < w->width; i++) q[(p * w->width + i) * PANEL + l] = line[part + i] * w->scale;
        }
    for (long from = 0; from < w->count; from += KEYS) {
        const long count = w->count - from < KEYS ? w->count - from : KEYS;
        for (long p = 0; p < panels; p++) {
            float *sums = o + p * w->width * PANEL;
            vitrail_panel(count, w->width, keys + from * DEPTH, w->count * DEPTH, q + p * w->width * PANEL, s, PANEL, 0);
            for (int half = 0; half < PANEL; half += LANES) {
                float *column = s + half;
                vec high = from ? load(top + p * PANEL + half) : load(column);
                const vec before = high;
                for (long key = 0; key < count; key++) high = largest(high, load(column + key * PANEL));
                vec total = zero();
                for (long key = 0; key < count; key++) {
                    const vec share = exp2_of(load(column + key * PANEL) - high);
                    store(column + key * PANEL, share);
                    total += share;
                }
                if (from) {
                    const vec fade = exp2_of(before - high);
                    total += fade * load(sum + p * PANEL + half);
                    for (long i = 0; i < w->width; i++) {
                        float *at = sums + i * PANEL + half;
                        store(at, load(at) * fade);
                    }
                }
                store(top + p * PANEL + half, high);
                store(sum + p * PANEL + half, total);
            }
            vitrail_panel(w->width, count, values + from * w->width, w->width * DEPTH, s, sums, PANEL, from > 0);
        }
    }
    for (long p = 0; p < panels; p++)
        for (long l = 0; l < PANEL && begin + p * PANEL + l < w->queries; l++) {
            const long query = begin + p * PANEL + l;
            float *line = w->out + ((batch * w->queries + query) * w->heads) * w->width + part;
            const float share = 1.0f / sum[p * PANEL + l];
            for (long i = 0; i < w->width; i++) line[i] = o[(p * w->width + i) * PANEL + l] * share;
        }
}

static long head_floats(long count, long width) {
    const long keys = (width + DEPTH - 1) / DEPTH * count * DEPTH;
    const long values = (count + DEPTH - 1) / DEPTH * width * DEPTH;
    return keys > values ? keys : values;
}

static long own_attention(long width) { return 2 * PANELS * width * PANEL + KEYS * PANEL + 2 * PANELS * PANEL; }

/* Floats of scratch memory that vitrail_attention needs for `round` heads at a time. */
long vitrail_attention_scratch(long count, long width, long round, int threads) {
    return 2 * round * head_floats(count, width) + threads * own_attention(width) + LANES;
}

/* out (batch, queries, heads * width) = attention of q (batch, queries, heads * width) to k, v (batch, count, ...).

   Rows of q, k, v are *_stride floats apart, pictures *_batch. `round`: heads whose keys and values are packed
   at a time. */
void vitrail_attention(const float *q, const float *k, const float *v, float *out, long batch, long heads,
                       long queries, long count, long width, long q_stride, long k_stride, long v_stride, long q_batch,
                       long k_batch, long v_batch, float scale, float *scratch, long round, int threads) {
    const long size = head_floats(count, width);
    float *aligned = (float *)(((uintptr_t)scratch + LANES * 4 - 1) / (LANES * 4) * (LANES * 4));
    Attention w = {
        .q = q, .k = k, .v = v, .out = out, .keys = aligned, .values = aligned + round * size,
        .own = aligned + 2 * round * size, .heads = heads, .queries = queries, .count = count, .width = width,
        .q_stride = q_stride, .k_stride = k_stride, .v_stride = v_stride, .q_batch = q_batch, .k_batch = k_batch,
        .v_batch = v_batch, .size = size, .own_size = own_attention(width),
        .groups = (queries + PANELS * PANEL - 1) / (PANELS * PANEL), .scale = scale * LOG2E};
    for (w.first = 0; w.first < batch * heads; w.first += round) {
        const long now = batch * heads - w.first < round ? batch * heads - w.first : round;
        vitrail_share(pack_item, &w, now * ((count + KEYS - 1) / KEYS), threads);
        vitrail_share(attend_item, &w, now * w.groups, threads);
    }
}
