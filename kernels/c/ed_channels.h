/*
 * Private: the channel rules of the front end. They tell at the end of each bin which channels are bad, and which
 * filters start from rest, as edgedistill/frontend/rules.py defines it.
 *
 * A bin triggers a channel with a sample that is not finite, while it is flat (a range below ED_FE_FLAT_UV over
 * ED_FE_FLAT_BINS bins), and while it is saturated (no range at all over ED_FE_SATURATED_BINS bins, at the highest or
 * lowest value seen so far). `clean` counts the bins since. A channel has recovered after ED_FE_RECOVER_BINS, and has
 * settled after ED_FE_SETTLED_BINS. It is good when it has settled, or when it has recovered while most of the recovered
 * channels have not settled. Channels with a 1 in ed_fe_left_out are bad in every bin. Bins with lost frames do not
 * exist for the rules. Ranges of the last bins are kept in a ring. Its row `slot` is the bin in progress; ed_frontend.h
 * moves it on.
 *
 * No branch depends on samples. Most of the front end's memory is this ring: 77 kB of 100 kB for 96 channels at 1 kHz.
 */
#ifndef ED_CHANNELS_H
#define ED_CHANNELS_H

#include <float.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define ED_FE_HISTORY (ED_FE_FLAT_BINS > ED_FE_SATURATED_BINS ? ED_FE_FLAT_BINS : ED_FE_SATURATED_BINS)
#define ED_FE_SHORT (ED_FE_FLAT_BINS < ED_FE_SATURATED_BINS ? ED_FE_FLAT_BINS : ED_FE_SATURATED_BINS)

/* The number of blocks into which the rows of the history are divided. The range of each block is kept, and a bin
 * changes one of them. With 100 rows in 10 blocks every bin reads 10 + 10 rows. A microcontroller has fewer blocks,
 * because it is short of memory rather than of time. */
#if defined(__ARM_ARCH_PROFILE) && __ARM_ARCH_PROFILE == 'M'
#define ED_FE_PARTS 2
#else
#define ED_FE_PARTS 10
#endif
#define ED_FE_BLOCK ((ED_FE_HISTORY + ED_FE_PARTS - 1) / ED_FE_PARTS)
#define ED_FE_BLOCKS ((ED_FE_HISTORY + ED_FE_BLOCK - 1) / ED_FE_BLOCK)

#define ED_FE_INF ((float)(1e300 * 1e10))

typedef struct {
    float low[ED_FE_HISTORY][ED_FE_CHANNELS]; /* ranges of the last bins, a ring */
    float high[ED_FE_HISTORY][ED_FE_CHANNELS];
    float block_low[ED_FE_BLOCKS][ED_FE_CHANNELS];
    float block_high[ED_FE_BLOCKS][ED_FE_CHANNELS];
    float lowest[ED_FE_CHANNELS]; /* since the start of the stream */
    float highest[ED_FE_CHANNELS];
    uint32_t clean[ED_FE_CHANNELS];  /* bins since a trigger, at most ED_FE_SETTLED_BINS */
    uint32_t broken[ED_FE_CHANNELS]; /* 1: the bin in progress has a sample that is not finite */
    uint32_t bad[ED_FE_CHANNELS];    /* 1: bad in the last finished bin */
} ed_channels;

static inline void ed_fe_fill(float *row, float value) {
    for (size_t c = 0; c < ED_FE_CHANNELS; c++) row[c] = value;
}

/* Begins a bin whose range is kept in row `slot`. */
static inline void ed_channels_start_bin(ed_channels *channels, size_t slot) {
    ed_fe_fill(channels->low[slot], ED_FE_INF);
    ed_fe_fill(channels->high[slot], -ED_FE_INF);
    memset(channels->broken, 0, sizeof channels->broken);
}

/* Begins a stream, whose memory is all zeros. Bins before the start get an infinite range, which is neither flat nor
 * saturated. */
