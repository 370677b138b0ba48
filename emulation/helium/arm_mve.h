/*
 * Stands in for <arm_mve.h> on a processor without Helium, so that sanitizers and fuzzers see kernels/c/ed_ops_helium.h.
 *
 * It has the intrinsics that the variant uses, lane by lane, as Arm defines them. Floats flush denormals to zero, of
 * operands and of results, as those of Helium do whatever FPSCR says. A product counts as denormal before it is rounded.
 * NaN and conversions beyond 2^22 are not emulated, because no step has any. Integers wrap.
 */
#ifndef ARM_MVE_H
#define ARM_MVE_H

#include <stdint.h>
#include <string.h>

#define MVE static inline __attribute__((always_inline, unused))
#define MVE_EACH(i, n) for (int i = 0; i < (n); i++)

typedef int8_t int8x16_t __attribute__((vector_size(16)));
typedef uint8_t uint8x16_t __attribute__((vector_size(16)));
typedef int32_t int32x4_t __attribute__((vector_size(16)));
typedef uint32_t uint32x4_t __attribute__((vector_size(16)));
typedef float float32x4_t __attribute__((vector_size(16)));
typedef uint16_t mve_pred16_t; /* four bits for each lane of 32 */

/* ---------------------------------------------------------------- loads, stores and what moves bits */

#define MVE_LOAD(name, vector, element)    \
    MVE vector name(const element *from) { \
        vector x;                          \
        memcpy(&x, from, sizeof x);        \
        return x;                          \
    }
MVE_LOAD(vld1q_s8, int8x16_t, int8_t)
MVE_LOAD(vld1q_u8, uint8x16_t, uint8_t)
MVE_LOAD(vld1q_s32, int32x4_t, int32_t)
MVE_LOAD(vld1q_f32, float32x4_t, float)

MVE void vst1q_s32(int32_t *to, int32x4_t x) { memcpy(to, &x, sizeof x); }
MVE void vst1q_f32(float *to, float32x4_t x) { memcpy(to, &x, sizeof x); }

/* Widen four bytes, and store the low bytes of four lanes. */
MVE uint32x4_t vldrbq_u32(const uint8_t *from) { return (uint32x4_t){from[0], from[1], from[2], from[3]}; }
MVE void vstrbq_u32(uint8_t *to, uint32x4_t x) { MVE_EACH(i, 4) to[i] = (uint8_t)(x[i] & 255); }
MVE void vstrbq_s32(int8_t *to, int32x4_t x) { vstrbq_u32((uint8_t *)to, (uint32x4_t)x); }

MVE int8x16_t vreinterpretq_s8_u8(uint8x16_t x) { return (int8x16_t)x; }
MVE int32x4_t vreinterpretq_s32_u32(uint32x4_t x) { return (int32x4_t)x; }
MVE uint32x4_t vreinterpretq_u32_f32(float32x4_t x) { return (uint32x4_t)x; }
MVE float32x4_t vreinterpretq_f32_u32(uint32x4_t x) { return (float32x4_t)x; }

MVE float32x4_t vdupq_n_f32(float x) { return (float32x4_t){x, x, x, x}; }
MVE int8x16_t vdupq_n_s8(int8_t x) {
    int8x16_t all;
    memset(&all, x, sizeof all);
    return all;
}

/* ---------------------------------------------------------------- integers */

MVE int32_t vmladavaq_s8(int32_t sum, int8x16_t a, int8x16_t b) {
    uint32_t total = (uint32_t)sum;
    MVE_EACH(i, 16) total += (uint32_t)(a[i] * b[i]);
    return (int32_t)total;
}
MVE int32_t vmladavq_s8(int8x16_t a, int8x16_t b) { return vmladavaq_s8(0, a, b); }

MVE uint32_t vaddvaq_u32(uint32_t sum, uint32x4_t x) { return sum + x[0] + x[1] + x[2] + x[3]; }

