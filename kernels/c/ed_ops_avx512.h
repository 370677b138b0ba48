/*
 * Private: the variant for AVX-512 with VNNI. The steps of a layer are fused around its integer products.
 *
 * vpdpbusd multiplies 16 x 4 unsigned by signed bytes and adds each four products to an int32. Weights and keys are
 * therefore stored as w + 128, and sums are corrected: sum (w + 128) x = sum w x + 128 sum x, one number for each input
 * vector.
 *
 * Weights   [group of up to 8 blocks][4 inputs][block][16 rows][4 inputs]. Every line is read once, from end to end.
 *           Eight accumulators hide the latency of vpdpbusd, and one column of inputs serves eight lines.
 * Four bits [group of up to 8 blocks][32 inputs]: 16 factors of each pair of blocks, up to a multiple of 64 bytes, then
 *           [4 inputs][pair][16 rows][4 inputs]. A byte holds a weight of the first block of a pair in its low half and
 *           one of the second in its high half, and one mask takes out either. High ones are 16 times too large, and so
 *           are their sums, until 32 inputs are summed. These sums fit into 16 bits, so that vpdpwssd multiplies them by
 *           their factors and adds them to those of the inputs before.
 * Keys      (heads)[16 slots][4 dims][16][4] as k + 128; values (heads)[4 slots][16 dims][16][4].
 * Roofline  L2 bounds a step. `edge` (96 channels, W = 200) streams 1.11 MB of weights and 0.21 MB of rings, which
 *           takes 7.1 us at the 185 GB/s that a loop of vpdpbusd alone reaches on a Sapphire Rapids core.
 * Measured  on that core, gcc 12, beside other work: p50 of ed_step is 11.8 us, and 2.6 us for `nano`. Attention takes
 *           a fifth of it, gate and up a third.
 *           On a Zen 4 core with 1 MB of L2, `edge` takes 17 us with int8 and 13.4 us with four-bit weights; its caches
 *           evicted, 97 and 58 us.
 * Tried     Prefetching int8 weights did not help, neither of the next lines nor of the next matrix during softmax, because load
 *           ports are the bottleneck.
 */
#ifndef ED_OPS_AVX512_H
#define ED_OPS_AVX512_H

#include <immintrin.h>

#include "ed_math.h"

#define ED_OPS_NAME "avx512-vnni"

#define ED_DH4 ED_UP(ED_DH, 4)
#define ED_SLOT_BLOCKS (ED_WP / 16)

struct ed_ring {
    uint8_t k[ED_HEADS][ED_SLOT_BLOCKS][ED_DH4 / 4][16][4];
    int8_t v[ED_HEADS][ED_WP / 4][ED_DHP / 16][16][4];
};

/* ---------------------------------------------------------------- floats, 16 at a time */

ED_INLINE float ed_fold512(__m512 x) {
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}

/* Returns rint(clip(x * inv_scale)) in 32 bits. The order of operands lets NaN through, which becomes 0 in 8 bits. */
ED_INLINE __m512i ed_quantize512(__m512 x, __m512 inv_scale) {
    __m512 y = _mm512_mul_ps(x, inv_scale);
    y = _mm512_min_ps(_mm512_set1_ps(ED_LEVELS), y);
    y = _mm512_max_ps(_mm512_set1_ps(-ED_LEVELS), y);
    return _mm512_cvtps_epi32(y);
}

ED_INLINE void ed_store8(int8_t *to, __m512i x) { _mm_storeu_si128((__m128i *)(void *)to, _mm512_cvtepi32_epi8(x)); }

/* Computes polynomial and power of two of exp, for x within its range. vscalefps rounds as
 * the product with 2**n does. */
ED_INLINE __m512 ed_exp_in_range(__m512 x) {
    const __m512 shift = _mm512_set1_ps(ED_ROUND);
    __m512 n = _mm512_sub_ps(_mm512_add_ps(_mm512_mul_ps(x, _mm512_set1_ps(ED_LOG2_E)), shift), shift);
    __m512 r = _mm512_sub_ps(x, _mm512_mul_ps(n, _mm512_set1_ps(ED_LN2_HIGH)));
    r = _mm512_sub_ps(r, _mm512_mul_ps(n, _mm512_set1_ps(ED_LN2_LOW)));
    __m512 p = _mm512_add_ps(_mm512_mul_ps(_mm512_set1_ps(ED_EXP_0), r), _mm512_set1_ps(ED_EXP_1));
    p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(ED_EXP_2));
    p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(ED_EXP_3));
    p = _mm512_add_ps(_mm512_mul_ps(_mm512_mul_ps(p, r), r), r);
    return _mm512_scalef_ps(_mm512_add_ps(p, _mm512_set1_ps(1.0f)), n);
}

