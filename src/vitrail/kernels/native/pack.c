/* Filters as the Winograd convolution reads them, made anew at every step of a training. */
#include "vector.h"

typedef struct {
    const float *weights;
    float *packed;
    long filters, channels, filter_step, channel_step, tap_step;
} Pack;

/* Sixteen channels at a time: where they are contiguous, a cache line of each filter is read once. */
static void pack_panel(void *context, long panel, int thread) {
    const Pack *work = context;
    const long first = panel * PANEL;
    const long count = work->filters - first < PANEL ? work->filters - first : PANEL;
    const float *source = work->weights + first * work->filter_step;
    float *target = work->packed + panel * work->channels * 9 * PANEL;
    (void)thread;
    if (count < PANEL) memset(target, 0, (size_t)(work->channels * 9 * PANEL) * sizeof(float));
    for (long c0 = 0; c0 < work->channels; c0 += 16) {
        const long end = c0 + 16 < work->channels ? c0 + 16 : work->channels;
        for (long tap = 0; tap < 9; tap++)
            for (long c = c0; c < end; c++) {
                const float *from = source + c * work->channel_step + tap * work->tap_step;
                float *to = target + (c * 9 + tap) * PANEL;
                if (work->filter_step == 1)
                    memcpy(to, from, (size_t)count * sizeof(float));
                else
                    for (long i = 0; i < count; i++) to[i] = from[i * work->filter_step];
            }
    }
}

/* packed [filters / PANEL][channels][9][PANEL], missing filters 0, of weights that lie anywhere: *_step floats
   from one filter, channel and tap to the next, which may be negative (filters turned by half a turn). */
void vitrail_pack_winograd(const float *weights, long filters, long channels, long filter_step,
                           long channel_step, long tap_step, float *packed, int threads) {
    Pack work = {weights, packed, filters, channels, filter_step, channel_step, tap_step};
    vitrail_share(pack_panel, &work, (filters + PANEL - 1) / PANEL, threads);
}
