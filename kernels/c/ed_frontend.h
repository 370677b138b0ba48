/* The front end in C: raw frames in, one z-scored bin out, the bits of edgedistill/frontend for any chunking.
 *
 * Include after the constants that edgedistill/compile/c/frontend_source.py writes (ED_FE_CHANNELS, ..., the tables
 * ed_fe_decimator and ed_fe_shaper). Static functions only: no allocation, no libc beyond memcpy and memset.
 *
 *     ed_fe_reset(fe);
 *     while (n > 0) {
 *         size_t used = ed_fe_take(fe, frames, n, &complete);          never goes beyond the end of a bin
 *         frames += used * ED_FE_CHANNELS, n -= used;
 *         if (complete) { ed_fe_finish_bin(fe, mean, std, z, &bin); ... }   before the next ed_fe_take
 *     }
 *
 * ed_fe_take_i16 and ed_fe_take_gap consume int16 samples and lost frames in the same way; ed_fe_bins_for says
 * how many bins n further frames will complete; ed_fe_export and ed_fe_import move a stream's state.
 *
 * fe       one ed_fe_state a stream, in memory aligned to 64 bytes; ed_fe_exchange needs 8.
 * Layout   frames (n, C) time-major as pushed; all state (section, C) or (row, C): loops over channels vectorise.
 * Order    a low-pass before decimation runs as frames arrive. All else waits for the bin's last frame, since
 *          only then is it known which channels to hold out: the bin's kept samples wait in `kept`.
 * Numbers  float64, sections y = b0 x + z0; z0 = (b1 x - a1 y) + z1; z1 = b2 x - a2 y, each operation rounded.
 *          Compile with -ffp-contract=off, never -ffast-math, and do not run with denormals flushed to zero.
 * Time     no branch depends on samples. Frames are counted in 64 bits; bin edges are exact, by remainders,
 *          for 2^63 frames and any rate whose clock fits 62 bits (the generator refuses others).
 * Cost     a bin of 10 frames x 96 channels at 1 kHz, 10 sections: 86,400 operations = 4.2 us at one AVX-512
 *          operation a cycle and 2.6 GHz, half of that at two. Measured on such a core, p50, range and rules
 *          included: 4.5 us (512-bit vectors), 5.4 us (256-bit), 8.5 us (SSE2); 0.1 to 0.17 us a raw frame at 24 kHz.
 *          Cortex-M7, emulated: 0.31 million instructions.
 * Memory   100 kB of state at 1 kHz x 96 channels on a Cortex-M7, of which 77 kB are the second of ranges that the
 *          rule for flat channels looks back on.
 */
#ifndef ED_FRONTEND_H
#define ED_FRONTEND_H

#include <float.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define ED_FE_C ED_FE_CHANNELS
#define ED_FE_HISTORY (ED_FE_FLAT_BINS > ED_FE_SATURATED_BINS ? ED_FE_FLAT_BINS : ED_FE_SATURATED_BINS)
#define ED_FE_SHORT (ED_FE_FLAT_BINS < ED_FE_SATURATED_BINS ? ED_FE_FLAT_BINS : ED_FE_SATURATED_BINS)
/* PARTS: the range of the whole history is kept by blocks of rows, of which a bin changes one; of 100 rows it
 * then reads 20 + 5, always the same number. GROUP: samples shaped at a time; the common average adds channel
 * after channel, and the sums of several samples overlap. A microcontroller has more time than memory. */
#if defined(__ARM_ARCH_PROFILE) && __ARM_ARCH_PROFILE == 'M'
#define ED_FE_PARTS 2
#define ED_FE_GROUP 1
#else
#define ED_FE_PARTS 5
#define ED_FE_GROUP 8
#endif
#define ED_FE_BLOCK ((ED_FE_HISTORY + ED_FE_PARTS - 1) / ED_FE_PARTS)
#define ED_FE_BLOCKS ((ED_FE_HISTORY + ED_FE_BLOCK - 1) / ED_FE_BLOCK)

