/*
 * Private: the variant for Cortex-M with the DSP extension (M4, M7, M33 ...), with two products of 16 bits an
 * instruction.
 *
 * sxtb16 widens bytes 0 and 2 of a word, or 1 and 3 after a rotation, to two int16. smlad multiplies two such pairs and
 * adds both products to an int32. Activations are widened once for a product, and weights as they are read, four rows
 * at a time, so that one load of x serves sixteen products. One loop serves weights, keys and values alike. It is
 * not inlined, because flash is short.
 *
 * Weights   [4 rows][4 inputs] after [4 rows][4 inputs], read from end to end, in flash.
 * Four bits [4 rows][64 inputs]: a word with the factors of two groups, then [8 inputs][4 rows] words. Nibble p of the
 *           low and of the high half of a word are a pair that one mask takes out: weights of inputs (0, 2), (1, 3),
 *           (4, 6) and (5, 7) for p = 0 ... 3, and factors of rows (0, 2), (1, 3) in the first group and the second. A
 *           mask and a smlad do two products.
 * Keys      (heads)[4 slots][4 dims][4][4], a matrix with a row for each slot.
 * Values    (heads)[4 dims][4 slots][4][4], a matrix with a row for each dim.
 * Cost      23 to 25 instructions for 16 products, 8 of them sxtb16 and 8 smlad; nano: 0.46 million a step (emulated).
 *
 * Without the extension the two instructions are written out in C, with the same layout and bits on any processor.
 */
#ifndef ED_OPS_DSP_H
#define ED_OPS_DSP_H

#include "ed_math.h"

#define ED_OPS_NAME "dsp"

#define ED_DH4 ED_UP(ED_DH, 4)

struct ed_ring {
    int8_t k[ED_HEADS][ED_WP / 4][ED_DH4 / 4][4][4];
    int8_t v[ED_HEADS][ED_DH4 / 4][ED_WP / 4][4][4];
};

/* ---------------------------------------------------------------- the instructions */

#if defined(__ARM_FEATURE_SIMD32) && __ARM_FEATURE_SIMD32

#include <arm_acle.h>

ED_INLINE uint32_t ed_even(uint32_t four) { return (uint32_t)__sxtb16((int8x4_t)four); }

/* arm_acle.h has no version with a rotation. */
ED_INLINE uint32_t ed_odd(uint32_t four) {
    uint32_t pair;
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(pair) : "r"(four));
    return pair;
}

ED_INLINE int32_t ed_add_pair(uint32_t x, uint32_t w, int32_t acc) { return __smlad((int16x2_t)x, (int16x2_t)w, acc); }

ED_INLINE int32_t ed_add_low(int32_t sum, uint32_t factors, int32_t acc) {
    return __smlabb(sum, (int32_t)factors, acc);
}

ED_INLINE int32_t ed_add_high(int32_t sum, uint32_t factors, int32_t acc) {
    return __smlabt(sum, (int32_t)factors, acc);
}

#else

/* Return bytes 0 and 2 of a word as two int16, and bytes 1 and 3. */
ED_INLINE uint32_t ed_even(uint32_t four) {
    return (uint32_t)(uint16_t)(int8_t)(four & 255) | (uint32_t)(uint16_t)(int8_t)(four >> 16 & 255) << 16;
}

ED_INLINE uint32_t ed_odd(uint32_t four) { return ed_even(four >> 8); }

ED_INLINE int32_t ed_add_pair(uint32_t x, uint32_t w, int32_t acc) {
    acc += (int16_t)(x & 0xffff) * (int16_t)(w & 0xffff);
    return acc + (int16_t)(x >> 16) * (int16_t)(w >> 16);
}

/* Return acc + sum, a number of 16 bits, times the low or the high half of a word. */
ED_INLINE int32_t ed_add_low(int32_t sum, uint32_t factors, int32_t acc) {
    return acc + (int16_t)sum * (int16_t)(factors & 0xffff);
}

ED_INLINE int32_t ed_add_high(int32_t sum, uint32_t factors, int32_t acc) {
    return acc + (int16_t)sum * (int16_t)(factors >> 16);
}

#endif

