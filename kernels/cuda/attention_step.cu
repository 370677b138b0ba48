/*
 * Computes the attention core of one layer for one new bin (docs/numerics.md, "Attention core"), with the bits of
 * numerics.attend:
 *
 *     q, k, v (H, Dh): the new bin
 *     ring_k, ring_v (H, W-1, Dh): the bins before it, by slot, only read
 *     bias (H, W): by age
 *     pos: slot that the new bin will take; live: number of filled slots
 *     -> context (H, Dh)
 *
 * W is 1 ... 2048 (1: no ring), Dh 1 ... 128. Rows whose addresses and length are multiples of 16 or of 4 are read in
 * words of that size, others byte by byte.
 *
 * A block of 256 threads computes one head. First a thread owns slots: it computes the product with q, the score and
 * its exponential. Then it owns four columns of the values, in every n-th group of four slots: four rows of four bytes,
 * transposed so that one dp4a sums a column over four slots. The values of its first groups are loaded before the
 * scores are known, which hides them behind the keys. There are three barriers: after the largest score, after the
 * exponentials and their sum, and after the sums of the warps. Slots that are not filled are computed and masked: a
 * cold ring costs what a full one costs.
 *
 * Roofline, edge (H 4, W 200, Dh 32): a head reads 12.8 kB of ring and 0.8 kB of bias, and does 12.8 k multiplications
 * in 3.2 k dp4a. At 117 B a clock of one multiprocessor's L2 port that is 116 clocks, and 50 for dp4a (64 a clock). This
 * floor, 0.06 us at 1.98 GHz, is far below a launch, and below what nothing hides: two loads from L2 one after the other
 * (pos, then bias), three barriers and the shuffles between them, by estimate 1,000 clocks or 0.8 us. Latency counts
 * here, not bytes.
 *
 * ptxas, CUDA 13.0: 44 registers on sm_87 and sm_90, 58 on sm_110, no spills; 4,176 bytes of static shared memory, and
 * 5 W bytes, W rounded up to a multiple of 4, at launch. On an H100 it takes 2.9 us back to back for one layer, and every bit
 * is that of the definition (docs/gpu.md).
 */
#include "attention_step.h"
#include "rows.cuh"

namespace {

constexpr int THREADS = ED_ATTENTION_THREADS, WARPS = THREADS / 32;
constexpr int EARLY = 2; /* groups of values that are loaded before the scores: at Dh 32 the whole ring of 256 slots */

/* The rows of one head. */
struct head_rows {
    const int8_t *q, *k, *v, *ring_k, *ring_v;
    const float *bias;
    int slots, head_dim, alignment;
};

/* The values that warps share. */
struct findings {
    float highest[WARPS];
    int total[WARPS], p_new;
    int sums[WARPS][ED_MOST_HEAD_DIM];
};

/* The place of a thread among the values. */
struct columns {
    int lanes, column, group, groups_at_once;
};

ED_EXACT head_rows rows_of(int head, const int8_t *q, const int8_t *k, const int8_t *v, const int8_t *ring_k,
                           const int8_t *ring_v, const float *bias, int window, int head_dim) {
    const size_t all = (size_t)q | (size_t)k | (size_t)v | (size_t)ring_k | (size_t)ring_v | (size_t)head_dim;
    const size_t one = (size_t)head * (size_t)head_dim, ring = one * (size_t)(window - 1);
    return {q + one,    k + one,  v + one,          ring_k + ring, ring_v + ring, bias + (size_t)head * (size_t)window,
            window - 1, head_dim, ed_alignment(all)};
}

/* Loads the four values of this thread in the four slots of a group. Slots beyond the last
 * hold any value, because their p is 0. */
ED_EXACT void load_group(const head_rows &head, const columns &own, int group, int (&rows)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int slot = 4 * group + i < head.slots ? 4 * group + i : 0;
        rows[i] = 4 * group < head.slots
                      ? ed_columns(head.ring_v + slot * head.head_dim, own.column, head.head_dim, head.alignment)
                      : 0;
    }
}

/* Computes score[j] of slot j, and of the new bin behind the last slot. Returns the largest that this thread saw. */
ED_EXACT float score_slots(const head_rows &head, int pos, int live, float scale, float *score) {
    float highest = ED_DEAD;
    for (int j = (int)threadIdx.x; j <= head.slots; j += THREADS) {
        const bool fresh = j == head.slots;
        int age = pos - j;
        age += age <= 0 ? head.slots : 0;
        age = fresh ? 0 : age;
        const int8_t *key = fresh ? head.k : head.ring_k + j * head.head_dim;
        const float sum = (float)ed_dot(key, head.q, head.head_dim, head.alignment) * scale + head.bias[age];
        score[j] = age <= live ? sum : ED_DEAD;
        highest = ed_larger(highest, score[j]);
    }
    return ed_warp_max(highest);
}

/* Computes p[j] = rint(127 exp(score[j] - highest)), with zeros up to a multiple of four
 * slots. Returns the sum over this warp. */
