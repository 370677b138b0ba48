/*
 * The front end in C: raw frames go in, and the features of every channel come out for each bin, its filtered value and
 * the log power of each band. The bits are those of edgedistill/frontend, however frames are cut into chunks.
 *
 * Four files hold its parts: ed_clock.h (which bin a frame belongs to), ed_channels.h (which channels are bad),
 * ed_filters.h (sections that start from rest) and ed_bands.h (the power of bands). This file ties them together.
 * ed_frontend_state.h moves a stream's state.
 *
 * Include it after the constants that edgedistill/compile writes (ED_FE_CHANNELS and others, and the tables
 * ed_fe_decimator, ed_fe_shaper, ed_fe_bands, their rest states and ed_fe_left_out). It has static functions only,
 * allocates nothing, and needs no libc beyond memcpy and memset.
 *
 *     ed_fe_reset(fe);
 *     while (n > 0) {
 *         size_t used = ed_fe_take(fe, frames, n, &complete);          never goes beyond the end of a bin
 *         frames += used * ED_FE_CHANNELS, n -= used;
 *         if (complete) { values = ed_fe_finish_bin(fe, &bin); ... }   before the next ed_fe_take
 *     }
 *
 * ed_fe_take_i16 and ed_fe_take_gap consume int16 samples and lost frames in the same way. ed_fe_bins_for tells how
 * many bins n further frames will complete.
 *
 * fe       one ed_fe_state for each stream, in memory aligned to 64 bytes
 * Layout   frames (n, C) time-major, as pushed. All state is (section, C) or (row, C), so that loops over channels
 *          vectorize.
 * Order    A low-pass before decimation runs as frames arrive. Everything else waits for the bin's last frame, because
 *          only then is it known whether frames of the bin were lost; the bin's samples wait in `kept`.
 * Lost     A bin with lost frames moves the clock and nothing else: filters, ranges and rules stay as they are, except
 *          that the states of the decimator become zero. Such a bin may take less time than others, and never more.
 * Time     Otherwise no branch depends on samples.
 * Cost     A bin of 10 frames x 96 channels at 1 kHz with 10 sections takes 76,800 operations of float64 in the filters,
 *          half of them products. Measured on an AMD EPYC core with AVX-512, p50 with everything in the nearest cache:
 *          filters 1.8 us, all of it 2.2 us (512-bit vectors), 3.0 us (256-bit), 5.8 us (SSE2). Frames that come from
 *          memory cost 1.3 us more.
 * Memory   100 kB of state at 1 kHz x 96 channels on a Cortex-M7. 77 kB of it are the ranges of the last second, which
 *          the rule for flat channels looks back on.
 */
#ifndef ED_FRONTEND_H
#define ED_FRONTEND_H

#include <float.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "ed_bands.h"
#include "ed_clock.h"
#include "ed_filters.h"

#include "ed_channels.h"

#define ED_FE_CONVERTED 4 /* most int16 frames that are converted at a time */

#if ED_FE_DECIMATION > 1
typedef ed_fe_span ed_fe_kept; /* after the decimator */
#else
typedef ed_fe_samples ed_fe_kept; /* as pushed, infinities among them, because an exported state must show them */
#endif

typedef struct {
#if ED_FE_DECIMATION > 1
    _Alignas(64) ed_fe_span decimator[ED_FE_SPANS][ED_FE_DECIMATOR_SECTIONS][2];
#endif
    _Alignas(64) ed_fe_span shaper[ED_FE_SPANS][ED_FE_SHAPER_SECTIONS][2];
#if ED_FE_BANDS
    ed_bands bands;
#endif
    double value[ED_FE_FEATURES][ED_FE_PADDED]; /* of the last finished bin: uV, then log power of each band */
    ed_fe_kept kept[ED_FE_KEPT][ED_FE_SPANS];   /* samples of the bin in progress */
    ed_channels channels;
    ed_clock clock;
    uint32_t slot;      /* row of `channels` that holds the bin in progress */
    uint32_t lost;      /* 1: the bin in progress has lost frames */
    uint32_t lost_bins; /* bins with lost frames in a row up to now, at most ED_FE_BRIDGED_BINS + 1 */
} ed_fe_state;

typedef struct {
    uint64_t bin, end_frame; /* index of the bin; the raw frame that completed it */
    uint32_t lost;           /* 1: it has lost frames */
    uint32_t unsettled;      /* 1: the filters of most channels have not settled since their start */
} ed_fe_bin;

/* ---------------------------------------------------------------- frames */

static inline void ed_fe_start_bin(ed_fe_state *fe) {
    ed_channels_start_bin(&fe->channels, fe->slot);
    fe->lost = 0;
}

static inline void ed_fe_reset(ed_fe_state *fe) {
    memset(fe, 0, sizeof *fe);
    ed_channels_reset(&fe->channels);
#if ED_FE_BANDS
    ed_bands_reset(&fe->bands);
#endif
    ed_clock_set(&fe->clock, 0);
    fe->lost_bins = ED_FE_BRIDGED_BINS + 1; /* a stream starts as after a long gap */
    ed_fe_start_bin(fe);
}