ED_INLINE uint32_t ed_word(const void *bytes) {
    uint32_t word;
    memcpy(&word, bytes, 4);
    return word;
}

/* ---------------------------------------------------------------- products */

#define ED_MOST_INPUTS ED_MORE(ED_MORE(ED_DP, ED_FP), ED_MORE(ED_UP(ED_TAP_N, 4), ED_WP))

/* Computes acc[o] = x . row o. rows and n are multiples of 4, and w is aligned to 4. */
static __attribute__((noinline)) void ed_product(const int8_t *weights, const int8_t *x, int rows, int n,
                                                 int32_t *acc) {
    const int8_t *w = __builtin_assume_aligned(weights, 4);
    uint32_t wide[ED_MOST_INPUTS / 2];
    for (int i = 0; i < n / 2; i += 2) {
        uint32_t four = ed_word(x + 2 * i);
        wide[i] = ed_even(four);
        wide[i + 1] = ed_odd(four);
    }
    for (int o = 0; o < rows; o += 4) {
        int32_t a = 0, b = 0, c = 0, d = 0;
        const uint32_t *pair = wide;
        for (int left = n / 4; left; left--, pair += 2, w += 16) {
            const uint32_t even = pair[0], odd = pair[1];
            uint32_t four = ed_word(w);
            a = ed_add_pair(odd, ed_odd(four), ed_add_pair(even, ed_even(four), a));
            four = ed_word(w + 4);
            b = ed_add_pair(odd, ed_odd(four), ed_add_pair(even, ed_even(four), b));
            four = ed_word(w + 8);
            c = ed_add_pair(odd, ed_odd(four), ed_add_pair(even, ed_even(four), c));
            four = ed_word(w + 12);
            d = ed_add_pair(odd, ed_odd(four), ed_add_pair(even, ed_even(four), d));
        }
        acc[o] = a;
        acc[o + 1] = b;
        acc[o + 2] = c;
        acc[o + 3] = d;
    }
}

ED_INLINE void ed_matvec(const int8_t *w, const int8_t *x, int rows, int n, int32_t *acc) {
    ed_product(w, x, rows, n, acc);
}

/* Adds eight products of a row: four pairs of inputs times the nibbles of a word. */
ED_INLINE int32_t ed_add_eight(const uint32_t *pair, uint32_t eight, uint32_t mask, int32_t acc) {
    acc = ed_add_pair(pair[0], eight & mask, acc);
    acc = ed_add_pair(pair[1], eight >> 4 & mask, acc);
    acc = ed_add_pair(pair[2], eight >> 8 & mask, acc);
    return ed_add_pair(pair[3], eight >> 12 & mask, acc);
}

/* Adds eight products of each of four rows. */
ED_INLINE void ed_add_rows(const uint32_t *pair, const uint8_t *q, uint32_t mask, int32_t *a, int32_t *b, int32_t *c,
                           int32_t *d) {
    *a = ed_add_eight(pair, ed_word(q), mask, *a);
    *b = ed_add_eight(pair, ed_word(q + 4), mask, *b);
    *c = ed_add_eight(pair, ed_word(q + 8), mask, *c);
    *d = ed_add_eight(pair, ed_word(q + 12), mask, *d);
}

