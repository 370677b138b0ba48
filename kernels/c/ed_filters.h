/*
 * Private: the filters of the front end, one sample of every channel at a time: cascades of second-order sections, and
 * the common average. ed_frontend.h decides when each runs.
 *
 * Numbers  float64. A section computes y = b0 x + z0; z0 = (b1 x - a1 y) + z1; z1 = b2 x - a2 y (transposed direct form
 *          II), with each operation rounded. Compile with -ffp-contract=off, never with -ffast-math, and do not run
 *          with denormals flushed to zero.
 * Layout   The states of a section are [2][C], so that loops over channels vectorize. scipy has [C][2], and so has an
 *          exported state.
 */
#ifndef ED_FILTERS_H
#define ED_FILTERS_H

#include <stddef.h>
#include <stdint.h>

/* The number of samples that are shaped at a time. The common average adds one channel after another, and the sums of
 * several samples overlap in the processor. A microcontroller takes one at a time, because it is short of memory rather
 * than of time. */
#if defined(__ARM_ARCH_PROFILE) && __ARM_ARCH_PROFILE == 'M'
#define ED_FE_GROUP 1
#else
#define ED_FE_GROUP 8
#endif

#define ED_FE_TINY_STATE 1e-30

/* Filters one sample of every channel in place with one section. k holds b0 b1 b2 a1 a2. */
static inline void ed_fe_section(const double *k, double *restrict x, double *restrict z0, double *restrict z1) {
    const double b0 = k[0], b1 = k[1], b2 = k[2], a1 = k[3], a2 = k[4];
    for (size_t c = 0; c < ED_FE_CHANNELS; c++) {
        const double v = x[c], y = b0 * v + z0[c];
        z0[c] = b1 * v - a1 * y + z1[c];
        z1[c] = b2 * v - a2 * y;
        x[c] = y;
    }
}

/* Sets states below 1e-30 to zero. This is done after every bin, so that silence does not end in slow denormals. */
static inline void ed_fe_clear_small(double *z, size_t n) {
    for (size_t i = 0; i < n; i++) z[i] = __builtin_fabs(z[i]) < ED_FE_TINY_STATE ? 0.0 : z[i];
}

/* Subtracts from each row of u (rows, C) the mean of its good channels, and sets bad channels to zero. The sum goes
 * channel after channel, as the definition does, over all ED_FE_GROUP rows whether they are used or not. Bad channels
 * are zero on entry. */
static inline void ed_fe_remove_average(double (*u)[ED_FE_CHANNELS], size_t rows, const uint32_t *restrict bad) {
    double total[ED_FE_GROUP];
    uint32_t good = 0;
    for (size_t c = 0; c < ED_FE_CHANNELS; c++) good += bad[c] ^ 1u;
    for (size_t i = 0; i < ED_FE_GROUP; i++) total[i] = u[i][0];
    for (size_t c = 1; c < ED_FE_CHANNELS; c++)
        for (size_t i = 0; i < ED_FE_GROUP; i++) total[i] += u[i][c];
    for (size_t i = 0; i < rows; i++) {
        const double mean = good > 1 ? total[i] / (double)good : 0.0; /* a single channel would be its own average */
        double *restrict row = u[i];
        for (size_t c = 0; c < ED_FE_CHANNELS; c++) row[c] = bad[c] ? 0.0 : row[c] - mean;
    }
}

/* Copies the states of n sections from [n][2][C] to [n][C][2]. */
static inline void ed_fe_sections_out(size_t n, double (*to)[ED_FE_CHANNELS][2],
                                      const double (*from)[2][ED_FE_CHANNELS]) {
    for (size_t s = 0; s < n; s++)
        for (size_t c = 0; c < ED_FE_CHANNELS; c++) to[s][c][0] = from[s][0][c], to[s][c][1] = from[s][1][c];
}

/* Copies the states of n sections from [n][C][2] to [n][2][C]. */
static inline void ed_fe_sections_in(size_t n, double (*to)[2][ED_FE_CHANNELS],
                                     const double (*from)[ED_FE_CHANNELS][2]) {
    for (size_t s = 0; s < n; s++)
        for (size_t c = 0; c < ED_FE_CHANNELS; c++) to[s][0][c] = from[s][c][0], to[s][1][c] = from[s][c][1];
}

#endif
