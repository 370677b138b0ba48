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
 *           one of the second in its high half. A mask takes out the low ones. The whole byte is multiplied as it is,
 *           which gives 16 times the sum of the high ones and once that of the low ones, and is taken apart after 32
 *           inputs. The sums then fit into 16 bits, so that vpdpwssd multiplies them by their factors and adds them to
 *           those of the inputs before.
 * Keys      (heads)[16 slots][4 dims][16][4] as k + 128; values (heads)[4 slots][16 dims][16][4].
 * Roofline  L2 bounds a step. `edge` (96 channels, W = 200) streams 1.11 MB of weights and 0.21 MB of rings, which
 *           takes 7.1 us at the 185 GB/s that a loop of vpdpbusd alone reaches on a Sapphire Rapids core.
 * Measured  on that core, gcc 12, beside other work: p50 of ed_step is 11.8 us, and 2.6 us for `nano`. Attention takes
 *           a fifth of it, gate and up a third.
 * Zen 4     A core with 1 MB of L2 at 3.7 GHz brings 32 bytes a clock from L2 (measured), and has one vpdpbusd, or any
 *           other product of 512 bits, a clock. `edge` with four-bit weights streams 0.87 MB, which is 27,000 clocks, and
 *           has about 27,500 products, those of SiLU and softmax included: 7.4 us. It takes 11.4 us, and 10.5 us if all
 *           layers share the weights of one, so that nothing misses L2. The int8 form takes 17 us.
 * Batches   A chain of exp has 20 operations one after the other, and a core keeps 64 vector operations waiting. Four
 *           vectors therefore take each operation together. SiLU follows after all products of gate and up, since among
 *           them it took 1.2 us more.
 * Tried     Without gain: prefetching int8 weights, of the next lines or of the next matrix during softmax; keys and values
 *           fetched into L1 during softmax, with the heads in a pipeline; the rings fetched into L2 at the start of a
 *           layer. Fetching four-bit weights 4 KB ahead took 10 % more of a cold step on Zen 4, whose own
 *           prefetching is faster.
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

/* Stands before a loop over the vectors of a batch, each of which takes the same next operation. */
#define ED_EACH(i, n) ED_UNROLL for (int i = 0; i < (n); i++)
#define ED_BATCH \
    4 /* vectors that go through exp together: one has a chain of 20 operations, and a core sees few chains */

/* Computes polynomial and power of two of exp for n vectors x within its range, in place. vscalefps rounds as the
 * product with 2**n does. */
ED_INLINE void ed_exp_in_range(__m512 *x, int n) {
    const __m512 shift = _mm512_set1_ps(ED_ROUND);
    __m512 power[ED_BATCH], r[ED_BATCH], p[ED_BATCH];
    ED_EACH(i, n) power[i] = _mm512_add_ps(_mm512_mul_ps(x[i], _mm512_set1_ps(ED_LOG2_E)), shift);
    ED_EACH(i, n) power[i] = _mm512_sub_ps(power[i], shift);
    ED_EACH(i, n) r[i] = _mm512_sub_ps(x[i], _mm512_mul_ps(power[i], _mm512_set1_ps(ED_LN2_HIGH)));
    ED_EACH(i, n) r[i] = _mm512_sub_ps(r[i], _mm512_mul_ps(power[i], _mm512_set1_ps(ED_LN2_LOW)));
    ED_EACH(i, n) p[i] = _mm512_add_ps(_mm512_mul_ps(_mm512_set1_ps(ED_EXP_0), r[i]), _mm512_set1_ps(ED_EXP_1));
    ED_EACH(i, n) p[i] = _mm512_add_ps(_mm512_mul_ps(p[i], r[i]), _mm512_set1_ps(ED_EXP_2));
    ED_EACH(i, n) p[i] = _mm512_add_ps(_mm512_mul_ps(p[i], r[i]), _mm512_set1_ps(ED_EXP_3));
    ED_EACH(i, n) p[i] = _mm512_add_ps(_mm512_mul_ps(_mm512_mul_ps(p[i], r[i]), r[i]), r[i]);
    ED_EACH(i, n) x[i] = _mm512_scalef_ps(_mm512_add_ps(p[i], _mm512_set1_ps(1.0f)), power[i]);
}