ED_INLINE __m512 ed_silu512(__m512 x) {
    __m512 minus = _mm512_xor_ps(x, _mm512_set1_ps(-0.0f));
    minus = _mm512_max_ps(_mm512_set1_ps(ED_EXP_LOWEST), minus);
    minus = _mm512_min_ps(_mm512_set1_ps(ED_EXP_HIGHEST), minus);
    return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0f), ed_exp_in_range(minus)));
}

/* Writes zeros from n up to a multiple of 64, so that whole lines of an activation can be summed. */
ED_INLINE void ed_clear_tail(int8_t *a, int n) {
    for (int i = n; i < ED_UP(n, 64); i += 16) _mm_storeu_si128((__m128i *)(void *)(a + i), _mm_setzero_si128());
}

ED_INLINE void ed_quantize_all(const float *x, int n, float inv_scale, int8_t *q) {
    ED_UNROLL
    for (int i = 0; i < n; i += 16) ed_store8(q + i, ed_quantize512(_mm512_loadu_ps(x + i), _mm512_set1_ps(inv_scale)));
    ed_clear_tail(q, n);
}

ED_INLINE void ed_norm_quantize(const float *x, float inv_scale, int8_t *a) {
    __m512 first = _mm512_loadu_ps(x);
    __m512 lanes = _mm512_mul_ps(first, first);
    ED_UNROLL
    for (int i = 16; i < ED_DP; i += 16) {
        __m512 v = _mm512_loadu_ps(x + i);
        lanes = _mm512_add_ps(lanes, _mm512_mul_ps(v, v));
    }
    float mean = ed_fold512(lanes) / (float)ED_D;
    __m512 factor = _mm512_set1_ps(1.0f / __builtin_sqrtf(mean + ED_RMS_EPSILON));
    ED_UNROLL
    for (int i = 0; i < ED_DP; i += 16)
        ed_store8(a + i, ed_quantize512(_mm512_mul_ps(_mm512_loadu_ps(x + i), factor), _mm512_set1_ps(inv_scale)));
    ed_clear_tail(a, ED_DP);
}

/* ---------------------------------------------------------------- products */

ED_INLINE __m512i ed_load512(const void *from) { return _mm512_loadu_si512(from); }

/* Returns four bytes of an activation in every lane. */
ED_INLINE __m512i ed_four(const void *x) {
    int32_t four;
    memcpy(&four, x, 4);
    return _mm512_set1_epi32(four);
}

/* Returns 128 sum x, with n padded with zeros to a multiple of 64. */
ED_INLINE __m512i ed_correction(const int8_t *x, int n) {
    __m512i sum = _mm512_setzero_si512();
    ED_UNROLL
    for (int i = 0; i < n; i += 64) sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(-128), ed_load512(x + i));
    return _mm512_set1_epi32(_mm512_reduce_add_epi32(sum));
}

/* Adds one column: four inputs, in every lane of `four`, times `blocks` lines of weights. */
ED_INLINE const int8_t *ed_column(const int8_t *w, __m512i four, int blocks, __m512i *acc) {
    ED_UNROLL
    for (int b = 0; b < blocks; b++) acc[b] = _mm512_dpbusd_epi32(acc[b], ed_load512(w + 64 * b), four);
    return w + 64 * blocks;
}

/* Adds inputs [from, to) of one group of `blocks` blocks to acc, and returns where the weights of the next inputs
 * lie. One load brings sixteen inputs, and shuffles move them to their columns, because loads are the bottleneck. */
ED_INLINE const int8_t *ed_columns(const int8_t *w, const int8_t *x, int from, int to, int blocks, __m512i *acc) {
    int i = from;
    for (; i + 16 <= to; i += 16) {
        __m512i sixteen = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)(x + i)));
        w = ed_column(w, _mm512_shuffle_epi32(sixteen, _MM_PERM_AAAA), blocks, acc);
        w = ed_column(w, _mm512_shuffle_epi32(sixteen, _MM_PERM_BBBB), blocks, acc);
        w = ed_column(w, _mm512_shuffle_epi32(sixteen, _MM_PERM_CCCC), blocks, acc);
        w = ed_column(w, _mm512_shuffle_epi32(sixteen, _MM_PERM_DDDD), blocks, acc);
    }
    for (; i < to; i += 4) w = ed_column(w, ed_four(x + i), blocks, acc);
    return w;
}

