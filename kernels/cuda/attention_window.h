/*
 * The attention core of one layer over a stretch of bins: what attention_window.cu computes, as callers in C and C++
 * see it. What each pointer holds stands there. All pointers are to device memory.
 *
 * Each launches on a stream (a cudaStream_t) and returns 0, or the error number of the CUDA runtime: 1 for a shape that
 * the kernels do not take. All may be captured into a graph.
 */
#ifndef ED_ATTENTION_WINDOW_H
#define ED_ATTENTION_WINDOW_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifdef __CUDACC__
#define ED_WINDOW_EITHER static __host__ __device__ inline
#else
#define ED_WINDOW_EITHER static inline
#endif

#define ED_WINDOW_THREADS 256 /* of a block */
#define ED_WINDOW_BINS 4      /* of a block; the grid is (blocks of bins, heads) */

/* Bins that a block of bins sees, rounded up to a multiple of four. */
ED_WINDOW_EITHER size_t ed_window_span(int window) { return ((size_t)window + ED_WINDOW_BINS + 2) / 4 * 4; }

/* Dynamic shared memory of ed_attention_window, bytes: scores, in their place later sums of each of 8 warps, and
 * exponentials. At most 41,040 for W 2048: below 48 KiB, which every chip gives unasked. */
ED_WINDOW_EITHER size_t ed_window_shared(int window, int head_dim) {
    const size_t scores = ed_window_span(window) * ED_WINDOW_BINS * sizeof(float);
    const size_t sums = ((size_t)head_dim * ED_WINDOW_BINS * 8 * sizeof(int) + 15) / 16 * 16;
    return (scores > sums ? scores : sums) + ed_window_span(window) * ED_WINDOW_BINS;
}

/* context of `steps` bins; rings and state are only read. */
int ed_launch_attention_window(const int8_t *q, const int8_t *k, const int8_t *v, const int8_t *ring_k,
                               const int8_t *ring_v, const float *bias, const int32_t *pos, const int32_t *live,
                               float score_scale, float v_scale, float context_inv, int heads, int steps, int window,
                               int head_dim, int8_t *context, void *stream);

/* The last keys and values into the rings of one layer. */
int ed_launch_window_keep(const int8_t *k, const int8_t *v, int8_t *ring_k, int8_t *ring_v, const int32_t *pos,
                          int heads, int steps, int window, int head_dim, void *stream);

/* pos and live, once the rings of all layers are filled. */
int ed_launch_window_advance(int32_t *pos, int32_t *live, int steps, int window, void *stream);

#ifdef __cplusplus
}
#endif

#endif
