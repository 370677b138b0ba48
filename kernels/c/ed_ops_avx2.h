/*
 * Private: the variant for AVX2, with integer products of bytes without VNNI.
 *
 * vpmaddubsw multiplies unsigned by signed bytes, adds two products in 16 bits, and saturates. Products are therefore
 * computed as sum x w = sum |x| (w sign x). They are exact, because no factor is -128, so that a sum of two is at most
 * 2 * 127 * 127 = 32258.
 *
 * Weights   [group of up to 2 blocks][4 inputs][block][16 rows][4 inputs], with four accumulators of 8 rows.
 * Four bits [group of up to 2 blocks][32 inputs]: 16 factors of each pair of blocks, up to a multiple of 32 bytes, then
 *           [4 inputs][pair][16 rows][4 inputs]. A byte holds a weight of the first block of a pair in its low half and
 *           one of the second in its high half. A nibble is unsigned, and sums of 16 products fit into 16 bits, so a
 *           group of inputs needs only maddubs and an addition, and its factors enter with the sums of pairs.
 * Keys      (heads)[16 slots][4 dims][16][4]; values (heads)[4 slots][16 dims][16][4].
 * The float arithmetic is that of ed_math.h; compilers turn its loops over 16 lanes into two vectors of 8.
 */
#ifndef ED_OPS_AVX2_H
#define ED_OPS_AVX2_H

#include <immintrin.h>

#include "ed_math.h"

#define ED_OPS_NAME "avx2"

#define ED_DH4 ED_UP(ED_DH, 4)

struct ed_ring {
    int8_t k[ED_HEADS][ED_WP / 16][ED_DH4 / 4][16][4];
    int8_t v[ED_HEADS][ED_WP / 4][ED_DHP / 16][16][4];
};

ED_INLINE __m256i ed_load256(const void *from) { return _mm256_loadu_si256((const __m256i *)from); }
ED_INLINE void ed_store256(void *to, __m256i x) { _mm256_storeu_si256((__m256i *)to, x); }

ED_INLINE __m256i ed_four(const void *x) {
    int32_t four;
    memcpy(&four, x, 4);
    return _mm256_set1_epi32(four);
}

/* Returns acc + the sums of four products each, of 32 bytes u >= 0 and s, where no sum of two exceeds 16 bits. */
ED_INLINE __m256i ed_add_products(__m256i acc, __m256i u, __m256i s) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1)));
}

ED_INLINE __m256i ed_dot_bytes(__m256i acc, __m256i x, __m256i size, const void *w) {
    return ed_add_products(acc, size, _mm256_sign_epi8(ed_load256(w), x));
}

/* Computes two vectors of 8 rows for each block of a group. */
ED_INLINE const int8_t *ed_group(const int8_t *w, const int8_t *x, int n, int blocks, int32_t *acc) {
    __m256i sum[2 * ED_GROUP];
    ED_UNROLL
    for (int b = 0; b < 2 * blocks; b++) sum[b] = _mm256_setzero_si256();
    for (int i = 0; i < n; i += 4, w += 64 * blocks) {
        __m256i four = ed_four(x + i), size = _mm256_abs_epi8(four);
        ED_UNROLL
        for (int b = 0; b < 2 * blocks; b++) sum[b] = ed_dot_bytes(sum[b], four, size, w + 32 * b);
    }
    ED_UNROLL
    for (int b = 0; b < 2 * blocks; b++) ed_store256(acc + 8 * b, sum[b]);
    return w;
}

ED_INLINE void ed_matvec(const int8_t *w, const int8_t *x, int rows, int n, int32_t *acc) {
    const int blocks = ED_GROUP_OF(rows / 16);
    for (int o = 0; o < rows; o += 16 * blocks) w = ed_group(w, x, n, blocks, acc + o);
}

/* Computes sums[g] = -8 (sum of x over inputs 0 and 1 of each four, the same of inputs 2 and 3), as two int16, over the
 * inputs of group g. */
ED_INLINE void ed_offsets4(const int8_t *x, int n, __m256i *sums) {
    for (int g = 0; g < ED_FACTORS_OF(n); g++) {
        int32_t low = 0, high = 0;
        for (int i = 32 * g; i < 32 * g + 32 && i < n; i += 4) {
            low += x[i] + x[i + 1];
            high += x[i + 2] + x[i + 3];
        }
        sums[g] = _mm256_set1_epi32((int32_t)((uint32_t)(-8 * low) & 0xffff) | (int32_t)((uint32_t)(-8 * high) << 16));
    }
}

/* Returns 8 factors, each in both halves of 32 bits. */
ED_INLINE __m256i ed_factors4(__m256i factors) { return _mm256_or_si256(factors, _mm256_slli_epi32(factors, 16)); }