/* Computes n vectors of silu(x), in place. */
ED_INLINE void ed_silu512(__m512 *x, int n) {
    __m512 e[ED_BATCH];
    ED_EACH(i, n) e[i] = _mm512_max_ps(_mm512_set1_ps(ED_EXP_LOWEST), _mm512_xor_ps(x[i], _mm512_set1_ps(-0.0f)));
    ED_EACH(i, n) e[i] = _mm512_min_ps(_mm512_set1_ps(ED_EXP_HIGHEST), e[i]);
    ed_exp_in_range(e, n);
    ED_EACH(i, n) x[i] = _mm512_div_ps(x[i], _mm512_add_ps(_mm512_set1_ps(1.0f), e[i]));
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

/* Returns four partial sums of 8 x over the 32 inputs at x. Loads are as wide as the stores that they follow, because
 * they would else have to wait for them. */
ED_INLINE __m128i ed_offset4(const int8_t *x) {
    const __m128i *at = (const __m128i *)(const void *)x;
    const __m128i eight = _mm_set1_epi8(8);
    __m128i sum = _mm_dpbusd_epi32(_mm_setzero_si128(), eight, _mm_loadu_si128(at));
    return _mm_dpbusd_epi32(sum, eight, _mm_loadu_si128(at + 1));
}

/* Computes sums[g] = -8 sum x over the inputs of group g, for a multiple of 2 groups. x is padded with zeros to a
 * multiple of 64. */
ED_INLINE void ed_offsets4(const int8_t *x, int n, int32_t *sums) {
    ED_UNROLL
    for (int g = 0; g < ED_UP(n, 64) / 32; g += 2) {
        __m128i two = _mm_hadd_epi32(ed_offset4(x + 32 * g), ed_offset4(x + 32 * g + 32));
        two = _mm_sub_epi32(_mm_setzero_si128(), _mm_hadd_epi32(two, two));
        _mm_storeu_si64(sums + g, two);
    }
}

/* Adds one column: four inputs, in every lane of `four`, times lines of pairs of blocks. What is added to the sum of a
 * pair's second block is that of whole bytes, 16 times its own and once that of the first. */
ED_INLINE const int8_t *ed_column4(const int8_t *q, __m512i four, int blocks, __m512i *sum) {
    ED_UNROLL
    for (int b = 0; b < blocks; b += 2, q += 64) {
        __m512i two = ed_load512(q);
        __asm__("" : "+v"(two)); /* one load: compilers else make one of each use, and loads are the bottleneck */
        sum[b] = _mm512_dpbusd_epi32(sum[b], _mm512_and_si512(two, _mm512_set1_epi8(15)), four);
        if (b + 1 < blocks) sum[b + 1] = _mm512_dpbusd_epi32(sum[b + 1], two, four);
    }
    return q;
}

/* Multiplies the sums of a group of 32 inputs by their factors and adds them to acc. */
ED_INLINE void ed_apply_factors(const int8_t *factors, int blocks, const __m512i *sum, __m512i *acc) {
    ED_UNROLL
    for (int b = 0; b < blocks; b += 2) {
        const __m512i two = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(factors + 8 * b)));
        acc[b] = _mm512_dpwssd_epi32(acc[b], sum[b], _mm512_and_si512(two, _mm512_set1_epi32(15)));
        if (b + 1 == blocks) break;
        const __m512i second = _mm512_srai_epi32(_mm512_sub_epi32(sum[b + 1], sum[b]), 4);
        acc[b + 1] = _mm512_dpwssd_epi32(acc[b + 1], second, _mm512_srli_epi32(two, 4));
    }
}

