/*
 * The front end in C: raw frames go in, and one z-scored bin of every channel comes out. The bits are those of
 * edgedistill/frontend, however frames are cut into chunks.
 *
 * Three files hold its parts: ed_clock.h (which bin a frame belongs to), ed_channels.h (which channels are bad) and
 * ed_filters.h (sections and common average). This file ties them together. ed_frontend_state.h moves a stream's state.
 *
 * Include it after the constants that edgedistill/compile writes (ED_FE_CHANNELS and others, and the tables
 * ed_fe_decimator, ed_fe_shaper and ed_fe_left_out). It has static functions only, allocates nothing, and needs no libc
 * beyond memcpy and memset.
 *
 *     ed_fe_reset(fe);
 *     while (n > 0) {
 *         size_t used = ed_fe_take(fe, frames, n, &complete);          never goes beyond the end of a bin
 *         frames += used * ED_FE_CHANNELS, n -= used;
 *         if (complete) { ed_fe_finish_bin(fe, mean, std, z, &bin); ... }   before the next ed_fe_take
 *     }
 *
 * ed_fe_take_i16 and ed_fe_take_gap consume int16 samples and lost frames in the same way. ed_fe_bins_for tells how
 * many bins n further frames will complete.
 *
 * fe       one ed_fe_state for each stream, in memory aligned to 64 bytes
 * Layout   frames (n, C) time-major, as pushed. All state is (section, C) or (row, C), so that loops over channels
 *          vectorize.
 * Order    A low-pass before decimation runs as frames arrive. Everything else waits for the bin's last frame, because
 *          only then is it known which channels to hold out; the bin's samples wait in `kept`.
 * Time     No branch depends on samples.
 * Cost     A bin of 10 frames x 96 channels at 1 kHz with 10 sections takes 86,400 operations. That is 4.2 us at one
 *          AVX-512 operation a cycle and 2.6 GHz, and half of it at two. Measured on such a core, p50, range and rules
 *          included: 4.5 us (512-bit vectors), 5.4 us (256-bit), 8.5 us (SSE2); 0.1 to 0.17 us a raw frame at 24 kHz.
 *          Cortex-M7, emulated: 0.31 million instructions.
 * Memory   100 kB of state at 1 kHz x 96 channels on a Cortex-M7. 77 kB of it are the ranges of the last second, which
 *          the rule for flat channels looks back on.
 */
#ifndef ED_FRONTEND_H
#define ED_FRONTEND_H

#include <float.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "ed_channels.h"
#include "ed_clock.h"
#include "ed_filters.h"

#define ED_FE_BEYOND_FLOAT 0x1.ffffffp+127 /* from here on a float64 rounds to an infinite float32 */

#if ED_FE_DECIMATION > 1
typedef double ed_fe_sample; /* after the decimator, before channels are held out */
#else
typedef float ed_fe_sample; /* as pushed, infinities among them, because an exported state must show them */
#endif

typedef struct {
#if ED_FE_DECIMATION > 1
    _Alignas(64) double decimator[ED_FE_DECIMATOR_SECTIONS][2][ED_FE_CHANNELS];
    double row[ED_FE_CHANNELS]; /* one frame on its way through the decimator */
#endif
    _Alignas(64) double shaper[ED_FE_SHAPER_SECTIONS][2][ED_FE_CHANNELS];
    double u[ED_FE_GROUP][ED_FE_CHANNELS];         /* samples on their way through the shaper */
    ed_fe_sample kept[ED_FE_KEPT][ED_FE_CHANNELS]; /* samples of the bin in progress */
    ed_channels channels;
    ed_clock clock;
    uint32_t slot; /* row of `channels` that holds the bin in progress */
    uint32_t gap;  /* 1: the bin in progress has lost frames */
} ed_fe_state;

