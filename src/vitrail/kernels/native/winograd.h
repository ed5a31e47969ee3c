/* One size of Winograd's convolution, F(OUT x OUT, 3 x 3); included once a size with OUT and NAME(x) defined.

   Lavin and Gray, "Fast algorithms for convolutional neural networks" (2016), with the points 0, +-PA, +-PB
   (, +-PC), infinity. SIDE = OUT + 2 points a side, POINTS = SIDE * SIDE products a tile. */
#define SIDE (OUT + 2)
#define POINTS (SIDE * SIDE)

#if OUT == 2
#define PA 1.0f
#elif OUT == 4
#define PA 0.625f
#define PB 1.5f
#else
#define PA 1.0f
#define PB 2.0f
#define PC 0.5f
#endif
#define A2 (PA * PA)
#define B2 (PB * PB)
#define C2 (PC * PC)

INLINE void NAME(input_line)(const vec *d, vec *o) { /* B^T d */
#if OUT == 2
    o[0] = d[2] - d[0];
    o[1] = d[2] + d[1];
    o[2] = d[2] - d[1];
    o[3] = d[3] - d[1];
#elif OUT == 4
    const vec ea = d[4] - B2 * d[2], oa = PA * (d[3] - B2 * d[1]);
    const vec eb = d[4] - A2 * d[2], ob = PB * (d[3] - A2 * d[1]);
    o[0] = A2 * B2 * d[0] - (A2 + B2) * d[2] + d[4];
    o[1] = ea + oa;
    o[2] = ea - oa;
    o[3] = eb + ob;
    o[4] = eb - ob;
    o[5] = A2 * B2 * d[1] - (A2 + B2) * d[3] + d[5];
#else
    const vec ea = d[6] - (B2 + C2) * d[4] + B2 * C2 * d[2], oa = PA * (d[5] - (B2 + C2) * d[3] + B2 * C2 * d[1]);
    const vec eb = d[6] - (A2 + C2) * d[4] + A2 * C2 * d[2], ob = PB * (d[5] - (A2 + C2) * d[3] + A2 * C2 * d[1]);
    const vec ec = d[6] - (A2 + B2) * d[4] + A2 * B2 * d[2], oc = PC * (d[5] - (A2 + B2) * d[3] + A2 * B2 * d[1]);
    o[0] = d[6] - (A2 + B2 + C2) * d[4] + (A2 * B2 + A2 * C2 + B2 * C2) * d[2] - A2 * B2 * C2 * d[0];
    o[1] = ea + oa;
    o[2] = ea - oa;
    o[3] = eb + ob;
    o[4] = eb - ob;
    o[5] = ec + oc;
    o[6] = ec - oc;
    o[7] = d[7] - (A2 + B2 + C2) * d[5] + (A2 * B2 + A2 * C2 + B2 * C2) * d[3] - A2 * B2 * C2 * d[1];
#endif
}

INLINE void NAME(filter_line)(vec g0, vec g1, vec g2, vec *o) { /* G g */
#if OUT == 2
    const vec e = 0.5f * (g0 + g2), f = 0.5f * g1;
    o[0] = -g0;
    o[1] = e + f;
    o[2] = e - f;
    o[3] = g2;
#elif OUT == 4
    const vec ea = (g0 + A2 * g2) * (0.5f / (A2 * (A2 - B2))), oa = g1 * (0.5f * PA / (A2 * (A2 - B2)));
    const vec eb = (g0 + B2 * g2) * (0.5f / (B2 * (B2 - A2))), ob = g1 * (0.5f * PB / (B2 * (B2 - A2)));
    o[0] = g0 * (1.0f / (A2 * B2));
    o[1] = ea + oa;
    o[2] = ea - oa;
    o[3] = eb + ob;
    o[4] = eb - ob;
    o[5] = g2;
#else
    const float fa = 0.5f / (A2 * (A2 - B2) * (A2 - C2)), fb = 0.5f / (B2 * (B2 - A2) * (B2 - C2));
    const float fc = 0.5f / (C2 * (C2 - A2) * (C2 - B2));
    const vec ea = (g0 + A2 * g2) * fa, oa = g1 * (PA * fa);
    const vec eb = (g0 + B2 * g2) * fb, ob = g1 * (PB * fb);
    const vec ec = (g0 + C2 * g2) * fc, oc = g1 * (PC * fc);
    o[0] = g0 * (-1.0f / (A2 * B2 * C2));
    o[1] = ea + oa;
    o[2] = ea - oa;
    o[3] = eb + ob;
    o[4] = eb - ob;
    o[5] = ec + oc;
    o[6] = ec - oc;
    o[7] = g2;
#endif
}

