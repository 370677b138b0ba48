/*
 * The declarations of append.cu, for callers in C and C++. append.cu says what each pointer holds; all point to device
 * memory.
 */
#ifndef ED_APPEND_H
#define ED_APPEND_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ED_APPEND_THREADS 256 /* threads of the one block */

/* Launches the kernel on a stream (a cudaStream_t). Returns 0 or an error number of the CUDA runtime, 1 for a shape
 * that the kernel does not take. The launch may be captured into a graph. */
int ed_launch_append(const int8_t *fresh, size_t fresh_stride, int8_t *rings, size_t ring_stride, const int8_t *bin_new,
                     int8_t *lags, int32_t *pos, int32_t *live, int layers, int heads, int window, int head_bytes,
                     int lag_rows, int lag_bytes, void *stream);

#ifdef __cplusplus
}
#endif

#endif
