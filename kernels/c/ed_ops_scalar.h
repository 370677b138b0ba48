/*
 * Private: integer kernels in portable C, the plain definition of what every variant computes.
 *
 * A variant defines, for the shape of ed_weights.h:
 *     ED_OPS_NAME                                           its name in ed_info.variant
 *     ed_matvec(w, x, rows, n, acc)                         acc[o] = sum x[i] w[o, i]; rows a multiple of 16, n of 4
 *     ed_matvec4(q, x, rows, n, acc)                        the same for four-bit weights (ed_weights.h)
 *     ed_rows(w, x, rows, n, acc)                           the same for the few rows of the read-outs; n of 64
 *     struct ed_ring, ed_ring_clear, _put, _get             keys and values of one layer, ED_WINDOW slots
 *     ed_scores(ring, h, q, acc)                            acc[s] = q (ED_DHP,) . key of slot s, acc (ED_WP,)
 *     ed_weighted(ring, h, p, acc)                          acc[i] = sum p[s] value[s, i], p (ED_WP,), acc (ED_DHP,)
 * It ends with ed_ops_common.h, which makes the steps of a layer out of them. A variant that fuses more defines those
 * steps itself. Integer sums are exact, so their order is free. Activations are int8 in all variants, padded with 0.
 *
 * Layout here: weights (rows, n) row by row; rings (heads, slots, dims). Four-bit weights (rows, groups of 32 inputs): a
 * byte with the factor, then two weights to a byte, the first in the low half. The last group may be shorter.
 */
#ifndef ED_OPS_SCALAR_H
#define ED_OPS_SCALAR_H

#include "ed_math.h"

#define ED_OPS_NAME "scalar"

struct ed_ring {
    int8_t k[ED_HEADS][ED_WP][ED_DHP];
    int8_t v[ED_HEADS][ED_WP][ED_DHP];
};

static inline void ed_matvec(const int8_t *w, const int8_t *x, int rows, int n, int32_t *acc) {
    for (int o = 0; o < rows; o++) {
        int32_t sum = 0;
        for (int i = 0; i < n; i++) sum += x[i] * w[(ptrdiff_t)o * n + i];
        acc[o] = sum;
    }
}

static inline void ed_matvec4(const uint8_t *q, const int8_t *x, int rows, int n, int32_t *acc) {
    for (int o = 0; o < rows; o++) {
        int32_t total = 0;
        for (int at = 0; at < n; at += ED_FACTOR_INPUTS) {
            const int32_t factor = *q++;
            const int end = at + ED_FACTOR_INPUTS < n ? at + ED_FACTOR_INPUTS : n;
            int32_t sum = 0;
            for (int i = at; i < end; i += 2, q++) sum += x[i] * ((*q & 15) - 8) + x[i + 1] * ((*q >> 4) - 8);
            total += sum * factor;
        }
        acc[o] = total;
    }
}

static inline void ed_rows(const int8_t *w, const int8_t *x, int rows, int n, int32_t *acc) {
    ed_matvec(w, x, rows, n, acc);
}

static inline void ed_ring_clear(struct ed_ring *ring) { memset(ring, 0, sizeof *ring); }

/* Writes k and v (ED_D,) of the bin that takes `slot`. */
static inline void ed_ring_put(struct ed_ring *ring, int slot, const int8_t *k, const int8_t *v) {
    for (int h = 0; h < ED_HEADS; h++) {
        memcpy(ring->k[h][slot], k + h * ED_DH, ED_DH);
        memcpy(ring->v[h][slot], v + h * ED_DH, ED_DH);
    }
}

static inline void ed_ring_get(const struct ed_ring *ring, int slot, int8_t *k, int8_t *v) {
    for (int h = 0; h < ED_HEADS; h++) {
        memcpy(k + h * ED_DH, ring->k[h][slot], ED_DH);
        memcpy(v + h * ED_DH, ring->v[h][slot], ED_DH);
    }
}

static inline void ed_scores(const struct ed_ring *ring, int h, const int8_t *q, int32_t *acc) {
    for (int s = 0; s < ED_WP; s++) {
        int32_t sum = 0;
        for (int i = 0; i < ED_DH; i++) sum += q[i] * ring->k[h][s][i];
        acc[s] = sum;
    }
}

static inline void ed_weighted(const struct ed_ring *ring, int h, const uint8_t *p, int32_t *acc) {
    int32_t sum[ED_DHP] = {0};
    for (int s = 0; s < ED_WP; s++)
        for (int i = 0; i < ED_DHP; i++) sum[i] += p[s] * ring->v[h][s][i];
    memcpy(acc, sum, sizeof sum);
}

#include "ed_ops_common.h"

#endif