typedef struct {
    uint64_t bin, end_frame;  /* index of the bin; the raw frame that completed it */
    uint32_t bad_channels;    /* number of masked channels, without those that are left out */
    uint32_t usable_channels; /* number of channels that are not masked and have a standard deviation above 0 */
    uint32_t gap;             /* 1: touched by a declared gap */
} ed_fe_bin;

/* ---------------------------------------------------------------- frames */

static inline void ed_fe_start_bin(ed_fe_state *fe) {
    ed_channels_start_bin(&fe->channels, fe->slot);
    fe->gap = 0;
}

static inline void ed_fe_reset(ed_fe_state *fe) {
    memset(fe, 0, sizeof *fe);
    ed_channels_reset(&fe->channels);
    ed_clock_set(&fe->clock, 0);
    ed_fe_start_bin(fe);
}

#if ED_FE_DECIMATION > 1
static inline void ed_fe_decimate(ed_fe_state *fe, const float *x) {
    ed_clock *clock = &fe->clock;
    ed_channels_hold_out(&fe->channels, x, fe->row);
    for (size_t s = 0; s < ED_FE_DECIMATOR_SECTIONS; s++)
        ed_fe_section(ed_fe_decimator[s], fe->row, fe->decimator[s][0], fe->decimator[s][1]);
    if (clock->phase == 0) memcpy(fe->kept[clock->kept_rows++], fe->row, sizeof fe->row);
    clock->phase = clock->phase + 1 == ED_FE_DECIMATION ? 0 : clock->phase + 1;
}
#endif

static inline void ed_fe_frame(ed_fe_state *fe, const float *x) {
    ed_fe_range(x, fe->channels.low[fe->slot], fe->channels.high[fe->slot], fe->channels.broken);
#if ED_FE_DECIMATION > 1
    ed_fe_decimate(fe, x);
#else
    memcpy(fe->kept[fe->clock.kept_rows++], x, sizeof fe->kept[0]);
#endif
    fe->clock.frame++;
}

/* Takes frames (n, C) in uV up to the end of the bin, and returns how many it took. *complete tells that
 * ed_fe_finish_bin is due. */
static inline size_t ed_fe_take(ed_fe_state *fe, const float *frames_uv, size_t n, int *complete) {
    const size_t used = ed_clock_left(&fe->clock, n);
    for (size_t i = 0; i < used; i++) ed_fe_frame(fe, frames_uv + i * ED_FE_CHANNELS);
    *complete = fe->clock.frame == fe->clock.edge;
    return used;
}

/* Takes an amplifier's integers as ed_fe_take does: uV = float32(sample * gain + offset), with gain and offset (C). */
static inline size_t ed_fe_take_i16(ed_fe_state *fe, const int16_t *frames, size_t n, const double *gain_uv,
                                    const double *offset_uv, int *complete) {
    const size_t used = ed_clock_left(&fe->clock, n);
    float row[ED_FE_CHANNELS];
    for (size_t i = 0; i < used; i++) {
        for (size_t c = 0; c < ED_FE_CHANNELS; c++)
            row[c] = (float)((double)frames[i * ED_FE_CHANNELS + c] * gain_uv[c] + offset_uv[c]);
        ed_fe_frame(fe, row);
    }
    *complete = fe->clock.frame == fe->clock.edge;
    return used;
}

/* Takes `n` lost frames as ed_fe_take does: time goes on, zeros go in, and every bin that they touch is flagged. */
static inline size_t ed_fe_take_gap(ed_fe_state *fe, size_t n, int *complete) {
    static const float zeros[ED_FE_CHANNELS];
    const size_t used = ed_clock_left(&fe->clock, n);
    for (size_t i = 0; i < used; i++) ed_fe_frame(fe, zeros);
    fe->gap |= used > 0;
    *complete = fe->clock.frame == fe->clock.edge;
    return used;
}

/* Returns how many bins `n` further frames complete. */
static inline uint64_t ed_fe_bins_for(const ed_fe_state *fe, uint64_t n) { return ed_clock_bins_for(&fe->clock, n); }

/* ---------------------------------------------------------------- the end of a bin */

