/*
 * What a step is measured against: a kernel that does nothing, one multiprocessor that only loads, a flushed cache.
 *
 *     ed_empty         one thread returns: what any launch costs
 *     ed_stream        one block reads `vectors` x 16 bytes, `turns` times over: the bandwidth of one multiprocessor's
 *                      port to the L2 where they fit there; `clocks` gets its own clocks, `sink` keeps the loads alive
 *     ed_read_all      all multiprocessors read a buffer larger than the L2, which then holds nothing else
 *
 * Loads go past the L1, as ld.global.cg: it would hold a small student on a large chip, and then bound nothing.
 */
#include "exact.cuh"

#define ED_UNDER_WAY 8 /* loads of a thread: 8 x 16 bytes x 512 threads are twice what latency asks for */

namespace {

/* Volatile, so that no load is left out because an earlier turn has seen the same address. */
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

/* What this thread reads of `vectors`, every `stride`th from `own` on, folded into one word. */
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