#define ED_FE_TINY_STATE 1e-30
#define ED_FE_BEYOND_FLOAT 0x1.ffffffp+127 /* from here on a float64 rounds to an infinite float32 */
#define ED_FE_INF ((float)(1e300 * 1e10))

#if ED_FE_DECIMATION > 1
typedef double ed_fe_sample; /* after the decimator, before channels are held out */
#else
typedef float ed_fe_sample; /* as pushed, infinities and all: what an exported state must show */
#endif

typedef struct {
#if ED_FE_DECIMATION > 1
    _Alignas(64) double decimator[ED_FE_DECIMATOR_SECTIONS][2][ED_FE_C];
    double row[ED_FE_C];
#endif
    _Alignas(64) double shaper[ED_FE_SHAPER_SECTIONS][2][ED_FE_C];
    double u[ED_FE_GROUP][ED_FE_C];
    ed_fe_sample kept[ED_FE_KEPT][ED_FE_C]; /* samples of the bin in progress */
    float low[ED_FE_HISTORY][ED_FE_C];      /* ranges of the last bins, a ring; row `slot` is the bin in progress */
    float high[ED_FE_HISTORY][ED_FE_C];
    float block_low[ED_FE_BLOCKS][ED_FE_C];
    float block_high[ED_FE_BLOCKS][ED_FE_C];
    float lowest[ED_FE_C]; /* since the start */
    float highest[ED_FE_C];
    uint32_t clean[ED_FE_C];  /* bins since a trigger, at most ED_FE_RECOVER_BINS */
    uint32_t broken[ED_FE_C]; /* 1: the bin in progress has a sample that is not finite */
    uint32_t held[ED_FE_C];   /* 1: bad by the rules at the end of the last bin */
    uint32_t bad[ED_FE_C];    /* 1: masked in the last finished bin, by the rules or as beyond float32 */
    uint64_t frame;           /* frames taken */
    uint64_t bin;             /* the bin in progress */
    uint64_t edge;            /* its end: first frame of the next one */
    uint64_t remainder;       /* edge * CLOCK_DEN - (bin + 1) * CLOCK_NUM, in [0, CLOCK_DEN) */
    uint32_t phase;           /* frame mod D */
    uint32_t kept_rows;
    uint32_t slot;
    uint32_t gap; /* 1: the bin in progress has lost frames */
} ed_fe_state;

typedef struct {
    uint64_t bin, end_frame;  /* index; the raw frame that completed it */
    uint32_t bad_channels;    /* masked */
    uint32_t usable_channels; /* not masked, and of a standard deviation above 0 */
    uint32_t gap;             /* 1: touched by a declared gap */
} ed_fe_bin;

/* A stream's state as exchanged: native byte order, no padding inside, sizeof is a multiple of 8. Names and
 * meaning are those of FrontEnd.export_state; numpy's dtype is c_frontend.state_dtype. Inside a bin and with
 * D > 1, where Python keeps raw frames, `pending` holds the decimated samples so far and decimator, part_low,
 * part_high and broken are those after the frames so far; c_frontend.state_to_c converts. */
typedef struct {
    int64_t frame, pending_gap;
#if ED_FE_DECIMATION > 1
    double decimator[ED_FE_DECIMATOR_SECTIONS][ED_FE_C][2];
#endif
    double shaper[ED_FE_SHAPER_SECTIONS][ED_FE_C][2];
    double pending[ED_FE_KEPT][ED_FE_C]; /* zero beyond the rows that are here */
    double clean[ED_FE_C];
    double lowest[ED_FE_C];
    double highest[ED_FE_C];
#if ED_FE_DECIMATION > 1
    double part_low[ED_FE_C]; /* range of the bin in progress, (inf, -inf) at its start */
    double part_high[ED_FE_C];
    double broken[ED_FE_C];
#endif
#if ED_FE_HISTORY > 1
    float low[ED_FE_HISTORY - 1][ED_FE_C]; /* oldest first; all values are float32, as samples are */
    float high[ED_FE_HISTORY - 1][ED_FE_C];
#endif
} ed_fe_exchange;

