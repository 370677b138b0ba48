/*
 * Private: the clock of the front end. It tells which bin a raw frame belongs to and where each bin ends.
 *
 * A bin k starts at frame ceil(k * NUM / DEN), where NUM / DEN is the number of frames in a bin as an exact fraction
 * (ED_FE_CLOCK_NUM, ED_FE_CLOCK_DEN, from edgedistill/compile). Edges are exact for 2^63 frames and for any rate whose
 * NUM and DEN fit 62 bits: they are computed from remainders, never in floating point. Frames are counted in 64 bits.
 */
#ifndef ED_CLOCK_H
#define ED_CLOCK_H

#include <stddef.h>
#include <stdint.h>

/* Most frames of a stream, 4.9 million years at 30 kHz. Neither pushing nor importing goes beyond it, so that no count
 * of frames or bins can overflow. */
#define ED_CLOCK_MOST (UINT64_C(1) << 62)

typedef struct {
    uint64_t frame;     /* frames taken, at most ED_CLOCK_MOST */
    uint64_t bin;       /* the bin in progress */
    uint64_t start;     /* its first frame */
    uint64_t edge;      /* its end, which is the first frame of the next bin */
    uint64_t remainder; /* edge * DEN - (bin + 1) * NUM, in [0, DEN) */
    uint32_t phase;     /* frame mod D, where D is the decimation */
    uint32_t kept_rows; /* samples of the bin in progress that decimation has kept */
} ed_clock;

/* Returns floor(a * b / d), and its remainder. d < 2^62 and a < d, so that nothing overflows. */
static inline uint64_t ed_clock_muldiv(uint64_t a, uint64_t b, uint64_t d, uint64_t *remainder) {
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

/* Returns the bin that holds a frame: floor(frame * DEN / NUM). */
static inline uint64_t ed_clock_bin_of(uint64_t frame) {
    uint64_t rest;
    return frame / ED_FE_CLOCK_NUM * ED_FE_CLOCK_DEN +
           ed_clock_muldiv(frame % ED_FE_CLOCK_NUM, ED_FE_CLOCK_DEN, ED_FE_CLOCK_NUM, &rest);
}

/* Returns the first frame of bin k: ceil(k * NUM / DEN). *over is how far it lies beyond the exact edge, in 1 / DEN
 * frames. */
static inline uint64_t ed_clock_edge(uint64_t k, uint64_t *over) {
    uint64_t rest;
    uint64_t whole = k / ED_FE_CLOCK_DEN * ED_FE_CLOCK_NUM;
    whole += ed_clock_muldiv(k % ED_FE_CLOCK_DEN, ED_FE_CLOCK_NUM, ED_FE_CLOCK_DEN, &rest);
    *over = rest ? ED_FE_CLOCK_DEN - rest : 0;
    return whole + (rest ? 1 : 0);
}

/* Sets the clock to a frame. Decimation keeps the multiples of D, so kept_rows counts those in [start of the bin,
 * frame). */
static inline void ed_clock_set(ed_clock *clock, uint64_t frame) {
    const uint64_t D = ED_FE_DECIMATION;
    uint64_t over;
    clock->frame = frame;
    clock->bin = ed_clock_bin_of(frame);
    clock->edge = ed_clock_edge(clock->bin + 1, &clock->remainder);
    clock->start = ed_clock_edge(clock->bin, &over);
    clock->phase = (uint32_t)(frame % D);
    clock->kept_rows = (uint32_t)((frame + D - 1) / D - (clock->start + D - 1) / D);
}

/* Returns how many frames come before the next one that decimation keeps. */
static inline size_t ed_clock_skipped(const ed_clock *clock) {
    return clock->phase ? ED_FE_DECIMATION - clock->phase : 0;
}

/* Moves on by n frames of the bin in progress. */
static inline void ed_clock_advance(ed_clock *clock, size_t n) {
    const size_t skipped = ed_clock_skipped(clock);
    clock->frame += n;
    clock->phase = (uint32_t)((clock->phase + n) % ED_FE_DECIMATION);
    clock->kept_rows += n > skipped ? (uint32_t)((n - skipped - 1) / ED_FE_DECIMATION + 1) : 0;
}

/* Begins the next bin. */
static inline void ed_clock_next_bin(ed_clock *clock) {
    const uint64_t rest = ED_FE_CLOCK_NUM % ED_FE_CLOCK_DEN;
    const int more = rest > clock->remainder;
    clock->bin++;
    clock->start = clock->edge;
    clock->edge += ED_FE_CLOCK_NUM / ED_FE_CLOCK_DEN + (more ? 1 : 0);
    clock->remainder = clock->remainder + (more ? ED_FE_CLOCK_DEN : 0) - rest;
    clock->kept_rows = 0;
}

/* Tells whether a stream can take `n` further frames. */
static inline int ed_clock_has_room(const ed_clock *clock, uint64_t n) { return n <= ED_CLOCK_MOST - clock->frame; }

/* Returns how many bins `n` further frames complete; 0 if there is no room for them. */
static inline uint64_t ed_clock_bins_for(const ed_clock *clock, uint64_t n) {
    if (n < clock->edge - clock->frame || !ed_clock_has_room(clock, n)) return 0;
    return ed_clock_bin_of(clock->frame + n) - clock->bin;
}

/* Returns how many of `n` frames belong to the bin in progress. */
static inline size_t ed_clock_left(const ed_clock *clock, size_t n) {
    const uint64_t left = clock->edge - clock->frame;
    return n < left ? n : (size_t)left;
}

#endif
