/*
 * The attention core of one layer over T bins at once, for streams that are decoded from a record or start warm: bin by
 * bin what attention_step.cu gives with append.cu between its steps, bit for bit.
 *
 *     q, k, v (H, T, Dh) in the order of time · ring_k, ring_v (H, W-1, Dh) of the bins before them, by slot · bias
 *     (H, W) by age · pos: slot that the first of the T bins would take · live: slots that are filled
 *     -> ed_attention_window: context (T, H, Dh)
 *     -> ed_window_keep: the last W-1 of k and v in the rings; then, after all layers, ed_window_advance: pos and live
 *
 * W 1 ... 2048, Dh 1 ... 128, any T. Rings are read by all blocks, so that another kernel fills them.
 *
 * A block is a head and four bins, 256 threads. Four bins see W + 3 keys between them, of which each is read once for
 * all four; as in attention_step.cu a thread first owns keys, then four columns of every n-th group of four values,
 * which are turned round once and summed for four bins. Scores of W 2048 then just fit into 48 KiB of shared memory:
 * eight bins would need a launch to ask for more. Three barriers.
 *
 * Roofline, edge (H 4, W 200, Dh 32), T 200: 200 blocks read 13 kB each, 2.6 MB from L2, and do 2.6 M dp4a. On the 16
 * multiprocessors of an AGX Orin both take 2,540 clocks (64 B and 64 dp4a a clock): 2 us at 1.3 GHz. A step for each
 * bin would take 200 launches.
 *
 * ptxas, CUDA 13.0: ed_attention_window has 74 registers on sm_87 and sm_90, 64 on sm_110, 256 bytes of static shared
 * memory; ed_window_keep 24 to 32, ed_window_advance 12 to 14; no spills. Never run on a device: the bits are those of
 * the emulation.
 */
#include "attention_step.h"
#include "attention_window.h"
#include "rows.cuh"

