/*
 * Private: the filters of the front end: cascades of second-order sections that start from rest. ed_frontend.h decides
 * when each runs.
 *
 * Numbers  float64. A section computes y = b0 x + z0; z0 = (b1 x - a1 y) + z1; z1 = b2 x - a2 y (transposed direct form
 *          II), with each operation rounded. Compile with -ffp-contract=off, never with -ffast-math, and do not run
 *          with denormals flushed to zero.
 * Rest     The steady state of a constant input x is rest[0] x and rest[1] x, with the tables that edgedistill/compile
 *          writes. A channel that restarts takes it for its first sample, so that an electrode's offset is no step.
 * Layout   The states of a section are [2][ED_FE_PADDED], so that loops over channels vectorize. scipy has [C][2], and
 *          so has an exported state. Channels are padded with zeros to whole spans.
 * Loops    ED_FE_SPAN channels at a time go through all sections. Within a section their states stay in registers for
 *          all samples of a bin, and a span's samples stay in the nearest cache for all sections.
 */
#ifndef ED_FILTERS_H
#define ED_FILTERS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* The number of channels that are filtered at a time: as many as hide the latency of a section, and as few as leave
 * its states in registers. */
#if defined(__AVX512F__)
#define ED_FE_SPAN 16
#elif defined(__AVX__)
#define ED_FE_SPAN 8
#elif defined(__ARM_ARCH_PROFILE) && __ARM_ARCH_PROFILE == 'M'
#define ED_FE_SPAN 1
#else
#define ED_FE_SPAN 4
#endif
#define ED_FE_PADDED ((ED_FE_CHANNELS + ED_FE_SPAN - 1) / ED_FE_SPAN * ED_FE_SPAN)
#define ED_FE_GROUP 16 /* most samples of a channel that are filtered at a time */

#define ED_FE_TINY_STATE 1e-30

/* What a group of samples is in its bin. In the first group channels may start from rest. After the last one, states
 * below 1e-30 become zero, so that silence does not end in slow denormals. */
typedef struct {
    uint32_t first, last; /* 0 or 1 */
} ed_fe_place;

/* Filters samples x (rows, ED_FE_SPAN) in place with one section. k holds b0 b1 b2 a1 a2, and z0 and z1 (ED_FE_SPAN)
 * are its states. Channels with a 1 in `restarts` start from rest * first, where `first` is the first sample that the
 * whole chain saw. */
static inline void ed_fe_section(const double *restrict k, const double *restrict rest, double (*restrict x)[ED_FE_SPAN],
                                 size_t rows, const double *restrict first, const uint32_t *restrict restarts,
                                 double tiny, double *restrict state0, double *restrict state1) {
    const double b0 = k[0], b1 = k[1], b2 = k[2], a1 = k[3], a2 = k[4], rest0 = rest[0], rest1 = rest[1];
    double z0[ED_FE_SPAN], z1[ED_FE_SPAN];
    for (size_t c = 0; c < ED_FE_SPAN; c++) {
        z0[c] = restarts[c] ? rest0 * first[c] : state0[c];
        z1[c] = restarts[c] ? rest1 * first[c] : state1[c];
    }
    for (size_t i = 0; i < rows; i++)
        for (size_t c = 0; c < ED_FE_SPAN; c++) {
            const double v = x[i][c], y = b0 * v + z0[c];
            z0[c] = b1 * v - a1 * y + z1[c];
            z1[c] = b2 * v - a2 * y;
            x[i][c] = y;
        }
    for (size_t c = 0; c < ED_FE_SPAN; c++) {
        state0[c] = __builtin_fabs(z0[c]) < tiny ? 0.0 : z0[c];
        state1[c] = __builtin_fabs(z1[c]) < tiny ? 0.0 : z1[c];
    }
}

/* Filters samples x (rows, ED_FE_SPAN) of the channels from `at` on in place, with all `sections`. */
static inline void ed_fe_filter_span(size_t sections, const double (*k)[5], const double (*rest)[2],
                                     double (*restrict z)[2][ED_FE_PADDED], size_t at, double (*restrict x)[ED_FE_SPAN],
                                     size_t rows, const uint32_t *restrict restarts, ed_fe_place place) {
    double first[ED_FE_SPAN];
    uint32_t starts[ED_FE_SPAN];
    const double tiny = place.last ? ED_FE_TINY_STATE : 0.0;
    memcpy(first, x[0], sizeof first);
    for (size_t c = 0; c < ED_FE_SPAN; c++) starts[c] = restarts[at + c] & place.first;
    for (size_t s = 0; s < sections; s++)
        ed_fe_section(k[s], rest[s], x, rows, first, starts, tiny, z[s][0] + at, z[s][1] + at);
}

/* Sets states below 1e-30 to zero. */
static inline void ed_fe_clear_small(double *z, size_t n) {
    for (size_t i = 0; i < n; i++) z[i] = __builtin_fabs(z[i]) < ED_FE_TINY_STATE ? 0.0 : z[i];
}

/* Copies the states of n sections from [n][2][ED_FE_PADDED] to [n][C][2]. */
static inline void ed_fe_sections_out(size_t n, double (*to)[ED_FE_CHANNELS][2], const double (*from)[2][ED_FE_PADDED]) {
    for (size_t s = 0; s < n; s++)
        for (size_t c = 0; c < ED_FE_CHANNELS; c++) to[s][c][0] = from[s][0][c], to[s][c][1] = from[s][1][c];
}

/* Copies the states of n sections from [n][C][2] to [n][2][ED_FE_PADDED]. */
static inline void ed_fe_sections_in(size_t n, double (*to)[2][ED_FE_PADDED], const double (*from)[ED_FE_CHANNELS][2]) {
    for (size_t s = 0; s < n; s++)
        for (size_t c = 0; c < ED_FE_CHANNELS; c++) to[s][0][c] = from[s][c][0], to[s][1][c] = from[s][c][1];
}

#endif