#if ED_FE_DECIMATION > 1
/* Filters frames x (rows, C), and keeps those whose index is a multiple of D. */
static inline void ed_fe_decimate(ed_fe_state *fe, const float *x, size_t rows) {
    const ed_clock *clock = &fe->clock;
    const ed_fe_place place = {clock->frame == clock->start, clock->frame + rows == clock->edge};
    ed_fe_starts restarts[ED_FE_SPANS];
    ed_channels_list_restarts(&fe->channels, fe->lost_bins > 0, restarts);
    for (size_t at = 0; at < ED_FE_SPANS; at++) {
        ed_fe_span span[ED_FE_GROUP];
        ed_fe_samples raw = {0};
        const size_t left = ED_FE_CHANNELS - at * ED_FE_SPAN, width = left < ED_FE_SPAN ? left : ED_FE_SPAN;
        for (size_t i = 0; i < rows; i++) {
            memcpy(raw.channel, x + i * ED_FE_CHANNELS + at * ED_FE_SPAN, width * sizeof(float));
            ed_fe_load(&raw, &span[i]);
        }
        ed_fe_filter_span(ED_FE_DECIMATOR_SECTIONS, ed_fe_decimator, ed_fe_decimator_rest, fe->decimator[at], span,
                          rows, &restarts[at], place);
        size_t kept = clock->kept_rows;
        for (size_t i = ed_clock_skipped(clock); i < rows; i += ED_FE_DECIMATION) fe->kept[kept++][at] = span[i];
    }
}
#endif

/* Takes frames x (rows, C) of the bin in progress, at most ED_FE_GROUP. */
static inline void ed_fe_frames(ed_fe_state *fe, const float *x, size_t rows) {
    ed_channels *channels = &fe->channels;
    for (size_t i = 0; i < rows; i++)
        fe->lost |=
            ed_fe_range(x + i * ED_FE_CHANNELS, channels->low[fe->slot], channels->high[fe->slot], channels->broken);
#if ED_FE_DECIMATION > 1
    ed_fe_decimate(fe, x, rows);
#else
    for (size_t i = 0; i < rows; i++)
        memcpy(fe->kept[fe->clock.kept_rows + i], x + i * ED_FE_CHANNELS, ED_FE_CHANNELS * sizeof(float));
#endif
    ed_clock_advance(&fe->clock, rows);
}

/* Takes frames (n, C) in uV up to the end of the bin, and returns how many it took. *complete tells that
 * ed_fe_finish_bin is due. */
static inline size_t ed_fe_take(ed_fe_state *fe, const float *frames_uv, size_t n, int *complete) {
    const size_t used = ed_clock_left(&fe->clock, n);
    for (size_t i = 0; i < used; i += ED_FE_GROUP)
        ed_fe_frames(fe, frames_uv + i * ED_FE_CHANNELS, used - i < ED_FE_GROUP ? used - i : ED_FE_GROUP);
    *complete = fe->clock.frame == fe->clock.edge;
    return used;
}

/* Takes an amplifier's integers as ed_fe_take does: uV = float32(sample * gain + offset), with gain and offset (C). */
static inline size_t ed_fe_take_i16(ed_fe_state *fe, const int16_t *frames, size_t n, const double *gain_uv,
                                    const double *offset_uv, int *complete) {
    const size_t used = ed_clock_left(&fe->clock, n);
    float rows[ED_FE_CONVERTED][ED_FE_CHANNELS];
    for (size_t i = 0; i < used; i += ED_FE_CONVERTED) {
        const size_t count = used - i < ED_FE_CONVERTED ? used - i : ED_FE_CONVERTED;
        for (size_t r = 0; r < count; r++)
            for (size_t c = 0; c < ED_FE_CHANNELS; c++)
                rows[r][c] = (float)((double)frames[(i + r) * ED_FE_CHANNELS + c] * gain_uv[c] + offset_uv[c]);
        ed_fe_frames(fe, rows[0], count);
    }
    *complete = fe->clock.frame == fe->clock.edge;
    return used;
}

/* Takes `n` lost frames as ed_fe_take does: time goes on, and every bin that they touch is lost. */
static inline size_t ed_fe_take_gap(ed_fe_state *fe, size_t n, int *complete) {
    const size_t used = ed_clock_left(&fe->clock, n);
    const uint32_t first = fe->clock.kept_rows;
    ed_clock_advance(&fe->clock, used);
    memset(fe->kept + first, 0, (fe->clock.kept_rows - first) * sizeof fe->kept[0]);
    fe->lost |= used > 0;
    *complete = fe->clock.frame == fe->clock.edge;
    return used;
}

/* Tells whether the stream can take `n` further frames, which ed_fe_take and the like trust in. */
static inline int ed_fe_has_room(const ed_fe_state *fe, uint64_t n) { return ed_clock_has_room(&fe->clock, n); }

/* Returns how many bins `n` further frames complete; 0 if there is no room for them. */
static inline uint64_t ed_fe_bins_for(const ed_fe_state *fe, uint64_t n) { return ed_clock_bins_for(&fe->clock, n); }

