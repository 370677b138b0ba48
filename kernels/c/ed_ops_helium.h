/*
 * Private: the variant for Cortex-M with Helium (MVE, integers and floats: M55, M85).
 *
 * vmladava multiplies 16 signed bytes by 16 and adds all products to an int32 in a general register. Rows are therefore
 * read as they are, 16 inputs at a time and four rows at a time. Up to 64 inputs stay in registers for a whole matrix.
 *
 * Weights   [4 rows][16 inputs] after [4 rows][16 inputs], read from end to end, in flash.
 * Four bits [4 rows][32 inputs]: 4 bytes with factors, then [4 rows][16 bytes]. A byte holds inputs i and i + 16 as
 *           signed nibbles. In the high half of a byte a nibble is 16 q, so one instruction takes each of the two out:
 *           sums are 16 times too large until the end, or for an embedding of very many inputs until a group's end.
 * Keys      (heads)[4 slots][16 dims][4][16], a matrix with a row for each slot.
 * Values    (heads)[4 dims][16 slots][4][16], a matrix with a row for each dim.
 * Floats    Helium's floats flush denormals to zero, whatever the FPSCR says, and the definition keeps them. Here they
 *           are used where that cannot change a bit, which needs the bounds that edgedistill/compile checks: nonzero
 *           multipliers and biases of the embedding are at least 2^-103, and inverse scales at most 2^120.
 *             - float(acc) m is 0 or at least 2^-103, a multiple of 2^-126. So is each sum of such numbers, and none is
 *               denormal. With a part in float32 the residual stream may be anything, and is added to in scalars.
 *             - a denormal times an inverse scale is below 1/2 and becomes 0, as zero does. The same holds for hidden.
 *             - what is lost of squares is below 2^-100 and vanishes beside the epsilon of the norm.
 *             - what is lost of scores is below 2^-100. exp of such a difference is 1, and beside a larger one it
 *               vanishes. exp itself adds 1 to numbers that may be denormal, and 2^n is normal.
 *             - silu is 0 or at least 2^-121 in magnitude.
 *           Everything else is in scalars: divisions, which Helium lacks, and the filters of the front end in float64.
 *           Compile with -fno-tree-vectorize, or compilers put other loops into vectors, and with -O2, because GCC 12.2
 *           ends with an internal error at -O3 for some shapes of a student.
 */
#ifndef ED_OPS_HELIUM_H
#define ED_OPS_HELIUM_H

#include <arm_mve.h>

#include "ed_math.h"

#define ED_OPS_NAME "helium"
#define ED_OPS_FLOATS /* ed_ops_common.h leaves the loops over floats to this file */

#define ED_HELD 4          /* most vectors of inputs that stay in registers */
#define ED_MOST_FOURS 8192 /* inputs of a row with four bits: 16 * 105 * 127 * 8192 < 2^31 */
#define ED_MANY_FOURS (ED_FOURS && ED_MORE(ED_MORE(ED_D, ED_FF), ED_TAP_N) > ED_MOST_FOURS)

struct ed_ring {
    int8_t k[ED_HEADS][ED_WP / 4][ED_DHP / 16][4][16];
    int8_t v[ED_HEADS][ED_DHP / 4][ED_WP / 16][4][16];
};

/* ---------------------------------------------------------------- products */

/* Starts the sums of four rows with the products of 16 inputs. */
ED_INLINE void ed_first_products(const int8_t *w, int8x16_t x, int32_t *sum) {
    ED_UNROLL
    for (int r = 0; r < 4; r++) sum[r] = vmladavq_s8(x, vld1q_s8(w + 16 * r));
}

/* Adds the products of 16 inputs to the sums of four rows. */
ED_INLINE void ed_add_products(const int8_t *w, int8x16_t x, int32_t *sum) {
    ED_UNROLL
    for (int r = 0; r < 4; r++) sum[r] = vmladavaq_s8(sum[r], x, vld1q_s8(w + 16 * r));
}

/* Computes acc[o] = x . row o. rows is a multiple of 4. x is read, and w lies, in whole vectors of 16 inputs. */
ED_INLINE void ed_matvec(const int8_t *w, const int8_t *x, int rows, int n, int32_t *acc) {
    const int vectors = (n + 15) / 16;
    if (vectors <= ED_HELD) {
        int8x16_t held[ED_HELD];
        ED_UNROLL
        for (int i = 0; i < vectors; i++) held[i] = vld1q_s8(x + 16 * i);
        for (int o = 0; o < rows; o += 4, w += 64 * vectors) {
            ed_first_products(w, held[0], acc + o);
            ED_UNROLL
            for (int i = 1; i < vectors; i++) ed_add_products(w + 64 * i, held[i], acc + o);
        }
        return;
    }
    for (int o = 0; o < rows; o += 4) {
        int32_t sum[4] = {0};
        const int8_t *from = x;
        for (int left = vectors; left; left--, from += 16, w += 64) ed_add_products(w, vld1q_s8(from), sum);
        ED_UNROLL
        for (int r = 0; r < 4; r++) acc[o + r] = sum[r];
    }
}

