/*
 * The part of CUDA C++ that our kernels are written in, for a C++17 compiler on a CPU. kernels/cuda/exact.cuh includes
 * it in place of <cuda_runtime.h> with -DED_EMULATED:
 *
 *     g++ -std=c++17 -O2 -ffp-contract=off -fno-math-errno -DED_EMULATED -Ikernels/cuda -Iemulation/cuda \
 *         -x c++ kernel.cu -shared -fPIC ...
 *
 * A kernel computes exactly what a device must compute: integers, and float32 operations that IEEE 754 rounds, in the
 * order that the source gives them, with contraction off. block.h says how threads run, what it reports and what it
 * cannot see. Time, caches, banks and occupancy have no counterpart here.
 *
 * Streams are null pointers, and everything is synchronous. A kernel's `__shared__` variables must not need a
 * constructor.
 */
#ifndef ED_CUDA_ON_CPU_H
#define ED_CUDA_ON_CPU_H

#include <math.h>

#include "block.h"

#ifdef __FAST_MATH__
#error "fast-math changes the bits"
#endif

#pragma GCC visibility push(hidden) /* for the reason given in block.h */

/* ---------------------------------------------------------------- words */

#define __device__
#define __host__
#define __global__ __attribute__((visibility("hidden"))) /* called through ED_EXPORT_KERNEL */
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#ifdef ED_FIBRES_ASAN
#define __shared__ static
#else
#define __shared__ static __attribute__((section("ed_shared"), used)) /* used: block.h writes it too */
#endif

typedef void *cudaStream_t;
constexpr int warpSize = 32;

struct dim3 : ed_index {
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : ed_index{x_, y_, z_} {}
};

#define ED_VECTOR(type, name, bytes)                                 \
    struct alignas(bytes / 2) name##2 {                              \
        type x, y;                                                   \
    };                                                               \
    struct alignas(bytes) name##4 {                                  \
        type x, y, z, w;                                             \
    };                                                               \
    inline name##2 make_##name##2(type x, type y) { return {x, y}; } \
    inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
ED_VECTOR(int, int, 16)
ED_VECTOR(unsigned, uint, 16)
ED_VECTOR(float, float, 16)
ED_VECTOR(signed char, char, 4)
ED_VECTOR(unsigned char, uchar, 4)
#undef ED_VECTOR

/* ---------------------------------------------------------------- one thread */

namespace ed_emulated {

template <class To, class From> inline To bits_as(From from) {
    static_assert(sizeof(To) <= sizeof(uint64_t), "a value of at most 8 bytes");
    To to{};
    memcpy(&to, &from, sizeof(To) < sizeof(From) ? sizeof(To) : sizeof(From));
    return to;
}

template <class T> inline int dp4a(int a, int b, T c) {
    for (int i = 0; i < 32; i += 8)
        c += static_cast<T>(static_cast<signed char>(a >> i) * static_cast<signed char>(b >> i));
    return c;
}

} // namespace ed_emulated

inline int __float_as_int(float x) { return ed_emulated::bits_as<int>(x); }
inline float __int_as_float(int x) { return ed_emulated::bits_as<float>(x); }
inline unsigned __float_as_uint(float x) { return ed_emulated::bits_as<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return ed_emulated::bits_as<float>(x); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }

inline int __dp4a(int a, int b, int c) { return ed_emulated::dp4a(a, b, c); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }

/* Byte i of the result is byte (selector >> 4 i) & 7 of y:x. */
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    const uint64_t both = static_cast<uint64_t>(y) << 32 | x;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) result |= static_cast<unsigned>(both >> (selector >> 4 * i & 7) * 8 & 255) << 8 * i;
    return result;
}

template <class T> inline T __ldg(const T *at) { return *at; }
template <class T> inline T __ldcg(const T *at) { return *at; }
template <class T> inline T __ldcs(const T *at) { return *at; }
template <class T> inline void __stcg(T *at, T value) { *at = value; }
inline int min(int x, int y) { return x < y ? x : y; }
inline int max(int x, int y) { return x > y ? x : y; }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
[[noreturn]] inline void __trap() { ed_emulated::fail("__trap (thread %u)", ed_emulated::all.now->number); }

/* Threads run one after another, and any order of theirs is one that a device may have. */
template <class T> inline T atomicAdd(T *at, T value) {
    const T old = *at;
    *at = old + value;
    return old;
}
template <class T> inline T atomicMax(T *at, T value) {
    const T old = *at;
    *at = old < value ? value : old;
    return old;
}

/* ---------------------------------------------------------------- the block */

inline void __syncthreads() { ed_emulated::barrier(); }
inline int __syncthreads_count(int yes) { return ed_emulated::barrier(!!yes, "__syncthreads_count"); }
inline int __syncthreads_or(int yes) { return !!ed_emulated::barrier(!!yes, "__syncthreads_or"); }
inline int __syncthreads_and(int yes) { return !ed_emulated::barrier(!yes, "__syncthreads_and"); }

/* ---------------------------------------------------------------- the warp */