namespace {

constexpr int THREADS = ED_WINDOW_THREADS, WARPS = THREADS / 32, BINS = ED_WINDOW_BINS;

/* One head's rows, and the block's bins: first ... first + BINS - 1, of `steps`. */
struct head_rows {
    const int8_t *q, *k, *v, *ring_k, *ring_v;
    const float *bias;
    int slots, head_dim, pos, live, steps, first, alignment;
};

struct columns {
    int lanes, column, group, groups_at_once;
};

/* What the warps tell each other. */
struct findings {
    float highest[WARPS][BINS];
    int total[WARPS][BINS];
};

ED_EXACT head_rows rows_of(const int8_t *q, const int8_t *k, const int8_t *v, const int8_t *ring_k,
                           const int8_t *ring_v, const float *bias, int pos, int live, int steps, int window,
                           int head_dim) {
    const size_t all = (size_t)q | (size_t)k | (size_t)v | (size_t)ring_k | (size_t)ring_v | (size_t)head_dim;
    const size_t head = blockIdx.y, bins = head * (size_t)steps * (size_t)head_dim;
    const size_t ring = head * (size_t)(window - 1) * (size_t)head_dim;
    return {q + bins,         k + bins, v + bins, ring_k + ring, ring_v + ring, bias + head * (size_t)window,
            window - 1,       head_dim, pos,      live,          steps,         (int)blockIdx.x * BINS,
            ed_alignment(all)};
}

/* The bin at place j of those that the block sees, 0 for the first of the T. */
ED_EXACT int bin_at(const head_rows &head, int j) { return head.first - head.slots + j; }
ED_EXACT int places(const head_rows &head) { return head.slots + BINS; }
ED_EXACT bool exists(const head_rows &head, int bin) { return -head.live <= bin && bin < head.steps; }

/* The row of a bin, among new ones or in the ring; of a bin that does not exist any row that may be read. */
ED_EXACT const int8_t *row_at(const head_rows &head, const int8_t *fresh, const int8_t *ring, int bin) {
    int slot = head.pos + bin;
    slot += slot < 0 ? head.slots : 0;
    const int last = head.steps - 1;
    return bin < 0 ? ring + slot * head.head_dim : fresh + (size_t)(bin < last ? bin : last) * (size_t)head.head_dim;
}

/* sum[b] = key times q of the block's bin b; of bins beyond the last, that of the last. */
ED_EXACT void multiply_key(const head_rows &head, const int8_t *key, int (&sum)[BINS]) {
    const int8_t *q[BINS];
#pragma unroll
    for (int b = 0; b < BINS; b++) {
        const int bin = head.first + b < head.steps ? head.first + b : head.steps - 1;
        q[b] = head.q + (size_t)bin * (size_t)head.head_dim;
        sum[b] = 0;
    }
    if (head.alignment == 16) {
        for (int i = 0; i < head.head_dim; i += 16) {
            const int4 y = *(const int4 *)(key + i);
#pragma unroll
            for (int b = 0; b < BINS; b++) {
                const int4 x = *(const int4 *)(q[b] + i);
                sum[b] = __dp4a(x.w, y.w, __dp4a(x.z, y.z, __dp4a(x.y, y.y, __dp4a(x.x, y.x, sum[b]))));
            }
        }
    } else {
#pragma unroll
        for (int b = 0; b < BINS; b++) sum[b] = ed_dot(key, q[b], head.head_dim, head.alignment);
    }
}

/* score[b * span + j] of bin b and place j; highest[b] = the largest that this warp saw. */
ED_EXACT void score_places(const head_rows &head, float scale, float *score, int span, float *highest) {
    float high[BINS];
#pragma unroll
    for (int b = 0; b < BINS; b++) high[b] = ED_DEAD;
    for (int j = (int)threadIdx.x; j < places(head); j += THREADS) {
        const int bin = bin_at(head, j);
        int sum[BINS];
        multiply_key(head, row_at(head, head.k, head.ring_k, bin), sum);
#pragma unroll
        for (int b = 0; b < BINS; b++) {
            const int age = b + head.slots - j;
            const bool seen = 0 <= age && age <= head.slots && exists(head, bin);
            const float value = (float)sum[b] * scale + head.bias[seen ? age : 0];
            score[b * span + j] = seen ? value : ED_DEAD;
            high[b] = ed_larger(high[b], score[b * span + j]);
        }
    }
#pragma unroll
    for (int b = 0; b < BINS; b++) {
        high[b] = ed_warp_max(high[b]);
        if (threadIdx.x % 32 == 0) highest[b] = high[b];
    }
}

/* p[b * span + j] = rint(127 exp(score - highest of bin b)), zeros up to span; total[b] = the sum of this warp's. */
ED_EXACT void weigh_places(const head_rows &head, const float *score, int span, const float (&highest)[WARPS][BINS],
                           int8_t *p, int *total) {
#pragma unroll
    for (int b = 0; b < BINS; b++) {
        float high = highest[0][b];
#pragma unroll
        for (int w = 1; w < WARPS; w++) high = ed_larger(high, highest[w][b]);
        int sum = 0;
        for (int j = (int)threadIdx.x; j < span; j += THREADS) {
            const bool there = j < places(head);
            const int weight = there ? ed_rint(ED_LEVELS * ed_exp(score[b * span + j] - high)) : 0;
            p[b * span + j] = (int8_t)weight;
            sum += weight;
        }
        sum = ed_warp_sum(sum);
        if (threadIdx.x % 32 == 0) total[b] = sum;
    }
}

/* sums[b * Dh + d] = what this warp's places add to column d of bin b. */
ED_EXACT void mix_values(const head_rows &head, const columns &own, const int8_t *p, int span, int *sums) {
    int sum[BINS][4] = {};
    for (int group = own.group; group < span / 4; group += own.groups_at_once) {
        int rows[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            rows[i] = ed_columns(row_at(head, head.v, head.ring_v, bin_at(head, 4 * group + i)), own.column,
                                 head.head_dim, head.alignment);
        ed_transpose(rows);
#pragma unroll
        for (int b = 0; b < BINS; b++) {
            const int weights = ((const int *)(p + b * span))[group];
#pragma unroll
            for (int i = 0; i < 4; i++) sum[b][i] = __dp4a(rows[i], weights, sum[b][i]);
        }
    }
#pragma unroll
    for (int i = 0; i < BINS * 4; i++) {
        int value = sum[i / 4][i % 4];
        for (int bit = own.lanes; bit < 32; bit *= 2) value += __shfl_xor_sync(0xffffffffu, value, bit);
        const int d = 4 * own.column + i % 4;
        if ((int)(threadIdx.x % 32) < own.lanes && d < head.head_dim) sums[i / 4 * head.head_dim + d] = value;
    }
}

/* Column d of the context of the block's bin b. */
ED_EXACT int8_t context_of(const findings &found, const int *sums, int b, int d, int head_dim, float v_scale,
                           float context_inv) {
    int weighted = 0, total = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        weighted += sums[(w * BINS + b) * head_dim + d];
        total += found.total[w][b];
    }
    return (int8_t)ed_quantize(((float)weighted * v_scale) / (float)total, context_inv);
}

} // namespace