/* Computes sums[g] = -8 sum x over the inputs of group g. x is padded with zeros to a multiple of 64. */
ED_INLINE void ed_offsets4(const int8_t *x, int n, int32_t *sums) {
    ED_UNROLL
    for (int g = 0; g < ED_FACTORS_OF(n); g++) {
        __m256i part = _mm256_loadu_si256((const __m256i *)(const void *)(x + 32 * g));
        part = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(8), part);
        __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(part), _mm256_extracti128_si256(part, 1));
        sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
        sums[g] = -_mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
    }
}

#define ED_AHEAD 4096 /* bytes that four-bit weights are fetched ahead: no gain in L2, 5 to 9 % of a cold step */

/* Adds one column: four inputs, in every lane of `four`, times the nibbles of lines of pairs of blocks. */
ED_INLINE const int8_t *ed_column4(const int8_t *q, __m512i four, int blocks, __m512i *sum) {
    ED_UNROLL
    for (int b = 0; b < blocks; b += 2, q += 64) {
        const __m512i two = ed_load512(q);
        _mm_prefetch((const char *)q + ED_AHEAD, _MM_HINT_T0);
        sum[b] = _mm512_dpbusd_epi32(sum[b], _mm512_and_si512(two, _mm512_set1_epi8(15)), four);
        if (b + 1 < blocks)
            sum[b + 1] = _mm512_dpbusd_epi32(sum[b + 1], _mm512_and_si512(two, _mm512_set1_epi8(-16)), four);
    }
    return q;
}

/* Does for four-bit weights what ed_columns does. `from` is a multiple of 32. */
ED_INLINE const int8_t *ed_columns4(const int8_t *q, const int8_t *x, const int32_t *sums, int from, int to, int blocks,
                                    __m512i *acc) {
    for (int at = from; at < to; at += ED_FACTOR_INPUTS) {
        const int8_t *factors = q;
        const __m512i less = _mm512_set1_epi32(sums[at / ED_FACTOR_INPUTS]), more = _mm512_slli_epi32(less, 4);
        __m512i sum[ED_GROUP];
        ED_UNROLL
        for (int b = 0; b < blocks; b++) sum[b] = b % 2 ? more : less;
        q += ED_UP(16 * ((blocks + 1) / 2), 64);
        if (at + ED_FACTOR_INPUTS <= to) {
            ED_UNROLL
            for (int i = 0; i < ED_FACTOR_INPUTS; i += 4) q = ed_column4(q, ed_four(x + at + i), blocks, sum);
        } else {
            for (int i = at; i < to; i += 4) q = ed_column4(q, ed_four(x + i), blocks, sum);
        }
        ED_UNROLL
        for (int b = 0; b < blocks; b++) {
            __m512i two = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(factors + 16 * (b / 2))));
            if (b % 2)
                acc[b] = _mm512_dpwssd_epi32(acc[b], _mm512_srai_epi32(sum[b], 4), _mm512_srli_epi32(two, 4));
            else
                acc[b] = _mm512_dpwssd_epi32(acc[b], sum[b], _mm512_and_si512(two, _mm512_set1_epi32(15)));
        }
    }
    return q;
}

/* An input of a product: its values and what the unsigned factor of the instruction adds to sums. */
struct ed_input {
    const int8_t *x;
    __m512i correction;            /* of int8 weights; 0 for four-bit ones */
    int32_t sums[ED_MOST_FACTORS]; /* of four-bit weights */
};

ED_INLINE void ed_read_input(const struct ed_matrix *part, const int8_t *x, int n, struct ed_input *input) {
    input->x = x;
    input->correction = ED_FOUR(*part) ? _mm512_setzero_si512() : ed_correction(x, n);
    if (ED_FOUR(*part))
        ed_offsets4(x, n, input->sums);
    else if (ED_FOURS)
        memset(input->sums, 0, sizeof input->sums); /* compilers do not see that nobody reads them */
}

ED_INLINE const int8_t *ed_first_line(const struct ed_matrix *part) {
    return ED_FOUR(*part) ? (const int8_t *)part->q : part->w;
}