static inline void ed_channels_reset(ed_channels *channels) {
    for (size_t r = 0; r < ED_FE_HISTORY; r++) {
        ed_fe_fill(channels->low[r], -ED_FE_INF);
        ed_fe_fill(channels->high[r], ED_FE_INF);
    }
    for (size_t b = 0; b < ED_FE_BLOCKS; b++) {
        ed_fe_fill(channels->block_low[b], -ED_FE_INF);
        ed_fe_fill(channels->block_high[b], ED_FE_INF);
    }
    ed_fe_fill(channels->lowest, ED_FE_INF);
    ed_fe_fill(channels->highest, -ED_FE_INF);
    for (size_t c = 0; c < ED_FE_CHANNELS; c++) channels->clean[c] = ED_FE_RECOVER_BINS;
}

/* Widens a range by the finite samples of a frame, and notes channels whose sample is not finite. Returns 1 if no
 * channel that counts has a finite sample. */
static inline uint32_t ed_fe_range(const float *restrict x, float *restrict low, float *restrict high,
                                   uint32_t *restrict broken) {
    uint32_t any = 0;
    for (size_t c = 0; c < ED_FE_CHANNELS; c++) {
        const uint32_t fine = (x[c] <= FLT_MAX) & (x[c] >= -FLT_MAX);
        const float lo = fine ? x[c] : ED_FE_INF, hi = fine ? x[c] : -ED_FE_INF;
        low[c] = lo < low[c] ? lo : low[c];
        high[c] = hi > high[c] ? hi : high[c];
        broken[c] |= fine ^ 1u;
        any |= fine & (ed_fe_left_out[c] ^ 1u);
    }
    return any ^ 1u;
}

/* Widens the range (top, bottom) by one more row. */
static inline void ed_fe_widen(float *restrict top, float *restrict bottom, const float *restrict high,
                               const float *restrict low) {
    for (size_t c = 0; c < ED_FE_CHANNELS; c++) {
        top[c] = high[c] > top[c] ? high[c] : top[c];
        bottom[c] = low[c] < bottom[c] ? low[c] : bottom[c];
    }
}

/* Computes the range over a block of the history from its rows. */
static inline void ed_channels_update_block(ed_channels *channels, size_t block) {
    const size_t first = block * ED_FE_BLOCK;
    const size_t last = first + ED_FE_BLOCK < ED_FE_HISTORY ? first + ED_FE_BLOCK : ED_FE_HISTORY;
    memcpy(channels->block_low[block], channels->low[first], sizeof channels->block_low[0]);
    memcpy(channels->block_high[block], channels->high[first], sizeof channels->block_high[0]);
    for (size_t r = first + 1; r < last; r++)
        ed_fe_widen(channels->block_high[block], channels->block_low[block], channels->high[r], channels->low[r]);
}

/* Takes away from `clean` what lost_bins bins in a row without frames cost: what the filters then have to settle. */
static inline void ed_channels_resume(ed_channels *channels, uint32_t lost_bins) {
    const int64_t left =
        (int64_t)ED_FE_SETTLED_BINS - ED_FE_RESUME_BINS - ED_FE_RESUME_BINS_PER_LOST * (int64_t)lost_bins;
    const int64_t bridged = left > ED_FE_RECOVER_BINS ? left : ED_FE_RECOVER_BINS;
    const int64_t allowed = lost_bins > ED_FE_BRIDGED_BINS ? ED_FE_RECOVER_BINS : bridged;
    const uint32_t most = lost_bins ? (uint32_t)allowed : ED_FE_SETTLED_BINS;
    uint32_t *restrict clean = channels->clean;
    for (size_t c = 0; c < ED_FE_CHANNELS; c++) clean[c] = clean[c] < most ? clean[c] : most;
}

/* Lists the channels whose filters start from rest: all of them if `all` is 1, and otherwise those that were triggered in
 * the last bin. */
