/*
 * Private: the standard deviation of each output, as docs/numerics.md defines it ("Standard deviation of an output").
 * edgedistill/numerics/deviation.py is the same in Python.
 *
 * The variance grows with the decoded speed, and with the number of lost channels, which picks a row of the tables
 * (C + 1, K).
 */
#ifndef ED_DEVIATION_H
#define ED_DEVIATION_H

#include <stdint.h>

#include "ed_math.h"

#define ED_FASTEST 64.0f /* speeds beyond it count as this, so that no product can overflow */

/* Writes the deviation (K) of kinematics (K) in a bin with `lost` channels, in the outputs' units. */
static void ed_deviate(const float *restrict kinematics, uint32_t lost, float *restrict deviation) {
    float speed = 0.0f;
    for (int o = 0; o < ED_OUTPUTS; o++) {
        const float away = (kinematics[o] - ed_output_center[o]) * ed_output_weight[o];
        speed = speed + away * away;
    }
    speed = ed_select(speed < ED_FASTEST, speed, ED_FASTEST); /* NaN becomes the largest */
    for (int o = 0; o < ED_OUTPUTS; o++)
        deviation[o] = __builtin_sqrtf(ed_variance_at_rest[lost][o] + ed_variance_by_speed[lost][o] * speed);
}

#endif
