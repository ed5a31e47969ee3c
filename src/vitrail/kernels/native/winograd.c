/* 3x3 convolution of stride 1, channels last, by Winograd's minimal filtering.

   A block of tiles is transformed once (v, as large as the last-level cache likes), then each thread takes a
   group of output channels: it transforms the filters of 64 input channels into its second-level cache, adds
   the products of all points to sums that stay there too, and writes finished pixels. The transformed filters
   are never stored: the weights take 24 bits each and are read 9 values a pair, not 36. */
#include "vector.h"

/* Planes of one point each are a cache line further apart than a power of two, or all would share a few sets. */
#define APART 16
#define FILTERS (DEPTH * PANEL + APART)

typedef struct {
    const float *x, *bias, *residual, *table;
    const uint8_t *weights;
    float *y, *v, *own;
    const int32_t *y_map, *x_map;
    long pictures, source_h, source_w, c, h, w, k;
    long tiles_y, tiles_x, first, count, block, group, groups, panels, plane, own_size, bias_stride;
    long panel_bytes;
    long x_step, y_step, residual_step; /* floats from one pixel to the next */
    float slope, scale;
    int threads;
} Winograd;

#define OUT 2
#define NAME(x) x##_2
#include "winograd.h"
#undef OUT
#undef NAME
#define OUT 4
#define NAME(x) x##_4
#include "winograd.h"
#undef OUT
#undef NAME
#define OUT 6
#define NAME(x) x##_6
#include "winograd.h"
#undef OUT
#undef NAME

static long input_floats(int out, long c, long super) {
    return (c + DEPTH - 1) / DEPTH * (out + 2) * (out + 2) * (super * DEPTH + APART);
}

static long own_floats(int out, long block, long group) {
    return group * (out + 2) * (out + 2) * (FILTERS + block * PANEL + APART);
}

/* Floats of scratch memory that vitrail_winograd needs. */
long vitrail_winograd_scratch(int out, long c, long super, long block, long group, int threads) {
    return input_floats(out, c, super) + threads * own_floats(out, block, group) + LANES;
}

/* y (pictures, h, w, k) = scale * (convolution of x (pictures, source_h, source_w, c) + bias) + residual.

   x, y, residual: channels last, *_step floats from one pixel to the next: they may be some channels of more.
   weights: packed panels of rows [c][9], see `unpacked`; missing filters 0.
   y_map, x_map: for each row and column of the padded input the row and column of x, or -1 for zero: they
   express zero, wrapped or repeated borders and a nearest-neighbour enlargement alike. Their lengths are
   tiles * out + 2. bias: k values for each picture, bias_stride apart (0: the same), or null. residual: as y
   or null, may be y itself. table: null, or (pictures, 2, c): SiLU of x * table[0] + table[1] is convolved.
   slope: negative results are multiplied by it (1: no leaky rectifier). super, block: tiles that are
   transformed and multiplied at a time; group: panels a thread takes. */
void vitrail_winograd(int out, const float *x, long x_step, long pictures, long source_h, long source_w, long c,
                      const uint8_t *weights, long k, float *y, long y_step, long h, long w, const int32_t *y_map,
                      const int32_t *x_map, const float *bias, long bias_stride, const float *residual,
                      long residual_step, float scale, float slope, const float *table, float *scratch,
                      long super, long block, long group, int threads) {
    const long panels = (k + PANEL - 1) / PANEL;
    float *aligned = (float *)(((uintptr_t)scratch + LANES * 4 - 1) / (LANES * 4) * (LANES * 4));
    Winograd work = {
        .x = x, .weights = weights, .bias = bias, .residual = residual, .y = y, .v = aligned,
        .own = aligned + input_floats(out, c, super), .y_map = y_map, .x_map = x_map, .pictures = pictures,
        .source_h = source_h, .source_w = source_w, .c = c, .h = h, .w = w, .k = k, .tiles_y = (h + out - 1) / out,
        .tiles_x = (w + out - 1) / out, .block = block, .group = group, .groups = (panels + group - 1) / group,
        .panels = panels, .panel_bytes = PACKED_HEAD + c * 9 * PACKED_ROW, .plane = super * DEPTH + APART,
        .own_size = own_floats(out, block, group), .bias_stride = bias_stride, .x_step = x_step, .y_step = y_step,
        .residual_step = residual_step, .table = table, .slope = slope, .scale = scale, .threads = threads};
    if (out == 2) run_2(&work, super, threads);
    else if (out == 4) run_4(&work, super, threads);
    else run_6(&work, super, threads);
}