static inline void ed_channels_list_restarts(const ed_channels *channels, uint32_t all,
                                             ed_fe_starts *restrict restarts) {
    for (size_t c = 0; c < ED_FE_CHANNELS; c++)
        restarts[c / ED_FE_SPAN].channel[c % ED_FE_SPAN] = -(int64_t)(all | (uint32_t)(channels->clean[c] == 0));
    for (size_t c = ED_FE_CHANNELS; c < ED_FE_PADDED; c++) restarts[c / ED_FE_SPAN].channel[c % ED_FE_SPAN] = 0;
}

/* Counts the bins since a trigger at the end of a bin, and adds the bin in row `slot` to the history. */
static inline void ed_channels_judge(ed_channels *channels, size_t slot) {
    ed_channels_update_block(channels, slot / ED_FE_BLOCK);
    ed_fe_widen(channels->highest, channels->lowest, channels->high[slot], channels->low[slot]);
    const float *restrict low = channels->low[slot], *restrict high = channels->high[slot];
    const float *restrict lowest = channels->lowest, *restrict highest = channels->highest;
    const uint32_t *restrict broken = channels->broken;
    uint32_t *restrict clean = channels->clean;
    for (size_t c = 0; c < ED_FE_CHANNELS; c++) {
        float top = channels->block_high[0][c], bottom = channels->block_low[0][c]; /* over all the history */
        for (size_t b = 1; b < ED_FE_BLOCKS; b++) {
            top = channels->block_high[b][c] > top ? channels->block_high[b][c] : top;
            bottom = channels->block_low[b][c] < bottom ? channels->block_low[b][c] : bottom;
        }
        float short_top = high[c], short_bottom = low[c]; /* over the bins of the shorter rule */
        for (size_t i = 1; i < ED_FE_SHORT; i++) {
            const size_t row = slot >= i ? slot - i : slot + ED_FE_HISTORY - i;
            short_top = channels->high[row][c] > short_top ? channels->high[row][c] : short_top;
            short_bottom = channels->low[row][c] < short_bottom ? channels->low[row][c] : short_bottom;
        }
        const int flat_is_longer = ED_FE_FLAT_BINS >= ED_FE_SATURATED_BINS;
        const double range = flat_is_longer ? (double)top - (double)bottom : (double)short_top - (double)short_bottom;
        const uint32_t still = flat_is_longer ? short_top == short_bottom : top == bottom;
        const uint32_t at_extreme = (uint32_t)(high[c] == highest[c]) | (uint32_t)(low[c] == lowest[c]);
        const uint32_t trigger = broken[c] | (uint32_t)(range < ED_FE_FLAT_UV) | (still & at_extreme);
        const uint32_t later = clean[c] < ED_FE_SETTLED_BINS ? clean[c] + 1 : clean[c];
        clean[c] = trigger ? 0 : later;
    }
}

/* Writes `bad`. Returns 1 if most of the recovered channels have not settled, and are used all the same. */
static inline uint32_t ed_channels_choose(ed_channels *channels) {
    const uint32_t *restrict clean = channels->clean;
    uint32_t *restrict bad = channels->bad, recovered = 0, settled = 0;
    for (size_t c = 0; c < ED_FE_CHANNELS; c++) {
        const uint32_t counts = ed_fe_left_out[c] ^ 1u;
        recovered += counts & (uint32_t)(clean[c] >= ED_FE_RECOVER_BINS);
        settled += counts & (uint32_t)(clean[c] >= ED_FE_SETTLED_BINS);
    }
    const uint32_t unsettled = 2 * settled < recovered, least = unsettled ? ED_FE_RECOVER_BINS : ED_FE_SETTLED_BINS;
    for (size_t c = 0; c < ED_FE_CHANNELS; c++) bad[c] = (uint32_t)(clean[c] < least) | ed_fe_left_out[c];
    return unsettled;
}

#endif