MVE int8x16_t vshlq_n_s8(int8x16_t x, int n) { return (int8x16_t)((uint8x16_t)x << (uint8_t)n); }
MVE int8x16_t vandq_s8(int8x16_t a, int8x16_t b) { return a & b; }
MVE int32x4_t vshrq_n_s32(int32x4_t x, int n) { return x >> n; }
MVE int32x4_t vaddq_s32(int32x4_t a, int32x4_t b) { return (int32x4_t)((uint32x4_t)a + (uint32x4_t)b); }
MVE int32x4_t vmulq_s32(int32x4_t a, int32x4_t b) { return (int32x4_t)((uint32x4_t)a * (uint32x4_t)b); }
MVE uint32x4_t vshlq_n_u32(uint32x4_t x, int n) { return x << (uint32_t)n; }
MVE uint32x4_t vaddq_n_u32(uint32x4_t x, uint32_t y) { return x + y; }

MVE mve_pred16_t vcmpneq_n_s32(int32x4_t x, int32_t y) {
    unsigned lanes = 0;
    MVE_EACH(i, 4) lanes |= (x[i] != y ? 15u : 0u) << (4 * i);
    return (mve_pred16_t)lanes;
}
MVE float32x4_t vpselq_f32(float32x4_t a, float32x4_t b, mve_pred16_t lanes) {
    MVE_EACH(i, 4) if (!(lanes >> (4 * i) & 1)) a[i] = b[i];
    return a;
}

/* ---------------------------------------------------------------- floats */

MVE float mve_flush(float x) {
    if (x > -0x1p-126f && x < 0x1p-126f) return __builtin_copysignf(0.0f, x);
    return x;
}

/* Sums that are denormal are exact, so that it does not matter when they are flushed. */
MVE float mve_add(float a, float b) { return mve_flush(mve_flush(a) + mve_flush(b)); }

MVE float mve_multiply(float a, float b) {
    const double exact = (double)mve_flush(a) * (double)mve_flush(b);
    if (exact > -0x1p-126 && exact < 0x1p-126) return __builtin_copysignf(0.0f, (float)exact);
    return (float)exact;
}

/* -0 is less than 0. */
MVE int mve_is_less(float a, float b) { return a < b || (a == b && __builtin_signbit(a) > __builtin_signbit(b)); }
MVE float mve_larger(float a, float b) {
    a = mve_flush(a);
    b = mve_flush(b);
    return mve_is_less(a, b) ? b : a;
}
MVE float mve_smaller(float a, float b) {
    a = mve_flush(a);
    b = mve_flush(b);
    return mve_is_less(b, a) ? b : a;
}

#define MVE_LANES(name, of_lane)                         \
    MVE float32x4_t name(float32x4_t a, float32x4_t b) { \
        MVE_EACH(i, 4) a[i] = of_lane(a[i], b[i]);       \
        return a;                                        \
    }
MVE_LANES(vaddq_f32, mve_add)
MVE_LANES(vmulq_f32, mve_multiply)
MVE_LANES(vmaxnmq_f32, mve_larger)
MVE_LANES(vminnmq_f32, mve_smaller)

MVE float32x4_t vnegq_f32(float32x4_t x) { return -x; }
MVE float32x4_t vsubq_f32(float32x4_t a, float32x4_t b) { return vaddq_f32(a, -b); }
MVE float32x4_t vaddq_n_f32(float32x4_t x, float y) { return vaddq_f32(x, vdupq_n_f32(y)); }
MVE float32x4_t vsubq_n_f32(float32x4_t x, float y) { return vsubq_f32(x, vdupq_n_f32(y)); }
MVE float32x4_t vmulq_n_f32(float32x4_t x, float y) { return vmulq_f32(x, vdupq_n_f32(y)); }

MVE float vmaxnmvq_f32(float most, float32x4_t x) {
    MVE_EACH(i, 4) most = mve_larger(most, x[i]);
    return most;
}

MVE float32x4_t vcvtq_f32_s32(int32x4_t x) { return __builtin_convertvector(x, float32x4_t); }

/* Rounds to the nearest integer, ties to even. */
MVE int32x4_t vcvtnq_s32_f32(float32x4_t x) {
    int32x4_t y;
    MVE_EACH(i, 4) y[i] = (int32_t)((mve_flush(x[i]) + 12582912.0f) - 12582912.0f);
    return y;
}

#endif
