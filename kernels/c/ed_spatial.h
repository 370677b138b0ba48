/*
 * Private: lost channels are filled in from the others, and the common average is subtracted, as docs/numerics.md
 * defines it ("Fill-in and common average"). edgedistill/frontend/spatial.py is the same in Python.
 *
 * What lost channels would have shown is their conditional mean given the others. ED_FE_FILL_SWEEPS steps of conjugate
 * gradients compute it, whatever is lost, so that every bin takes the same time. No branch depends on data.
 *
 * Layout   Vectors are padded with zeros to whole lanes, ED_CP values. `ed_coupling` (C, C) lies in stripes of
 *          ED_STRIPE columns, each with its rows one after another, padded with zeros to four rows. A stripe's sums stay
 *          in registers while its rows stream by once.
 * Order    A product adds four rows at a time, and a sum of channels goes by lanes.
 */
#ifndef ED_SPATIAL_H
#define ED_SPATIAL_H

#include <stddef.h>
#include <stdint.h>

#include "ed_math.h"

#define ED_CP ED_UP(ED_CHANNELS, ED_LANES)
#define ED_COUPLING_ROWS ED_UP(ED_CHANNELS, 4)
#define ED_STRIPE 32 /* columns; the last stripe has 16 if ED_CP is no multiple */

#define ED_LEAST_SQUARE 0x1p-100f /* a smaller square is that of a solution which is already exact */

ED_INLINE float ed_lane_sum(const float *x, int n) {
    float lanes[ED_LANES];
    for (int i = 0; i < ED_LANES; i++) lanes[i] = x[i];
    for (int at = ED_LANES; at < n; at += ED_LANES)
        for (int i = 0; i < ED_LANES; i++) lanes[i] = lanes[i] + x[at + i];
    return ed_fold_lanes(lanes);
}

/* Computes y (columns) = coupling x for one stripe w (ED_COUPLING_ROWS, columns). */
ED_INLINE void ed_couple_stripe(const float *restrict w, const float *restrict x, int columns, float *restrict y) {
    float total[ED_STRIPE];
    for (int i = 0; i < columns; i++) total[i] = 0.0f;
    for (int j = 0; j < ED_COUPLING_ROWS; j += 4, w += 4 * columns) {
        const float a = x[j], b = x[j + 1], c = x[j + 2], d = x[j + 3];
        for (int i = 0; i < columns; i++)
            total[i] = total[i] + ((a * w[i] + b * w[columns + i]) + (c * w[2 * columns + i] + d * w[3 * columns + i]));
    }
    for (int i = 0; i < columns; i++) y[i] = total[i];
}

/* Computes y (ED_CP) = coupling x (ED_CP). */
static void ed_couple(const float *restrict x, float *restrict y) {
    int at = 0;
    for (; at + ED_STRIPE <= ED_CP; at += ED_STRIPE)
        ed_couple_stripe(ed_coupling + (ptrdiff_t)at * ED_COUPLING_ROWS, x, ED_STRIPE, y + at);
    if (ED_CP % ED_STRIPE) ed_couple_stripe(ed_coupling + (ptrdiff_t)at * ED_COUPLING_ROWS, x, ED_CP % ED_STRIPE, y + at);
}

/* Returns top / bottom, and 0 where bottom is too small for that. */
ED_INLINE float ed_ratio(float top, float bottom) {
    const int fine = bottom > ED_LEAST_SQUARE;
    return ed_select(fine, top / ed_select(fine, bottom, 1.0f), 0.0f);
}

/* Writes x (ED_CP): `present`, with what the `lost` channels would have shown. `average` is that of the channels that
 * are there. */
ED_INLINE void ed_fill_in(const float *restrict present, const uint32_t *restrict lost, float average,
                          float *restrict x) {
    ED_ALIGNED float y[ED_CP], r[ED_CP], p[ED_CP], q[ED_CP];
    for (int c = 0; c < ED_CP; c++) y[c] = (lost[c] ? average : present[c]) * ed_coupling_scale[c];
    ed_couple(y, q);
    for (int c = 0; c < ED_CP; c++) p[c] = r[c] = lost[c] ? -q[c] : 0.0f;
    float power = ed_lane_product(r, r, ED_CP);
    for (int sweep = 0; sweep < ED_FE_FILL_SWEEPS; sweep++) {
        ed_couple(p, q);
        const float alpha = ed_ratio(power, ed_lane_product(p, q, ED_CP));
        for (int c = 0; c < ED_CP; c++) {
            y[c] = y[c] + alpha * p[c];
            r[c] = lost[c] ? r[c] - alpha * q[c] : 0.0f;
        }
        const float next = ed_lane_product(r, r, ED_CP), beta = ed_ratio(next, power);
        for (int c = 0; c < ED_CP; c++) p[c] = r[c] + beta * p[c];
        power = next;
    }
    for (int c = 0; c < ED_CP; c++) x[c] = lost[c] ? y[c] * ed_coupling_inverse[c] : present[c];
}

/* Writes the models' input z (ED_CP) for standardized channels `present` (ED_CP), which are 0 where there (ED_CP) is 0.
 * Channels that are not known are never there. Returns the number of lost channels. */
static uint32_t ed_spatial_complete(const float *restrict present, const uint32_t *restrict there, float *restrict z) {
    ED_ALIGNED float x[ED_CP];
    ED_ALIGNED uint32_t lost[ED_CP];
    uint32_t n = 0;
    for (int c = 0; c < ED_CP; c++) {
        lost[c] = (uint32_t)(ed_channel_gain[c] > 0.0f) & (there[c] ^ 1u);
        n += there[c];
    }
    ed_fill_in(present, lost, ed_lane_sum(present, ED_CP) / (float)(n ? n : 1), x);
    const int averaged = ED_FE_COMMON_AVERAGE && ED_KNOWN_CHANNELS > 1; /* one channel alone is its own average */
    const float average = averaged ? ed_lane_sum(x, ED_CP) / (float)ED_KNOWN_CHANNELS : 0.0f;
    for (int c = 0; c < ED_CP; c++) z[c] = (x[c] - average) * ed_channel_gain[c];
    return ED_KNOWN_CHANNELS - n;
}

#endif
