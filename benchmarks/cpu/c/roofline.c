/*
 * Measures what one core can do at most: bytes read from a buffer, and multiply-adds of 8-bit integers.
 *
 * Both use the widest vectors that this file is compiled for, and as many independent chains as hide the latency. The
 * chains are variables and not an array, because an empty asm on an element of an array would keep it in memory.
 */
#define _POSIX_C_SOURCE 200809L /* clock_gettime */
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#if defined(__AVX512F__)
#include <immintrin.h>
typedef __m512i vector;
#define LOAD(at) _mm512_load_si512(at)
#define XOR(a, b) _mm512_xor_si512(a, b)
#define ZERO() _mm512_setzero_si512()
#elif defined(__AVX2__)
#include <immintrin.h>
typedef __m256i vector;
#define LOAD(at) _mm256_load_si256(at)
#define XOR(a, b) _mm256_xor_si256(a, b)
#define ZERO() _mm256_setzero_si256()
#endif

#if defined(__AVX512VNNI__)
#define MULTIPLY_ADDS 64 /* in one MULTIPLY_ADD */
#define MULTIPLY_ADD(sum) sum = _mm512_dpbusd_epi32(sum, a, b)
#elif defined(__AVX2__)
#define MULTIPLY_ADDS 16
#define MULTIPLY_ADD(sum) sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_xor_si256(a, sum), b))
#endif

/* Values that the compiler must not know, so that it keeps the loops. */
#define OPAQUE(a, b, c, d) __asm__ volatile("" : "+v"(a), "+v"(b), "+v"(c), "+v"(d))

uint64_t read_ns(const void *buffer, size_t bytes, size_t repeats);
size_t multiply_adds_a_turn(void);
uint64_t multiply_adds_ns(size_t turns);

#if defined(MULTIPLY_ADDS)

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Returns the ns to read `bytes` at `buffer` `repeats` times. The buffer is aligned to 64, bytes a multiple of 512. */
uint64_t read_ns(const void *buffer, size_t bytes, size_t repeats) {
    vector s0 = ZERO(), s1 = ZERO(), s2 = ZERO(), s3 = ZERO(), s4 = ZERO(), s5 = ZERO(), s6 = ZERO(), s7 = ZERO();
    uint64_t before = now_ns();
    for (size_t r = 0; r < repeats; r++) {
        const vector *at = buffer, *end = at + bytes / sizeof *at;
        for (; at < end; at += 8) {
            s0 = XOR(s0, LOAD(at + 0)), s1 = XOR(s1, LOAD(at + 1)), s2 = XOR(s2, LOAD(at + 2));
            s3 = XOR(s3, LOAD(at + 3)), s4 = XOR(s4, LOAD(at + 4)), s5 = XOR(s5, LOAD(at + 5));
            s6 = XOR(s6, LOAD(at + 6)), s7 = XOR(s7, LOAD(at + 7));
        }
        OPAQUE(s0, s1, s2, s3);
        OPAQUE(s4, s5, s6, s7);
        __asm__ volatile("" ::: "memory"); /* memory may have changed, so the next turn reads again */
    }
    return now_ns() - before;
}

size_t multiply_adds_a_turn(void) { return 12 * MULTIPLY_ADDS; }

uint64_t multiply_adds_ns(size_t turns) {
    vector a = ZERO(), b = ZERO(), s0 = a, s1 = a, s2 = a, s3 = a, s4 = a, s5 = a, s6 = a, s7 = a, s8 = a, s9 = a;
    vector s10 = a, s11 = a;
    OPAQUE(a, b, s0, s1);
    uint64_t before = now_ns();
    for (size_t t = 0; t < turns; t++) {
        MULTIPLY_ADD(s0), MULTIPLY_ADD(s1), MULTIPLY_ADD(s2), MULTIPLY_ADD(s3), MULTIPLY_ADD(s4), MULTIPLY_ADD(s5);
        MULTIPLY_ADD(s6), MULTIPLY_ADD(s7), MULTIPLY_ADD(s8), MULTIPLY_ADD(s9), MULTIPLY_ADD(s10), MULTIPLY_ADD(s11);
    }
    OPAQUE(s0, s1, s2, s3);
    OPAQUE(s4, s5, s6, s7);
    OPAQUE(s8, s9, s10, s11);
    return now_ns() - before;
}

#else /* without known vectors there is no roofline */

uint64_t read_ns(const void *buffer, size_t bytes, size_t repeats) {
    (void)buffer, (void)bytes, (void)repeats;
    return 0;
}

size_t multiply_adds_a_turn(void) { return 0; }

uint64_t multiply_adds_ns(size_t turns) {
    (void)turns;
    return 0;
}

#endif