static inline void ed_fe_fill(float *row, float value) {
    for (size_t c = 0; c < ED_FE_C; c++) row[c] = value;
}

/* ---------------------------------------------------------------- the clock */

/* floor(a * b / d) and its remainder; d < 2^62, a < d, so that nothing overflows. */
static inline uint64_t ed_fe_muldiv(uint64_t a, uint64_t b, uint64_t d, uint64_t *remainder) {
    if (a == 0 || b <= UINT64_MAX / a) {
        *remainder = a * b % d;
        return a * b / d;
    }
    uint64_t quotient = 0, rest = 0;
    for (int bit = 63; bit >= 0; bit--) { /* long division, most significant bit of b first */
        rest = 2 * rest + ((b >> bit) & 1 ? a : 0);
        quotient = 2 * quotient + rest / d;
        rest %= d;
    }
    *remainder = rest;
    return quotient;
}

/* The bin that holds a frame: floor(frame * den / num). */
static inline uint64_t ed_fe_bin_of(uint64_t frame) {
    uint64_t rest;
    return frame / ED_FE_CLOCK_NUM * ED_FE_CLOCK_DEN +
           ed_fe_muldiv(frame % ED_FE_CLOCK_NUM, ED_FE_CLOCK_DEN, ED_FE_CLOCK_NUM, &rest);
}

/* First frame of bin k: ceil(k * num / den); *over is how far, in 1 / den frames, it lies beyond the exact edge. */
static inline uint64_t ed_fe_edge(uint64_t k, uint64_t *over) {
    uint64_t rest;
    uint64_t whole = k / ED_FE_CLOCK_DEN * ED_FE_CLOCK_NUM;
    whole += ed_fe_muldiv(k % ED_FE_CLOCK_DEN, ED_FE_CLOCK_NUM, ED_FE_CLOCK_DEN, &rest);
    *over = rest ? ED_FE_CLOCK_DEN - rest : 0;
    return whole + (rest ? 1 : 0);
}

/* Kept rows of the bin in progress follow from the frame: multiples of D in [start of the bin, frame). */
static inline void ed_fe_set_clock(ed_fe_state *fe, uint64_t frame) {
    const uint64_t D = ED_FE_DECIMATION;
    uint64_t over;
    fe->frame = frame;
    fe->bin = ed_fe_bin_of(frame);
    fe->edge = ed_fe_edge(fe->bin + 1, &fe->remainder);
    const uint64_t start = ed_fe_edge(fe->bin, &over);
    fe->phase = (uint32_t)(frame % D);
    fe->kept_rows = (uint32_t)((frame + D - 1) / D - (start + D - 1) / D);
}

static inline void ed_fe_next_bin(ed_fe_state *fe) {
    const uint64_t rest = ED_FE_CLOCK_NUM % ED_FE_CLOCK_DEN;
    const int more = rest > fe->remainder;
    fe->bin++;
    fe->edge += ED_FE_CLOCK_NUM / ED_FE_CLOCK_DEN + (more ? 1 : 0);
    fe->remainder = fe->remainder + (more ? ED_FE_CLOCK_DEN : 0) - rest;
    fe->kept_rows = 0;
}

/* Bins that `n` further frames complete. */
static inline uint64_t ed_fe_bins_for(const ed_fe_state *fe, uint64_t n) {
    if (n < fe->edge - fe->frame) return 0;
    if (n > (uint64_t)INT64_MAX - fe->frame) n = (uint64_t)INT64_MAX - fe->frame; /* the bound on frames */
    return ed_fe_bin_of(fe->frame + n) - fe->bin;
}

/* ---------------------------------------------------------------- frames */

static inline void ed_fe_start_bin(ed_fe_state *fe) {
    ed_fe_fill(fe->low[fe->slot], ED_FE_INF);
    ed_fe_fill(fe->high[fe->slot], -ED_FE_INF);
    memset(fe->broken, 0, sizeof fe->broken);
    fe->gap = 0;
}

