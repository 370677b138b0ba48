/*
 * Private: lost channels are filled in from the others, and the common average is subtracted, as docs/numerics.md
 * defines it ("Fill-in and common average"). edgedistill/frontend/spatial.py is the same in Python.
 *
 * A bin has ED_FE_FEATURES numbers for each of ED_FE_CHANNELS channels. Each feature is filled in by itself, from the
 * same feature of the other channels and with tables of its own. The average is that of the slow LFP, feature 0.
 *
 * What lost channels would have shown is their conditional mean given the others. ED_FE_FILL_SWEEPS steps of conjugate
 * gradients compute it, whatever is lost, so that every bin takes the same time. No branch depends on data.
 *
 * Layout   Vectors of channels are padded with zeros to whole lanes, ED_CP values. `ed_coupling` (F, C, C) lies feature
 *          after feature in stripes of ED_STRIPE columns, each with its rows one after another, padded with zeros to
 *          four rows. A stripe's sums stay in registers while its rows stream by once.
 * Order    A product adds four rows at a time, and a sum of channels goes by lanes.
 * Cost     For each feature one product to begin with and one for each sweep. 96 channels and 8 sweeps are 83,000
 *          products and as many sums for a feature, over 37 kB that are read 9 times. With one 64-byte load a cycle
 *          that is 5,200 cycles. Measured for the slow LFP alone on an AMD EPYC core with AVX-512, p50: 2.4 us (512-bit
 *          vectors), 2.4 us (256-bit), 4.8 us (SSE2); 0.5 us at 32 channels. What its nearest cache does not hold comes
 *          from the next one, whose bandwidth is the limit.
 */
#ifndef ED_SPATIAL_H
#define ED_SPATIAL_H

#include <stddef.h>
#include <stdint.h>

#include "ed_math.h"
#include "ed_vectors.h"

#define ED_INPUTS (ED_FE_FEATURES * ED_FE_CHANNELS) /* numbers in a bin, feature after feature */
#define ED_CP ED_UP(ED_FE_CHANNELS, ED_LANES)
#define ED_COUPLING_ROWS ED_UP(ED_FE_CHANNELS, 4)
#define ED_STRIPE 32 /* columns; the last stripe has 16 if ED_CP is no multiple */
#define ED_STRIPES ((ED_CP + ED_STRIPE - 1) / ED_STRIPE)

#define ED_LEAST_SQUARE 0x1p-100f /* a smaller square is that of a solution which is already exact */

/* Room for the numbers of a bin, feature after feature. Each feature is written with its padding, which runs over into
 * the next one, which is written after it. */
#define ED_INPUTS_ROOM (ED_INPUTS - ED_FE_CHANNELS + ED_CP)

/* A number for each channel, padded with zeros. */
typedef union {
    ed_floats vector[ED_CP / ED_FLOATS];
    float value[ED_CP];
} ed_across;

/* Which channels are meant: -1, or 0. */
typedef union {
    ed_float_mask vector[ED_CP / ED_FLOATS];
    int32_t value[ED_CP];
} ed_channel_mask;

#define ED_ACROSS(v) for (int v = 0; v < ED_CP / ED_FLOATS; v++)

/* The lanes of a sum over channels. */
typedef union {
    ed_floats vector[ED_LANES / ED_FLOATS];
    float value[ED_LANES];
} ed_lanes;

ED_INLINE float ed_across_sum(const ed_across *x) {
    ed_lanes lanes;
    memcpy(&lanes, x, sizeof lanes);
    for (int v = ED_LANES / ED_FLOATS; v < ED_CP / ED_FLOATS; v++)
        lanes.vector[v % (ED_LANES / ED_FLOATS)] += x->vector[v];
    return ed_fold_lanes(lanes.value);
}

ED_INLINE float ed_across_product(const ed_across *x, const ed_across *y) {
    ed_lanes lanes;
    for (int v = 0; v < ED_LANES / ED_FLOATS; v++) lanes.vector[v] = x->vector[v] * y->vector[v];
    for (int v = ED_LANES / ED_FLOATS; v < ED_CP / ED_FLOATS; v++)
        lanes.vector[v % (ED_LANES / ED_FLOATS)] += x->vector[v] * y->vector[v];
    return ed_fold_lanes(lanes.value);
}

/* Computes y (columns) = coupling x for one stripe w (ED_COUPLING_ROWS, columns). */
ED_INLINE void ed_couple_stripe(const ed_floats *restrict w, const float *restrict x, int columns,
                                ed_floats *restrict y) {
    const int n = columns / ED_FLOATS;
    const ed_floats zero = {0};
    ed_floats total[ED_STRIPE / ED_FLOATS];
    for (int v = 0; v < n; v++) total[v] = zero;
    for (int j = 0; j < ED_COUPLING_ROWS; j += 4, w += 4 * n) {
        const float a = x[j], b = x[j + 1], c = x[j + 2], d = x[j + 3];
        ED_UNROLL
        for (int v = 0; v < n; v++) total[v] += (a * w[v] + b * w[n + v]) + (c * w[2 * n + v] + d * w[3 * n + v]);
    }
    for (int v = 0; v < n; v++) y[v] = total[v];
}

/* Computes y = coupling x for the coupling of one feature. Every other call goes through the stripes backward, because
 * those that were read last are still in the nearest cache. */