/* ---------------------------------------------------------------- the end of a bin */

#if ED_FE_BANDS
/* Runs the shaper over samples x (rows) of span `at`, and the bands over what its notches give. The squares of the
 * bands are added to `sum` (ED_FE_BANDS). It is a function of its own, so that its samples have left the stack before
 * the student's step. */
static __attribute__((noinline)) void ed_fe_shape_in_parts(ed_fe_state *fe, size_t at, ed_fe_span *restrict x,
                                                           size_t rows, const ed_fe_starts *restrict restarts,
                                                           ed_fe_place place, ed_fe_span *restrict sum) {
    const ed_fe_span first = x[0];
    const size_t n = ED_FE_NOTCHES;
    ed_fe_filter_span(n, ed_fe_shaper, ed_fe_shaper_rest, fe->shaper[at], x, rows, restarts, place);
    ed_bands_add(&fe->bands, at, &first, x, rows, restarts, place, sum);
    ed_fe_filter_part(&first, ED_FE_SHAPER_SECTIONS - n, ed_fe_shaper + n, ed_fe_shaper_rest + n, fe->shaper[at] + n, x,
                      rows, restarts, place);
}
#endif

/* Runs the shaper and the bands over the bin's samples. The value of the bin is the shaper's output for the last of
 * them. */
static inline void ed_fe_shape(ed_fe_state *fe, const ed_fe_starts *restrict restarts) {
    const size_t kept_rows = fe->clock.kept_rows;
    for (size_t at = 0; at < ED_FE_SPANS; at++) {
#if ED_FE_BANDS
        ed_fe_span sum[ED_FE_BANDS] = {0};
#endif
        for (size_t begin = 0; begin < kept_rows; begin += ED_FE_GROUP) {
            ed_fe_span span[ED_FE_GROUP];
            const size_t rows = kept_rows - begin < ED_FE_GROUP ? kept_rows - begin : ED_FE_GROUP;
            for (size_t i = 0; i < rows; i++) {
#if ED_FE_DECIMATION > 1
                span[i] = fe->kept[begin + i][at];
#else
                ed_fe_load(&fe->kept[begin + i][at], &span[i]);
#endif
            }
            const ed_fe_place place = {begin == 0, begin + rows == kept_rows};
#if ED_FE_BANDS
            ed_fe_shape_in_parts(fe, at, span, rows, &restarts[at], place, sum);
#else
            ed_fe_filter_span(ED_FE_SHAPER_SECTIONS, ed_fe_shaper, ed_fe_shaper_rest, fe->shaper[at], span, rows,
                              &restarts[at], place);
#endif
            memcpy(fe->value[0] + at * ED_FE_SPAN, span[rows - 1].channel, sizeof span[0]);
        }
#if ED_FE_BANDS
        ed_bands_measure(&fe->bands, at, sum, kept_rows, &restarts[at], fe->value + 1);
#endif
    }
}

/* Ends a bin with lost frames: values are 0, every channel is bad, and the filters stay. */
static inline void ed_fe_pass_over(ed_fe_state *fe) {
    memset(fe->value, 0, sizeof fe->value);
    for (size_t c = 0; c < ED_FE_CHANNELS; c++) fe->channels.bad[c] = 1;
    fe->lost_bins += fe->lost_bins <= ED_FE_BRIDGED_BINS;
#if ED_FE_DECIMATION > 1
    memset(fe->decimator, 0, sizeof fe->decimator);
#endif
}

/* Ends a bin without lost frames: judges the channels and filters. Returns 1 if most channels have not settled. */
static inline uint32_t ed_fe_close(ed_fe_state *fe) {
    ed_channels *channels = &fe->channels;
    ed_fe_starts restarts[ED_FE_SPANS];
    ed_channels_resume(channels, fe->lost_bins);
    ed_channels_list_restarts(channels, fe->lost_bins > ED_FE_BRIDGED_BINS, restarts);
    ed_channels_judge(channels, fe->slot);
    ed_fe_shape(fe, restarts);
    fe->lost_bins = 0;
    fe->slot = fe->slot + 1 == ED_FE_HISTORY ? 0 : fe->slot + 1;
    return ed_channels_choose(channels);
}

/* Finishes the bin that ed_fe_take completed, and begins the next one. Returns the values (F, padded C), uV
 * and then log power, which hold until the next call. Channels with a 1 in `fe->channels.bad` must not be used. */
static inline const double (*ed_fe_finish_bin(ed_fe_state *fe, ed_fe_bin *bin))[ED_FE_PADDED] {
    *bin = (ed_fe_bin){fe->clock.bin, fe->clock.edge - 1, fe->lost, 0};
    if (fe->lost)
        ed_fe_pass_over(fe);
    else
        bin->unsettled = ed_fe_close(fe);
    ed_clock_next_bin(&fe->clock);
    ed_fe_start_bin(fe);
    return (const double(*)[ED_FE_PADDED])fe->value;
}

#endif