static inline void ed_fe_reset(ed_fe_state *fe) {
    memset(fe, 0, sizeof *fe);
    /* Bins before the start have an infinite range: neither flat nor saturated. */
    for (size_t r = 0; r < ED_FE_HISTORY; r++) ed_fe_fill(fe->low[r], -ED_FE_INF), ed_fe_fill(fe->high[r], ED_FE_INF);
    for (size_t b = 0; b < ED_FE_BLOCKS; b++) {
        ed_fe_fill(fe->block_low[b], -ED_FE_INF);
        ed_fe_fill(fe->block_high[b], ED_FE_INF);
    }
    ed_fe_fill(fe->lowest, ED_FE_INF);
    ed_fe_fill(fe->highest, -ED_FE_INF);
    for (size_t c = 0; c < ED_FE_C; c++) fe->clean[c] = ED_FE_RECOVER_BINS;
    ed_fe_set_clock(fe, 0);
    ed_fe_start_bin(fe);
}

/* One section, transposed direct form II, one sample of every channel in place. k: b0 b1 b2 a1 a2. */
static inline void ed_fe_section(const double *k, double *restrict x, double *restrict z0, double *restrict z1) {
    const double b0 = k[0], b1 = k[1], b2 = k[2], a1 = k[3], a2 = k[4];
    for (size_t c = 0; c < ED_FE_C; c++) {
        const double v = x[c], y = b0 * v + z0[c];
        z0[c] = b1 * v - a1 * y + z1[c];
        z1[c] = b2 * v - a2 * y;
        x[c] = y;
    }
}

/* Silence must not end in slow denormals: after every bin, states below 1e-30 become zero. */
static inline void ed_fe_clear_small(double *z, size_t n) {
    for (size_t i = 0; i < n; i++) z[i] = __builtin_fabs(z[i]) < ED_FE_TINY_STATE ? 0.0 : z[i];
}

/* The range of finite samples, and whether there were others. */
static inline void ed_fe_range(const float *restrict x, float *restrict low, float *restrict high,
                               uint32_t *restrict broken) {
    for (size_t c = 0; c < ED_FE_C; c++) {
        const uint32_t fine = (x[c] <= FLT_MAX) & (x[c] >= -FLT_MAX);
        const float lo = fine ? x[c] : ED_FE_INF, hi = fine ? x[c] : -ED_FE_INF;
        low[c] = lo < low[c] ? lo : low[c];
        high[c] = hi > high[c] ? hi : high[c];
        broken[c] |= fine ^ 1u;
    }
}

#if ED_FE_DECIMATION > 1
static inline void ed_fe_decimate(ed_fe_state *fe, const float *restrict x) {
    double *restrict row = fe->row;
    const uint32_t *restrict held = fe->held;
    for (size_t c = 0; c < ED_FE_C; c++) {
        const uint32_t use = (x[c] <= FLT_MAX) & (x[c] >= -FLT_MAX) & (held[c] ^ 1u);
        row[c] = (double)(use ? x[c] : 0.0f);
    }
    for (size_t s = 0; s < ED_FE_DECIMATOR_SECTIONS; s++)
        ed_fe_section(ed_fe_decimator[s], row, fe->decimator[s][0], fe->decimator[s][1]);
    if (fe->phase == 0) memcpy(fe->kept[fe->kept_rows++], row, sizeof fe->row);
    fe->phase = fe->phase + 1 == ED_FE_DECIMATION ? 0 : fe->phase + 1;
}
#endif

static inline void ed_fe_frame(ed_fe_state *fe, const float *x) {
    ed_fe_range(x, fe->low[fe->slot], fe->high[fe->slot], fe->broken);
#if ED_FE_DECIMATION > 1
    ed_fe_decimate(fe, x);
#else
    memcpy(fe->kept[fe->kept_rows++], x, sizeof fe->kept[0]);
#endif
    fe->frame++;
}

/* Frames of `n` that belong to the bin in progress. */
static inline size_t ed_fe_left(const ed_fe_state *fe, size_t n) {
    const uint64_t left = fe->edge - fe->frame;
    return n < left ? n : (size_t)left;
}

