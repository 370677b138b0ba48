/*
 * Private: the mean and deviation by which channels are standardized, as docs/numerics.md defines it ("Standardized
 * channels", "Statistics that follow"). edgedistill/frontend/statistics.py is the same in Python.
 *
 * With ED_FE_FOLLOWS they follow the signal. Otherwise they stay, and nothing of that is compiled in. No branch depends
 * on samples.
 */
#ifndef ED_STATISTICS_H
#define ED_STATISTICS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "ed_spatial.h"

#define ED_WILD 0x1p20f       /* deviations; a channel beyond is bad in that bin */
#define ED_FARTHEST 4.0       /* deviations; a value beyond counts as this far */
#define ED_LARGEST_UV 0x1p256 /* no stream comes near it, and below it no square overflows */

/* Mean and deviation in uV. The struct has no padding and is exchanged as it is. */
typedef struct {
    double mean[ED_CHANNELS], std[ED_CHANNELS];
} ed_statistics;

/* Standardizes the values (C) of a bin in uV, of which those with a 1 in `bad` (C) are not used. Writes `present`
 * (ED_CP), which is 0 where there (ED_CP) is 0. Returns the number of bad channels, those that are far beyond every
 * signal among them. */
static uint32_t ed_standardize(const ed_statistics *statistics, const double *restrict value,
                               const uint32_t *restrict bad, ed_across *restrict present, uint32_t *restrict there) {
    const double *restrict mean = statistics->mean, *restrict std = statistics->std;
    float score[ED_CHANNELS];
    uint32_t n_bad = 0;
    for (int c = 0; c < ED_CHANNELS; c++) {
        const double wide = std[c], divisor = wide > 0.0 ? wide : 1.0;
        score[c] = (float)((value[c] - mean[c]) / divisor);
    }
    for (int c = 0; c < ED_CHANNELS; c++) there[c] = (bad[c] ^ 1u) & (uint32_t)(std[c] > 0.0);
    for (int c = 0; c < ED_CHANNELS; c++) {
        const uint32_t tame = (uint32_t)(__builtin_fabsf(score[c]) <= ED_WILD); /* false for NaN */
        n_bad += bad[c] | (there[c] & (tame ^ 1u));
        there[c] &= tame & (uint32_t)(ed_channel_gain[c] > 0.0f);
        present->value[c] = there[c] ? score[c] : 0.0f;
    }
    for (int c = ED_CHANNELS; c < ED_CP; c++) present->value[c] = 0.0f, there[c] = 0;
    return n_bad;
}

#if ED_FE_FOLLOWS
/* Lets the statistics of the channels that are there follow their values. counts is 0 for a bin of the warm-up or of a
 * gap, which changes nothing and takes the same time. */
static void ed_statistics_update(ed_statistics *statistics, const double *restrict value,
                                 const uint32_t *restrict there, uint32_t counts) {
    double *restrict mean = statistics->mean, *restrict std = statistics->std;
    for (int c = 0; c < ED_CHANNELS; c++) {
        const uint32_t follows = counts & there[c];
        const double far = ED_FARTHEST * std[c], square = std[c] * std[c], off = value[c] - mean[c];
        const double above = off > -far ? off : -far, away = above < far ? above : far;
        const double next = mean[c] + ED_FE_FOLLOW_RATE * away;
        const double wide = __builtin_sqrt(square + ED_FE_FOLLOW_RATE * (away * away - square));
        mean[c] = follows ? next : mean[c];
        std[c] = follows ? wide : std[c];
    }
}

/* Tells whether a stream can have these statistics. It refuses NaN. */
static int ed_are_statistics(const ed_statistics *in) {
    int fine = 1;
    for (int c = 0; c < ED_CHANNELS; c++) {
        fine &= __builtin_fabs(in->mean[c]) <= ED_LARGEST_UV;
        fine &= in->std[c] >= 0.0 && in->std[c] <= ED_LARGEST_UV;
    }
    return fine;
}
#endif

#endif
