/*
 * Private: the log power of bands, as docs/numerics.md defines it ("Band power"). edgedistill/frontend/stream.py is the
 * same in Python. Without bands nothing of it is compiled in.
 *
 * A band is filtered from what the notches of the shaper give, a span of channels at a time. The squares of a bin are
 * summed in the order of the samples. Their mean is smoothed over bins, and then the logarithm is taken.
 *
 * Tables   ed_fe_bands (ED_FE_BANDS * ED_FE_BAND_SECTIONS, 5), band after band, and ed_fe_bands_rest.
 * Time     No branch depends on samples.
 */
#ifndef ED_BANDS_H
#define ED_BANDS_H

#include "ed_filters.h"

#define ED_LN2 0.6931471805599453
#define ED_ROOT_HALF_BITS UINT64_C(0x3FE6A09E667F3BCD) /* of the double nearest to the root of 1/2 */
#define ED_ONE_BITS UINT64_C(0x3FF0000000000000)
#define ED_EXPONENT_BITS UINT64_C(0xFFF0000000000000)
#define ED_WHOLE_BITS \
    UINT64_C(0x4330000000000000) /* those of 2^52; a number below 2^52 in the low bits is added to it */

/* Returns the natural logarithm of positive normal numbers, off by at most 1e-9. The exponent has 1023 added to it, so
 * that it is never negative: processors without AVX-512 shift and convert such numbers faster. */
static inline ed_doubles ed_log(ed_doubles x) {
    const ed_double_bits bits = ed_bits_of_doubles(x), moved = bits + (ED_ONE_BITS - ED_ROOT_HALF_BITS);
    const ed_doubles exponent = ed_doubles_of_bits((moved >> 52) | ED_WHOLE_BITS) - (0x1p52 + 1023.0);
    const ed_doubles m = ed_doubles_of_bits(bits - ((moved & ED_EXPONENT_BITS) - ED_ONE_BITS));
    const ed_doubles s = (m - 1.0) / (m + 1.0), z = s * s;
    const ed_doubles p = ((1.0 / 9 * z + 1.0 / 7) * z + 1.0 / 5) * z + 1.0 / 3;
    return exponent * ED_LN2 + (s + s) * (1.0 + z * p);
}

#if ED_FE_BANDS
#define ED_FE_LEAST_POWER 0x1p-20 /* uV^2, that of silence */

typedef struct {
    ed_fe_span filter[ED_FE_SPANS][ED_FE_BANDS * ED_FE_BAND_SECTIONS][2];
    ed_fe_span power[ED_FE_SPANS][ED_FE_BANDS]; /* smoothed, uV^2 */
} ed_bands;

static inline void ed_bands_reset(ed_bands *bands) {
    memset(bands, 0, sizeof *bands);
    for (size_t c = 0; c < ED_FE_PADDED; c++)
        for (size_t b = 0; b < ED_FE_BANDS; b++)
            bands->power[c / ED_FE_SPAN][b].channel[c % ED_FE_SPAN] = ED_FE_LEAST_POWER;
}

/* Filters with a part of a filter, which sees `first` before x if it starts from rest. */
static __attribute__((noinline)) void ed_fe_filter_part(const ed_fe_span *restrict first, size_t sections,
                                                        const double (*k)[5], const double (*rest)[2],
                                                        ed_fe_span (*restrict states)[2], ed_fe_span *restrict x,
                                                        size_t rows, const ed_fe_starts *restrict restarts,
                                                        ed_fe_place place) {
    ed_fe_filter_after(first, sections, k, rest, states, x, rows, restarts, place);
}

/* Filters samples x (rows) of span `at` with each band, and adds the squares to `sum` (ED_FE_BANDS). */
static inline void ed_bands_add(ed_bands *restrict bands, size_t at, const ed_fe_span *restrict first,
                                const ed_fe_span *restrict x, size_t rows, const ed_fe_starts *restrict restarts,
                                ed_fe_place place, ed_fe_span *restrict sum) {
    for (size_t b = 0; b < ED_FE_BANDS; b++) {
        const size_t s = b * ED_FE_BAND_SECTIONS;
        ed_fe_span y[ED_FE_GROUP];
        memcpy(y, x, rows * sizeof *y);
        ed_fe_filter_part(first, ED_FE_BAND_SECTIONS, ed_fe_bands + s, ed_fe_bands_rest + s, bands->filter[at] + s, y,
                          rows, restarts, place);
        for (size_t i = 0; i < rows; i++)
            for (int v = 0; v < ED_FE_VECTORS; v++) sum[b].vector[v] += y[i].vector[v] * y[i].vector[v];
    }
}

/* Moves the smoothed power of span `at` on by a bin of `rows` samples, whose squares have this `sum` (ED_FE_BANDS).
 * Channels in `restarts` begin with the mean of the bin. Writes the logarithms to `value` (ED_FE_BANDS, padded C). */
static inline void ed_bands_measure(ed_bands *restrict bands, size_t at, const ed_fe_span *restrict sum, size_t rows,
                                    const ed_fe_starts *restrict restarts, double (*restrict value)[ED_FE_PADDED]) {
    const ed_doubles zero = {0}, least = zero + ED_FE_LEAST_POWER;
    for (size_t b = 0; b < ED_FE_BANDS; b++) {
        ed_fe_span log;
        for (int v = 0; v < ED_FE_VECTORS; v++) {
            const ed_doubles mean = sum[b].vector[v] / (double)rows;
            const ed_doubles before = ed_choose_doubles(restarts->vector[v], mean, bands->power[at][b].vector[v]);
            const ed_doubles next = before + ED_FE_BAND_RATE * (mean - before);
            const ed_doubles power = ed_choose_doubles(next > least, next, least);
            bands->power[at][b].vector[v] = power;
            log.vector[v] = ed_log(power);
        }
        memcpy(value[b] + at * ED_FE_SPAN, &log, sizeof log);
    }
}
#endif

#endif