/* Frames (n, C) in uV, up to the end of the bin; returns how many it took. *complete: ed_fe_finish_bin is due. */
static inline size_t ed_fe_take(ed_fe_state *fe, const float *frames_uv, size_t n, int *complete) {
    const size_t used = ed_fe_left(fe, n);
    for (size_t i = 0; i < used; i++) ed_fe_frame(fe, frames_uv + i * ED_FE_C);
    *complete = fe->frame == fe->edge;
    return used;
}

/* The same for an amplifier's integers: uV = float32(sample * gain + offset), gain and offset (C). */
static inline size_t ed_fe_take_i16(ed_fe_state *fe, const int16_t *frames, size_t n, const double *gain_uv,
                                    const double *offset_uv, int *complete) {
    const size_t used = ed_fe_left(fe, n);
    float row[ED_FE_C];
    for (size_t i = 0; i < used; i++) {
        for (size_t c = 0; c < ED_FE_C; c++)
            row[c] = (float)((double)frames[i * ED_FE_C + c] * gain_uv[c] + offset_uv[c]);
        ed_fe_frame(fe, row);
    }
    *complete = fe->frame == fe->edge;
    return used;
}

/* The same for `n` lost frames: time goes on, zeros go in, every bin they touch is flagged. */
static inline size_t ed_fe_take_gap(ed_fe_state *fe, size_t n, int *complete) {
    static const float zeros[ED_FE_C];
    const size_t used = ed_fe_left(fe, n);
    for (size_t i = 0; i < used; i++) ed_fe_frame(fe, zeros);
    fe->gap |= used > 0;
    *complete = fe->frame == fe->edge;
    return used;
}

/* ---------------------------------------------------------------- the end of a bin */

/* top and bottom take in one more row. */
static inline void ed_fe_widen(float *restrict top, float *restrict bottom, const float *restrict high,
                               const float *restrict low) {
    for (size_t c = 0; c < ED_FE_C; c++) {
        top[c] = high[c] > top[c] ? high[c] : top[c];
        bottom[c] = low[c] < bottom[c] ? low[c] : bottom[c];
    }
}

/* The range over a block of the history, from its rows. */
static inline void ed_fe_update_block(ed_fe_state *fe, size_t block) {
    const size_t first = block * ED_FE_BLOCK;
    const size_t last = first + ED_FE_BLOCK < ED_FE_HISTORY ? first + ED_FE_BLOCK : ED_FE_HISTORY;
    memcpy(fe->block_low[block], fe->low[first], sizeof fe->block_low[0]);
    memcpy(fe->block_high[block], fe->high[first], sizeof fe->block_high[0]);
    for (size_t r = first + 1; r < last; r++)
        ed_fe_widen(fe->block_high[block], fe->block_low[block], fe->high[r], fe->low[r]);
}