/* Computes two vectors of 8 rows for each block of a group. */
ED_INLINE const uint8_t *ed_group4(const uint8_t *q, const int8_t *x, int n, int blocks, const __m256i *sums,
                                   int32_t *acc) {
    const __m256i nibble = _mm256_set1_epi8(15), factor = _mm256_set1_epi32(15);
    const int pairs = (blocks + 1) / 2;
    __m256i total[4 * ((ED_GROUP + 1) / 2)];
    ED_UNROLL
    for (int b = 0; b < 4 * pairs; b++) total[b] = _mm256_setzero_si256();
    for (int at = 0; at < n; at += ED_FACTOR_INPUTS) {
        const int end = at + ED_FACTOR_INPUTS < n ? at + ED_FACTOR_INPUTS : n;
        const uint8_t *factors = q;
        __m256i sum[4 * ((ED_GROUP + 1) / 2)];
        ED_UNROLL
        for (int b = 0; b < 4 * pairs; b++) sum[b] = sums[at / ED_FACTOR_INPUTS];
        q += ED_UP(16 * pairs, 32);
        for (int i = at; i < end; i += 4, q += 64 * pairs) {
            __m256i four = ed_four(x + i);
            ED_UNROLL
            for (int b = 0; b < 4 * pairs; b += 4)
                for (int half = 0; half < 2; half++) {
                    __m256i two = ed_load256(q + 16 * b + 32 * half);
                    __m256i low = _mm256_and_si256(two, nibble);
                    __m256i high = _mm256_and_si256(_mm256_srli_epi16(two, 4), nibble);
                    sum[b + half] = _mm256_add_epi16(sum[b + half], _mm256_maddubs_epi16(low, four));
                    sum[b + 2 + half] = _mm256_add_epi16(sum[b + 2 + half], _mm256_maddubs_epi16(high, four));
                }
        }
        ED_UNROLL
        for (int b = 0; b < 4 * pairs; b += 4)
            for (int half = 0; half < 2; half++) {
                __m256i two = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)(factors + 4 * b + 8 * half)));
                __m256i low = ed_factors4(_mm256_and_si256(two, factor)), high = ed_factors4(_mm256_srli_epi32(two, 4));
                total[b + half] = _mm256_add_epi32(total[b + half], _mm256_madd_epi16(sum[b + half], low));
                total[b + 2 + half] = _mm256_add_epi32(total[b + 2 + half], _mm256_madd_epi16(sum[b + 2 + half], high));
            }
    }
    ED_UNROLL
    for (int b = 0; b < 2 * blocks; b++) ed_store256(acc + 8 * b, total[b]);
    return q;
}

ED_INLINE void ed_matvec4(const uint8_t *q, const int8_t *x, int rows, int n, int32_t *acc) {
    const int blocks = ED_GROUP_OF(rows / 16);
    __m256i sums[ED_MOST_FACTORS];
    ed_offsets4(x, n, sums);
    for (int o = 0; o < rows; o += 16 * blocks) q = ed_group4(q, x, n, blocks, sums, acc + o);
}

ED_INLINE int32_t ed_add_lanes(__m256i x) {
    __m128i a = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    a = _mm_add_epi32(a, _mm_shuffle_epi32(a, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(a, _mm_shuffle_epi32(a, 0xb1)));
}

static inline void ed_rows(const int8_t *w, const int8_t *x, int rows, int n, int32_t *acc) {
    for (int o = 0; o < rows; o++, w += n) {
        __m256i sum = _mm256_setzero_si256();
        for (int i = 0; i < n; i += 32) {
            __m256i part = ed_load256(x + i);
            sum = ed_dot_bytes(sum, part, _mm256_abs_epi8(part), w + i);
        }
        acc[o] = ed_add_lanes(sum);
    }
}

static inline void ed_ring_clear(struct ed_ring *ring) { memset(ring, 0, sizeof *ring); }

static inline void ed_ring_put(struct ed_ring *ring, int slot, const int8_t *k, const int8_t *v) {
    for (int h = 0; h < ED_HEADS; h++)
        for (int i = 0; i < ED_DH; i++) {
            ring->k[h][slot / 16][i / 4][slot % 16][i % 4] = k[h * ED_DH + i];
            ring->v[h][slot / 4][i / 16][i % 16][slot % 4] = v[h * ED_DH + i];
        }
}

static inline void ed_ring_get(const struct ed_ring *ring, int slot, int8_t *k, int8_t *v) {
    for (int h = 0; h < ED_HEADS; h++)
        for (int i = 0; i < ED_DH; i++) {
            k[h * ED_DH + i] = ring->k[h][slot / 16][i / 4][slot % 16][i % 4];
            v[h * ED_DH + i] = ring->v[h][slot / 4][i / 16][i % 16][slot % 4];
        }
}

static inline void ed_scores(const struct ed_ring *ring, int h, const int8_t *q, int32_t *acc) {
    for (int s = 0; s < ED_WP; s += 16) {
        __m256i low = _mm256_setzero_si256(), high = low;
        for (int i = 0; i < ED_DH4 / 4; i++) {
            const int8_t *line = &ring->k[h][s / 16][i][0][0];
            __m256i four = ed_four(q + 4 * i), size = _mm256_abs_epi8(four);
            low = ed_dot_bytes(low, four, size, line);
            high = ed_dot_bytes(high, four, size, line + 32);
        }
        ed_store256(acc + s, low);
        ed_store256(acc + s + 8, high);
    }
}

/* The weights p are 0 to 127 and values have a sign, so no signs need to change. */
static inline void ed_weighted(const struct ed_ring *ring, int h, const uint8_t *p, int32_t *acc) {
    __m256i sum[ED_DHP / 8];
    ED_UNROLL
    for (int i = 0; i < ED_DHP / 8; i++) sum[i] = _mm256_setzero_si256();
    for (int s = 0; s < ED_UP(ED_WINDOW, 4); s += 4) {
        __m256i four = ed_four(p + s);
        ED_UNROLL
        for (int i = 0; i < ED_DHP / 8; i++)
            sum[i] = ed_add_products(sum[i], four, ed_load256(&ring->v[h][s / 4][i / 2][i % 2 * 8][0]));
    }
    ED_UNROLL
    for (int i = 0; i < ED_DHP / 8; i++) ed_store256(acc + 8 * i, sum[i]);
}

#include "ed_ops_common.h"

#endif
