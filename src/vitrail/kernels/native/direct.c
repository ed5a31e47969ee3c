/* Matrix products and direct convolutions, channels last: rows of x are gathered into blocks of 64 columns that
   stay in the second-level cache, the packed weights stream past them. */
#include "vector.h"

#define BLOCK_ROWS (4 * ROWS > 48 ? 4 * ROWS : 48)
#define BLOCK_DEPTH 2048 /* columns of x that are gathered at a time */

typedef struct {
    const float *x, *weights, *bias, *residual;
    float *y, *own;
    const int32_t *y_map, *x_map;
    long source_h, source_w, c, c_blocks, h, w, rows, k, size_y, size_x, stride_y, stride_x;
    long depth, group, row_blocks, panels, own_size, bias_stride;
    int gated;
    float slope;
} Direct;

/* Blocks from .. to of `rows` rows that begin at `row` -> a[block][row][64], missing columns 0. */
static void gather(const Direct *d, long row, long rows, long from, long to, float *a) {
    for (long block = from; block < to; block++) {
        const long tap = block / d->c_blocks, c = block % d->c_blocks * DEPTH;
        const long some = d->c - c < DEPTH ? d->c - c : DEPTH;
        const long i = tap / d->size_x, j = tap % d->size_x;
        float *to_row = a + (block - from) * BLOCK_ROWS * DEPTH;
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

static void direct_item(void *context, long item, int thread) {
    const Direct *d = context;
    const long row = item % d->row_blocks * BLOCK_ROWS, rows = d->rows - row < BLOCK_ROWS ? d->rows - row : BLOCK_ROWS;
    const long first = item / d->row_blocks * d->group;
    const long last = first + d->group < d->panels ? first + d->group : d->panels;
    float *a = d->own + thread * d->own_size, *spare = a + BLOCK_DEPTH * BLOCK_ROWS, *gate = spare + BLOCK_ROWS * PANEL;
    const long blocks = d->depth / DEPTH, step = BLOCK_DEPTH / DEPTH;
    for (long from = 0; from < blocks; from += step) {
        const long to = from + step < blocks ? from + step : blocks;
        gather(d, row, rows, from, to, a);
        for (long panel = first; panel < last; panel++) {
            const long column = panel * PANEL;
            const float *b = d->weights + (panel * d->depth + from * DEPTH) * PANEL;
            if (d->gated) {
                /* all of the depth is here: a gated product with more is refused by the caller */
                begin(d, row, rows, column, spare, PANEL);
                vitrail_panel(rows, (to - from) * DEPTH, a, BLOCK_ROWS * DEPTH, b, spare, PANEL, 1);
                begin(d, row, rows, column + d->k / 2, gate, PANEL);
                vitrail_panel(rows, (to - from) * DEPTH, a, BLOCK_ROWS * DEPTH, b + d->panels * d->depth * PANEL, gate,
                              PANEL, 1);
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
            vitrail_panel(rows, (to - from) * DEPTH, a, BLOCK_ROWS * DEPTH, b, c, ldc, 1);
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

static long own_direct(void) { return BLOCK_DEPTH * BLOCK_ROWS + 2 * BLOCK_ROWS * PANEL; }

/* Floats of scratch memory that vitrail_direct needs. */
long vitrail_direct_scratch(int threads) { return threads * own_direct() + LANES; }

/* y (pictures * h * w, k) = gathered x times weights + bias + residual.

   x (pictures, source_h, source_w, c); weights [k / PANEL][taps][c in blocks of 64][64][PANEL], missing ones 0.
   x_map null: one tap, row r of y from row r of x. Otherwise row y, tap i reads row y_map[y * stride + i] of x,
   -1 for zero; columns alike. gated: y (rows, k / 2) = left half * gelu(right half). group: panels a thread
   takes at a time. */
void vitrail_direct(const float *x, long pictures, long source_h, long source_w, long c, const float *weights, long k,
                    float *y, long h, long w, const int32_t *y_map, const int32_t *x_map, long size_y, long size_x,
                    long stride_y, long stride_x, const float *bias, long bias_stride, const float *residual,
                    float slope, int gated, float *scratch, long group, int threads) {
    const long c_blocks = (c + DEPTH - 1) / DEPTH, columns = gated ? k / 2 : k;
    const long rows = pictures * h * w, panels = (columns + PANEL - 1) / PANEL;
    Direct work = {
        .x = x, .weights = weights, .bias = bias, .residual = residual, .y = y,
        .own = (float *)(((uintptr_t)scratch + LANES * 4 - 1) / (LANES * 4) * (LANES * 4)), .y_map = y_map,
        .x_map = x_map, .source_h = source_h, .source_w = source_w, .c = c, .c_blocks = c_blocks, .h = h, .w = w,
        .rows = rows, .k = k, .size_y = size_y, .size_x = size_x, .stride_y = stride_y, .stride_x = stride_x,
        .depth = size_y * size_x * c_blocks * DEPTH, .group = group,
        .row_blocks = (rows + BLOCK_ROWS - 1) / BLOCK_ROWS, .panels = panels, .own_size = own_direct(),
        .bias_stride = bias_stride, .gated = gated, .slope = slope};
    vitrail_share(direct_item, &work, (panels + group - 1) / group * work.row_blocks, threads);
}
