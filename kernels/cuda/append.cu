/*
 * Updates the state after a step, for engines whose step only reads it (docs/numerics.md, "State"): the new keys and
 * values take slot pos of the rings, the new bin becomes the newest of the lags, and then pos and live move on.
 *
 *     fresh (2 L) of (H, D): keys of layer 0, values of layer 0, keys of layer 1, ..., one every fresh_stride bytes
 *     rings (2 L) of (H, W-1, D) by slot, one every ring_stride bytes
 *     bin_new (C), lags (R, C), newest first
 *     pos, live: the same for all rings
 *
 * The kernel moves bytes, not numbers: D = head_bytes is Dh for int8 values and twice Dh for float16 ones, and C =
 * lag_bytes likewise. With strides of H D and H (W-1) D the arrays are (L, 2, H, D) and (L, 2, H, W-1, D). With W = 1
 * there are no slots, and pos and live stay 0.
 *
 * It runs as one block of 256 threads, because everything must be written before pos is. A thread moves words of 16, 4
 * or 1 bytes, as addresses, strides and sizes allow. It owns a column of the lags, whose rows it reads eight at a time
 * before it writes them one row on.
 *
 * Roofline, edge (L 4, H 4, Dh 32, R 4 to 9, C 96): 1 kB of keys and values and 1 kB of lags are read and written,
 * which takes 35 clocks at 117 B a clock. The real cost is a launch and two loads from L2, one after the other, by
 * estimate 1 us.
 *
 * ptxas, CUDA 13.0: 40 registers on sm_87, sm_90 and sm_110, no spills, no shared memory. On an H100 it
 * takes 2.1 us back to back, and every byte is that of the definition (docs/gpu.md).
 */
#include "append.h"
#include "rows.cuh"

namespace {

constexpr int THREADS = ED_APPEND_THREADS;
constexpr int AT_ONCE = 8; /* rows of lags that a thread holds at a time */

/* Moves the words of one column one row on, and writes `value` to the first row. */
template <class T> ED_EXACT void shift_column(T *lags, int stride, int rows, T value) {
    for (int at = 0; at < rows; at += AT_ONCE) {
        T old[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            if (at + i < rows) old[i] = lags[(size_t)(at + i) * stride];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            if (at + i < rows) {
                lags[(size_t)(at + i) * stride] = value;
                value = old[i];
            }
        }
    }
}

template <class T> ED_EXACT void shift_lags(const int8_t *bin_new, int8_t *lags, int rows, int bytes) {
    const int words = bytes / (int)sizeof(T);
    for (int i = (int)threadIdx.x; i < words && rows > 0; i += THREADS)
        shift_column((T *)lags + i, words, rows, ((const T *)bin_new)[i]);
}

/* Copies the keys and values of all layers, word by word, to slot pos. */
template <class T>
ED_EXACT void fill_slot(const int8_t *fresh, size_t fresh_stride, int8_t *rings, size_t ring_stride, int count,
                        int heads, int slots, int head_bytes, int pos) {
    const int words = head_bytes / (int)sizeof(T), row = heads * words;
    for (int i = (int)threadIdx.x; i < count * row; i += THREADS) {
        const int ring = i / row, head = i % row / words, word = i % words;
        const T *from = (const T *)(fresh + (size_t)ring * fresh_stride) + i % row;
        T *to = (T *)(rings + (size_t)ring * ring_stride) + ((size_t)head * (size_t)slots + (size_t)pos) * words + word;
        *to = *from;
    }
}

} // namespace

extern "C" __global__ void __launch_bounds__(ED_APPEND_THREADS)
    ed_append(const int8_t *fresh, size_t fresh_stride, int8_t *rings, size_t ring_stride, const int8_t *bin_new,
              int8_t *lags, int32_t *pos, int32_t *live, int layers, int heads, int window, int head_bytes,
              int lag_rows, int lag_bytes) {
    const int slots = window - 1, count = slots ? 2 * layers : 0, slot = *pos, filled = *live;
    const int ring_words =
        ed_alignment((size_t)fresh | (size_t)rings | fresh_stride | ring_stride | (size_t)head_bytes);
    const int lag_words = ed_alignment((size_t)bin_new | (size_t)lags | (size_t)lag_bytes);
    if (ring_words == 16)
        fill_slot<int4>(fresh, fresh_stride, rings, ring_stride, count, heads, slots, head_bytes, slot);
    else if (ring_words == 4)
        fill_slot<int>(fresh, fresh_stride, rings, ring_stride, count, heads, slots, head_bytes, slot);
    else
        fill_slot<int8_t>(fresh, fresh_stride, rings, ring_stride, count, heads, slots, head_bytes, slot);
    if (lag_words >= 4)
        shift_lags<int>(bin_new, lags, lag_rows, lag_bytes);
    else
        shift_lags<int8_t>(bin_new, lags, lag_rows, lag_bytes);
    __syncthreads(); /* now every thread has read pos */
    if (threadIdx.x == 0 && slots) {
        *pos = slot + 1 == slots ? 0 : slot + 1;
        *live = filled < slots ? filled + 1 : slots;
    }
}
ED_EXPORT_KERNEL(ed_append)

extern "C" int ed_launch_append(const int8_t *fresh, size_t fresh_stride, int8_t *rings, size_t ring_stride,
                                const int8_t *bin_new, int8_t *lags, int32_t *pos, int32_t *live, int layers, int heads,
                                int window, int head_bytes, int lag_rows, int lag_bytes, void *stream) {
    if (layers < 1 || heads < 1 || window < 1 || head_bytes < 1 || lag_rows < 0 || lag_bytes < 0) return 1;
    return ED_LAUNCH(ed_append, 1, ED_APPEND_THREADS, 0, stream, fresh, fresh_stride, rings, ring_stride, bin_new, lags,
                     pos, live, layers, heads, window, head_bytes, lag_rows, lag_bytes);
}
