/* Matrix products and direct convolutions, channels last: rows of x are gathered into blocks of 64 columns that
   stay in the second-level cache, the packed weights stream past them. A panel of weights is made float32
   once for all rows that were gathered: the more rows, the less that costs. */
#include "vector.h"

#define MOST_DEPTH 2048           /* columns of x that are gathered at a time, where all have to be there */
#define STEP_DEPTH 640            /* else */
#define GATHERED (112 * 1024)     /* floats of x that are gathered at a time */
#define MOST_ROWS (16 * ROWS)

typedef struct {
    const float *x, *bias, *residual;
    const uint8_t *weights;
    float *y, *own;
    const int32_t *y_map, *x_map;
    long source_h, source_w, c, c_blocks, h, w, rows, k, size_y, size_x, stride_y, stride_x;
    long depth, step, block, group, row_blocks, panels, own_size, bias_stride;
    int gated;
    float slope;
} Direct;

/* Blocks from .. to of `rows` rows that begin at `row` -> a[block][row][64], missing columns 0. */
static void gather(const Direct *d, long row, long rows, long from, long to, float *a) {
    for (long block = from; block < to; block++) {
        const long tap = block / d->c_blocks, c = block % d->c_blocks * DEPTH;
        const long some = d->c - c < DEPTH ? d->c - c : DEPTH;
        const long i = tap / d->size_x, j = tap % d->size_x;
        float *to_row = a + (block - from) * d->block * DEPTH;
        for (long r = row; r < row + rows; r++, to_row += DEPTH) {
            const float *line;
            if (d->x_map) {
                const long picture = r / (d->h * d->w), y = r / d->w % d->h, x = r % d->w;
                const long sy = d->y_map[y * d->stride_y + i], sx = d->x_map[x * d->stride_x + j];
                if (sy < 0 || sx < 0) {
                    memset(to_row, 0, DEPTH * 4);
                    continue;
                }
                line = d->x + ((picture * d->source_h + sy) * d->source_w + sx) * d->c + c;
            } else line = d->x + r * d->c + c;
            if (some == DEPTH)
                for (long l = 0; l < DEPTH; l += LANES) store(to_row + l, load(line + l));
            else {
                memset(to_row, 0, DEPTH * 4);
                memcpy(to_row, line, (size_t)some * 4);
            }
        }
    }
}

/* Sums begin as bias + residual: nothing is left to add at the end. */
static void begin(const Direct *d, long row, long rows, long column, float *c, long ldc) {
    const long pixels = d->h * d->w;
    for (long r = 0; r < rows; r++)
        for (int half = 0; half < 2; half++) {
            const long at = column + half * LANES, some = d->k - at;
            vec v = zero();
            if (d->bias) v += load_some(d->bias + (d->bias_stride ? (row + r) / pixels * d->bias_stride : 0) + at, some);
            if (d->residual) v += load_some(d->residual + (row + r) * d->k + at, some);
            store(c + r * ldc + half * LANES, v);
        }
}

/* Rows from .. to, in blocks of 64, of one packed panel -> b[row][PANEL]. */
static void unpack(const Direct *d, long panel, long from, long to, float *b) {
    const uint8_t *packed = d->weights + panel * (PACKED_HEAD + d->depth * PACKED_ROW);
    const uint8_t *row = packed + PACKED_HEAD + from * DEPTH * PACKED_ROW;
    const vec left = load((const float *)packed), right = load((const float *)packed + LANES);
    for (long i = (to - from) * DEPTH; i > 0; i--, row += PACKED_ROW, b += PANEL) {
        store(b, left * unpacked(row, 0));
        store(b + LANES, right * unpacked(row, 1));
    }
}