namespace ed_emulated {

/* Returns the value that lane `from` gave. For a lane outside `mask` it returns bits that no result may depend on. */
template <class T> inline T taken(const uint64_t *given, unsigned from, uint32_t mask) {
    return bits_as<T>(mask >> from & 1 ? given[from] : 0xdeadbeefdeadbeefu);
}

/* Shuffles within groups of `width` lanes. `source` maps a lane's place in its group to
 * another place, which may be outside. */
template <class T, class F> inline T shuffle(const char *what, unsigned mask, T value, int width, F source) {
    return meet(what, mask, bits_as<uint64_t>(value), [=](const uint64_t *given, unsigned lane, uint32_t lanes) {
        const int place = static_cast<int>(lane) % width, from = source(place);
        const bool inside = from >= 0 && from < width;
        return taken<T>(given, lane + static_cast<unsigned>(inside ? from - place : 0), lanes);
    });
}

/* Returns `start` combined with what each lane gave, in the order of lanes. */
template <class T, class F> inline T combined(const char *what, unsigned mask, T value, T start, F add) {
    return meet(what, mask, bits_as<uint64_t>(value), [=](const uint64_t *given, unsigned, uint32_t lanes) {
        T result = start;
        for (unsigned i = 0; i < 32; i++)
            if (lanes >> i & 1) result = add(result, bits_as<T>(given[i]));
        return result;
    });
}

} // namespace ed_emulated

inline void __syncwarp(unsigned mask = 0xffffffffu) {
    ed_emulated::meet("__syncwarp", mask, 0, [](const uint64_t *, unsigned, uint32_t) { return 0; });
}

template <class T> inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
    return ed_emulated::shuffle("__shfl_sync", mask, value, width, [=](int) { return lane & (width - 1); });
}
template <class T> inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
    return ed_emulated::shuffle("__shfl_xor_sync", mask, value, width, [=](int place) { return place ^ bits; });
}
template <class T> inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
    return ed_emulated::shuffle("__shfl_up_sync", mask, value, width,
                                [=](int at) { return at - static_cast<int>(by); });
}
template <class T> inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
    return ed_emulated::shuffle("__shfl_down_sync", mask, value, width,
                                [=](int at) { return at + static_cast<int>(by); });
}

inline unsigned __ballot_sync(unsigned mask, int yes) {
    const unsigned own = yes ? 1u << ed_emulated::all.now->number % 32 : 0;
    return ed_emulated::combined("__ballot_sync", mask, own, 0u, [](unsigned x, unsigned y) { return x | y; });
}
inline int __any_sync(unsigned mask, int yes) {
    return ed_emulated::combined("__any_sync", mask, int{yes != 0}, 0, [](int x, int y) { return x | y; });
}
inline int __all_sync(unsigned mask, int yes) {
    return ed_emulated::combined("__all_sync", mask, int{yes != 0}, 1, [](int x, int y) { return x & y; });
}
template <class T> inline T __reduce_add_sync(unsigned mask, T value) {
    return ed_emulated::combined("__reduce_add_sync", mask, value, T(0), [](T x, T y) { return x + y; });
}
template <class T> inline T __reduce_max_sync(unsigned mask, T value) {
    return ed_emulated::combined("__reduce_max_sync", mask, value, value, [](T x, T y) { return x < y ? y : x; });
}
template <class T> inline T __reduce_min_sync(unsigned mask, T value) {
    return ed_emulated::combined("__reduce_min_sync", mask, value, value, [](T x, T y) { return y < x ? y : x; });
}

/* ---------------------------------------------------------------- launches */

namespace ed_emulated {

template <class F> inline int launch_each(dim3 grid, dim3 block, size_t shared_bytes, F &body) {
    return launch(
        grid, block, shared_bytes, [](void *f) { (*static_cast<F *>(f))(); }, &body);
}

/* Launches a kernel whose arguments are behind pointers, as the driver takes them. */
template <class... P> struct types {};

template <class... P, class... Done>
inline int launch_behind(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, void **, types<>,
                         Done... done) {
    auto body = [=] { kernel(done...); };
    return launch_each(grid, block, shared_bytes, body);
}
template <class... P, class First, class... Rest, class... Done>
inline int launch_behind(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, void **arguments,
                         types<First, Rest...>, Done... done) {
    return launch_behind(kernel, grid, block, shared_bytes, arguments + 1, types<Rest...>{}, done...,
                         *static_cast<First *>(arguments[0]));
}

/* The bytes of each parameter of a kernel, then 0. */
template <class... P> struct sizes_of {
    static constexpr unsigned values[] = {sizeof(P)..., 0};
};
template <class... P> sizes_of<P...> sizes_for(void (*)(P...));

template <class... P>
inline int launch_packed(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, void **arguments) {
    return launch_behind(kernel, grid, block, shared_bytes, arguments, types<P...>{});
}

} // namespace ed_emulated

/* Stands in for ed_launch in exact.cuh, which is for nvcc. */
template <class... P, class... A>
inline int ed_launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t, A... arguments) {
    auto body = [=] { kernel(static_cast<P>(arguments)...); };
    return ed_emulated::launch_each(grid, block, shared_bytes, body);
}

#pragma GCC visibility pop

/* Declares the block's dynamic shared memory as an array of `type`. */
#define ED_DYNAMIC_SHARED(type, name) type *const name = reinterpret_cast<type *>(ed_emulated::all.shared)

/* Exports NAME_emulated, through which a program that has loaded the shared object launches the kernel; it
 * returns 0 or an error number. Also exports NAME_parameters, the bytes of each parameter, then 0, for
 * driver.cpp, which copies them until a launch runs. */
#define ED_EXPORT_KERNEL(name)                                                                                     \
    extern "C" __attribute__((visibility("default"))) const unsigned *name##_parameters() {                        \
        return decltype(ed_emulated::sizes_for(name))::values;                                                     \
    }                                                                                                              \
    extern "C" __attribute__((visibility("default"))) int name##_emulated(unsigned gx, unsigned gy, unsigned gz,   \
                                                                          unsigned bx, unsigned by, unsigned bz,   \
                                                                          size_t shared_bytes, void **arguments) { \
        return ed_emulated::launch_packed(name, dim3(gx, gy, gz), dim3(bx, by, bz), shared_bytes, arguments);      \
    }

#endif