extern "C" __global__ void __launch_bounds__(ED_WINDOW_THREADS)
    ed_attention_window(const int8_t *q, const int8_t *k, const int8_t *v, const int8_t *ring_k, const int8_t *ring_v,
                        const float *bias, const int32_t *pos, const int32_t *live, float score_scale, float v_scale,
                        float context_inv, int steps, int window, int head_dim, int8_t *context) {
    __shared__ findings found;
    ED_DYNAMIC_SHARED(float, score);
    int *sums = (int *)score; /* once scores have become exponentials */
    const int span = (int)ed_window_span(window);
    int8_t *p = (int8_t *)score + ed_window_shared(window, head_dim) - (size_t)(span * BINS);
    const int warp = (int)(threadIdx.x / 32), lane = (int)(threadIdx.x % 32), lanes = ed_lanes_of_row(head_dim);
    const columns own = {lanes, lane % lanes, (int)threadIdx.x / lanes, THREADS / lanes};
    const head_rows head = rows_of(q, k, v, ring_k, ring_v, bias, *pos, *live, steps, window, head_dim);

    score_places(head, score_scale, score, span, found.highest[warp]);
    __syncthreads();
    weigh_places(head, score, span, found.highest, p, found.total[warp]);
    __syncthreads();
    mix_values(head, own, p, span, sums + warp * BINS * head_dim);
    __syncthreads();
    for (int i = (int)threadIdx.x; i < BINS * head_dim; i += THREADS) {
        const int b = i / head_dim, d = i % head_dim;
        const size_t row = (size_t)(head.first + b) * gridDim.y + blockIdx.y;
        if (head.first + b < steps)
            context[row * (size_t)head_dim + (size_t)d] = context_of(found, sums, b, d, head_dim, v_scale, context_inv);
    }
}
ED_EXPORT_KERNEL(ed_attention_window)

/* One block a head. */
extern "C" __global__ void __launch_bounds__(ED_WINDOW_THREADS)
    ed_window_keep(const int8_t *k, const int8_t *v, int8_t *ring_k, int8_t *ring_v, const int32_t *pos, int steps,
                   int window, int head_dim) {
    const int slots = window - 1, kept = steps < slots ? steps : slots, first = steps - kept;
    const size_t bins = (size_t)blockIdx.x * (size_t)steps * (size_t)head_dim;
    const size_t ring = (size_t)blockIdx.x * (size_t)slots * (size_t)head_dim;
    for (int i = (int)threadIdx.x; i < kept * head_dim; i += THREADS) {
        const int bin = first + i / head_dim, slot = (int)(((unsigned)*pos + (unsigned)bin) % (unsigned)slots);
        const size_t from = bins + (size_t)bin * (size_t)head_dim + (size_t)(i % head_dim);
        const size_t to = ring + (size_t)(slot * head_dim + i % head_dim);
        ring_k[to] = k[from];
        ring_v[to] = v[from];
    }
}
ED_EXPORT_KERNEL(ed_window_keep)

/* One thread. */
extern "C" __global__ void ed_window_advance(int32_t *pos, int32_t *live, int steps, int window) {
    const int slots = window - 1;
    if (slots == 0) return;
    *pos = (int)(((unsigned)*pos + (unsigned)steps) % (unsigned)slots);
    *live = steps < slots - *live ? *live + steps : slots;
}
ED_EXPORT_KERNEL(ed_window_advance)

namespace {

bool takes(int heads, int steps, int window, int head_dim) {
    return heads >= 1 && heads < 65536 && steps >= 1 && window >= 1 && window <= ED_MOST_WINDOW && head_dim >= 1 &&
           head_dim <= ED_MOST_HEAD_DIM;
}

} // namespace

extern "C" int ed_launch_attention_window(const int8_t *q, const int8_t *k, const int8_t *v, const int8_t *ring_k,
                                          const int8_t *ring_v, const float *bias, const int32_t *pos,
                                          const int32_t *live, float score_scale, float v_scale, float context_inv,
                                          int heads, int steps, int window, int head_dim, int8_t *context,
                                          void *stream) {
    if (!takes(heads, steps, window, head_dim)) return 1;
    const dim3 grid(((unsigned)steps + BINS - 1) / BINS, (unsigned)heads);
    return ED_LAUNCH(ed_attention_window, grid, ED_WINDOW_THREADS, ed_window_shared(window, head_dim), stream, q, k, v,
                     ring_k, ring_v, bias, pos, live, score_scale, v_scale, context_inv, steps, window, head_dim,
                     context);
}

extern "C" int ed_launch_window_keep(const int8_t *k, const int8_t *v, int8_t *ring_k, int8_t *ring_v,
                                     const int32_t *pos, int heads, int steps, int window, int head_dim, void *stream) {
    if (!takes(heads, steps, window, head_dim)) return 1;
    return ED_LAUNCH(ed_window_keep, (unsigned)heads, ED_WINDOW_THREADS, 0, stream, k, v, ring_k, ring_v, pos, steps,
                     window, head_dim);
}

extern "C" int ed_launch_window_advance(int32_t *pos, int32_t *live, int steps, int window, void *stream) {
    if (steps < 1 || window < 1 || window > ED_MOST_WINDOW) return 1;
    return ED_LAUNCH(ed_window_advance, 1, 1, 0, stream, pos, live, steps, window);
}
