/*
 * Kernels that a step is measured against.
 *
 *     ed_empty         does nothing in one thread, which shows what any launch costs
 *     ed_stream        reads `vectors` x 16 bytes `turns` times over in one block, which shows the bandwidth of one
 *                      multiprocessor's port to the L2 if they fit there; `clocks` gets its clocks, and `sink` keeps
 *                      the compiler from removing the loads
 *     ed_read_all      reads a buffer larger than the L2 with all multiprocessors, so that the L2 holds nothing else
 *
 * Loads go past the L1 (ld.global.cg). On a large chip the L1 would hold a small student, and its bandwidth would be no
 * bound for a real step.
 */
#include "exact.cuh"

#define ED_UNDER_WAY 8 /* loads in flight in a thread: 8 x 16 bytes x 512 threads are twice what hides the latency */

namespace {

/* The asm is volatile, so that the compiler keeps a load whose address an earlier turn has read. */
#ifdef ED_EMULATED
__device__ __forceinline__ uint4 load_past_l1(const uint4 *from) { return *from; }
__device__ __forceinline__ long long clocks_now() { return 0; }
#else
__device__ __forceinline__ uint4 load_past_l1(const uint4 *from) {
    uint4 v;
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from));
    return v;
}
__device__ __forceinline__ long long clocks_now() { return clock64(); }
#endif

__device__ __forceinline__ unsigned folded(uint4 v) { return v.x ^ v.y ^ v.z ^ v.w; }

/* Reads every `stride`th of `vectors` from `own` on, and folds what was read into one word. */
__device__ __forceinline__ unsigned read_through(const uint4 *from, unsigned vectors, unsigned own, unsigned stride) {
    unsigned seen = 0, at = own;
    for (; at + (ED_UNDER_WAY - 1) * stride < vectors; at += ED_UNDER_WAY * stride) {
        uint4 loaded[ED_UNDER_WAY];
#pragma unroll
        for (unsigned i = 0; i < ED_UNDER_WAY; i++) loaded[i] = load_past_l1(from + at + i * stride);
#pragma unroll
        for (unsigned i = 0; i < ED_UNDER_WAY; i++) seen ^= folded(loaded[i]);
    }
    for (; at < vectors; at += stride) seen ^= folded(load_past_l1(from + at));
    return seen;
}

} // namespace

extern "C" __global__ void ed_empty() {}
ED_EXPORT_KERNEL(ed_empty)

extern "C" __global__ void __launch_bounds__(1024, 1)
    ed_stream(const uint4 *from, unsigned vectors, unsigned turns, long long *clocks, unsigned *sink) {
    unsigned seen = 0;
    const long long began = clocks_now();
    for (unsigned turn = 0; turn < turns; turn++) seen ^= read_through(from, vectors, threadIdx.x, blockDim.x) + turn;
    __syncthreads();
    if (threadIdx.x == 0) *clocks = clocks_now() - began;
    if (seen == 0x5eed5eedu) *sink = seen;
}
ED_EXPORT_KERNEL(ed_stream)

extern "C" __global__ void ed_read_all(const uint4 *from, unsigned vectors, unsigned *sink) {
    const unsigned own = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned seen = read_through(from, vectors, own, gridDim.x * blockDim.x);
    if (seen == 0x5eed5eedu) *sink = seen;
}
ED_EXPORT_KERNEL(ed_read_all)