/* Does for four-bit weights what ed_columns does. `from` is a multiple of 32. */
ED_INLINE const int8_t *ed_columns4(const int8_t *q, const int8_t *x, const int32_t *sums, int from, int to, int blocks,
                                    __m512i *acc) {
    for (int at = from; at < to; at += ED_FACTOR_INPUTS) {
        const int8_t *factors = q;
        const __m512i first = ed_four(sums + at / ED_FACTOR_INPUTS);
        const __m512i both = _mm512_add_epi32(first, _mm512_slli_epi32(first, 4));
        __m512i sum[ED_GROUP];
        ED_UNROLL
        for (int b = 0; b < blocks; b++) sum[b] = b % 2 ? both : first;
        q += ED_UP(16 * ((blocks + 1) / 2), 64);
        if (at + ED_FACTOR_INPUTS <= to) {
            ED_UNROLL
            for (int i = 0; i < ED_FACTOR_INPUTS; i += 4) q = ed_column4(q, ed_four(x + at + i), blocks, sum);
        } else {
            for (int i = at; i < to; i += 4) q = ed_column4(q, ed_four(x + i), blocks, sum);
        }
        ed_apply_factors(factors, blocks, sum, acc);
    }
    return q;
}

/* An input of a product: its values and what the unsigned factor of the instruction adds to sums. */
struct ed_input {
    const int8_t *x;
    __m512i correction;                      /* of int8 weights; 0 for four-bit ones */
    int32_t sums[ED_UP(ED_MOST_FACTORS, 2)]; /* of four-bit weights */
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

/* Computes hidden values from y, which holds 16 values of gate, 16 of up, 16 of gate, ...; n vectors of them. */
ED_INLINE void ed_hidden(const float *y, float inv_scale, int n, int8_t *hidden8) {
    __m512 hidden[ED_BATCH];
    ED_EACH(i, n) hidden[i] = _mm512_load_ps(y + 32 * i);
    ed_silu512(hidden, n);
    ED_EACH(i, n) hidden[i] = _mm512_mul_ps(hidden[i], _mm512_load_ps(y + 32 * i + 16));
    ED_EACH(i, n) ed_store8(hidden8 + 16 * i, ed_quantize512(hidden[i], _mm512_set1_ps(inv_scale)));
}

ED_INLINE void ed_linear_gate_up(const struct ed_layer *layer, const int8_t *a, int8_t *hidden8) {
    ED_ALIGNED float y[2 * ED_FP];
    ed_linear(&layer->gate_up, a, 2 * ED_FP, ED_UP(ED_D, 4), y);
    int o = 0;
    for (; o + 16 * ED_BATCH <= ED_FP; o += 16 * ED_BATCH)
        ed_hidden(y + 2 * o, layer->hidden_inv, ED_BATCH, hidden8 + o);
    for (; o < ED_FP; o += 16) ed_hidden(y + 2 * o, layer->hidden_inv, 1, hidden8 + o);
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

/* Computes n vectors of the scores of one head by slot, and returns the largest of each lane and of `high`. */
ED_INLINE __m512 ed_scores_of(const uint8_t (*k)[ED_DH4 / 4][16][4], const __m512i *four, __m512i minus, float scale,
                              const float *bias, const int32_t *seen, int n, float *score, __m512 high) {
    const __m512 dead = _mm512_set1_ps(ED_DEAD);
    __m512i acc[ED_BATCH];
    __m512 value[ED_BATCH];
    ED_EACH(i, n) acc[i] = minus;
    ED_UNROLL
    for (int j = 0; j < ED_DH4 / 4; j++)
        ED_EACH(i, n) acc[i] = _mm512_dpbusd_epi32(acc[i], ed_load512(k[i][j]), four[j]);
    ED_EACH(i, n) value[i] = _mm512_mul_ps(_mm512_cvtepi32_ps(acc[i]), _mm512_set1_ps(scale));
    ED_EACH(i, n) {
        const __m512i mask = ed_load512(seen + 16 * i);
        value[i] =
            _mm512_mask_add_ps(dead, _mm512_test_epi32_mask(mask, mask), value[i], _mm512_loadu_ps(bias + 16 * i));
    }
    ED_EACH(i, n) _mm512_store_ps(score + 16 * i, value[i]);
    ED_EACH(i, n) high = _mm512_max_ps(high, value[i]);
    return high;
}

/* Computes the scores of one head by slot, and returns the largest. */
ED_INLINE float ed_head_scores(const struct ed_ring *ring, int h, const int8_t *q, float scale, const float *bias,
                               const int32_t *seen, float *score) {
    __m512i four[ED_DH4 / 4], sum = _mm512_setzero_si512();
    ED_UNROLL
    for (int i = 0; i < ED_DH4 / 4; i++) {
        four[i] = ed_four(q + 4 * i);
        sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(-128), four[i]);
    }
    const __m512i minus = _mm512_sub_epi32(_mm512_setzero_si512(), sum);
    __m512 high = _mm512_set1_ps(ED_DEAD);
    int s = 0;
    for (; s + 16 * ED_BATCH <= ED_WP; s += 16 * ED_BATCH)
        high = ed_scores_of(&ring->k[h][s / 16], four, minus, scale, bias + s, seen + s, ED_BATCH, score + s, high);
    for (; s < ED_WP; s += 16)
        high = ed_scores_of(&ring->k[h][s / 16], four, minus, scale, bias + s, seen + s, 1, score + s, high);
    return _mm512_reduce_max_ps(high);
}

/* Computes p[s] = rint(127 exp(score - high)) of n heads, and their sums. */
ED_INLINE void ed_head_weights(float (*score)[ED_WP], const float *high, int n, uint8_t (*p)[ED_WP], int32_t *total) {
    __m512i sum[ED_BATCH];
    ED_EACH(i, n) sum[i] = _mm512_setzero_si512();
    for (int s = 0; s < ED_WP; s += 16) {
        __m512 x[ED_BATCH];
        __m512i weight[ED_BATCH];
        ED_EACH(i, n) x[i] = _mm512_sub_ps(_mm512_load_ps(score[i] + s), _mm512_set1_ps(high[i]));
        ED_EACH(i, n) x[i] = _mm512_max_ps(_mm512_set1_ps(ED_EXP_LOWEST), x[i]); /* which is at most 0 */
        ed_exp_in_range(x, n);
        ED_EACH(i, n) weight[i] = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_set1_ps(ED_LEVELS), x[i]));
        ED_EACH(i, n) sum[i] = _mm512_add_epi32(sum[i], weight[i]);
        ED_EACH(i, n) ed_store8((int8_t *)p[i] + s, weight[i]);
    }
    ED_EACH(i, n) total[i] = _mm512_reduce_add_epi32(sum[i]);
}

