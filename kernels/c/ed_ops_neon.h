/*
 * Private: the variant for 64-bit Arm with the dot product of bytes. The steps of a layer are fused around its integer
 * products.
 *
 * sdot multiplies 16 signed bytes by 16 and adds each four products to an int32. Both factors are signed, so nothing
 * needs correcting. The 16 lanes of a pinned sum are four vectors of 4 floats. A product must be rounded before it is
 * added: use -ffp-contract=off, or compilers make fmla of vmulq and vaddq.
 *
 * Weights   [group of up to 4 blocks][4 inputs][block][16 rows][4 inputs]. Every line is read once, from end to end.
 *           Sixteen accumulators hide the latency of sdot, and one broadcast of x serves sixteen loads.
 * Four bits [group of up to 4 blocks][32 inputs]: 16 factors of each pair of blocks, then [4 inputs][pair][16 rows][4
 *           inputs]. A byte holds a weight of the first block of a pair in its low half and one of the second in its
 *           high half. Nibbles are unsigned, and as int8 they are what they are, so sdot takes them.
 * Keys      (heads)[16 slots][4 dims][16][4]; values (heads)[4 slots][16 dims][16][4].
 * Roofline  An sdot needs one load of 16 bytes, so the loads of a core bound it: two a cycle on a Cortex-A76, one on an
 *           A55.
 */
#ifndef ED_OPS_NEON_H
#define ED_OPS_NEON_H

#include <arm_neon.h>

#include "ed_math.h"

#if !defined(__aarch64__) || !defined(__ARM_FEATURE_DOTPROD)
#error "these kernels need -march=armv8.2-a+dotprod; for older cores there is ops = \"scalar\""
#endif

#define ED_OPS_NAME "neon-dotprod"

#define ED_DH4 ED_UP(ED_DH, 4)

struct ed_ring {
    int8_t k[ED_HEADS][ED_WP / 16][ED_DH4 / 4][16][4];
    int8_t v[ED_HEADS][ED_WP / 4][ED_DHP / 16][16][4];
};

/* ---------------------------------------------------------------- floats, 4 or 16 at a time */

