/*
 * Private: moving a stream of the front end. ed_fe_export writes the state of an ed_fe_state to an ed_fe_exchange, and
 * ed_fe_import goes on from it, in this engine or another.
 */
#ifndef ED_FRONTEND_STATE_H
#define ED_FRONTEND_STATE_H

#include <float.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "ed_frontend.h"

#define ED_FE_LARGEST_STATE 0x1p256
#define ED_FE_LARGEST_POWER 0x1p512

/* A stream's state as exchanged: native byte order, no padding inside, and sizeof is a multiple of 8. Names and meaning
 * are those of FrontEnd.export_state; edgedistill/runtime/c_state.py converts. Inside a bin, Python keeps raw frames in `pending`. With D > 1, C keeps there the decimated
 * samples so far, and the values of decimator, part_low, part_high and broken are those after the last frame. */
typedef struct {
    int64_t frame;       /* at most ED_CLOCK_MOST */
    int64_t pending_gap; /* 1: the bin in progress has lost frames */
    int64_t lost_bins;   /* bins with lost frames in a row, at most ED_FE_BRIDGED_BINS + 1 */
#if ED_FE_DECIMATION > 1
    double decimator[ED_FE_DECIMATOR_SECTIONS][ED_FE_CHANNELS][2];
#endif
    double shaper[ED_FE_SHAPER_SECTIONS][ED_FE_CHANNELS][2];
#if ED_FE_BANDS
    double bands[ED_FE_BANDS * ED_FE_BAND_SECTIONS][ED_FE_CHANNELS][2]; /* band after band */
    double power[ED_FE_BANDS][ED_FE_CHANNELS];                          /* from 2^-20 to 2^512 uV^2 */
#endif
    double pending[ED_FE_KEPT][ED_FE_CHANNELS]; /* zero beyond the rows that are here */
    double clean[ED_FE_CHANNELS];               /* whole numbers, at most ED_FE_SETTLED_BINS */
    double lowest[ED_FE_CHANNELS];
    double highest[ED_FE_CHANNELS];
#if ED_FE_DECIMATION > 1
    double part_low[ED_FE_CHANNELS]; /* range of the bin in progress, (inf, -inf) at its start */
    double part_high[ED_FE_CHANNELS];
    double broken[ED_FE_CHANNELS];
#endif
#if ED_FE_HISTORY > 1
    float low[ED_FE_HISTORY - 1][ED_FE_CHANNELS]; /* oldest first; all values are float32, as samples are */
    float high[ED_FE_HISTORY - 1][ED_FE_CHANNELS];
#endif
} ed_fe_exchange;

/* Writes everything that later bins depend on. It must not be called between an ed_fe_take that completed a bin and the
 * ed_fe_finish_bin of that bin. */
static inline void ed_fe_export(const ed_fe_state *fe, ed_fe_exchange *out) {
    const ed_channels *channels = &fe->channels;
    memset(out, 0, sizeof *out);
    out->frame = (int64_t)fe->clock.frame;
    out->pending_gap = fe->lost;
    out->lost_bins = fe->lost_bins;
    ed_fe_sections_out(ED_FE_SHAPER_SECTIONS, out->shaper, fe->shaper[0]);
#if ED_FE_BANDS
    ed_fe_sections_out(ED_FE_BANDS * ED_FE_BAND_SECTIONS, out->bands, fe->bands.filter[0]);
    for (size_t b = 0; b < ED_FE_BANDS; b++)
        for (size_t c = 0; c < ED_FE_CHANNELS; c++)
            out->power[b][c] = fe->bands.power[c / ED_FE_SPAN][b].channel[c % ED_FE_SPAN];
#endif
    for (size_t r = 0; r < fe->clock.kept_rows; r++)
        for (size_t c = 0; c < ED_FE_CHANNELS; c++)
            out->pending[r][c] = (double)fe->kept[r][c / ED_FE_SPAN].channel[c % ED_FE_SPAN];
    for (size_t c = 0; c < ED_FE_CHANNELS; c++) {
        out->clean[c] = (double)channels->clean[c];
        out->lowest[c] = (double)channels->lowest[c];
        out->highest[c] = (double)channels->highest[c];
    }
#if ED_FE_DECIMATION > 1
    ed_fe_sections_out(ED_FE_DECIMATOR_SECTIONS, out->decimator, fe->decimator[0]);
    for (size_t c = 0; c < ED_FE_CHANNELS; c++) {
        out->part_low[c] = (double)channels->low[fe->slot][c];
        out->part_high[c] = (double)channels->high[fe->slot][c];
        out->broken[c] = (double)channels->broken[c];
    }
#endif
#if ED_FE_HISTORY > 1
    for (size_t r = 0; r + 1 < ED_FE_HISTORY; r++) {
        const size_t row = (fe->slot + 1 + r) % ED_FE_HISTORY;
        memcpy(out->low[r], channels->low[row], sizeof out->low[0]);
        memcpy(out->high[r], channels->high[row], sizeof out->high[0]);
    }
#endif
}