static void direct_item(void *context, long item, int thread) {
    const Direct *d = context;
    const long row = item % d->row_blocks * d->block, rows = d->rows - row < d->block ? d->rows - row : d->block;
    const long first = item / d->row_blocks * d->group;
    const long last = first + d->group < d->panels ? first + d->group : d->panels;
    float *a = d->own + thread * d->own_size, *b = a + GATHERED, *spare = b + d->step * PANEL;
    float *gate = spare + d->block * PANEL;
    const long blocks = d->depth / DEPTH, step = d->step / DEPTH, apart = d->block * DEPTH;
    for (long from = 0; from < blocks; from += step) {
        const long to = from + step < blocks ? from + step : blocks;
        gather(d, row, rows, from, to, a);
        for (long panel = first; panel < last; panel++) {
            const long column = panel * PANEL;
            unpack(d, panel, from, to, b);
            if (d->gated) {
                /* all of the depth is here: a gated product with more is refused by the caller */
                begin(d, row, rows, column, spare, PANEL);
                vitrail_panel(rows, (to - from) * DEPTH, a, apart, b, spare, PANEL, 1);
                unpack(d, d->panels + panel, from, to, b);
                begin(d, row, rows, column + d->k / 2, gate, PANEL);
                vitrail_panel(rows, (to - from) * DEPTH, a, apart, b, gate, PANEL, 1);
                for (long r = 0; r < rows; r++)
                    for (int half = 0; half < 2; half++)
                        store(d->y + (row + r) * (d->k / 2) + column + half * LANES,
                              load(spare + r * PANEL + half * LANES) * gelu(load(gate + r * PANEL + half * LANES)));
                continue;
            }
            const long some = d->k - column;
            float *c = some >= PANEL ? d->y + row * d->k + column : spare;
            const long ldc = some >= PANEL ? d->k : PANEL;
            if (from == 0) begin(d, row, rows, column, c, ldc);
            else if (some < PANEL)
                for (long r = 0; r < rows; r++)
                    memcpy(c + r * ldc, d->y + (row + r) * d->k + column, (size_t)some * 4);
            vitrail_panel(rows, (to - from) * DEPTH, a, apart, b, c, ldc, 1);
            if (to == blocks && d->slope != 1.0f)
                for (long r = 0; r < rows; r++)
                    for (int half = 0; half < 2; half++) {
                        float *at = c + r * ldc + half * LANES;
                        store(at, leaky(load(at), d->slope));
                    }
            if (some < PANEL)
                for (long r = 0; r < rows; r++)
                    memcpy(d->y + (row + r) * d->k + column, c + r * ldc, (size_t)some * 4);
        }
    }
}

static long step_of(long depth, int gated) {
    const long most = gated ? MOST_DEPTH : STEP_DEPTH;
    return depth < most ? depth : most;
}

/* Rows gathered at a time: as many as fit, all blocks of nearly the same height. */
static long block_of(long rows, long step) {
    long most = GATHERED / step / ROWS * ROWS;
    if (most > MOST_ROWS) most = MOST_ROWS;
    const long blocks = (rows + most - 1) / most, even = (rows + blocks - 1) / blocks;
    return (even + ROWS - 1) / ROWS * ROWS;
}

static long own_direct(long rows, long step) { return GATHERED + step * PANEL + 2 * block_of(rows, step) * PANEL; }

/* Floats of scratch memory that vitrail_direct needs for `depth` columns of x, a multiple of 64. */
long vitrail_direct_scratch(long rows, long depth, int gated, int threads) {
    return threads * own_direct(rows, step_of(depth, gated)) + LANES;
}

/* y (pictures * h * w, k) = gathered x times weights + bias + residual.

   x (pictures, source_h, source_w, c); weights: packed panels of rows [tap][c in blocks of 64][64], see
   `unpacked`; missing ones 0.
   x_map null: one tap, row r of y from row r of x. Otherwise row y, tap i reads row y_map[y * stride + i] of x,
   -1 for zero; columns alike. gated: y (rows, k / 2) = left half * gelu(right half). group: panels a thread
   takes at a time. */
void vitrail_direct(const float *x, long pictures, long source_h, long source_w, long c, const uint8_t *weights, long k,
                    float *y, long h, long w, const int32_t *y_map, const int32_t *x_map, long size_y, long size_x,
                    long stride_y, long stride_x, const float *bias, long bias_stride, const float *residual,
                    float slope, int gated, float *scratch, long group, int threads) {
    const long c_blocks = (c + DEPTH - 1) / DEPTH, columns = gated ? k / 2 : k;
    const long rows = pictures * h * w, panels = (columns + PANEL - 1) / PANEL;
    const long depth = size_y * size_x * c_blocks * DEPTH, step = step_of(depth, gated), block = block_of(rows, step);
    Direct work = {
        .x = x, .weights = weights, .bias = bias, .residual = residual, .y = y,
        .own = (float *)(((uintptr_t)scratch + LANES * 4 - 1) / (LANES * 4) * (LANES * 4)), .y_map = y_map,
        .x_map = x_map, .source_h = source_h, .source_w = source_w, .c = c, .c_blocks = c_blocks, .h = h, .w = w,
        .rows = rows, .k = k, .size_y = size_y, .size_x = size_x, .stride_y = stride_y, .stride_x = stride_x,
        .depth = depth, .step = step, .block = block, .group = group,
        .row_blocks = (rows + block - 1) / block, .panels = panels, .own_size = own_direct(rows, step),
        .bias_stride = bias_stride, .gated = gated, .slope = slope};
    vitrail_share(direct_item, &work, (panels + group - 1) / group * work.row_blocks, threads);
}