static void ed_couple(const float *restrict coupling, const ed_across *restrict x, int backward,
                      ed_across *restrict y) {
    for (int i = 0; i < ED_STRIPES; i++) {
        const int stripe = backward ? ED_STRIPES - 1 - i : i, at = stripe * ED_STRIPE;
        const ed_floats *w = (const ed_floats *)(const void *)(coupling + (ptrdiff_t)at * ED_COUPLING_ROWS);
        if (at + ED_STRIPE <= ED_CP)
            ed_couple_stripe(w, x->value, ED_STRIPE, y->vector + at / ED_FLOATS);
        else
            ed_couple_stripe(w, x->value, ED_CP % ED_STRIPE, y->vector + at / ED_FLOATS);
    }
}

/* Returns top / bottom, and 0 where bottom is too small for that. */
ED_INLINE float ed_ratio(float top, float bottom) {
    const float ratio = top / (bottom > ED_LEAST_SQUARE ? bottom : ED_LEAST_SQUARE);
    return bottom > ED_LEAST_SQUARE ? ratio : 0.0f;
}

ED_INLINE const ed_floats *ed_table(const float *table) { return (const ed_floats *)(const void *)table; }

/* Writes x: feature f in `present`, with what the `lost` channels would have shown. `average` is that of the channels
 * that are there. */
ED_INLINE void ed_fill_in(int f, const ed_across *restrict present, const ed_channel_mask *restrict lost, float average,
                          ed_across *restrict x) {
    const ed_floats zero = {0}, *scale = ed_table(ed_coupling_scale[f]), *inverse = ed_table(ed_coupling_inverse[f]);
    const float *coupling = ed_coupling[f];
    const ed_float_mask no_mask = {0};
    ed_across y, r, p, q;
    ED_ACROSS(v) y.vector[v] = ed_choose_floats(lost->vector[v], zero + average, present->vector[v]) * scale[v];
    ed_couple(coupling, &y, 1, &q);
    ED_ACROSS(v) p.vector[v] = r.vector[v] = ed_choose_floats(lost->vector[v], -q.vector[v], zero);
    float power = ed_across_product(&r, &r);
    for (int sweep = 0; sweep < ED_FE_FILL_SWEEPS; sweep++) {
        ed_couple(coupling, &p, sweep & 1, &q);
        const float alpha = ed_ratio(power, ed_across_product(&p, &q));
        ED_ACROSS(v) {
            y.vector[v] = y.vector[v] + alpha * p.vector[v];
            r.vector[v] = ed_choose_floats(lost->vector[v], r.vector[v] - alpha * q.vector[v], zero);
        }
        if (sweep + 1 == ED_FE_FILL_SWEEPS) break;
        const float next = ed_across_product(&r, &r), beta = ed_ratio(next, power);
        const ed_float_mask going = no_mask - (int32_t)(next > ED_LEAST_SQUARE);
        ED_ACROSS(v) {
            p.vector[v] = ed_choose_floats(going, r.vector[v] + beta * p.vector[v], zero);
            r.vector[v] = ed_choose_floats(going, r.vector[v], zero);
        }
        power = next;
    }
    ED_ACROSS(v) x->vector[v] = ed_choose_floats(lost->vector[v], y.vector[v] * inverse[v], present->vector[v]);
}

/* Writes feature f of the models' input to z (ED_CP), for its standardized numbers `present`. Returns the number of
 * channels that are there and known in this feature. */
ED_INLINE uint32_t ed_complete_feature(int f, const ed_across *restrict present, const uint32_t *restrict there,
                                       float *restrict z) {
    ed_across x;
    ed_channel_mask lost;
    uint32_t n = 0;
    for (int c = 0; c < ED_CP; c++) {
        const uint32_t known = ed_channel_gain[f][c] > 0.0f;
        lost.value[c] = -(int32_t)(known & (there[c] ^ 1u));
        n += known & there[c];
    }
    ed_fill_in(f, present, &lost, ed_across_sum(present) / (float)(n ? n : 1), &x);
    /* one channel alone is its own average */
    const int averaged = ED_FE_COMMON_AVERAGE && ED_KNOWN_CHANNELS > 1 && f == 0;
    const float average = averaged ? ed_across_sum(&x) / (float)ED_KNOWN_CHANNELS : 0.0f;
    ED_ACROSS(v) {
        const ed_floats of_vector = (x.vector[v] - average) * ed_table(ed_channel_gain[f])[v];
        memcpy(z + v * ED_FLOATS, &of_vector, sizeof of_vector);
    }
    return n;
}

/* Writes the models' input z (ED_INPUTS_ROOM) for the standardized numbers `present` (F), which are 0 where there
 * (ED_CP) is 0 or the number is not known. Channels whose slow LFP is not known are never there. Returns the number of
 * lost channels. It is a function of its own, so that its vectors have left the stack before the step. */
static __attribute__((noinline)) uint32_t ed_spatial_complete(const ed_across *restrict present,
                                                              const uint32_t *restrict there, float *restrict z) {
    const uint32_t n = ed_complete_feature(0, &present[0], there, z);
    for (int f = 1; f < ED_FE_FEATURES; f++) ed_complete_feature(f, &present[f], there, z + f * ED_FE_CHANNELS);
    return ED_KNOWN_CHANNELS - n;
}

#endif
