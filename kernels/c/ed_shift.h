/*
 * Private: the running amplitude of a stream, which tells when a recording has shifted, as docs/numerics.md defines it
 * ("Running amplitude"). edgedistill/runtime/shift.py is the same in Python.
 *
 * Layout   `power` (C,) is the running mean square of the slow LFP of each channel in the models' input, 1 at the
 *          start. The struct has no padding and is exchanged as it is.
 * Cost     A bin of 96 channels takes 7 operations a channel, which vectorize. No branch depends on samples, and no
 *          number is denormal.
 * Memory   4 C + 4 bytes.
 */
#ifndef ED_SHIFT_H
#define ED_SHIFT_H

#include <stddef.h>
#include <stdint.h>

#include "ed_math.h"

#define ED_SHIFT_RATE 0x1p-9f   /* of the running mean: 512 bins */
#define ED_SHIFT_LEAST 0x1p-30f /* magnitudes of z that count; their squares are 2^-60 and 256 */
#define ED_SHIFT_MOST 16.0f
#define ED_SHIFT_LOW 0.0625f /* a quarter and four times the expected amplitude, squared */
#define ED_SHIFT_HIGH 16.0f
#define ED_SHIFT_BINS 1000u /* 10 s */

typedef struct {
    uint32_t outside_bins; /* bins in a row in which most channels were outside, at most ED_SHIFT_BINS */
    float power[ED_FE_CHANNELS];
} ed_shift;

static inline void ed_shift_reset(ed_shift *shift) {
    shift->outside_bins = 0;
    for (size_t c = 0; c < ED_FE_CHANNELS; c++) shift->power[c] = 1.0f;
}

/* Takes the slow LFP (C,) of a bin of the models' input. there (C,) is 1 for channels that are there. counts is 0 for a
 * bin of the warm-up or of a gap, which changes nothing and takes the same time. */
static inline void ed_shift_update(ed_shift *shift, const float *restrict z, const uint32_t *restrict there,
                                   uint32_t counts) {
    float *restrict power = shift->power;
    uint32_t n = 0, outside = 0;
    for (size_t c = 0; c < ED_FE_CHANNELS; c++) {
        const uint32_t usable = counts & there[c];
        const float tame = ed_clip(__builtin_fabsf(z[c]), ED_SHIFT_LEAST, ED_SHIFT_MOST);
        const float next = power[c] + (tame * tame - power[c]) * ED_SHIFT_RATE;
        const float now = ed_select((int)usable, next, power[c]);
        power[c] = now;
        n += usable;
        outside += usable & ((uint32_t)(now < ED_SHIFT_LOW) | (uint32_t)(now > ED_SHIFT_HIGH));
    }
    const uint32_t more = shift->outside_bins + (shift->outside_bins < ED_SHIFT_BINS);
    const uint32_t counted = 2 * outside > n ? more : 0;
    shift->outside_bins = n ? counted : shift->outside_bins;
}

/* Tells whether a stream can have this state. It refuses NaN. */
static inline int ed_shift_is_state(const ed_shift *in) {
    int fine = in->outside_bins <= ED_SHIFT_BINS;
    for (size_t c = 0; c < ED_FE_CHANNELS; c++)
        fine &= in->power[c] >= ED_SHIFT_LEAST * ED_SHIFT_LEAST && in->power[c] <= ED_SHIFT_MOST * ED_SHIFT_MOST;
    return fine;
}

#endif