/* Adds inputs [from, to) of one group of blocks of any weights to acc. */
ED_INLINE const int8_t *ed_any_columns(const struct ed_matrix *part, const int8_t *w, const struct ed_input *input,
                                       int from, int to, int blocks, __m512i *acc) {
    if (ED_FOUR(*part)) return ed_columns4(w, input->x, input->sums, from, to, blocks, acc);
    return ed_columns(w, input->x, from, to, blocks, acc);
}

/* Sets the accumulators to zero. */
ED_INLINE void ed_zero(__m512i *acc, int blocks) {
    ED_UNROLL
    for (int b = 0; b < blocks; b++) acc[b] = _mm512_setzero_si512();
}

/* Computes one group of blocks, acc = 128 sum x + the sums, and returns where the next group begins. */
ED_INLINE const int8_t *ed_group(const struct ed_matrix *part, const int8_t *w, const struct ed_input *input, int n,
                                 int blocks, __m512i *acc) {
    ed_zero(acc, blocks);
    return ed_any_columns(part, w, input, 0, n, blocks, acc);
}

/* Returns float(acc) * m of one block. */
ED_INLINE __m512 ed_scaled(__m512i acc, __m512i correction, const float *m) {
    return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(acc, correction)), _mm512_loadu_ps(m));
}

ED_INLINE void ed_linear(const struct ed_matrix *part, const int8_t *a, int rows, int n, float *y) {
    const int8_t *w = ed_first_line(part);
    const int blocks = ED_GROUP_OF(rows / 16);
    __m512i acc[ED_GROUP];
    struct ed_input input;
    ed_read_input(part, a, n, &input);
    for (int o = 0; o < rows; o += 16 * blocks) {
        w = ed_group(part, w, &input, n, blocks, acc);
        ED_UNROLL
        for (int b = 0; b < blocks; b++)
            _mm512_storeu_ps(y + o + 16 * b, ed_scaled(acc[b], input.correction, part->m + o + 16 * b));
    }
}

ED_INLINE void ed_linear_add(const struct ed_matrix *part, const int8_t *a, int n, float *x) {
    const int8_t *w = ed_first_line(part);
    const int blocks = ED_GROUP_OF(ED_DP / 16);
    __m512i acc[ED_GROUP];
    struct ed_input input;
    ed_read_input(part, a, n, &input);
    for (int o = 0; o < ED_DP; o += 16 * blocks) {
        w = ed_group(part, w, &input, n, blocks, acc);
        ED_UNROLL
        for (int b = 0; b < blocks; b++) {
            float *to = x + o + 16 * b;
            __m512 y = ed_scaled(acc[b], input.correction, part->m + o + 16 * b);
            _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), y));
        }
    }
}

ED_INLINE void ed_linear_qkv(const struct ed_layer *layer, const int8_t *a, int8_t *qkv) {
    const struct ed_matrix *part = &layer->qkv;
    const int8_t *w = ed_first_line(part);
    const int n = ED_UP(ED_D, 4), rows = 3 * ED_DP, blocks = ED_GROUP_OF(rows / 16);
    const float inv_scale[3] = {layer->q_inv, layer->k_inv, layer->v_inv};
    __m512i acc[ED_GROUP];
    struct ed_input input;
    ed_read_input(part, a, n, &input);
    for (int o = 0; o < rows; o += 16 * blocks) {
        w = ed_group(part, w, &input, n, blocks, acc);
        ED_UNROLL
        for (int b = 0; b < blocks; b++) {
            int row = o + 16 * b;
            __m512 y = ed_scaled(acc[b], input.correction, part->m + row);
            ed_store8(qkv + row, ed_quantize512(y, _mm512_set1_ps(inv_scale[row / ED_DP])));
        }
    }
}

/* Computes 16 hidden values from 16 values of gate and 16 of up. */
ED_INLINE void ed_hidden(const float *y, float inv_scale, int8_t *hidden8) {
    __m512 hidden = _mm512_mul_ps(ed_silu512(_mm512_load_ps(y)), _mm512_load_ps(y + 16));
    ed_store8(hidden8, ed_quantize512(hidden, _mm512_set1_ps(inv_scale)));
}

/* Blocks of gate and up alternate, whole pairs to a group. SiLU of one group is computed
 * among the products of the next. Right after its own products it would have to wait for
 * them, fill the scheduler and stop the stream of weights. */
