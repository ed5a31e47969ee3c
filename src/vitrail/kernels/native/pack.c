/* Filters as the Winograd convolution reads them, made anew at every step of a training. */
#include "vector.h"
#include <float.h>
#include <math.h>

#define LARGEST ((1 << 23) - 1)

typedef struct {
    const float *weights;
    uint8_t *packed;
    long filters, channels, filter_step, channel_step, tap_step;
} Pack;

/* One place (channel, tap) of a panel's filters, missing ones 0. */
INLINE void gather(const Pack *work, const float *from, long count, float *row) {
    for (long i = 0; i < count; i++) row[i] = from[i * work->filter_step];
    for (long i = count; i < PANEL; i++) row[i] = 0.0f;
}

/* Sixteen channels at a time: where they are contiguous, a cache line of each filter is read once. */
#define PLACES(work, c, tap)                                                                      \
    for (long c0 = 0; c0 < (work)->channels; c0 += 16)                                            \
        for (long tap = 0; tap < 9; tap++)                                                        \
            for (long c = c0; c < c0 + 16 && c < (work)->channels; c++)

static void pack_panel(void *context, long panel, int thread) {
    const Pack *work = context;
    const long first = panel * PANEL;
    const long count = work->filters - first < PANEL ? work->filters - first : PANEL;
    const float *source = work->weights + first * work->filter_step;
    uint8_t *target = work->packed + panel * (PACKED_HEAD + work->channels * 9 * PACKED_ROW);
    float row[PANEL], largest[PANEL] = {0}, scale[PANEL], divisor[PANEL];
    (void)thread;
    PLACES(work, c, tap) {
        gather(work, source + c * work->channel_step + tap * work->tap_step, count, row);
        for (int i = 0; i < PANEL; i++) {
            const float size = fabsf(row[i]);
            /* what is not a number stays one, and all that is computed with it */
            largest[i] = size > largest[i] || size != size ? size : largest[i];
        }
    }
    for (int i = 0; i < PANEL; i++) {
        scale[i] = largest[i] / LARGEST;
        if (scale[i] < FLT_MIN) scale[i] = 0.0f;
        divisor[i] = scale[i] > 0.0f ? scale[i] : INFINITY; /* too small for a scale: zero */
    }
    memcpy(target, scale, sizeof scale);
    PLACES(work, c, tap) {
        int32_t whole[PANEL];
        int16_t upper[PANEL];
        uint8_t *to = target + PACKED_HEAD + (c * 9 + tap) * PACKED_ROW;
        gather(work, source + c * work->channel_step + tap * work->tap_step, count, row);
        for (int i = 0; i < PANEL; i++) {
            float value = rintf(row[i] / divisor[i]);
            value = value > LARGEST ? LARGEST : value < -LARGEST ? -LARGEST : value;
            whole[i] = value == value ? (int32_t)value : 0;
        }
        for (int i = 0; i < PANEL; i++) upper[i] = (int16_t)(whole[i] >> 8);
        memcpy(to, upper, sizeof upper);
        for (int i = 0; i < PANEL; i++) to[PANEL * 2 + i] = (uint8_t)(whole[i] & 255);
    }
}

/* Bytes of the packed form of so many filters and channels. */
long vitrail_pack_winograd_bytes(long filters, long channels) {
    return (filters + PANEL - 1) / PANEL * (PACKED_HEAD + channels * 9 * PACKED_ROW);
}

/* Packed panels of rows [channels][9], missing filters 0, of weights that lie anywhere: *_step floats from one
   filter, channel and tap to the next, which may be negative (filters turned by half a turn). */
void vitrail_pack_winograd(const float *weights, long filters, long channels, long filter_step,
                           long channel_step, long tap_step, uint8_t *packed, int threads) {
    Pack work = {weights, packed, filters, channels, filter_step, channel_step, tap_step};
    vitrail_share(pack_panel, &work, (filters + PANEL - 1) / PANEL, threads);
}