/* Writes sample `row` of the bin to u as float64, with zeros for bad channels and for samples that must not be used. */
static inline void ed_fe_load(const ed_fe_state *fe, size_t row, double *restrict u) {
    const ed_fe_sample *restrict x = fe->kept[row];
    const uint32_t *restrict bad = fe->channels.bad;
#if ED_FE_DECIMATION > 1
    for (size_t c = 0; c < ED_FE_CHANNELS; c++) u[c] = bad[c] ? 0.0 : x[c];
#else
    const uint32_t *restrict held = fe->channels.held;
    for (size_t c = 0; c < ED_FE_CHANNELS; c++) {
        const uint32_t use = (x[c] <= FLT_MAX) & (x[c] >= -FLT_MAX) & ((held[c] | bad[c]) ^ 1u);
        u[c] = (double)(use ? x[c] : 0.0f);
    }
#endif
}

/* Runs common average and shaping filters over the bin's samples. The value of the bin is the last row of u, which is
 * returned. */
static inline const double *ed_fe_shape(ed_fe_state *fe) {
    const size_t kept_rows = fe->clock.kept_rows;
    size_t rows = 1;
    for (size_t begin = 0; begin < kept_rows; begin += ED_FE_GROUP) {
        rows = kept_rows - begin < ED_FE_GROUP ? kept_rows - begin : ED_FE_GROUP;
        for (size_t i = 0; i < rows; i++) ed_fe_load(fe, begin + i, fe->u[i]);
        if (ED_FE_COMMON_AVERAGE) ed_fe_remove_average(fe->u, rows, fe->channels.bad);
        for (size_t s = 0; s < ED_FE_SHAPER_SECTIONS; s++)
            for (size_t i = 0; i < rows; i++)
                ed_fe_section(ed_fe_shaper[s], fe->u[i], fe->shaper[s][0], fe->shaper[s][1]);
    }
    return fe->u[rows - 1];
}

/* Finishes the bin that ed_fe_take completed, and begins the next one. Writes z (C) = (value - mean) / std, with 0
 * where a channel is masked or std is 0. After it, `fe->channels.bad` holds the masked channels. mean and std (C)
 * are finite, and std >= 0. */
static inline void ed_fe_finish_bin(ed_fe_state *fe, const double *mean, const double *std, float *restrict z,
                                    ed_fe_bin *bin) {
    ed_channels *channels = &fe->channels;
    ed_channels_judge(channels, fe->slot);
    const double *restrict value = ed_fe_shape(fe);
    memcpy(channels->held, channels->bad, sizeof channels->held);
    uint32_t *restrict bad = channels->bad, n_bad = 0, n_usable = 0;
    for (size_t c = 0; c < ED_FE_CHANNELS; c++) {
        const uint32_t scaled = (bad[c] ^ 1u) & (std[c] > 0.0);
        const double score = scaled ? (value[c] - mean[c]) / (scaled ? std[c] : 1.0) : 0.0;
        const uint32_t tame = __builtin_fabs(score) < ED_FE_BEYOND_FLOAT; /* false for NaN */
        z[c] = (float)(tame ? score : 0.0);
        bad[c] |= tame ^ 1u;
        n_bad += bad[c];
        n_usable += scaled & tame;
    }
    *bin = (ed_fe_bin){fe->clock.bin, fe->clock.edge - 1, n_bad - ED_FE_LEFT_OUT, n_usable, fe->gap};
#if ED_FE_DECIMATION > 1
    ed_fe_clear_small(&fe->decimator[0][0][0], sizeof fe->decimator / sizeof(double));
#endif
    ed_fe_clear_small(&fe->shaper[0][0][0], sizeof fe->shaper / sizeof(double));
    fe->slot = fe->slot + 1 == ED_FE_HISTORY ? 0 : fe->slot + 1;
    ed_clock_next_bin(&fe->clock);
    ed_fe_start_bin(fe);
}

#endif
