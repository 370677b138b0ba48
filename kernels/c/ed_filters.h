/*
 * Private: the filters of the front end: cascades of second-order sections that start from rest. ed_frontend.h decides
 * when each runs.
 *
 * Numbers  float64. A section computes y = b0 x + z0; z0 = (b1 x - a1 y) + z1; z1 = b2 x - a2 y (transposed direct form
 *          II), with each operation rounded. Compile with -ffp-contract=off, never with -ffast-math, and do not run
 *          with denormals flushed to zero.
 * Rest     The steady state of a constant input x is rest[0] x and rest[1] x, with the tables that edgedistill/compile
 *          writes. A channel that restarts takes it for its first sample, so that an electrode's offset is no step.
 * Loops    ED_FE_SPAN channels at a time go through all sections. Within a section their states stay in registers for
 *          all samples of a bin, and a span's samples stay in the nearest cache for all sections.
 * Layout   States lie as they are read: span, section, 2, channel. scipy and an exported state have section, channel, 2.
 *          Channels are padded with zeros to whole spans.
 */
#ifndef ED_FILTERS_H
#define ED_FILTERS_H

#include <stddef.h>
#include <stdint.h>

#include "ed_vectors.h"

/* The vectors of channels that are filtered at a time: as many as hide the latency of a section, as few as the registers
 * hold, and with as little padding as can be. */
#define ED_FE_NEEDED ((ED_FE_CHANNELS + ED_DOUBLES - 1) / ED_DOUBLES)
#define ED_FE_MANY (ED_DOUBLES == 8 ? 6 : 8)
#if ED_VECTOR_BYTES
#define ED_FE_VECTORS (ED_FE_NEEDED < 4 ? ED_FE_NEEDED : ED_FE_NEEDED % ED_FE_MANY == 0 ? ED_FE_MANY : 4)
#else
#define ED_FE_VECTORS 1
#endif
#define ED_FE_SPAN (ED_DOUBLES * ED_FE_VECTORS)
#define ED_FE_SPANS ((ED_FE_CHANNELS + ED_FE_SPAN - 1) / ED_FE_SPAN)
#define ED_FE_PADDED (ED_FE_SPANS * ED_FE_SPAN)
#define ED_FE_GROUP 16 /* most samples of a channel that are filtered at a time */

#define ED_FE_TINY_STATE 1e-30

/* What a group of samples is in its bin. In the first group channels may start from rest. After the last one, states
 * below 1e-30 become zero, so that silence does not end in slow denormals. */
typedef struct {
    uint32_t first, last; /* 0 or 1 */
} ed_fe_place;

/* A number for each channel of those that are filtered at a time. */
typedef union {
    ed_doubles vector[ED_FE_VECTORS];
    double channel[ED_FE_SPAN];
} ed_fe_span;

/* A raw sample of each. */
typedef union {
    ed_few_floats vector[ED_FE_VECTORS];
    float channel[ED_FE_SPAN];
} ed_fe_samples;

/* Which of these channels start from rest: -1, or 0. */
typedef union {
    ed_double_mask vector[ED_FE_VECTORS];
    int64_t channel[ED_FE_SPAN];
} ed_fe_starts;

static inline void ed_fe_load(const ed_fe_samples *restrict from, ed_fe_span *restrict to) {
    for (int v = 0; v < ED_FE_VECTORS; v++) to->vector[v] = ed_finite_doubles(from->vector[v]);
}

/* Filters samples x (rows) of a span in place with one section. k holds b0 b1 b2 a1 a2. Channels in `starts` begin at
 * rest * first, and the others with the states `state0` and `state1`. States whose magnitude is below `tiny` become zero
 * afterwards. */
