/*
 * Private: arithmetic whose bits are pinned, in plain C. Operations and their order are those of numerics/arithmetic.py
 * (docs/numerics.md).
 *
 * Everything is float32. Each operation is rounded once, with no contraction (-ffp-contract=off) and no fast-math. A
 * sum adds value i to lane i mod 16, in order, and then adds lanes that are 8, 4, 2 and 1 apart. These are loops over
 * 16 lanes, which compilers vectorize.
 */
#ifndef ED_MATH_H
#define ED_MATH_H

#include <float.h>
#include <string.h>

#include "ed_weights.h"

#if FLT_EVAL_METHOD != 0 && FLT_EVAL_METHOD != 16
#error "float32 must be computed as float32 (on 32-bit x86: -msse2 -mfpmath=sse)"
#endif
#ifdef __FAST_MATH__
#error "fast-math changes the bits"
#endif
/* Vectors of Helium flush denormals to zero whatever the FPSCR says, and GCC and Clang make them of plain loops. */
#if defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 2) && !defined(ED_NO_FLOAT_VECTORS)
#error "this processor's vectors change bits: use ops = \"helium\", or -fno-tree-vectorize -DED_NO_FLOAT_VECTORS"
#endif

#define ED_LANES 16
#define ED_LEVELS 127.0f
#define ED_DEAD (-1e30f)               /* score of a slot that is not seen; its exponential rounds to 0 */
#define ED_ROUND 12582912.0f           /* 1.5 * 2**23: x + ED_ROUND has rint(x) in its low bits, for |x| < 2**22 */
#define ED_RMS_EPSILON 0x1.0c6f7ap-20f /* 1e-6 */
#define ED_LOG2_E 0x1.715476p+0f
#define ED_LN2_HIGH 0x1.63p-1f
#define ED_LN2_LOW (-0x1.bd0106p-13f)
#define ED_EXP_0 0x1.10627ap-7f /* 0.008312521 */
#define ED_EXP_1 0x1.572a08p-5f /* 0.04189016 */
#define ED_EXP_2 0x1.5557aep-3f /* 0.16667114 */
#define ED_EXP_3 0x1.fffdfcp-2f /* 0.4999923 */
#define ED_EXP_LOWEST (-87.0f)
#define ED_EXP_HIGHEST 88.0f

ED_INLINE uint32_t ed_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

ED_INLINE float ed_from_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Returns rint(x), ties to even, for |x| < 2**22. For NaN the low byte of the result is 0. */
ED_INLINE int32_t ed_rint(float x) { return (int32_t)(ed_bits(x + ED_ROUND) - 0x4b400000u); }

/* Returns a if `mask` is -1, and b if it is 0. It works on bits, because compilers turn ?: into branches, which depend
 * on data and prevent vectorizing. */
ED_INLINE float ed_choose(int32_t mask, float a, float b) {
    return ed_from_bits((ed_bits(a) & (uint32_t)mask) | (ed_bits(b) & ~(uint32_t)mask));
}

/* Returns a if `take` is 1, and b if it is 0. */
ED_INLINE float ed_select(int take, float a, float b) { return ed_choose(-take, a, b); }

/* A Cortex-M7 (or M55 and M85: FPv5 with doubles) has one instruction for each of these, which compilers do not turn into a
 * branch. The results differ for NaN, but no finite bin leads to NaN. Bits would go through the integer registers,
 * which is slow. */
#if defined(__ARM_ARCH_PROFILE) && __ARM_ARCH_PROFILE == 'M' && defined(__ARM_FP) && (__ARM_FP & 8)
ED_INLINE float ed_larger(float x, float y) { return __builtin_fmaxf(x, y); }
ED_INLINE float ed_smaller(float x, float y) { return __builtin_fminf(x, y); }
#else
ED_INLINE float ed_larger(float x, float y) { return ed_select(x < y, y, x); }
ED_INLINE float ed_smaller(float x, float y) { return ed_select(x > y, y, x); }
#endif

ED_INLINE float ed_clip(float x, float low, float high) { return ed_smaller(ed_larger(x, low), high); }

ED_INLINE int8_t ed_quantize(float x, float inv_scale) {
    return (int8_t)ed_rint(ed_clip(x * inv_scale, -ED_LEVELS, ED_LEVELS));
}

ED_INLINE float ed_exp(float x) {
    x = ed_clip(x, ED_EXP_LOWEST, ED_EXP_HIGHEST);
    float shifted = x * ED_LOG2_E + ED_ROUND;
    float n = shifted - ED_ROUND;
    float r = (x - n * ED_LN2_HIGH) - n * ED_LN2_LOW;
    float p = ED_EXP_0 * r + ED_EXP_1;
    p = p * r + ED_EXP_2;
    p = p * r + ED_EXP_3;
    float mantissa = ((p * r) * r + r) + 1.0f;
    return mantissa * ed_from_bits((ed_bits(shifted) << 23) + (127u << 23)); /* 2**n */
}

ED_INLINE float ed_silu(float x) { return x / (1.0f + ed_exp(-x)); }

ED_INLINE float ed_fold_lanes(const float *lanes) {
    float eight[8], four[4];
    for (int i = 0; i < 8; i++) eight[i] = lanes[i] + lanes[8 + i];
    for (int i = 0; i < 4; i++) four[i] = eight[i] + eight[4 + i];
    return (four[0] + four[2]) + (four[1] + four[3]);
}

/* Returns the sum of x * y over n values, n a multiple of 16. */
ED_INLINE float ed_lane_product(const float *x, const float *y, int n) {
    float lanes[ED_LANES];
    for (int i = 0; i < ED_LANES; i++) lanes[i] = x[i] * y[i];
    for (int at = ED_LANES; at < n; at += ED_LANES)
        for (int i = 0; i < ED_LANES; i++) lanes[i] = lanes[i] + x[at + i] * y[at + i];
    return ed_fold_lanes(lanes);
}

/* Returns 1 / root mean square of x (ED_DP,), whose last ED_DP - ED_D values are 0. */
ED_INLINE float ed_rms_factor(const float *x) {
    float mean = ed_lane_product(x, x, ED_DP) / (float)ED_D;
    return 1.0f / __builtin_sqrtf(mean + ED_RMS_EPSILON);
}

/* Computes y = x w' for a part that is kept in float32; each y is a lane sum. x (n,) is padded with zeros, and rows and
 * n are multiples of 16. */
ED_INLINE void ed_float_product(const float *w, const float *x, int rows, int n, float *y) {
    for (int o = 0; o < rows; o++) y[o] = ed_lane_product(x, w + (ptrdiff_t)o * n, n);
}

#endif