/* Tells whether filters can hold these numbers. No stream comes near the limit, and below it nothing overflows. */
static inline int ed_fe_are_tame(const double *x, size_t n) {
    int fine = 1;
    for (size_t i = 0; i < n; i++) fine &= __builtin_fabs(x[i]) <= ED_FE_LARGEST_STATE;
    return fine;
}

/* Tells whether filters can hold these states after a bin, which has cleared the small ones. */
static inline int ed_fe_are_cleared(const double *x, size_t n) {
    int fine = ed_fe_are_tame(x, n);
    for (size_t i = 0; i < n; i++) fine &= (x[i] == 0.0) | (__builtin_fabs(x[i]) >= ED_FE_TINY_STATE);
    return fine;
}

#if ED_FE_BANDS
/* Tells whether bands can hold these states and this power. It refuses NaN. */
static inline int ed_fe_are_bands(const ed_fe_exchange *in) {
    int fine = ed_fe_are_cleared(&in->bands[0][0][0], sizeof in->bands / sizeof(double));
    for (size_t b = 0; b < ED_FE_BANDS; b++)
        for (size_t c = 0; c < ED_FE_CHANNELS; c++)
            fine &= in->power[b][c] >= ED_FE_LEAST_POWER && in->power[b][c] <= ED_FE_LARGEST_POWER;
    return fine;
}
#endif

static inline int ed_fe_is_count(double x, uint32_t most) {
    return x >= 0.0 && x <= (double)most && x == (double)(uint32_t)x;
}

/* Tells whether this is a finite float32. The conversion is made only where it is defined. */
static inline int ed_fe_is_sample(double x) { return __builtin_fabs(x) <= FLT_MAX && (double)(float)x == x; }

/* Tells whether samples can have this range: from one to the other, or (inf, -inf) if there was none. */
static inline int ed_fe_is_range_of(double low, double high) {
    const int none = low > FLT_MAX && high < -FLT_MAX;
    return none || (ed_fe_is_sample(low) && ed_fe_is_sample(high) && low <= high);
}

/* Tells whether the channel rules and the ranges of the bin in progress can hold this. */
static inline int ed_fe_is_range_state(const ed_fe_exchange *in) {
    int fine = 1;
    for (size_t c = 0; c < ED_FE_CHANNELS; c++) {
        fine &= ed_fe_is_count(in->clean[c], ED_FE_SETTLED_BINS) & ed_fe_is_range_of(in->lowest[c], in->highest[c]);
#if ED_FE_DECIMATION > 1
        fine &= ed_fe_is_count(in->broken[c], 1) & ed_fe_is_range_of(in->part_low[c], in->part_high[c]);
#endif
    }
#if ED_FE_HISTORY > 1
    for (size_t r = 0; r + 1 < ED_FE_HISTORY; r++)
        for (size_t c = 0; c < ED_FE_CHANNELS; c++) {
            const double low = (double)in->low[r][c], high = (double)in->high[r][c];
            const int before_start = low < -FLT_MAX && high > FLT_MAX;
            fine &= before_start | ed_fe_is_range_of(low, high);
        }
#endif
    return fine;
}