/* Computes what ed_product does for four-bit weights. */
static __attribute__((noinline)) void ed_product4(const uint8_t *weights, const int8_t *x, int rows, int n,
                                                  int32_t *acc) {
    const uint8_t *q = __builtin_assume_aligned(weights, 4);
    uint32_t wide[ED_UP(ED_MOST_INPUTS, 8) / 2];
    int32_t sums[ED_MOST_FACTORS];
    for (int i = 0; i < n / 2; i += 2) {
        uint32_t four = ed_word(x + 2 * i);
        wide[i] = ed_even(four);
        wide[i + 1] = ed_odd(four);
    }
    for (int i = n / 2; i < ED_UP(n, 8) / 2; i++) wide[i] = 0;
    for (int g = 0; g < ED_FACTORS_OF(n); g++) {
        int32_t sum = 0;
        for (int i = 16 * g; i < 16 * g + 16 && i < n / 2; i++) sum = ed_add_pair(wide[i], 0xfff8fff8u, sum); /* -8 */
        sums[g] = sum;
    }
    const int groups = ED_FACTORS_OF(n), whole = n % ED_FACTOR_INPUTS == 0;
    uint32_t mask = 0x000f000fu;
    __asm__("" : "+r"(mask)); /* in a register, so that one instruction shifts and masks */
    for (int o = 0; o < rows; o += 4) {
        const uint32_t *pair = wide;
        uint32_t factors = 0;
        for (int r = 0; r < 4; r++) acc[o + r] = 0;
        for (int g = 0; g < groups; g++) {
            int32_t a = sums[g], b = a, c = a, d = a;
            if (g % 2 == 0) {
                factors = ed_word(q);
                q += 4;
            }
            if (g + 1 < groups || whole) {
                ED_UNROLL
                for (int i = 0; i < 4; i++) {
                    ed_add_rows(pair + 4 * i, q + 16 * i, mask, &a, &b, &c, &d);
                    __asm__ volatile("" ::: "memory"); /* or so much is loaded early that registers run out */
                }
                pair += 16;
                q += 64;
            } else {
                for (int i = 32 * g; i < n; i += 8, pair += 4, q += 16) ed_add_rows(pair, q, mask, &a, &b, &c, &d);
            }
            const uint32_t even = factors & mask, odd = factors >> 4 & mask;
            acc[o] = ed_add_low(a, even, acc[o]);
            acc[o + 1] = ed_add_low(b, odd, acc[o + 1]);
            acc[o + 2] = ed_add_high(c, even, acc[o + 2]);
            acc[o + 3] = ed_add_high(d, odd, acc[o + 3]);
            factors >>= 8;
        }
    }
}

ED_INLINE void ed_matvec4(const uint8_t *q, const int8_t *x, int rows, int n, int32_t *acc) {
    ed_product4(q, x, rows, n, acc);
}

static inline void ed_rows(const int8_t *w, const int8_t *x, int rows, int n, int32_t *acc) {
    for (int o = 0; o < rows; o++) {
        int32_t sum = 0;
        for (int i = 0; i < n; i += 4, w += 4) {
            uint32_t ours = ed_word(x + i), theirs = ed_word(w);
            sum = ed_add_pair(ed_odd(ours), ed_odd(theirs), ed_add_pair(ed_even(ours), ed_even(theirs), sum));
        }
        acc[o] = sum;
    }
}

/* ---------------------------------------------------------------- rings */

static inline void ed_ring_clear(struct ed_ring *ring) { memset(ring, 0, sizeof *ring); }

/* Bytes beyond a head's dims stay zero. */
static inline void ed_ring_put(struct ed_ring *ring, int slot, const int8_t *k, const int8_t *v) {
    for (int h = 0; h < ED_HEADS; h++)
        for (int i = 0; i < ED_DH; i++) {
            ring->k[h][slot / 4][i / 4][slot % 4][i % 4] = k[h * ED_DH + i];
            ring->v[h][i / 4][slot / 4][i % 4][slot % 4] = v[h * ED_DH + i];
        }
}

static inline void ed_ring_get(const struct ed_ring *ring, int slot, int8_t *k, int8_t *v) {
    for (int h = 0; h < ED_HEADS; h++)
        for (int i = 0; i < ED_DH; i++) {
            k[h * ED_DH + i] = ring->k[h][slot / 4][i / 4][slot % 4][i % 4];
            v[h * ED_DH + i] = ring->v[h][i / 4][slot / 4][i % 4][slot % 4];
        }
}

ED_INLINE void ed_scores(const struct ed_ring *ring, int h, const int8_t *q, int32_t *acc) {
    ed_product(&ring->k[h][0][0][0][0], q, ED_WP, ED_DH4, acc);
}

/* The weights p are 0 to 127, which signed bytes hold. */
ED_INLINE void ed_weighted(const struct ed_ring *ring, int h, const uint8_t *p, int32_t *acc) {
    ed_product(&ring->v[h][0][0][0][0], (const int8_t *)p, ED_DH4, ED_WP, acc);
}

#include "ed_ops_common.h"

#endif
