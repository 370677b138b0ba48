/*
 * The declarations of attention_step.cu, the attention core of one layer for one new bin, for callers in C and C++.
 * attention_step.cu says what each pointer holds; all point to device memory.
 */
#ifndef ED_ATTENTION_STEP_H
#define ED_ATTENTION_STEP_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ED_ATTENTION_THREADS 256 /* threads of a block; the grid has one block for each head */
#define ED_MOST_WINDOW 2048      /* bins that a head can attend to, the new one among them */
#define ED_MOST_HEAD_DIM 128

/* Returns the dynamic shared memory of ed_attention_step in bytes: a score and its exponential for each bin. */
static inline size_t ed_attention_shared(int window, int head_dim) {
    (void)head_dim;
    return ((size_t)window + 3) / 4 * 4 * (sizeof(float) + 1);
}

/* Launches the kernel on a stream (a cudaStream_t). Returns 0 or an error number of the CUDA runtime, 1 for a shape
 * that the kernel does not take. The launch may be captured into a graph. */
int ed_launch_attention_step(const int8_t *q, const int8_t *k, const int8_t *v, const int8_t *ring_k,
                             const int8_t *ring_v, const float *bias, const int32_t *pos, const int32_t *live,
                             float score_scale, float v_scale, float context_inv, int heads, int window, int head_dim,
                             int8_t *context, void *stream);

#ifdef __cplusplus
}
#endif

#endif