static inline void ed_fe_section(const double *restrict k, const double *restrict rest, ed_fe_span *restrict x,
                                 size_t rows, const ed_fe_span *restrict first, const ed_fe_starts *restrict starts,
                                 double tiny, ed_fe_span *restrict state0, ed_fe_span *restrict state1) {
    const double b0 = k[0], b1 = k[1], b2 = k[2], a1 = k[3], a2 = k[4], rest0 = rest[0], rest1 = rest[1];
    const ed_doubles zero = {0};
    ed_doubles z0[ED_FE_VECTORS], z1[ED_FE_VECTORS];
    for (int v = 0; v < ED_FE_VECTORS; v++) {
        z0[v] = ed_choose_doubles(starts->vector[v], rest0 * first->vector[v], state0->vector[v]);
        z1[v] = ed_choose_doubles(starts->vector[v], rest1 * first->vector[v], state1->vector[v]);
    }
    for (size_t i = 0; i < rows; i++)
        for (int v = 0; v < ED_FE_VECTORS; v++) {
            const ed_doubles in = x[i].vector[v], scaled = b0 * in, y = scaled + z0[v];
            z0[v] = b1 * in - a1 * y + z1[v];
            z1[v] = (ED_FE_MIRRORED ? scaled : b2 * in) - a2 * y;
            x[i].vector[v] = y;
        }
    for (int v = 0; v < ED_FE_VECTORS; v++) {
        state0->vector[v] = ed_choose_doubles(ed_magnitudes(z0[v]) < tiny, zero, z0[v]);
        state1->vector[v] = ed_choose_doubles(ed_magnitudes(z1[v]) < tiny, zero, z1[v]);
    }
}

/* Filters samples x (rows) of a span in place with all `sections`, whose states are (sections, 2). Filters that start
 * from rest have seen `first` for ever. */
static inline void ed_fe_filter_after(const ed_fe_span *restrict first, size_t sections, const double (*k)[5],
                                      const double (*rest)[2], ed_fe_span (*restrict states)[2], ed_fe_span *restrict x,
                                      size_t rows, const ed_fe_starts *restrict restarts, ed_fe_place place) {
    const double tiny = place.last ? ED_FE_TINY_STATE : 0.0;
    ed_fe_starts starts = *restarts;
    for (int v = 0; v < ED_FE_VECTORS; v++) starts.vector[v] &= -(int64_t)place.first;
    for (size_t s = 0; s < sections; s++)
        ed_fe_section(k[s], rest[s], x, rows, first, &starts, tiny, &states[s][0], &states[s][1]);
}

/* Does the same with a whole filter, which sees samples x from the first one on. */
static __attribute__((noinline)) void ed_fe_filter_span(size_t sections, const double (*k)[5], const double (*rest)[2],
                                                        ed_fe_span (*restrict states)[2], ed_fe_span *restrict x,
                                                        size_t rows, const ed_fe_starts *restrict restarts,
                                                        ed_fe_place place) {
    const ed_fe_span first = x[0];
    ed_fe_filter_after(&first, sections, k, rest, states, x, rows, restarts, place);
}

/* Copies the states of n sections to (n, C, 2) from one stretch of (n, 2) for each span. */
static inline void ed_fe_sections_out(size_t n, double (*to)[ED_FE_CHANNELS][2], const ed_fe_span (*from)[2]) {
    for (size_t s = 0; s < n; s++)
        for (size_t i = 0; i < 2; i++)
            for (size_t c = 0; c < ED_FE_CHANNELS; c++)
                to[s][c][i] = from[c / ED_FE_SPAN * n + s][i].channel[c % ED_FE_SPAN];
}

/* Copies the states of n sections from (n, C, 2) to one stretch of (n, 2) for each span. */
static inline void ed_fe_sections_in(size_t n, ed_fe_span (*to)[2], const double (*from)[ED_FE_CHANNELS][2]) {
    for (size_t s = 0; s < n; s++)
        for (size_t i = 0; i < 2; i++)
            for (size_t c = 0; c < ED_FE_CHANNELS; c++)
                to[c / ED_FE_SPAN * n + s][i].channel[c % ED_FE_SPAN] = from[s][c][i];
}

#endif
