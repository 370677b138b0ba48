/*
 * Private: vectors of a processor's own width, in the language of GCC and Clang. Their operations are those of their
 * elements, each rounded once, so that results do not depend on the width. A processor without vectors has vectors of
 * one element.
 *
 * Loops that compilers vectorize well by themselves are written as such. Vectors are used where values have to stay in
 * registers from one turn of a loop to the next, and where a choice must not become a branch.
 */
#ifndef ED_VECTORS_H
#define ED_VECTORS_H

#include <float.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define ED_VECTOR_BYTES 64
#elif defined(__AVX__)
#define ED_VECTOR_BYTES 32
#elif defined(__SSE2__) || defined(__aarch64__)
#define ED_VECTOR_BYTES 16
#else
#define ED_VECTOR_BYTES 0
#endif

#if ED_VECTOR_BYTES
#define ED_FLOATS (ED_VECTOR_BYTES / 4) /* elements of ed_floats */
#define ED_DOUBLES (ED_VECTOR_BYTES / 8)

typedef float ed_floats __attribute__((vector_size(ED_VECTOR_BYTES)));
typedef int32_t ed_float_mask __attribute__((vector_size(ED_VECTOR_BYTES))); /* each -1 or 0 */
typedef double ed_doubles __attribute__((vector_size(ED_VECTOR_BYTES)));
typedef int64_t ed_double_mask __attribute__((vector_size(ED_VECTOR_BYTES)));
typedef uint64_t ed_double_bits __attribute__((vector_size(ED_VECTOR_BYTES)));
typedef float ed_few_floats __attribute__((vector_size(ED_VECTOR_BYTES / 2))); /* as many as there are doubles */
typedef int32_t ed_few_mask __attribute__((vector_size(ED_VECTOR_BYTES / 2)));

/* Returns a where the mask is set, and b elsewhere. */
static inline ed_floats ed_choose_floats(ed_float_mask mask, ed_floats a, ed_floats b) {
    return (ed_floats)(((ed_float_mask)a & mask) | ((ed_float_mask)b & ~mask));
}

static inline ed_doubles ed_choose_doubles(ed_double_mask mask, ed_doubles a, ed_doubles b) {
    return (ed_doubles)(((ed_double_mask)a & mask) | ((ed_double_mask)b & ~mask));
}

static inline ed_doubles ed_magnitudes(ed_doubles x) { return (ed_doubles)((ed_double_mask)x & INT64_MAX); }
static inline ed_double_bits ed_bits_of_doubles(ed_doubles x) { return (ed_double_bits)x; }
static inline ed_doubles ed_doubles_of_bits(ed_double_bits bits) { return (ed_doubles)bits; }

/* Returns samples in double precision, with 0 for those that are not finite. */
static inline ed_doubles ed_finite_doubles(ed_few_floats x) {
    const ed_few_mask fine = (x <= FLT_MAX) & (x >= -FLT_MAX);
    return __builtin_convertvector((ed_few_floats)((ed_few_mask)x & fine), ed_doubles);
}
#else
#define ED_FLOATS 1
#define ED_DOUBLES 1

typedef float ed_floats, ed_few_floats;
typedef double ed_doubles;
typedef int32_t ed_float_mask;
typedef int64_t ed_double_mask;
typedef uint64_t ed_double_bits;

static inline float ed_choose_floats(int32_t mask, float a, float b) { return mask ? a : b; }
static inline double ed_choose_doubles(int64_t mask, double a, double b) { return mask ? a : b; }
static inline double ed_magnitudes(double x) { return __builtin_fabs(x); }
static inline uint64_t ed_bits_of_doubles(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
static inline double ed_doubles_of_bits(uint64_t bits) {
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
static inline double ed_finite_doubles(float x) { return (double)((x <= FLT_MAX) & (x >= -FLT_MAX) ? x : 0.0f); }
#endif

#endif