ED_INLINE void ed_linear_gate_up(const struct ed_layer *layer, const int8_t *a, int8_t *hidden8) {
    const struct ed_matrix *part = &layer->gate_up;
    const int8_t *w = ed_first_line(part);
    const int n = ED_UP(ED_D, 4), blocks = ED_GROUP_OF(2 * ED_FP / 16), pairs = blocks / 2;
    ED_ALIGNED float y[16 * ED_GROUP];
    __m512i acc[ED_GROUP];
    struct ed_input input;
    ed_read_input(part, a, n, &input);
    w = ed_group(part, w, &input, n, blocks, acc);
    for (int o = 0; o < ED_FP; o += 16 * pairs) {
        ED_UNROLL
        for (int b = 0; b < blocks; b++)
            _mm512_store_ps(y + 16 * b, ed_scaled(acc[b], input.correction, part->m + 2 * o + 16 * b));
        const int more = o + 16 * pairs < ED_FP;
        ed_zero(acc, blocks);
        ED_UNROLL
        for (int b = 0; b < pairs; b++) {
            const int from = n * b / pairs / 32 * 32, to = b + 1 < pairs ? n * (b + 1) / pairs / 32 * 32 : n;
            if (more) w = ed_any_columns(part, w, &input, from, to, blocks, acc);
            ed_hidden(y + 32 * b, layer->hidden_inv, hidden8 + o + 16 * b);
        }
    }
    ed_clear_tail(hidden8, ED_FP);
}

static inline void ed_rows(const int8_t *w, const int8_t *x, int rows, int n, int32_t *acc) {
    __m512i correction = ed_correction(x, n);
    for (int o = 0; o < rows; o++) {
        __m512i sum = _mm512_setzero_si512();
        for (int i = 0; i < n; i += 64, w += 64) sum = _mm512_dpbusd_epi32(sum, ed_load512(w), ed_load512(x + i));
        acc[o] = _mm512_reduce_add_epi32(sum) - _mm512_cvtsi512_si32(correction);
    }
}

/* ---------------------------------------------------------------- rings */

static inline void ed_ring_clear(struct ed_ring *ring) {
    memset(ring->k, 0x80, sizeof ring->k);
    memset(ring->v, 0, sizeof ring->v);
}

/* Whole lines are read, blended and written, so that later loads of a line get it from the store without a stall. */
static inline void ed_ring_put(struct ed_ring *ring, int slot, const int8_t *k, const int8_t *v) {
    const __mmask16 lane = (__mmask16)(1u << (slot % 16));
    const __mmask64 byte = UINT64_C(0x1111111111111111) << (slot % 4);
    const __m128i shift = _mm_cvtsi32_si128(8 * (slot % 4));
    for (int h = 0; h < ED_HEADS; h++) {
        int8_t head_k[ED_DH4] = {0}, head_v[ED_DHP] = {0};
        memcpy(head_k, k + h * ED_DH, ED_DH);
        memcpy(head_v, v + h * ED_DH, ED_DH);
        for (int i = 0; i < ED_DH4; i += 4) {
            void *line = ring->k[h][slot / 16][i / 4];
            __m512i four = _mm512_xor_si512(ed_four(head_k + i), _mm512_set1_epi8(-128));
            _mm512_storeu_si512(line, _mm512_mask_mov_epi32(ed_load512(line), lane, four));
        }
        for (int i = 0; i < ED_DHP; i += 16) {
            void *line = ring->v[h][slot / 4][i / 16];
            __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(head_v + i)));
            _mm512_storeu_si512(line, _mm512_mask_mov_epi8(ed_load512(line), byte, _mm512_sll_epi32(wide, shift)));
        }
    }
}

static inline void ed_ring_get(const struct ed_ring *ring, int slot, int8_t *k, int8_t *v) {
    for (int h = 0; h < ED_HEADS; h++)
        for (int i = 0; i < ED_DH; i++) {
            k[h * ED_DH + i] = (int8_t)(ring->k[h][slot / 16][i / 4][slot % 16][i % 4] ^ 0x80);
            v[h * ED_DH + i] = ring->v[h][slot / 4][i / 16][i % 16][slot % 4];
        }
}

/* ---------------------------------------------------------------- attention */