ED_EXACT int weigh_slots(const head_rows &head, const float *score, float highest, int8_t *p, int *p_new) {
    int total = 0;
    for (int j = (int)threadIdx.x; j <= head.slots; j += THREADS) {
        const int weight = ed_rint(ED_LEVELS * ed_exp(score[j] - highest));
        total += weight;
        if (j < head.slots)
            p[j] = (int8_t)weight;
        else
            *p_new = weight;
    }
    const int end = head.slots + (int)threadIdx.x;
    if (end < (head.slots + 3) / 4 * 4) p[end] = 0;
    return ed_warp_sum(total);
}

ED_EXACT void add_group(int (&rows)[4], int weights, int (&sum)[4]) {
    ed_transpose(rows);
#pragma unroll
    for (int i = 0; i < 4; i++) sum[i] = __dp4a(rows[i], weights, sum[i]);
}

/* Computes sums[d], the contribution of this warp's slots to column d. */
ED_EXACT void mix_values(const head_rows &head, const columns &own, const int8_t *p, int (&early)[EARLY][4],
                         int *sums) {
    const int *weights = (const int *)p;
    int sum[4] = {0, 0, 0, 0};
#pragma unroll
    for (int e = 0; e < EARLY; e++) {
        const int group = own.group + e * own.groups_at_once;
        if (4 * group < head.slots) add_group(early[e], weights[group], sum);
    }
    for (int group = own.group + EARLY * own.groups_at_once; 4 * group < head.slots; group += own.groups_at_once) {
        int rows[4];
        load_group(head, own, group, rows);
        add_group(rows, weights[group], sum);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        for (int bit = own.lanes; bit < 32; bit *= 2) sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], bit);
        if ((int)(threadIdx.x % 32) < own.lanes && 4 * own.column + i < head.head_dim)
            sums[4 * own.column + i] = sum[i];
    }
}

/* Returns column d of the context. */
ED_EXACT int8_t context_of(const head_rows &head, const findings &found, int d, float v_scale, float context_inv) {
    int weighted = found.p_new * head.v[d], total = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        weighted += found.sums[w][d];
        total += found.total[w];
    }
    return (int8_t)ed_quantize(((float)weighted * v_scale) / (float)total, context_inv);
}

} // namespace

extern "C" __global__ void __launch_bounds__(ED_ATTENTION_THREADS)
    ed_attention_step(const int8_t *q, const int8_t *k, const int8_t *v, const int8_t *ring_k, const int8_t *ring_v,
                      const float *bias, const int32_t *pos, const int32_t *live, float score_scale, float v_scale,
                      float context_inv, int window, int head_dim, int8_t *context) {
    __shared__ findings found;
    ED_DYNAMIC_SHARED(float, score);
    int8_t *p = (int8_t *)(score + (window + 3) / 4 * 4);
    const int warp = (int)(threadIdx.x / 32), lane = (int)(threadIdx.x % 32), lanes = ed_lanes_of_row(head_dim);
    const columns own = {lanes, lane % lanes, (int)threadIdx.x / lanes, THREADS / lanes};
    const head_rows head = rows_of((int)blockIdx.x, q, k, v, ring_k, ring_v, bias, window, head_dim);

    int early[EARLY][4];
#pragma unroll
    for (int e = 0; e < EARLY; e++) load_group(head, own, own.group + e * own.groups_at_once, early[e]);

    const float highest = score_slots(head, *pos, *live, score_scale, score);
    if (lane == 0) found.highest[warp] = highest;
    __syncthreads();

    float largest = found.highest[0];
#pragma unroll
    for (int w = 1; w < WARPS; w++) largest = ed_larger(largest, found.highest[w]);
    const int total = weigh_slots(head, score, largest, p, &found.p_new);
    if (lane == 0) found.total[warp] = total;
    __syncthreads();

    mix_values(head, own, p, early, found.sums[warp]);
    __syncthreads();

    for (int d = (int)threadIdx.x; d < head_dim; d += THREADS)
        context[(int)blockIdx.x * head_dim + d] = context_of(head, found, d, v_scale, context_inv);
}
ED_EXPORT_KERNEL(ed_attention_step)

extern "C" int ed_launch_attention_step(const int8_t *q, const int8_t *k, const int8_t *v, const int8_t *ring_k,
                                        const int8_t *ring_v, const float *bias, const int32_t *pos,
                                        const int32_t *live, float score_scale, float v_scale, float context_inv,
                                        int heads, int window, int head_dim, int8_t *context, void *stream) {
    if (heads < 1 || window < 1 || window > ED_MOST_WINDOW || head_dim < 1 || head_dim > ED_MOST_HEAD_DIM) return 1;
    return ED_LAUNCH(ed_attention_step, (unsigned)heads, ED_ATTENTION_THREADS, ed_attention_shared(window, head_dim),
                     stream, q, k, v, ring_k, ring_v, bias, pos, live, score_scale, v_scale, context_inv, window,
                     head_dim, context);
}