INLINE void NAME(output_line)(const vec *m, vec *o) { /* A^T m */
    const vec sa = m[1] + m[2], da = m[1] - m[2];
#if OUT == 2
    o[0] = m[0] + sa;
    o[1] = da + m[3];
#elif OUT == 4
    const vec sb = m[3] + m[4], db = m[3] - m[4];
    o[0] = m[0] + sa + sb;
    o[1] = PA * da + PB * db;
    o[2] = A2 * sa + B2 * sb;
    o[3] = (PA * A2) * da + (PB * B2) * db + m[5];
#else
    const vec sb = m[3] + m[4], db = m[3] - m[4], sc = m[5] + m[6], dc = m[5] - m[6];
    o[0] = m[0] + sa + sb + sc;
    o[1] = PA * da + PB * db + PC * dc;
    o[2] = A2 * sa + B2 * sb + C2 * sc;
    o[3] = (PA * A2) * da + (PB * B2) * db + (PC * C2) * dc;
    o[4] = (A2 * A2) * sa + (B2 * B2) * sb + (C2 * C2) * sc;
    o[5] = (PA * A2 * A2) * da + (PB * B2 * B2) * db + (PC * C2 * C2) * dc + m[7];
#endif
}

/* Tile `item` of the block, all channels: the picture's SIDE x SIDE patch -> v[block of 64 channels][point][tile][64]. */
static void NAME(input_tile)(void *context, long item, int thread) {
    const Winograd *w = context;
    (void)thread;
    const long tile = w->first + item, across = w->tiles_x, down = w->tiles_y;
    const long picture = tile / (across * down), ty = tile / across % down, tx = tile % across;
    const int32_t *ys = w->y_map + ty * OUT, *xs = w->x_map + tx * OUT;
    const float *source = w->x + picture * w->source_h * w->source_w * w->x_step;
    for (long c = 0; c < w->c; c += LANES) {
        vec d[SIDE], rows[SIDE][SIDE], factor = zero(), summand = zero();
        const long some = w->c - c;
        if (w->table) {
            factor = load_some(w->table + picture * 2 * w->c + c, some);
            summand = load_some(w->table + (picture * 2 + 1) * w->c + c, some);
        }
        for (int i = 0; i < SIDE; i++) {
            const float *line = source + (ptrdiff_t)ys[i] * w->source_w * w->x_step + c;
            if (ys[i] < 0) {
                for (int j = 0; j < SIDE; j++) rows[i][j] = zero();
                continue;
            }
            for (int j = 0; j < SIDE; j++) d[j] = xs[j] < 0 ? zero() : load_some(line + (ptrdiff_t)xs[j] * w->x_step, some);
            if (w->table)
                for (int j = 0; j < SIDE; j++)
                    if (xs[j] >= 0) d[j] = silu(d[j] * factor + summand);
            NAME(input_line)(d, rows[i]);
        }
        float *v = w->v + (c / DEPTH) * POINTS * w->plane + item * DEPTH + c % DEPTH;
        for (int j = 0; j < SIDE; j++) {
            vec o[SIDE];
            for (int i = 0; i < SIDE; i++) d[i] = rows[i][j];
            NAME(input_line)(d, o);
            for (int i = 0; i < SIDE; i++) store(v + (i * SIDE + j) * w->plane, o[i]);
        }
    }
}

/* One (channel, half a panel of filters) column of 9 packed taps -> POINTS values, `stride` floats apart. */
INLINE void NAME(filter)(const uint8_t *taps, int half, vec scale, float *u, long stride) {
    vec rows[SIDE][3], o[SIDE];
    for (int j = 0; j < 3; j++) {
        NAME(filter_line)(scale * unpacked(taps + j * PACKED_ROW, half), scale * unpacked(taps + (3 + j) * PACKED_ROW, half),
                          scale * unpacked(taps + (6 + j) * PACKED_ROW, half), o);
        for (int i = 0; i < SIDE; i++) rows[i][j] = o[i];
    }
    for (int i = 0; i < SIDE; i++) {
        NAME(filter_line)(rows[i][0], rows[i][1], rows[i][2], o);
        for (int j = 0; j < SIDE; j++) store(u + (i * SIDE + j) * stride, o[j]);
    }
}