/* Bad channels by the rules of edgedistill/frontend/rules.py, into `bad`; the history takes in this bin. */
static inline void ed_fe_judge(ed_fe_state *fe) {
    const size_t slot = fe->slot;
    ed_fe_update_block(fe, slot / ED_FE_BLOCK);
    ed_fe_widen(fe->highest, fe->lowest, fe->high[slot], fe->low[slot]);
    const float *restrict low = fe->low[slot], *restrict high = fe->high[slot];
    const float *restrict lowest = fe->lowest, *restrict highest = fe->highest;
    const uint32_t *restrict broken = fe->broken;
    uint32_t *restrict clean = fe->clean, *restrict bad = fe->bad;
    for (size_t c = 0; c < ED_FE_C; c++) {
        float top = fe->block_high[0][c], bottom = fe->block_low[0][c]; /* over all the history */
        for (size_t b = 1; b < ED_FE_BLOCKS; b++) {
            top = fe->block_high[b][c] > top ? fe->block_high[b][c] : top;
            bottom = fe->block_low[b][c] < bottom ? fe->block_low[b][c] : bottom;
        }
        float short_top = high[c], short_bottom = low[c]; /* over the shorter rule's bins */
        for (size_t i = 1; i < ED_FE_SHORT; i++) {
            const size_t row = slot >= i ? slot - i : slot + ED_FE_HISTORY - i;
            short_top = fe->high[row][c] > short_top ? fe->high[row][c] : short_top;
            short_bottom = fe->low[row][c] < short_bottom ? fe->low[row][c] : short_bottom;
        }
        const int flat_is_longer = ED_FE_FLAT_BINS >= ED_FE_SATURATED_BINS;
        const double range = flat_is_longer ? (double)top - (double)bottom : (double)short_top - (double)short_bottom;
        const uint32_t still = flat_is_longer ? short_top == short_bottom : top == bottom;
        const uint32_t at_extreme = (uint32_t)(high[c] == highest[c]) | (uint32_t)(low[c] == lowest[c]);
        const uint32_t trigger = broken[c] | (uint32_t)(range < ED_FE_FLAT_UV) | (still & at_extreme);
        const uint32_t later = clean[c] < ED_FE_RECOVER_BINS ? clean[c] + 1 : clean[c];
        clean[c] = trigger ? 0 : later;
        bad[c] = clean[c] < ED_FE_RECOVER_BINS;
    }
}

/* Sample `row` of the bin as float64, zero where its channel is bad or the sample was not to be used. */
static inline void ed_fe_load(const ed_fe_state *fe, size_t row, double *restrict u) {
    const ed_fe_sample *restrict x = fe->kept[row];
    const uint32_t *restrict bad = fe->bad;
#if ED_FE_DECIMATION > 1
    for (size_t c = 0; c < ED_FE_C; c++) u[c] = bad[c] ? 0.0 : x[c];
#else
    const uint32_t *restrict held = fe->held;
    for (size_t c = 0; c < ED_FE_C; c++) {
        const uint32_t use = (x[c] <= FLT_MAX) & (x[c] >= -FLT_MAX) & ((held[c] | bad[c]) ^ 1u);
        u[c] = (double)(use ? x[c] : 0.0f);
    }
#endif
}

/* u (rows, C) without the mean of the good channels, summed channel after channel. */
static inline void ed_fe_remove_average(ed_fe_state *fe, size_t rows) {
    double total[ED_FE_GROUP];
    uint32_t good = 0;
    const uint32_t *restrict bad = fe->bad;
    for (size_t c = 0; c < ED_FE_C; c++) good += bad[c] ^ 1u;
    for (size_t i = 0; i < ED_FE_GROUP; i++) total[i] = fe->u[i][0];
    for (size_t c = 1; c < ED_FE_C; c++)
        for (size_t i = 0; i < ED_FE_GROUP; i++) total[i] += fe->u[i][c];
    for (size_t i = 0; i < rows; i++) {
        const double mean = good > 1 ? total[i] / (double)good : 0.0; /* one channel alone is its own average */
        double *restrict u = fe->u[i];
        for (size_t c = 0; c < ED_FE_C; c++) u[c] = bad[c] ? 0.0 : u[c] - mean;
    }
}

/* Common average and shaping filters over the bin's samples; its value is the last row of u, returned. */
static inline const double *ed_fe_shape(ed_fe_state *fe) {
    size_t rows = 1;
    for (size_t begin = 0; begin < fe->kept_rows; begin += ED_FE_GROUP) {
        rows = fe->kept_rows - begin < ED_FE_GROUP ? fe->kept_rows - begin : ED_FE_GROUP;
        for (size_t i = 0; i < rows; i++) ed_fe_load(fe, begin + i, fe->u[i]);
        if (ED_FE_COMMON_AVERAGE) ed_fe_remove_average(fe, rows);
        for (size_t s = 0; s < ED_FE_SHAPER_SECTIONS; s++)
            for (size_t i = 0; i < rows; i++)
                ed_fe_section(ed_fe_shaper[s], fe->u[i], fe->shaper[s][0], fe->shaper[s][1]);
    }
    return fe->u[rows - 1];
}

