/*
 * What is new of a bin written into the rings: what append.cu does, as callers in C and C++ see it. What each pointer
 * holds stands there. All pointers are to device memory.
 */
#ifndef ED_APPEND_H
#define ED_APPEND_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ED_APPEND_THREADS 256 /* of the one block */

/* Launches it on a stream (a cudaStream_t). 0, or the error number of the CUDA runtime: 1 for a shape that the kernel
 * does not take. May be captured into a graph. */
int ed_launch_append(const int8_t *fresh, size_t fresh_stride, int8_t *rings, size_t ring_stride, const int8_t *bin_new,
                     int8_t *lags, int32_t *pos, int32_t *live, int layers, int heads, int window, int head_bytes,
                     int lag_rows, int lag_bytes, void *stream);

#ifdef __cplusplus
}
#endif

#endif