/* Tells whether the samples of the bin in progress are of its frames, and zero beyond them. */
static inline int ed_fe_are_pending(const ed_fe_exchange *in) {
    ed_clock clock;
    ed_clock_set(&clock, (uint64_t)in->frame);
    int fine = 1;
    for (size_t r = 0; r < ED_FE_KEPT; r++)
        for (size_t c = 0; c < ED_FE_CHANNELS; c++) {
            const double x = in->pending[r][c];
#if ED_FE_DECIMATION > 1
            const int possible = ed_fe_are_tame(&x, 1);
#else
            const int possible = !(__builtin_fabs(x) <= DBL_MAX) || ed_fe_is_sample(x); /* as pushed */
#endif
            fine &= r < clock.kept_rows ? possible : x == 0.0;
        }
    return fine;
}

/* Tells whether a stream can have this state. It refuses NaN, which would stay in the filters, and every count from
 * which the clock could overflow. */
static inline int ed_fe_is_state(const ed_fe_exchange *in) {
    int fine = in->frame >= 0 && (uint64_t)in->frame <= ED_CLOCK_MOST;
    fine &= in->pending_gap == 0 || in->pending_gap == 1;
    fine &= in->lost_bins >= 0 && in->lost_bins <= (int64_t)ED_FE_BRIDGED_BINS + 1;
    fine &= ed_fe_are_cleared(&in->shaper[0][0][0], sizeof in->shaper / sizeof(double));
#if ED_FE_BANDS
    fine &= ed_fe_are_bands(in);
#endif
#if ED_FE_DECIMATION > 1
    fine &= ed_fe_are_tame(&in->decimator[0][0][0], sizeof in->decimator / sizeof(double));
#endif
    return fine && ed_fe_is_range_state(in) && ed_fe_are_pending(in);
}

/* Goes on where ed_fe_export left off. Returns 0, or -1 with nothing changed if this cannot be a state. */
static inline int ed_fe_import(ed_fe_state *fe, const ed_fe_exchange *in) {
    ed_channels *channels = &fe->channels;
    if (!ed_fe_is_state(in)) return -1;
    ed_fe_reset(fe); /* slot 0 is the bin in progress; the history follows it, oldest first */
    ed_clock_set(&fe->clock, (uint64_t)in->frame);
    fe->lost = (uint32_t)in->pending_gap;
    fe->lost_bins = (uint32_t)in->lost_bins;
    ed_fe_sections_in(ED_FE_SHAPER_SECTIONS, fe->shaper[0], in->shaper);
#if ED_FE_BANDS
    ed_fe_sections_in(ED_FE_BANDS * ED_FE_BAND_SECTIONS, fe->bands.filter[0], in->bands);
    for (size_t b = 0; b < ED_FE_BANDS; b++)
        for (size_t c = 0; c < ED_FE_CHANNELS; c++)
            fe->bands.power[c / ED_FE_SPAN][b].channel[c % ED_FE_SPAN] = in->power[b][c];
#endif
    for (size_t c = 0; c < ED_FE_CHANNELS; c++) {
        channels->clean[c] = (uint32_t)in->clean[c];
        channels->lowest[c] = (float)in->lowest[c];
        channels->highest[c] = (float)in->highest[c];
    }
    for (size_t r = 0; r < fe->clock.kept_rows; r++)
        for (size_t c = 0; c < ED_FE_CHANNELS; c++)
#if ED_FE_DECIMATION > 1
            fe->kept[r][c / ED_FE_SPAN].channel[c % ED_FE_SPAN] = in->pending[r][c];
    ed_fe_sections_in(ED_FE_DECIMATOR_SECTIONS, fe->decimator[0], in->decimator);
    for (size_t c = 0; c < ED_FE_CHANNELS; c++) {
        channels->low[0][c] = (float)in->part_low[c];
        channels->high[0][c] = (float)in->part_high[c];
        channels->broken[c] = in->broken[c] != 0.0;
    }
#else
            fe->kept[r][c / ED_FE_SPAN].channel[c % ED_FE_SPAN] = (float)in->pending[r][c];
    for (size_t r = 0; r < fe->clock.kept_rows; r++)
        fe->lost |= ed_fe_range((const float *)(const void *)fe->kept[r], channels->low[0], channels->high[0],
                                channels->broken);
#endif
#if ED_FE_HISTORY > 1
    memcpy(channels->low[1], in->low, sizeof in->low);
    memcpy(channels->high[1], in->high, sizeof in->high);
#endif
    for (size_t b = 0; b < ED_FE_BLOCKS; b++) ed_channels_update_block(channels, b);
    return 0;
}

#endif
