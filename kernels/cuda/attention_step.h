/*
 * The attention core of one layer for one new bin: what attention_step.cu computes, as callers in C and C++ see it.
 * What each pointer holds stands there. All pointers are to device memory.
 */
#ifndef ED_ATTENTION_STEP_H
#define ED_ATTENTION_STEP_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ED_ATTENTION_THREADS 256 /* of a block; the grid has one for each head */
#define ED_MOST_WINDOW 2048      /* bins a head attends to, the new one among them */
#define ED_MOST_HEAD_DIM 128

/* Dynamic shared memory of ed_attention_step, bytes: a score and its exponential for each bin. */
static inline size_t ed_attention_shared(int window, int head_dim) {
    (void)head_dim;
    return ((size_t)window + 3) / 4 * 4 * (sizeof(float) + 1);
}

/* Launches the step on a stream (a cudaStream_t). 0, or the error number of the CUDA runtime: 1 for a shape that the
 * kernel does not take. May be captured into a graph. */
int ed_launch_attention_step(const int8_t *q, const int8_t *k, const int8_t *v, const int8_t *ring_k,
                             const int8_t *ring_v, const float *bias, const int32_t *pos, const int32_t *live,
                             float score_scale, float v_scale, float context_inv, int heads, int window, int head_dim,
                             int8_t *context, void *stream);

#ifdef __cplusplus
}
#endif

#endif