/* Computes the scores of one head by slot, and returns the largest of each lane. */
ED_INLINE __m512 ed_head_scores(const struct ed_ring *ring, int h, const int8_t *q, float scale, const float *bias,
                                const int32_t *seen, float *score) {
    __m512i four[ED_DH4 / 4], sum = _mm512_setzero_si512();
    ED_UNROLL
    for (int i = 0; i < ED_DH4 / 4; i++) {
        four[i] = ed_four(q + 4 * i);
        sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(-128), four[i]);
    }
    const __m512 dead = _mm512_set1_ps(ED_DEAD);
    const __m512i minus = _mm512_sub_epi32(_mm512_setzero_si512(), sum);
    __m512 high = dead;
    for (int s = 0; s < ED_WP; s += 16) {
        __m512i acc = minus;
        ED_UNROLL
        for (int i = 0; i < ED_DH4 / 4; i++) acc = _mm512_dpbusd_epi32(acc, ed_load512(ring->k[h][s / 16][i]), four[i]);
        __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(acc), _mm512_set1_ps(scale));
        __m512i mask = ed_load512(seen + s);
        value = _mm512_mask_add_ps(dead, _mm512_test_epi32_mask(mask, mask), value, _mm512_loadu_ps(bias + s));
        _mm512_storeu_ps(score + s, value);
        high = _mm512_max_ps(high, value);
    }
    return high;
}

/* Computes p[s] = rint(127 exp(score - high)) of one head, and returns their sum. */
ED_INLINE int32_t ed_head_weights(const float *score, float high, uint8_t *p) {
    __m512i total = _mm512_setzero_si512();
    for (int s = 0; s < ED_WP; s += 16) {
        __m512 x = _mm512_sub_ps(_mm512_loadu_ps(score + s), _mm512_set1_ps(high));
        __m512 e = ed_exp_in_range(_mm512_max_ps(_mm512_set1_ps(ED_EXP_LOWEST), x)); /* which is at most 0 */
        __m512i weight = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_set1_ps(ED_LEVELS), e));
        total = _mm512_add_epi32(total, weight);
        ed_store8((int8_t *)p + s, weight);
    }
    return _mm512_reduce_add_epi32(total);
}

ED_INLINE void ed_head_context(const struct ed_ring *ring, int h, const uint8_t *p, float v_scale, int32_t total,
                               float *context) {
    __m512i even[ED_DHP / 16], odd[ED_DHP / 16];
    ED_UNROLL
    for (int i = 0; i < ED_DHP / 16; i++) even[i] = odd[i] = _mm512_setzero_si512();
    for (int s = 0; s < ED_UP(ED_WINDOW, 8); s += 8) { /* two lines a turn, which are two chains */
        __m512i four = ed_four(p + s), next = ed_four(p + s + 4);
        ED_UNROLL
        for (int i = 0; i < ED_DHP / 16; i++) {
            even[i] = _mm512_dpbusd_epi32(even[i], four, ed_load512(ring->v[h][s / 4][i]));
            odd[i] = _mm512_dpbusd_epi32(odd[i], next, ed_load512(ring->v[h][s / 4 + 1][i]));
        }
    }
    ED_UNROLL
    for (int i = 0; i < ED_DHP / 16; i++) {
        __m512 sum = _mm512_cvtepi32_ps(_mm512_add_epi32(even[i], odd[i]));
        __m512 value = _mm512_div_ps(_mm512_mul_ps(sum, _mm512_set1_ps(v_scale)), _mm512_set1_ps((float)total));
        const int left = ED_DH - 16 * i;
        _mm512_mask_storeu_ps(context + 16 * i, (__mmask16)(left >= 16 ? 0xffff : (1 << left) - 1), value);
    }
}

/* Computes the context (ED_D,) of the bin in `slot`. All heads advance together, so that
 * the latency of one hides behind the others. */
ED_INLINE void ed_attend(const struct ed_layer *layer, const struct ed_ring *ring, const int8_t *q, int slot,
                         const int32_t *seen, float *context) {
    ED_ALIGNED float score[ED_HEADS][ED_WP];
    ED_ALIGNED uint8_t p[ED_HEADS][ED_WP];
    __m512 high[ED_HEADS];
    int32_t total[ED_HEADS];
    for (int h = 0; h < ED_HEADS; h++) {
        int8_t head[ED_DH4] = {0};
        memcpy(head, q + h * ED_DH, ED_DH);
        const float *bias = layer->age_bias + h * ED_BIAS_ROW + ED_WINDOW - 1 - slot;
        high[h] = ed_head_scores(ring, h, head, layer->score_scale, bias, seen, score[h]);
    }
    for (int h = 0; h < ED_HEADS; h++) total[h] = ed_head_weights(score[h], _mm512_reduce_max_ps(high[h]), p[h]);
    for (int h = 0; h < ED_HEADS; h++) ed_head_context(ring, h, p[h], layer->v_scale, total[h], context + h * ED_DH);
}

#endif