/* Computes 16 times the sums of four rows over one group at q, or once these sums, times their factors. */
ED_INLINE int32x4_t ed_group4(const uint8_t *q, const int8_t *x, int8x16_t mask) {
    const int8x16_t low = vld1q_s8(x), high = vld1q_s8(x + 16);
    int32_t sum[4];
    ED_UNROLL
    for (int r = 0; r < 4; r++) {
        const int8x16_t two = vreinterpretq_s8_u8(vld1q_u8(q + 4 + 16 * r));
        sum[r] = vmladavaq_s8(vmladavq_s8(low, vshlq_n_s8(two, 4)), high, vandq_s8(two, mask));
    }
    const int32x4_t sums = ED_MANY_FOURS ? vshrq_n_s32(vld1q_s32(sum), 4) : vld1q_s32(sum);
    return vmulq_s32(sums, vreinterpretq_s32_u32(vldrbq_u32(q)));
}

/* Computes what ed_matvec does for four-bit weights. x is read in whole groups. It is not inlined, because flash is
 * short. */
static __attribute__((noinline)) void ed_matvec4(const uint8_t *q, const int8_t *x, int rows, int n, int32_t *acc) {
    const int8x16_t mask = vdupq_n_s8(-16);
    for (int o = 0; o < rows; o += 4) {
        int32x4_t total = ed_group4(q, x, mask);
        q += 4 + 64;
        for (int i = ED_FACTOR_INPUTS; i < n; i += ED_FACTOR_INPUTS, q += 4 + 64)
            total = vaddq_s32(total, ed_group4(q, x + i, mask));
        vst1q_s32(acc + o, ED_MANY_FOURS ? total : vshrq_n_s32(total, 4));
    }
}

/* Rows lie one after another, and n is a multiple of 64. */
static inline void ed_rows(const int8_t *w, const int8_t *x, int rows, int n, int32_t *acc) {
    for (int o = 0; o < rows; o++) {
        int32_t sum = 0;
        for (int i = 0; i < n; i += 16, w += 16) sum = vmladavaq_s8(sum, vld1q_s8(x + i), vld1q_s8(w));
        acc[o] = sum;
    }
}

/* ---------------------------------------------------------------- floats, 4 at a time */

/* Writes quantize() of four floats. NaN cannot be among them. */
ED_INLINE void ed_quantize4(float32x4_t x, float inv_scale, int8_t *q) {
    x = vmulq_n_f32(x, inv_scale);
    x = vminnmq_f32(vmaxnmq_f32(x, vdupq_n_f32(-ED_LEVELS)), vdupq_n_f32(ED_LEVELS));
    vstrbq_s32(q, vcvtnq_s32_f32(x)); /* ties to even */
}

ED_INLINE void ed_quantize_all(const float *x, int n, float inv_scale, int8_t *q) {
    for (int i = 0; i < n; i += 4) ed_quantize4(vld1q_f32(x + i), inv_scale, q + i);
}

ED_INLINE void ed_norm_quantize(const float *x, float inv_scale, int8_t *a) {
    float32x4_t lane[4];
    ED_UNROLL
    for (int j = 0; j < 4; j++) lane[j] = vmulq_f32(vld1q_f32(x + 4 * j), vld1q_f32(x + 4 * j));
    for (int i = 16; i < ED_DP; i += 16) {
        ED_UNROLL
        for (int j = 0; j < 4; j++) {
            const float32x4_t v = vld1q_f32(x + i + 4 * j);
            lane[j] = vaddq_f32(lane[j], vmulq_f32(v, v));
        }
    }
    float four[4];
    vst1q_f32(four, vaddq_f32(vaddq_f32(lane[0], lane[2]), vaddq_f32(lane[1], lane[3])));
    const float mean = ((four[0] + four[2]) + (four[1] + four[3])) / (float)ED_D;
    const float factor = 1.0f / __builtin_sqrtf(mean + ED_RMS_EPSILON);
    for (int i = 0; i < ED_DP; i += 4) ed_quantize4(vmulq_n_f32(vld1q_f32(x + i), factor), inv_scale, a + i);
}

ED_INLINE void ed_scale(const int32_t *acc, const float *m, int rows, float *y) {
    for (int o = 0; o < rows; o += 4) vst1q_f32(y + o, vmulq_f32(vcvtq_f32_s32(vld1q_s32(acc + o)), vld1q_f32(m + o)));
}

ED_INLINE void ed_add(const float *y, float *x) {
    if (ED_KEEPS)
        for (int o = 0; o < ED_DP; o++) x[o] = x[o] + y[o];
    else
        for (int o = 0; o < ED_DP; o += 4) vst1q_f32(x + o, vaddq_f32(vld1q_f32(x + o), vld1q_f32(y + o)));
}

