/* Kernels that show what the emulated GPU does, right ones and wrong ones, and the pinned arithmetic of exact.cuh. */
#include "exact.cuh"

#define ED_PROBE extern "C" __global__ void

ED_EXACT int own_thread() { return (int)(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)); }

/* ---------------------------------------------------------------- right */

/* Writes to out (blocks, threads) the number that the neighbour left in shared memory before a barrier. */
ED_PROBE rotate(int *out, int by) {
    ED_DYNAMIC_SHARED(int, box);
    const int n = (int)(blockDim.x * blockDim.y * blockDim.z), own = own_thread();
    const int block = (int)(blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z));
    box[own] = 1000 * block + own;
    __syncthreads();
    out[block * n + own] = box[(own + by) % n];
}
ED_EXPORT_KERNEL(rotate)

/* Writes to out (10, threads) shuffles and votes of values that depend on the lane. */
ED_PROBE warp_words(long long *out, int width) {
    const int own = own_thread(), n = (int)blockDim.x;
    const long long value = 1000000007ll * own;
    out[own] = __shfl_sync(0xffffffffu, value, 3, width);
    out[n + own] = __shfl_xor_sync(0xffffffffu, value, 5, width);
    out[2 * n + own] = __shfl_up_sync(0xffffffffu, value, 2, width);
    out[3 * n + own] = __shfl_down_sync(0xffffffffu, value, 2, width);
    out[4 * n + own] = __ballot_sync(0xffffffffu, own % 3 == 0);
    out[5 * n + own] = __any_sync(0xffffffffu, own == 7) + 2 * __all_sync(0xffffffffu, own < 32);
    out[6 * n + own] = __reduce_add_sync(0xffffffffu, own) * 1000 + __reduce_max_sync(0xffffffffu, -own);
    const unsigned mask = own % 2 ? 0xaaaaaaaau : 0x55555555u; /* halves of a warp that meet separately */
    out[7 * n + own] = own % 2 ? __shfl_xor_sync(mask, own, 2) : __shfl_xor_sync(mask, own, 4);
    out[8 * n + own] = __syncthreads_count(own % 5 == 0) + 1000 * __syncthreads_or(own == 3);
    __syncwarp();
    out[9 * n + own] = __dp4a(own - 100, 0x01ff7f80, 5) + (int)__byte_perm(0x33221100u, 0x77665544u, 0x7250);
}
ED_EXPORT_KERNEL(warp_words)

/* Waits at so many barriers, then in as many meetings of a warp. */
ED_PROBE meet_often(int *out, int times) {
    int value = own_thread();
    for (int i = 0; i < times; i++) __syncthreads();
    for (int i = 0; i < times; i++) value = __shfl_xor_sync(0xffffffffu, value, 1 << i % 5);
    out[own_thread()] = value;
}
ED_EXPORT_KERNEL(meet_often)

extern "C" int launch_rotate(int *out, unsigned blocks, unsigned threads) {
    return ED_LAUNCH(rotate, blocks, threads, threads * sizeof(int), nullptr, out, short{1});
}

/* ---------------------------------------------------------------- wrong */

/* Writes to out (1,) the thread that comes last. */
ED_PROBE race(int *out) { *out = own_thread(); }
ED_EXPORT_KERNEL(race)

/* Writes to out (2,) shared memory that no thread has written. */
ED_PROBE unwritten(int *out) {
    ED_DYNAMIC_SHARED(int, box);
    __shared__ int other[4];
    out[0] = box[0];
    out[1] = other[1];
}
ED_EXPORT_KERNEL(unwritten)

/* Threads from `stay` on leave before the barrier. */
ED_PROBE leave_early(int stay) {
    if (own_thread() >= stay) return;
    __syncthreads();
}
ED_EXPORT_KERNEL(leave_early)

/* Some threads wait in a barrier, others in a shuffle that needs them. */
ED_PROBE part_ways(int *out) {
    if (own_thread() < 8)
        __syncthreads();
    else
        out[own_thread()] = __shfl_xor_sync(0xffffffffu, own_thread(), 8);
}
ED_EXPORT_KERNEL(part_ways)

/* Lanes of one mask meet in two different operations. */
ED_PROBE disagree(int *out) {
    const int own = own_thread();
    out[own] = own % 2 ? __shfl_xor_sync(0xffffffffu, own, 1) : __shfl_sync(0xffffffffu, own, 0);
}
ED_EXPORT_KERNEL(disagree)

ED_PROBE lack_itself(int *out) { out[own_thread()] = __shfl_xor_sync(1u, own_thread(), 1); }
ED_EXPORT_KERNEL(lack_itself)

ED_PROBE trap_at(int thread) {
    if (own_thread() == thread) __trap();
    __syncthreads();
}
ED_EXPORT_KERNEL(trap_at)

/* Writes box[at] of a block's dynamic shared memory. */
ED_PROBE write_shared(int at) {
    ED_DYNAMIC_SHARED(int, box);
    box[at] = 1;
}
ED_EXPORT_KERNEL(write_shared)

/* The frame of one thread is larger than a stack, and reaches into that of the thread before, which is finished. */
ED_PROBE overflow(int *out, int thread) {
    if (own_thread() != thread) return;
    volatile char frame[160 << 10];
    for (int i = 0; i < (int)sizeof frame; i += 8) frame[i] = (char)i;
    out[0] = frame[1 << 10];
}
ED_EXPORT_KERNEL(overflow)

/* ---------------------------------------------------------------- exact.cuh */

/* Computes exponential, SiLU and quantized value of n values, in (3, n). */
ED_PROBE exact_values(const float *x, float *out, int n, float inv_scale) {
    for (int i = (int)(blockIdx.x * blockDim.x + threadIdx.x); i < n; i += (int)(gridDim.x * blockDim.x)) {
        out[i] = ed_exp(x[i]);
        out[n + i] = ed_silu(x[i]);
        out[2 * n + i] = (float)ed_quantize(x[i], inv_scale);
    }
}
ED_EXPORT_KERNEL(exact_values)

/* One warp writes to out (3, 32): sum of x * y by every lane; largest of the first 32 x; 1 / sqrt of the sum. */
ED_PROBE exact_sums(const float *x, const float *y, float *out, int n) {
    const float sum = ed_lane_product(x, y, n);
    out[threadIdx.x] = sum;
    out[32 + threadIdx.x] = ed_warp_max((int)threadIdx.x < n ? x[threadIdx.x] : ED_DEAD);
    out[64 + threadIdx.x] = 1.0f / sqrtf(sum + ED_RMS_EPSILON);
}
ED_EXPORT_KERNEL(exact_sums)

#ifdef ED_PROBE_MAIN
/* A program for other processors. It prints the results of the right kernels and of two wrong ones. */
int main() {
    static int ints[3 * 2 * 96];
    static long long words[10 * 64];
    printf("%d", launch_rotate(ints, 6, 96));
    for (int value : ints) printf(" %d", value);
    printf("\n%d", ED_LAUNCH(warp_words, 1, 64, 0, nullptr, words, 8));
    for (long long value : words) printf(" %lld", value);
    const int wrong = ED_LAUNCH(leave_early, 1, 64, 0, nullptr, 63);
    printf("\n%d %s", wrong, ed_emulated_failure());
    printf("\n%d", ED_LAUNCH(meet_often, 2, 96, 0, nullptr, ints, 500));
    printf(" %d\n", ints[95]);
}
#endif