static void NAME(output_tile)(const Winograd *w, long tile, const float *m, long plane, long k) {
    const long across = w->tiles_x, down = w->tiles_y;
    const long picture = tile / (across * down), oy = tile / across % down * OUT, ox = tile % across * OUT;
    const int high = w->h - oy < OUT ? (int)(w->h - oy) : OUT, wide = w->w - ox < OUT ? (int)(w->w - ox) : OUT;
    const long start = (picture * w->h + oy) * w->w + ox; /* pixel */
    for (int half = 0; half < 2 && k + half * LANES < w->k; half++) {
        const long some = w->k - k - half * LANES;
        const vec bias = w->bias ? load_some(w->bias + picture * w->bias_stride + k + half * LANES, some) : zero();
        vec line[SIDE], rows[OUT][SIDE], o[OUT];
        for (int j = 0; j < SIDE; j++) {
            for (int i = 0; i < SIDE; i++) line[i] = load(m + (i * SIDE + j) * plane + half * LANES);
            NAME(output_line)(line, o);
            for (int i = 0; i < OUT; i++) rows[i][j] = o[i];
        }
        for (int i = 0; i < high; i++) {
            const long at = start + i * w->w, from = k + half * LANES;
            NAME(output_line)(rows[i], o);
            for (int j = 0; j < wide; j++) {
                vec y = w->scale * (o[j] + bias);
                if (w->residual) y += load_some(w->residual + (at + j) * w->residual_step + from, some);
                if (w->slope != 1.0f) y = leaky(y, w->slope);
                store_some(w->y + (at + j) * w->y_step + from, y, some);
            }
        }
    }
}

/* Item = (group of panels, block of tiles): filters of 64 channels at a time, products, sums, output. */
static void NAME(products)(void *context, long item, int thread) {
    const Winograd *w = context;
    const long group = item % w->groups, from = item / w->groups * w->block;
    const long tiles = w->count - from < w->block ? w->count - from : w->block;
    const long panel = group * w->group, panels = w->panels - panel < w->group ? w->panels - panel : w->group;
    const long plane = w->block * PANEL + APART;
    float *u = w->own + thread * w->own_size, *m = u + w->group * POINTS * FILTERS;
    for (long c = 0; c < w->c; c += DEPTH) {
        const long depth = w->c - c < DEPTH ? w->c - c : DEPTH;
        for (long p = 0; p < panels; p++) {
            const uint8_t *packed = w->weights + (panel + p) * w->panel_bytes;
            const uint8_t *taps = packed + PACKED_HEAD + c * 9 * PACKED_ROW;
            for (int half = 0; half < 2; half++) {
                const vec scale = load((const float *)packed + half * LANES);
                for (long i = 0; i < depth; i++)
                    NAME(filter)(taps + i * 9 * PACKED_ROW, half, scale,
                                 u + p * POINTS * FILTERS + i * PANEL + half * LANES, FILTERS);
            }
        }
        const float *v = w->v + c / DEPTH * POINTS * w->plane + from * DEPTH;
        /* the taps of the next 64 channels, or of this thread's likely next item, come while this one multiplies */
        const uint8_t *coming = w->weights + panel * w->panel_bytes + PACKED_HEAD + (c + DEPTH) * 9 * PACKED_ROW;
        if (c + DEPTH >= w->c) coming = w->weights + (panel + w->group * w->threads) * w->panel_bytes;
        const uint8_t *end = w->weights + w->panels * w->panel_bytes;
        for (int point = 0; point < POINTS; point++) {
            for (long l = 0; l < DEPTH * 9 * PACKED_ROW / POINTS + 64; l += 64)
                if (coming + l < end) __builtin_prefetch(coming + l, 0, 2);
            coming += DEPTH * 9 * PACKED_ROW / POINTS;
            for (long p = 0; p < panels; p++)
                vitrail_panel(tiles, depth, v + point * w->plane, 0, u + (p * POINTS + point) * FILTERS,
                              m + (p * POINTS + point) * plane, PANEL, c > 0);
        }
    }
    for (long t = 0; t < tiles; t++)
        for (long p = 0; p < panels; p++)
            NAME(output_tile)(w, w->first + from + t, m + p * POINTS * plane + t * PANEL, plane, (panel + p) * PANEL);
}

static void NAME(run)(Winograd *w, long super, int threads) {
    const long all = w->pictures * w->tiles_y * w->tiles_x;
    for (w->first = 0; w->first < all; w->first += super) {
        w->count = all - w->first < super ? all - w->first : super;
        vitrail_share(NAME(input_tile), w, w->count, threads);
        vitrail_share(NAME(products), w, (w->count + w->block - 1) / w->block * w->groups, threads);
    }
}

#undef SIDE
#undef POINTS
#undef PA
#undef PB
#undef PC
#undef A2
#undef B2
#undef C2
