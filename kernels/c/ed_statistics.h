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

/* Mean and deviation, in uV and then in units of the logarithm. The struct has no padding and is exchanged as it is. */
typedef struct {
    double mean[ED_INPUTS], std[ED_INPUTS];
} ed_statistics;

/* Computes the scores (C) of a band, 0 where the deviation is 0. Sets lost (C) to 1 where one is far beyond every
 * signal. */
ED_INLINE void ed_standardize_band(const double *restrict value, const double *restrict mean,
                                   const double *restrict std, float *restrict score, uint32_t *restrict lost) {
    for (int c = 0; c < ED_FE_CHANNELS; c++) {
        const double wide = std[c], divisor = wide > 0.0 ? wide : 1.0, found = (value[c] - mean[c]) / divisor;
        score[c] = (float)(wide > 0.0 ? found : 0.0);
    }
    for (int c = 0; c < ED_FE_CHANNELS; c++) lost[c] |= (uint32_t)(__builtin_fabsf(score[c]) <= ED_WILD) ^ 1u;
}

/* Standardizes the values (F, padded C) of a bin, of which the channels with a 1 in `bad` (C) are not used. Writes
 * `present` (F), which is 0 where there (ED_CP) is 0 or the number is not known. Returns the number of bad channels,
 * those that are far beyond every signal among them. */
static uint32_t ed_standardize(const ed_statistics *statistics, const double (*restrict value)[ED_FE_PADDED],
                               const uint32_t *restrict bad, ed_across *restrict present, uint32_t *restrict there) {
    const double *restrict mean = statistics->mean, *restrict std = statistics->std;
    float score[ED_FE_FEATURES][ED_FE_CHANNELS];
    uint32_t lost[ED_FE_CHANNELS], n_bad = 0;
    memcpy(lost, bad, sizeof lost);
    for (int f = 1, at = ED_FE_CHANNELS; f < ED_FE_FEATURES; f++, at += ED_FE_CHANNELS)
        ed_standardize_band(value[f], mean + at, std + at, score[f], lost);
    for (int c = 0; c < ED_FE_CHANNELS; c++) {
        const double wide = std[c], divisor = wide > 0.0 ? wide : 1.0;
        score[0][c] = (float)((value[0][c] - mean[c]) / divisor);
    }
    for (int c = 0; c < ED_FE_CHANNELS; c++) there[c] = (lost[c] ^ 1u) & (uint32_t)(std[c] > 0.0);
    for (int c = 0; c < ED_FE_CHANNELS; c++) {
        const uint32_t tame = (uint32_t)(__builtin_fabsf(score[0][c]) <= ED_WILD); /* false for NaN */
        n_bad += lost[c] | (there[c] & (tame ^ 1u));
        there[c] &= tame & (uint32_t)(ed_channel_gain[0][c] > 0.0f);
        present->value[c] = there[c] ? score[0][c] : 0.0f;
    }
    for (int c = ED_FE_CHANNELS; c < ED_CP; c++) present->value[c] = 0.0f, there[c] = 0;
    for (int f = 1; f < ED_FE_FEATURES; f++) {
        for (int c = 0; c < ED_FE_CHANNELS; c++)
            present[f].value[c] = there[c] & (uint32_t)(ed_channel_gain[f][c] > 0.0f) ? score[f][c] : 0.0f;
        for (int c = ED_FE_CHANNELS; c < ED_CP; c++) present[f].value[c] = 0.0f;
    }
    return n_bad;
}

#if ED_FE_FOLLOWS
/* Lets mean and std (C) of one feature follow its values (C), for channels that are there. counts is 0 for a bin of the
 * warm-up or of a gap, which changes nothing and takes the same time. */
ED_INLINE void ed_follow(double *restrict mean, double *restrict std, const double *restrict value,
                         const uint32_t *restrict there, uint32_t counts) {
    for (int c = 0; c < ED_FE_CHANNELS; c++) {
        const uint32_t follows = counts & there[c];
        const double far = ED_FARTHEST * std[c], square = std[c] * std[c], off = value[c] - mean[c];
        const double above = off > -far ? off : -far, away = above < far ? above : far;
        const double next = mean[c] + ED_FE_FOLLOW_RATE * away;
        const double wide = __builtin_sqrt(square + ED_FE_FOLLOW_RATE * (away * away - square));
        mean[c] = follows ? next : mean[c];
        std[c] = follows ? wide : std[c];
    }
}

static void ed_statistics_update(ed_statistics *statistics, const double (*restrict value)[ED_FE_PADDED],
                                 const uint32_t *restrict there, uint32_t counts) {
    for (int f = 0; f < ED_FE_FEATURES; f++)
        ed_follow(statistics->mean + f * ED_FE_CHANNELS, statistics->std + f * ED_FE_CHANNELS, value[f], there, counts);
}

/* Tells whether a stream can have these statistics. It refuses NaN. */
static int ed_are_statistics(const ed_statistics *in) {
    int fine = 1;
    for (int i = 0; i < ED_INPUTS; i++) {
        fine &= __builtin_fabs(in->mean[i]) <= ED_LARGEST_UV;
        fine &= in->std[i] >= 0.0 && in->std[i] <= ED_LARGEST_UV;
    }
    return fine;
}
#endif

#endif