/* z (C) of the bin that ed_fe_take completed: (value - mean) / std, 0 where masked or std is 0. `fe->bad` then
 * holds the masked channels. mean and std (C) finite, std >= 0. The next bin begins. */
static inline void ed_fe_finish_bin(ed_fe_state *fe, const double *mean, const double *std, float *restrict z,
                                    ed_fe_bin *bin) {
    ed_fe_judge(fe);
    const double *restrict value = ed_fe_shape(fe);
    memcpy(fe->held, fe->bad, sizeof fe->held);
    uint32_t *restrict bad = fe->bad, n_bad = 0, n_usable = 0;
    for (size_t c = 0; c < ED_FE_C; c++) {
        const uint32_t scaled = (bad[c] ^ 1u) & (std[c] > 0.0);
        const double score = scaled ? (value[c] - mean[c]) / (scaled ? std[c] : 1.0) : 0.0;
        const uint32_t tame = __builtin_fabs(score) < ED_FE_BEYOND_FLOAT; /* not so for NaN */
        z[c] = (float)(tame ? score : 0.0);
        bad[c] |= tame ^ 1u;
        n_bad += bad[c];
        n_usable += scaled & tame;
    }
    *bin = (ed_fe_bin){fe->bin, fe->edge - 1, n_bad, n_usable, fe->gap};
#if ED_FE_DECIMATION > 1
    ed_fe_clear_small(&fe->decimator[0][0][0], sizeof fe->decimator / sizeof(double));
#endif
    ed_fe_clear_small(&fe->shaper[0][0][0], sizeof fe->shaper / sizeof(double));
    fe->slot = fe->slot + 1 == ED_FE_HISTORY ? 0 : fe->slot + 1;
    ed_fe_next_bin(fe);
    ed_fe_start_bin(fe);
}

/* ---------------------------------------------------------------- moving a stream */

/* [n][2][C], as the loops over channels want it, from and to [n][C][2], as scipy has it. */
static inline void ed_fe_sections_out(size_t n, double (*to)[ED_FE_C][2], const double (*from)[2][ED_FE_C]) {
    for (size_t s = 0; s < n; s++)
        for (size_t c = 0; c < ED_FE_C; c++) to[s][c][0] = from[s][0][c], to[s][c][1] = from[s][1][c];
}

static inline void ed_fe_sections_in(size_t n, double (*to)[2][ED_FE_C], const double (*from)[ED_FE_C][2]) {
    for (size_t s = 0; s < n; s++)
        for (size_t c = 0; c < ED_FE_C; c++) to[s][0][c] = from[s][c][0], to[s][1][c] = from[s][c][1];
}

/* Everything later bins depend on; not between a completed ed_fe_take and its ed_fe_finish_bin. */
static inline void ed_fe_export(const ed_fe_state *fe, ed_fe_exchange *out) {
    memset(out, 0, sizeof *out);
    out->frame = (int64_t)fe->frame;
    out->pending_gap = fe->gap;
    ed_fe_sections_out(ED_FE_SHAPER_SECTIONS, out->shaper, fe->shaper);
    for (size_t r = 0; r < fe->kept_rows; r++)
        for (size_t c = 0; c < ED_FE_C; c++) out->pending[r][c] = (double)fe->kept[r][c];
    for (size_t c = 0; c < ED_FE_C; c++) {
        out->clean[c] = (double)fe->clean[c];
        out->lowest[c] = (double)fe->lowest[c];
        out->highest[c] = (double)fe->highest[c];
    }
#if ED_FE_DECIMATION > 1
    ed_fe_sections_out(ED_FE_DECIMATOR_SECTIONS, out->decimator, fe->decimator);
    for (size_t c = 0; c < ED_FE_C; c++) {
        out->part_low[c] = (double)fe->low[fe->slot][c];
        out->part_high[c] = (double)fe->high[fe->slot][c];
        out->broken[c] = (double)fe->broken[c];
    }
#endif
#if ED_FE_HISTORY > 1
    for (size_t r = 0; r + 1 < ED_FE_HISTORY; r++) {
        const size_t row = (fe->slot + 1 + r) % ED_FE_HISTORY;
        memcpy(out->low[r], fe->low[row], sizeof out->low[0]);
        memcpy(out->high[r], fe->high[row], sizeof out->high[0]);
    }
#endif
}

