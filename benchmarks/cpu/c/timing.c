/*
 * Times every call of the C engine and writes the nanoseconds to an array.
 *
 * Between the two readings of the clock stands one call through a pointer and nothing else. Inputs lie ready in rows
 * and are taken in turn. The same loops run with functions that do nothing, so that the cost of the clock and the
 * interruptions by the machine can be told from the engine's own time.
 */
#define _GNU_SOURCE /* dl_iterate_phdr */
#include <link.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "edgedistill.h"

typedef int (*step_function)(ed_decoder *, const float *, float *);
typedef int (*push_function)(ed_decoder *, const float *, size_t, ed_output *, size_t, size_t *);
typedef void (*reset_function)(ed_decoder *);

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

int no_step(ed_decoder *decoder, const float *bin, float *kinematics) {
    (void)decoder, (void)bin, (void)kinematics;
    return 0;
}

int no_push(ed_decoder *decoder, const float *frames, size_t n, ed_output *outputs, size_t capacity, size_t *made) {
    (void)decoder, (void)frames, (void)n, (void)outputs, (void)capacity, (void)made;
    return 0;
}

/* Times steps over bins (rows, channels), used again from the top. The stream begins anew after every `restart` steps,
 * or never if that is 0. */
int time_steps(step_function step, reset_function reset, ed_decoder *decoder, const float *bins, size_t channels,
               size_t rows, size_t count, size_t restart, uint64_t *ns) {
    float kinematics[ED_MAX_OUTPUTS];
    int error = 0;
    for (size_t i = 0; i < count; i++) {
        if (restart && i % restart == 0) reset(decoder);
        const float *bin = bins + i % rows * channels;
        uint64_t before = now_ns();
        error |= step(decoder, bin, kinematics);
        ns[i] = now_ns() - before;
    }
    return error;
}

/* Times pushes of frames (rows, n, channels). Each call takes `n` frames, which complete one bin. */
int time_pushes(push_function push, ed_decoder *decoder, const float *frames, size_t channels, size_t n, size_t rows,
                size_t count, uint64_t *ns) {
    ed_output outputs[16];
    size_t made;
    int error = 0;
    for (size_t i = 0; i < count; i++) {
        const float *from = frames + i % rows * n * channels;
        uint64_t before = now_ns();
        error |= push(decoder, from, n, outputs, 16, &made);
        ns[i] = now_ns() - before;
    }
    return error;
}

/* ---------------------------------------------------------------- as in use: a step every 10 ms, caches cold */

static void flush(const void *from, size_t bytes) {
#if defined(__x86_64__)
    for (uintptr_t at = (uintptr_t)from & ~(uintptr_t)63; at < (uintptr_t)from + bytes; at += 64)
        _mm_clflush((const void *)at);
#else
    (void)from, (void)bytes;
#endif
}

/* Flushes the library that `data` points into, code and weights, out of all caches. */
static int flush_object(struct dl_phdr_info *object, size_t size, void *data) {
    (void)size;
    int inside = 0;
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < object->dlpi_phnum; i++) {
            const ElfW(Phdr) *part = &object->dlpi_phdr[i];
            uintptr_t from = object->dlpi_addr + part->p_vaddr;
            if (part->p_type != PT_LOAD) continue;
            if (pass == 0)
                inside |= (uintptr_t)data - from < part->p_memsz;
            else if (inside)
                flush((const void *)from, part->p_memsz);
        }
    return inside;
}

/* Times a step every `period_ns`. Before the wait, `walk` bytes of `other` are read, as other programs read theirs.
 * With `flushed` the decoder's memory and the library around `model` leave all caches. `read` keeps the compiler from
 * removing the walk. */
int time_paced(step_function step, ed_decoder *decoder, const float *bins, size_t channels, size_t rows, size_t count,
               uint64_t period_ns, const uint64_t *other, size_t walk, int flushed, void *model, size_t memory,
               uint64_t *ns, uint64_t *read) {
    float kinematics[ED_MAX_OUTPUTS];
    int error = 0;
    uint64_t next = now_ns() + period_ns;
    for (size_t i = 0; i < count; i++, next += period_ns) {
        for (size_t j = 0; j < walk / sizeof *other; j += 8) *read += other[j];
        if (flushed) {
            flush(decoder, memory);
            dl_iterate_phdr(flush_object, model);
        }
        struct timespec until = {(time_t)(next / 1000000000u), (long)(next % 1000000000u)};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
        uint64_t before = now_ns();
        error |= step(decoder, bins + i % rows * channels, kinematics);
        ns[i] = now_ns() - before;
    }
    return error;
}
