/*
 * Arithmetic whose bits are pinned, for kernels: the operations and the order of numerics/arithmetic.py, as
 * ../c/ed_math.h has them for C. This file also lets one source compile with nvcc and, with -DED_EMULATED, for a CPU
 * (emulation/cuda/cuda_on_cpu.h, which must then be on the include path):
 *
 *     ED_LAUNCH(kernel, grid, block, shared_bytes, stream, arguments...)   0, or an error number of CUDA
 *     ED_EXPORT_KERNEL(name)                                               emulation: exports name_emulated
 *     ED_DYNAMIC_SHARED(type, name)                                        the launch's shared_bytes, aligned to 16
 *
 * Give nvcc the options --fmad=false --prec-div=true --prec-sqrt=true --ftz=false, and a compiler for a CPU
 * -ffp-contract=off. Then +, -, *, / and sqrtf round once, to nearest even, and keep denormals.
 */
#ifndef ED_EXACT_CUH
#define ED_EXACT_CUH

#include <stddef.h>
#include <stdint.h>

#ifdef ED_EMULATED
#include "cuda_on_cpu.h"
#else
#include <cuda_runtime.h>

/* Converts the arguments to the kernel's own types, as in a call. */
template <class... P, class... A>
inline int ed_launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                     A... arguments) {
    const auto launch = [=](P... values) {
        void *pointers[] = {(void *)&values...};
        return (int)cudaLaunchKernel((const void *)kernel, grid, block, pointers, shared_bytes, stream);
    };
    return launch(arguments...);
}

#define ED_EXPORT_KERNEL(name)
#define ED_DYNAMIC_SHARED(type, name)            \
    extern __shared__ uint4 ed_dynamic_shared[]; \
    type *const name = (type *)ed_dynamic_shared
#endif

#define ED_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
    ed_launch(kernel, dim3(grid), dim3(block), (size_t)(shared_bytes), (cudaStream_t)(stream), __VA_ARGS__)

#define ED_EXACT __device__ __forceinline__

#define ED_LEVELS 127.0f
#define ED_DEAD (-1e30f)               /* score of a slot that is not seen; its exponential rounds to 0 */
#define ED_ROUND 12582912.0f           /* 1.5 * 2**23: x + ED_ROUND has rint(x) in its low bits, for |x| < 2**22 */
#define ED_RMS_EPSILON 0x1.0c6f7ap-20f /* 1e-6 */
#define ED_LOG2_E 0x1.715476p+0f
#define ED_LN2_HIGH 0x1.63p-1f
#define ED_LN2_LOW (-0x1.bd0106p-13f)
#define ED_EXP_0 0x1.10627ap-7f
#define ED_EXP_1 0x1.572a08p-5f
#define ED_EXP_2 0x1.5557aep-3f
#define ED_EXP_3 0x1.fffdfcp-2f
#define ED_EXP_LOWEST (-87.0f)
#define ED_EXP_HIGHEST 88.0f

/* Returns rint(x), ties to even, for |x| < 2**22. */
ED_EXACT int ed_rint(float x) { return (int)((unsigned)__float_as_int(x + ED_ROUND) - 0x4b400000u); }

/* Returns the larger of two values that are not NaN. */
ED_EXACT float ed_larger(float x, float y) { return x < y ? y : x; }
ED_EXACT float ed_smaller(float x, float y) { return x > y ? y : x; }
ED_EXACT float ed_clip(float x, float low, float high) { return ed_smaller(ed_larger(x, low), high); }

/* Returns an integer of -127 ... 127. */
ED_EXACT int ed_quantize(float x, float inv_scale) { return ed_rint(ed_clip(x * inv_scale, -ED_LEVELS, ED_LEVELS)); }

ED_EXACT float ed_exp(float x) {
    x = ed_clip(x, ED_EXP_LOWEST, ED_EXP_HIGHEST);
    const float shifted = x * ED_LOG2_E + ED_ROUND;
    const float n = shifted - ED_ROUND;
    const float r = (x - n * ED_LN2_HIGH) - n * ED_LN2_LOW;
    float p = ED_EXP_0 * r + ED_EXP_1;
    p = p * r + ED_EXP_2;
    p = p * r + ED_EXP_3;
    const float mantissa = ((p * r) * r + r) + 1.0f;
    return mantissa * __int_as_float((int)(((unsigned)__float_as_int(shifted) << 23) + (127u << 23))); /* 2**n */
}

ED_EXACT float ed_silu(float x) { return x / (1.0f + ed_exp(-x)); }

/* Adds lanes 8, 4, 2 and 1 apart in each half of a warp; all 16 lanes get the sum. A butterfly adds the pairs of the
 * tree 8-4-2-1. In some lanes the operands are swapped, which changes no bit. */
ED_EXACT float ed_fold_lanes(float sum) {
    sum = sum + __shfl_xor_sync(0xffffffffu, sum, 8);
    sum = sum + __shfl_xor_sync(0xffffffffu, sum, 4);
    sum = sum + __shfl_xor_sync(0xffffffffu, sum, 2);
    return sum + __shfl_xor_sync(0xffffffffu, sum, 1);
}

/* Returns the sum of x * y over n values, for a whole warp. Lane l mod 16 takes the values
 * l mod 16, l mod 16 + 16, ..., in order. */
ED_EXACT float ed_lane_product(const float *x, const float *y, int n) {
    const int own = (int)(threadIdx.x % 16);
    float sum = own < n ? x[own] * y[own] : 0.0f;
    for (int i = own + 16; i < n; i += 16) sum = sum + x[i] * y[i];
    return ed_fold_lanes(sum);
}

/* Returns the largest of a warp's finite values. Bits of floats, as integers, have the order of the floats if those of
 * negative values are inverted. */
ED_EXACT float ed_warp_max(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    int bits = __float_as_int(value);
    bits = __reduce_max_sync(0xffffffffu, bits ^ ((bits >> 31) & 0x7fffffff));
    return __int_as_float(bits ^ ((bits >> 31) & 0x7fffffff));
#else
    for (int bit = 16; bit; bit /= 2) value = ed_larger(value, __shfl_xor_sync(0xffffffffu, value, bit));
    return value;
#endif
}

ED_EXACT int ed_warp_sum(int value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    return __reduce_add_sync(0xffffffffu, value);
#else
    for (int bit = 16; bit; bit /= 2) value += __shfl_xor_sync(0xffffffffu, value, bit);
    return value;
#endif
}

#endif