/* Computes exp of x within -87 ... 88. */
ED_INLINE float32x4_t ed_exp_in_range(float32x4_t x) {
    const float32x4_t shifted = vaddq_n_f32(vmulq_n_f32(x, ED_LOG2_E), ED_ROUND);
    const float32x4_t n = vsubq_n_f32(shifted, ED_ROUND);
    const float32x4_t r = vsubq_f32(vsubq_f32(x, vmulq_n_f32(n, ED_LN2_HIGH)), vmulq_n_f32(n, ED_LN2_LOW));
    float32x4_t p = vaddq_n_f32(vmulq_n_f32(r, ED_EXP_0), ED_EXP_1);
    p = vaddq_n_f32(vmulq_f32(p, r), ED_EXP_2);
    p = vaddq_n_f32(vmulq_f32(p, r), ED_EXP_3);
    p = vaddq_n_f32(vaddq_f32(vmulq_f32(vmulq_f32(p, r), r), r), 1.0f);
    const uint32x4_t power = vaddq_n_u32(vshlq_n_u32(vreinterpretq_u32_f32(shifted), 23), 127u << 23);
    return vmulq_f32(p, vreinterpretq_f32_u32(power)); /* 2**n, made from its bits */
}

ED_INLINE void ed_silu_up(const float *y, float *hidden) {
    for (int at = 0; at < ED_FP; at += 16, y += 32, hidden += 16)
        for (int i = 0; i < 16; i += 4) {
            float ratio[4];
            float32x4_t minus = vmaxnmq_f32(vnegq_f32(vld1q_f32(y + i)), vdupq_n_f32(ED_EXP_LOWEST));
            minus = vminnmq_f32(minus, vdupq_n_f32(ED_EXP_HIGHEST));
            vst1q_f32(ratio, vaddq_n_f32(ed_exp_in_range(minus), 1.0f));
            ED_UNROLL
            for (int j = 0; j < 4; j++) ratio[j] = y[i + j] / ratio[j];
            vst1q_f32(hidden + i, vmulq_f32(vld1q_f32(ratio), vld1q_f32(y + 16 + i)));
        }
}

ED_INLINE int32_t ed_softmax(const int32_t *acc, float scale, const float *age_bias, int slot, const int32_t *seen,
                             uint8_t *p) {
    const float *bias = age_bias + ED_WINDOW - 1 - slot;
    const float32x4_t dead = vdupq_n_f32(ED_DEAD);
    float score[ED_WP];
    float32x4_t most = dead;
    for (int s = 0; s < ED_WP; s += 4) {
        float32x4_t value = vaddq_f32(vmulq_n_f32(vcvtq_f32_s32(vld1q_s32(acc + s)), scale), vld1q_f32(bias + s));
        value = vpselq_f32(value, dead, vcmpneq_n_s32(vld1q_s32(seen + s), 0));
        most = vmaxnmq_f32(most, value);
        vst1q_f32(score + s, value);
    }
    const float high = vmaxnmvq_f32(ED_DEAD, most);
    uint32_t total = 0; /* of the bits of ED_ROUND + weight */
    for (int s = 0; s < ED_WP; s += 4) {
        float32x4_t x = vmaxnmq_f32(vsubq_n_f32(vld1q_f32(score + s), high), vdupq_n_f32(ED_EXP_LOWEST));
        x = vaddq_n_f32(vmulq_n_f32(ed_exp_in_range(x), ED_LEVELS), ED_ROUND);
        const uint32x4_t bits = vreinterpretq_u32_f32(x);
        vstrbq_u32(p + s, bits);
        total = vaddvaq_u32(total, bits);
    }
    return (int32_t)(total - (uint32_t)ED_WP * 0x4b400000u);
}

/* ---------------------------------------------------------------- rings */

static inline void ed_ring_clear(struct ed_ring *ring) { memset(ring, 0, sizeof *ring); }

/* Bytes beyond a head's dims stay zero. */
static inline void ed_ring_put(struct ed_ring *ring, int slot, const int8_t *k, const int8_t *v) {
    for (int h = 0; h < ED_HEADS; h++)
        for (int i = 0; i < ED_DH; i++) {
            ring->k[h][slot / 4][i / 16][slot % 4][i % 16] = k[h * ED_DH + i];
            ring->v[h][i / 4][slot / 16][i % 4][slot % 16] = v[h * ED_DH + i];
        }
}

static inline void ed_ring_get(const struct ed_ring *ring, int slot, int8_t *k, int8_t *v) {
    for (int h = 0; h < ED_HEADS; h++)
        for (int i = 0; i < ED_DH; i++) {
            k[h * ED_DH + i] = ring->k[h][slot / 4][i / 16][slot % 4][i % 16];
            v[h * ED_DH + i] = ring->v[h][i / 4][slot / 16][i % 4][slot % 16];
        }
}

ED_INLINE void ed_scores(const struct ed_ring *ring, int h, const int8_t *q, int32_t *acc) {
    ed_matvec(&ring->k[h][0][0][0][0], q, ED_WP, ED_DHP, acc);
}

/* The weights p are 0 to 127, which signed bytes hold. */
ED_INLINE void ed_weighted(const struct ed_ring *ring, int h, const uint8_t *p, int32_t *acc) {
    ed_matvec(&ring->v[h][0][0][0][0], (const int8_t *)p, ED_DHP, ED_WP, acc);
}

#include "ed_ops_common.h"

#endif