static inline int ed_fe_all_finite(const double *x, size_t n) {
    int fine = 1;
    for (size_t i = 0; i < n; i++) fine &= __builtin_fabs(x[i]) <= DBL_MAX;
    return fine;
}

/* A state that no stream can have: NaN would stay in the filters and, through the average, reach all channels. */
static inline int ed_fe_is_state(const ed_fe_exchange *in) {
    int fine = in->frame >= 0 && (in->pending_gap == 0 || in->pending_gap == 1);
    fine &= ed_fe_all_finite(&in->shaper[0][0][0], sizeof in->shaper / sizeof(double));
    for (size_t c = 0; c < ED_FE_C; c++) {
        fine &= in->clean[c] >= 0.0 && in->clean[c] <= (double)ED_FE_RECOVER_BINS;
        fine &= in->lowest[c] == in->lowest[c] && in->highest[c] == in->highest[c];
    }
#if ED_FE_DECIMATION > 1
    fine &= ed_fe_all_finite(&in->decimator[0][0][0], sizeof in->decimator / sizeof(double));
    fine &= ed_fe_all_finite(&in->pending[0][0], sizeof in->pending / sizeof(double));
    for (size_t c = 0; c < ED_FE_C; c++)
        fine &= in->part_low[c] == in->part_low[c] && in->part_high[c] == in->part_high[c];
#endif
#if ED_FE_HISTORY > 1
    for (size_t r = 0; r + 1 < ED_FE_HISTORY; r++)
        for (size_t c = 0; c < ED_FE_C; c++) fine &= in->low[r][c] == in->low[r][c] && in->high[r][c] == in->high[r][c];
#endif
    return fine;
}

/* Goes on where ed_fe_export left off. Returns 0, or -1 with nothing changed for what cannot be a state. */
static inline int ed_fe_import(ed_fe_state *fe, const ed_fe_exchange *in) {
    if (!ed_fe_is_state(in)) return -1;
    ed_fe_reset(fe); /* slot 0: the bin in progress; the history, oldest first, follows it */
    ed_fe_set_clock(fe, (uint64_t)in->frame);
    ed_fe_sections_in(ED_FE_SHAPER_SECTIONS, fe->shaper, in->shaper);
    for (size_t c = 0; c < ED_FE_C; c++) {
        fe->clean[c] = (uint32_t)in->clean[c];
        fe->held[c] = fe->clean[c] < ED_FE_RECOVER_BINS;
        fe->lowest[c] = (float)in->lowest[c];
        fe->highest[c] = (float)in->highest[c];
    }
    for (size_t r = 0; r < fe->kept_rows; r++)
        for (size_t c = 0; c < ED_FE_C; c++) fe->kept[r][c] = (ed_fe_sample)in->pending[r][c];
#if ED_FE_DECIMATION > 1
    ed_fe_sections_in(ED_FE_DECIMATOR_SECTIONS, fe->decimator, in->decimator);
    for (size_t c = 0; c < ED_FE_C; c++) {
        fe->low[0][c] = (float)in->part_low[c];
        fe->high[0][c] = (float)in->part_high[c];
        fe->broken[c] = in->broken[c] != 0.0;
    }
#else
    for (size_t r = 0; r < fe->kept_rows; r++) ed_fe_range(fe->kept[r], fe->low[0], fe->high[0], fe->broken);
#endif
#if ED_FE_HISTORY > 1
    memcpy(fe->low[1], in->low, sizeof in->low);
    memcpy(fe->high[1], in->high, sizeof in->high);
#endif
    for (size_t b = 0; b < ED_FE_BLOCKS; b++) ed_fe_update_block(fe, b);
    fe->gap = (uint32_t)in->pending_gap;
    return 0;
}

#endif