/* Adds lanes 8, 4, 2 and 1 apart of the 16 lanes in four vectors. */
ED_INLINE float ed_fold128(const float32x4_t *lanes) {
    float32x4_t four = vaddq_f32(vaddq_f32(lanes[0], lanes[2]), vaddq_f32(lanes[1], lanes[3]));
    float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

/* Applies quantize() to four vectors of floats, giving 16 bytes. NaN passes the clip and becomes 0. */
ED_INLINE void ed_quantize16(const float32x4_t *x, float inv_scale, int8_t *q) {
    int32x4_t y[4];
    ED_UNROLL
    for (int j = 0; j < 4; j++) {
        float32x4_t scaled = vmulq_f32(x[j], vdupq_n_f32(inv_scale));
        scaled = vmaxq_f32(vminq_f32(scaled, vdupq_n_f32(ED_LEVELS)), vdupq_n_f32(-ED_LEVELS));
        y[j] = vcvtnq_s32_f32(scaled); /* ties to even */
    }
    int16x8_t low = vuzp1q_s16(vreinterpretq_s16_s32(y[0]), vreinterpretq_s16_s32(y[1]));
    int16x8_t high = vuzp1q_s16(vreinterpretq_s16_s32(y[2]), vreinterpretq_s16_s32(y[3]));
    vst1q_s8(q, vuzp1q_s8(vreinterpretq_s8_s16(low), vreinterpretq_s8_s16(high)));
}

/* Computes exp of x within -87 ... 88. */
ED_INLINE float32x4_t ed_exp_in_range(float32x4_t x) {
    const float32x4_t shift = vdupq_n_f32(ED_ROUND);
    float32x4_t shifted = vaddq_f32(vmulq_f32(x, vdupq_n_f32(ED_LOG2_E)), shift);
    float32x4_t n = vsubq_f32(shifted, shift);
    float32x4_t r = vsubq_f32(x, vmulq_f32(n, vdupq_n_f32(ED_LN2_HIGH)));
    r = vsubq_f32(r, vmulq_f32(n, vdupq_n_f32(ED_LN2_LOW)));
    float32x4_t p = vaddq_f32(vmulq_f32(vdupq_n_f32(ED_EXP_0), r), vdupq_n_f32(ED_EXP_1));
    p = vaddq_f32(vmulq_f32(p, r), vdupq_n_f32(ED_EXP_2));
    p = vaddq_f32(vmulq_f32(p, r), vdupq_n_f32(ED_EXP_3));
    p = vaddq_f32(vaddq_f32(vmulq_f32(vmulq_f32(p, r), r), r), vdupq_n_f32(1.0f));
    uint32x4_t power = vaddq_u32(vshlq_n_u32(vreinterpretq_u32_f32(shifted), 23), vdupq_n_u32(127u << 23));
    return vmulq_f32(p, vreinterpretq_f32_u32(power)); /* 2**n, made from its bits */
}

ED_INLINE float32x4_t ed_silu128(float32x4_t x) {
    float32x4_t minus = vmaxq_f32(vnegq_f32(x), vdupq_n_f32(ED_EXP_LOWEST));
    minus = vminq_f32(minus, vdupq_n_f32(ED_EXP_HIGHEST));
    return vdivq_f32(x, vaddq_f32(vdupq_n_f32(1.0f), ed_exp_in_range(minus)));
}

ED_INLINE void ed_quantize_all(const float *x, int n, float inv_scale, int8_t *q) {
    for (int i = 0; i < n; i += 16) {
        float32x4_t v[4];
        ED_UNROLL
        for (int j = 0; j < 4; j++) v[j] = vld1q_f32(x + i + 4 * j);
        ed_quantize16(v, inv_scale, q + i);
    }
}

ED_INLINE void ed_norm_quantize(const float *x, float inv_scale, int8_t *a) {
    float32x4_t lanes[4], v[4];
    ED_UNROLL
    for (int j = 0; j < 4; j++) lanes[j] = vmulq_f32(vld1q_f32(x + 4 * j), vld1q_f32(x + 4 * j));
    for (int i = 16; i < ED_DP; i += 16) {
        ED_UNROLL
        for (int j = 0; j < 4; j++) {
            v[j] = vld1q_f32(x + i + 4 * j);
            lanes[j] = vaddq_f32(lanes[j], vmulq_f32(v[j], v[j]));
        }
    }
    float mean = ed_fold128(lanes) / (float)ED_D;
    float32x4_t factor = vdupq_n_f32(1.0f / __builtin_sqrtf(mean + ED_RMS_EPSILON));
    for (int i = 0; i < ED_DP; i += 16) {
        ED_UNROLL
        for (int j = 0; j < 4; j++) v[j] = vmulq_f32(vld1q_f32(x + i + 4 * j), factor);
        ed_quantize16(v, inv_scale, a + i);
    }
}

/* ---------------------------------------------------------------- products */

/* Returns four bytes in every lane. */
ED_INLINE int8x16_t ed_four(const void *x) {
    int32_t four;
    memcpy(&four, x, 4);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
}

/* Computes one group of `blocks` blocks, acc (blocks, 4 vectors of 4 rows), and returns where the next group begins. */
ED_INLINE const int8_t *ed_group(const int8_t *w, const int8_t *x, int n, int blocks, int32x4_t *acc) {
    ED_UNROLL
    for (int b = 0; b < 4 * blocks; b++) acc[b] = vdupq_n_s32(0);
    for (int i = 0; i < n; i += 4, w += 64 * blocks) {
        int8x16_t four = ed_four(x + i);
        ED_UNROLL
        for (int b = 0; b < 4 * blocks; b++) acc[b] = vdotq_s32(acc[b], vld1q_s8(w + 16 * b), four);
    }
    return w;
}

/* Computes sums[g] = -8 sum x over the inputs of group g. */
ED_INLINE void ed_offsets4(const int8_t *x, int n, int32_t *sums) {
    for (int g = 0; g < ED_FACTORS_OF(n); g++) {
        int32_t sum = 0;
        for (int i = 32 * g; i < 32 * g + 32 && i < n; i++) sum += x[i];
        sums[g] = -8 * sum;
    }
}

/* Does for four-bit weights what ed_group does. */
ED_INLINE const int8_t *ed_group4(const int8_t *q, const int8_t *x, const int32_t *sums, int n, int blocks,
                                  int32x4_t *acc) {
    const uint8x16_t nibble = vdupq_n_u8(15);
    const int pairs = (blocks + 1) / 2;
    ED_UNROLL
    for (int b = 0; b < 4 * blocks; b++) acc[b] = vdupq_n_s32(0);
    for (int at = 0; at < n; at += ED_FACTOR_INPUTS) {
        const int end = at + ED_FACTOR_INPUTS < n ? at + ED_FACTOR_INPUTS : n;
        const uint8_t *factors = (const uint8_t *)q;
        int32x4_t sum[4 * ED_GROUP];
        ED_UNROLL
        for (int b = 0; b < 4 * blocks; b++) sum[b] = vdupq_n_s32(sums[at / ED_FACTOR_INPUTS]);
        q += 16 * pairs;
        for (int i = at; i < end; i += 4, q += 64 * pairs) {
            int8x16_t four = ed_four(x + i);
            ED_UNROLL
            for (int b = 0; b < blocks; b++)
                for (int j = 0; j < 4; j++) {
                    uint8x16_t two = vld1q_u8((const uint8_t *)q + 64 * (b / 2) + 16 * j);
                    uint8x16_t one = b % 2 ? vshrq_n_u8(two, 4) : vandq_u8(two, nibble);
                    sum[4 * b + j] = vdotq_s32(sum[4 * b + j], vreinterpretq_s8_u8(one), four);
                }
        }
        ED_UNROLL
        for (int b = 0; b < blocks; b++) {
            uint8x16_t two = vld1q_u8(factors + 16 * (b / 2));
            uint8x16_t one = b % 2 ? vshrq_n_u8(two, 4) : vandq_u8(two, nibble);
            uint16x8_t low = vmovl_u8(vget_low_u8(one)), high = vmovl_u8(vget_high_u8(one));
            uint32x4_t wide[4] = {vmovl_u16(vget_low_u16(low)), vmovl_u16(vget_high_u16(low)),
                                  vmovl_u16(vget_low_u16(high)), vmovl_u16(vget_high_u16(high))};
            ED_UNROLL
            for (int j = 0; j < 4; j++)
                acc[4 * b + j] = vmlaq_s32(acc[4 * b + j], sum[4 * b + j], vreinterpretq_s32_u32(wide[j]));
        }
    }
    return q;
}

/* An input of a product, with the sums that four-bit weights need. */
struct ed_input {
    const int8_t *x;
    int32_t sums[ED_MOST_FACTORS];
};

ED_INLINE void ed_read_input(const struct ed_matrix *part, const int8_t *x, int n, struct ed_input *input) {
    input->x = x;
    if (ED_FOUR(*part))
        ed_offsets4(x, n, input->sums);
    else if (ED_FOURS)
        memset(input->sums, 0, sizeof input->sums); /* compilers do not see that nobody reads them */
}

ED_INLINE const int8_t *ed_first_line(const struct ed_matrix *part) {
    return ED_FOUR(*part) ? (const int8_t *)part->q : part->w;
}

/* Computes one group of blocks of any weights. */
ED_INLINE const int8_t *ed_any_group(const struct ed_matrix *part, const int8_t *w, const struct ed_input *input, int n,
                                     int blocks, int32x4_t *acc) {
    if (ED_FOUR(*part)) return ed_group4(w, input->x, input->sums, n, blocks, acc);
    return ed_group(w, input->x, n, blocks, acc);
}

/* Returns float(acc) * m of 4 rows. */
ED_INLINE float32x4_t ed_scaled(int32x4_t acc, const float *m) { return vmulq_f32(vcvtq_f32_s32(acc), vld1q_f32(m)); }

ED_INLINE void ed_linear(const struct ed_matrix *part, const int8_t *a, int rows, int n, float *y) {
    const int8_t *w = ed_first_line(part);
    const int blocks = ED_GROUP_OF(rows / 16);
    int32x4_t acc[4 * ED_GROUP];
    struct ed_input input;
    ed_read_input(part, a, n, &input);
    for (int o = 0; o < rows; o += 16 * blocks) {
        w = ed_any_group(part, w, &input, n, blocks, acc);
        ED_UNROLL
        for (int b = 0; b < 4 * blocks; b++) vst1q_f32(y + o + 4 * b, ed_scaled(acc[b], part->m + o + 4 * b));
    }
}

ED_INLINE void ed_linear_add(const struct ed_matrix *part, const int8_t *a, int n, float *x) {
    const int8_t *w = ed_first_line(part);
    const int blocks = ED_GROUP_OF(ED_DP / 16);
    int32x4_t acc[4 * ED_GROUP];
    struct ed_input input;
    ed_read_input(part, a, n, &input);
    for (int o = 0; o < ED_DP; o += 16 * blocks) {
        w = ed_any_group(part, w, &input, n, blocks, acc);
        ED_UNROLL
        for (int b = 0; b < 4 * blocks; b++) {
            float *to = x + o + 4 * b;
            vst1q_f32(to, vaddq_f32(vld1q_f32(to), ed_scaled(acc[b], part->m + o + 4 * b)));
        }
    }
}

ED_INLINE void ed_linear_qkv(const struct ed_layer *layer, const int8_t *a, int8_t *qkv) {
    const struct ed_matrix *part = &layer->qkv;
    const int8_t *w = ed_first_line(part);
    const int rows = 3 * ED_DP, blocks = ED_GROUP_OF(rows / 16);
    const float inv_scale[3] = {layer->q_inv, layer->k_inv, layer->v_inv};
    int32x4_t acc[4 * ED_GROUP];
    struct ed_input input;
    ed_read_input(part, a, ED_UP(ED_D, 4), &input);
    for (int o = 0; o < rows; o += 16 * blocks) {
        w = ed_any_group(part, w, &input, ED_UP(ED_D, 4), blocks, acc);
        ED_UNROLL
        for (int b = 0; b < blocks; b++) {
            float32x4_t y[4];
            const int row = o + 16 * b;
            ED_UNROLL
            for (int j = 0; j < 4; j++) y[j] = ed_scaled(acc[4 * b + j], part->m + row + 4 * j);
            ed_quantize16(y, inv_scale[row / ED_DP], qkv + row);
        }
    }
}

/* Blocks of gate and up alternate, whole pairs to a group. */
ED_INLINE void ed_linear_gate_up(const struct ed_layer *layer, const int8_t *a, int8_t *hidden8) {
    const struct ed_matrix *part = &layer->gate_up;
    const int8_t *w = ed_first_line(part);
    const int rows = 2 * ED_FP, pairs = ED_GROUP_OF(2 * ED_FP / 16) / 2;
    int32x4_t acc[4 * ED_GROUP];
    struct ed_input input;
    ed_read_input(part, a, ED_UP(ED_D, 4), &input);
    for (int o = 0; o < rows; o += 32 * pairs) {
        w = ed_any_group(part, w, &input, ED_UP(ED_D, 4), 2 * pairs, acc);
        ED_UNROLL
        for (int b = 0; b < pairs; b++) {
            float32x4_t hidden[4];
            const float *m = part->m + o + 32 * b;
            ED_UNROLL
            for (int j = 0; j < 4; j++) {
                float32x4_t gate = ed_scaled(acc[8 * b + j], m + 4 * j);
                hidden[j] = vmulq_f32(ed_silu128(gate), ed_scaled(acc[8 * b + 4 + j], m + 16 + 4 * j));
            }
            ed_quantize16(hidden, layer->hidden_inv, hidden8 + o / 2 + 16 * b);
        }
    }
}

/* Computes acc[o] = x . row o. Rows lie one after another, and n is a multiple of 64. */
static inline void ed_rows(const int8_t *w, const int8_t *x, int rows, int n, int32_t *acc) {
    for (int o = 0; o < rows; o++) {
        int32x4_t sum[4];
        ED_UNROLL
        for (int j = 0; j < 4; j++) sum[j] = vdupq_n_s32(0);
        for (int i = 0; i < n; i += 64, w += 64) {
            ED_UNROLL
            for (int j = 0; j < 4; j++) sum[j] = vdotq_s32(sum[j], vld1q_s8(w + 16 * j), vld1q_s8(x + i + 16 * j));
        }
        acc[o] = vaddvq_s32(vaddq_s32(vaddq_s32(sum[0], sum[1]), vaddq_s32(sum[2], sum[3])));
    }
}

/* ---------------------------------------------------------------- rings */

static inline void ed_ring_clear(struct ed_ring *ring) { memset(ring, 0, sizeof *ring); }

/* Bytes beyond a head's dims stay zero. */
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

/* ---------------------------------------------------------------- attention */

/* Computes the scores of one head by slot, and returns the largest. */
ED_INLINE float ed_head_scores(const struct ed_ring *ring, int h, const int8_t *q, float scale, const float *bias,
                               const int32_t *seen, float *score) {
    const float32x4_t dead = vdupq_n_f32(ED_DEAD);
    int8x16_t four[ED_DH4 / 4];
    ED_UNROLL
    for (int i = 0; i < ED_DH4 / 4; i++) four[i] = ed_four(q + 4 * i);
    float32x4_t high = dead;
    for (int s = 0; s < ED_WP; s += 16) {
        int32x4_t acc[4];
        ED_UNROLL
        for (int j = 0; j < 4; j++) acc[j] = vdupq_n_s32(0);
        ED_UNROLL
        for (int i = 0; i < ED_DH4 / 4; i++) {
            const int8_t *line = &ring->k[h][s / 16][i][0][0];
            ED_UNROLL
            for (int j = 0; j < 4; j++) acc[j] = vdotq_s32(acc[j], vld1q_s8(line + 16 * j), four[i]);
        }
        ED_UNROLL
        for (int j = 0; j < 4; j++) {
            const int at = s + 4 * j;
            float32x4_t value = vmulq_f32(vcvtq_f32_s32(acc[j]), vdupq_n_f32(scale));
            value = vaddq_f32(value, vld1q_f32(bias + at));
            value = vbslq_f32(vreinterpretq_u32_s32(vld1q_s32(seen + at)), value, dead);
            vst1q_f32(score + at, value);
            high = vmaxq_f32(high, value);
        }
    }
    return vmaxvq_f32(high);
}

/* Computes p[s] = rint(127 exp(score - high)), and returns their sum. */
ED_INLINE int32_t ed_head_weights(const float *score, float high, uint8_t *p) {
    int32x4_t total = vdupq_n_s32(0);
    for (int s = 0; s < ED_WP; s += 16) {
        uint16x8_t half[2];
        ED_UNROLL
        for (int j = 0; j < 2; j++) {
            uint32x4_t weight[2];
            ED_UNROLL
            for (int i = 0; i < 2; i++) {
                float32x4_t x = vsubq_f32(vld1q_f32(score + s + 8 * j + 4 * i), vdupq_n_f32(high)); /* at most 0 */
                float32x4_t e = ed_exp_in_range(vmaxq_f32(x, vdupq_n_f32(ED_EXP_LOWEST)));
                int32x4_t rounded = vcvtnq_s32_f32(vmulq_f32(vdupq_n_f32(ED_LEVELS), e));
                total = vaddq_s32(total, rounded);
                weight[i] = vreinterpretq_u32_s32(rounded);
            }
            half[j] = vuzp1q_u16(vreinterpretq_u16_u32(weight[0]), vreinterpretq_u16_u32(weight[1]));
        }
        vst1q_u8(p + s, vuzp1q_u8(vreinterpretq_u8_u16(half[0]), vreinterpretq_u8_u16(half[1])));
    }
    return vaddvq_s32(total);
}

/* The weights p are 0 to 127, which signed bytes hold. Each turn takes two lines, which are two chains of sums. */
ED_INLINE void ed_head_context(const struct ed_ring *ring, int h, const uint8_t *p, float v_scale, int32_t total,
                               float *context) {
    int32x4_t even[ED_DHP / 4], odd[ED_DHP / 4];
    float wide[ED_DHP];
    ED_UNROLL
    for (int i = 0; i < ED_DHP / 4; i++) even[i] = odd[i] = vdupq_n_s32(0);
    for (int s = 0; s < ED_UP(ED_WINDOW, 8); s += 8) {
        int8x16_t four = ed_four(p + s), next = ed_four(p + s + 4);
        ED_UNROLL
        for (int i = 0; i < ED_DHP / 4; i++) {
            even[i] = vdotq_s32(even[i], vld1q_s8(&ring->v[h][s / 4][0][0][0] + 16 * i), four);
            odd[i] = vdotq_s32(odd[i], vld1q_s8(&ring->v[h][s / 4 + 1][0][0][0] + 16 * i), next);
        }
    }
    ED_UNROLL
    for (int i = 0; i < ED_DHP / 4; i++) {
        float32x4_t sum = vmulq_f32(vcvtq_f32_s32(vaddq_s32(even[i], odd[i])), vdupq_n_f32(v_scale));
        vst1q_f32(wide + 4 * i, vdivq_f32(sum, vdupq_n_f32((float)total)));
    }
    memcpy(context, wide, ED_DH * sizeof(float));
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
    for (int h = 0; h < ED_HEADS; h++) total[h] = ed_head_weights(score[h], high[h], p[h]);
    for (int h = 0; h < ED_HEADS; h++) ed_head_context(ring, h, p[h], layer->v_scale, total[h], context + h * ED_DH);
}

#endif