#define ED_V_LINES 4 /* of values that are added in a turn, each to a chain of its own */

ED_INLINE void ed_head_context(const struct ed_ring *ring, int h, const uint8_t *p, float v_scale, int32_t total,
                               float *context) {
    __m512i acc[ED_V_LINES][ED_DHP / 16];
    ED_EACH(j, ED_V_LINES) ED_EACH(i, ED_DHP / 16) acc[j][i] = _mm512_setzero_si512();
    for (int s = 0; s < ED_WP; s += 4 * ED_V_LINES) ED_EACH(j, ED_V_LINES) {
            const __m512i four = ed_four(p + s + 4 * j);
            ED_EACH(i, ED_DHP / 16)
            acc[j][i] = _mm512_dpbusd_epi32(acc[j][i], four, ed_load512(ring->v[h][s / 4 + j][i]));
        }
    ED_UNROLL
    for (int i = 0; i < ED_DHP / 16; i++) {
        __m512i both = _mm512_add_epi32(_mm512_add_epi32(acc[0][i], acc[1][i]), _mm512_add_epi32(acc[2][i], acc[3][i]));
        __m512 sum = _mm512_cvtepi32_ps(both);
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
    float high[ED_HEADS];
    int32_t total[ED_HEADS];
    for (int h = 0; h < ED_HEADS; h++) {
        int8_t head[ED_DH4] = {0};
        memcpy(head, q + h * ED_DH, ED_DH);
        const float *bias = layer->age_bias + h * ED_BIAS_ROW + ED_WINDOW - 1 - slot;
        high[h] = ed_head_scores(ring, h, head, layer->score_scale, bias, seen, score[h]);
    }
    ED_UNROLL
    for (int h = 0; h < ED_HEADS; h += ED_BATCH)
        ed_head_weights(score + h, high + h, ED_HEADS - h < ED_BATCH ? ED_HEADS - h : ED_BATCH, p + h, total + h);
    for (int h = 0; h < ED_HEADS; h++) ed_head_context(ring, h, p[h], layer->v_scale, total[h], context + h * ED_DH);
}

#endif
