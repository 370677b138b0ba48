/*
 * Private: the shape of one model in padded sizes, and the tables that the generated model_NAME_data.h fills.
 *
 * ED_CHANNELS is the number of the student's inputs: with bands it is a multiple of the channels in a frame, which are
 * ED_FE_CHANNELS. Every vector is padded with zeros to whole vectors, so that no kernel needs a remainder loop. Padded
 * rows of a matrix have the multiplier 0. Matrices that read the same input are stacked and read in one pass:
 *     qkv      (3 DP, d)   wq, wk, wv, each padded to DP rows
 *     gate_up  (2 FP, d)   16 rows of wgate, the same 16 of wup, the next 16 of wgate, ...
 * Each variant decides how the integers of a matrix lie in memory (ed_ops_*.h, and packing in edgedistill/compile).
 */
#ifndef ED_WEIGHTS_H
#define ED_WEIGHTS_H

#include <stddef.h>
#include <stdint.h>

#define ED_UP(n, to) (((n) + (to)-1) / (to) * (to))

#define ED_DH (ED_D / ED_HEADS)
#define ED_DHP ED_UP(ED_DH, 16)
#define ED_DP ED_UP(ED_D, 16)
#define ED_FP ED_UP(ED_FF, 16)
#define ED_WP ED_UP(ED_WINDOW, 16)
#define ED_SLOTS (ED_WINDOW - 1)               /* slots of the exchanged rings; private rings have ED_WINDOW */
#define ED_TAP_N (ED_TAPS * ED_CHANNELS)       /* inputs of the embedding */
#define ED_LAG_N ((ED_LAGS + 1) * ED_CHANNELS) /* inputs of the lagged read-out */

#ifndef ED_BIAS_ONCE
#define ED_BIAS_ONCE 0 /* whether a row of age_bias holds each age once, which a variant for little flash asks for */
#endif
#define ED_BIAS_ROW (ED_BIAS_ONCE ? ED_WP : ED_UP(2 * ED_WINDOW + 15, 16)) /* see age_bias */

/* Sizes in the exchanged layout: a ring of k or v of one layer, and all rings followed by lagged bins. */
#define ED_RING_BYTES ((size_t)ED_HEADS * ED_SLOTS * ED_DH)
#define ED_STUDENT_BYTES (2 * ED_LAYERS * ED_RING_BYTES + (size_t)ED_LAG_ROWS * ED_CHANNELS)

/* Number of blocks of 16 rows whose lines alternate in a packed matrix of `blocks` blocks. It is a divisor up to
 * ED_GROUP, so that no matrix has a remainder, and it is even for an even number of blocks, so that pairs of gate and
 * up stay together. */
#define ED_DIVIDES(g, blocks) ((g) <= ED_GROUP && (blocks) % (g) == 0)
#define ED_GROUP_OF(blocks)      \
    (ED_DIVIDES(8, blocks)   ? 8 \
     : ED_DIVIDES(6, blocks) ? 6 \
     : ED_DIVIDES(4, blocks) ? 4 \
     : ED_DIVIDES(2, blocks) ? 2 \
     : ED_DIVIDES(7, blocks) ? 7 \
     : ED_DIVIDES(5, blocks) ? 5 \
     : ED_DIVIDES(3, blocks) ? 3 \
                             : 1)

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "packed weights and exported states are little-endian"
#endif

#define ED_ALIGNED _Alignas(64)
#define ED_INLINE static inline __attribute__((always_inline))
#define ED_RARE __attribute__((cold)) /* no step calls it, so that it is compiled for size */

/* Stands before a loop whose count is a small constant, so that arrays indexed by it live in registers. */
#if defined(__clang__)
#define ED_UNROLL _Pragma("unroll")
#else
#define ED_UNROLL _Pragma("GCC unroll 32")
#endif

/* One matrix of the step. Exactly one of w, f and q is set: f if the calibration recipe keeps the matrix in float32, and
 * q if it has four-bit weights. Those are q * factor, with q in -7 ... 7 and a factor in 1 ... 15 of each 32 inputs of a
 * row. A nibble holds q + 8, and what that adds to a sum is taken from it before: sum q x = sum (q + 8) x - 8 sum x. */
struct ed_matrix {
    const int8_t *w;  /* packed */
    const float *m;   /* (rows padded to 16,) multipliers: y = float(acc) * m */
    const float *f;   /* (rows padded to 16, inputs padded to 16) */
    const uint8_t *q; /* packed, with the factors among the weights */
};

#ifndef ED_FOURS
#define ED_FOURS 0 /* whether any matrix has four-bit weights */
#endif
#define ED_FOUR(part) (ED_FOURS && (part).q) /* a constant 0 for a model that has none */
#define ED_FACTOR_INPUTS 32                  /* inputs of a row that share a factor */
#define ED_FACTORS_OF(n) (((n) + 31) / 32)   /* factors of a row of n inputs */
#define ED_MORE(a, b) ((a) > (b) ? (a) : (b))
#define ED_MOST_FACTORS ED_FACTORS_OF(ED_MORE(ED_MORE(ED_D, ED_FF), ED_TAP_N))

struct ed_layer {
    struct ed_matrix qkv, out, gate_up, down;
    const float *age_bias; /* (heads, ED_BIAS_ROW): entry j is the bias of age (W - 1 - j) mod W. From entry
                              W - 1 - (slot of the new bin) on, the biases therefore lie by slot; where each age is
                              there once, those of the slots after the new bin's lie W entries before */
    float attn_inv, q_inv, k_inv, v_inv, context_inv, mlp_inv, hidden_inv; /* inverse scales of quantization */
    float score_scale, v_scale;
};

#endif
