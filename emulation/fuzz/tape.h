/*
 * The input of the fuzzer as a tape, from which calls and their values are read.
 */
#ifndef TAPE_H
#define TAPE_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Tells what did not hold, and ends the program. */
__attribute__((noreturn)) void fail(int line, const char *what);

#define REQUIRE(what)                       \
    do {                                    \
        if (!(what)) fail(__LINE__, #what); \
    } while (0)

typedef struct {
    const uint8_t *at, *end;
    uint32_t seed; /* random numbers where input bytes would be wasted: splits, positions */
} tape;

static inline uint8_t byte_of(tape *t) { return t->at < t->end ? *t->at++ : 0; }

static inline uint32_t random_of(tape *t) { return (t->seed = t->seed * 1664525u + 1013904223u) >> 8; }

static inline float bits_of(tape *t) {
    uint32_t bits = 0;
    for (int i = 0; i < 4; i++) bits = bits << 8 | byte_of(t);
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Turns a byte into one of the values that break things, or into plain microvolts. */
static inline float wild_of(uint8_t byte) {
    static const float values[] = {0.0f,  -0.0f,   1e-45f, -1e-45f,  1e-38f,    3.4028235e38f, -3.4028235e38f,
                                   1e30f, -1e30f,  1e-30f, INFINITY, -INFINITY, NAN,           -NAN,
                                   4.0f,  32767.0f};
    return byte < 16 ? values[byte] : (float)((int)byte - 136) * 1.5f;
}

/* Makes n values: with all bits from the input, from a byte each, or all the same, as a dead amplifier sends them. */
static inline void fill(tape *t, float *x, size_t n) {
    int mode = byte_of(t) % 3;
    float same = mode == 2 ? wild_of(byte_of(t)) : 0;
    for (size_t i = 0; i < n; i++) x[i] = mode == 0 ? bits_of(t) : mode == 1 ? wild_of(byte_of(t)) : same;
}

static inline void *allocated(size_t bytes) {
    void *memory = malloc(bytes + !bytes); /* of the exact size, so that the sanitizer sees one step too far */
    REQUIRE(memory);
    return memory;
}

#endif
