/*
 * Private: the filter that smooths the outputs, as docs/numerics.md defines it ("Smoothed output").
 * edgedistill/numerics/smoothing.py is the same in Python. Only a model with such a filter includes this file.
 *
 * Layout   The state (S,) holds the kinematics of the last bin or of the last two, about their mean.
 * Cost     S (S + K) products and sums, 24 for two outputs and two bins. No branch depends on values, and no number of
 *          the state is denormal.
 * Memory   4 S bytes, and 4 (S (S + K) + 2 K) of constants.
 */
#ifndef ED_SMOOTHING_H
#define ED_SMOOTHING_H

#include "ed_math.h"

#define ED_SMOOTHING_LEAST 0x1p-100f /* a state below it becomes 0 */
#define ED_SMOOTHING_MOST 0x1p80f    /* of raw outputs and states, so that no sum can overflow */

static inline void ed_smoothing_reset(float *state) {
    for (int i = 0; i < ED_SMOOTHING_STATES; i++) state[i] = 0.0f;
}

/* Takes the raw kinematics (K,) of a bin and writes the smoothed ones (K,). Where a raw value is not finite or too
 * large, the raw ones are written and the state stays. */
static inline void ed_smooth(float *restrict state, const float *restrict raw, float *restrict kinematics) {
    float away[ED_OUTPUTS], next[ED_SMOOTHING_STATES];
    int usable = 1;
    for (int k = 0; k < ED_OUTPUTS; k++) {
        usable &= __builtin_fabsf(raw[k]) <= ED_SMOOTHING_MOST;
        away[k] = raw[k] - ed_smoothing_raw_mean[k];
    }
    for (int i = 0; i < ED_SMOOTHING_STATES; i++) {
        float total = 0.0f;
        for (int j = 0; j < ED_SMOOTHING_STATES; j++) total = total + ed_smoothing_keep[i][j] * state[j];
        for (int k = 0; k < ED_OUTPUTS; k++) total = total + ed_smoothing_gain[i][k] * away[k];
        total = ed_clip(total, -ED_SMOOTHING_MOST, ED_SMOOTHING_MOST);
        next[i] = ed_select(__builtin_fabsf(total) < ED_SMOOTHING_LEAST, 0.0f, total);
    }
    for (int i = 0; i < ED_SMOOTHING_STATES; i++) state[i] = ed_select(usable, next[i], state[i]);
    for (int k = 0; k < ED_OUTPUTS; k++) kinematics[k] = ed_select(usable, state[k] + ed_smoothing_mean[k], raw[k]);
}

/* Tells whether a stream can have this state. It refuses NaN. */
static inline int ed_is_smoothing_state(const float *state) {
    int fine = 1;
    for (int i = 0; i < ED_SMOOTHING_STATES; i++) {
        const float size = __builtin_fabsf(state[i]);
        fine &= size <= ED_SMOOTHING_MOST && (size >= ED_SMOOTHING_LEAST || size == 0.0f);
    }
    return fine;
}

#endif
