/*
 * Private: where every number of one student lies for the CUDA step, and which thread takes it. C++17.
 *
 * One block of ED_THREADS threads does a step. A matrix (rows, n) is cut into chunks of 16 integers; T threads share a
 * row, and each takes every T-th chunk of it, for GROUPS rows: one pass is 16 bytes a thread, and a matrix takes
 * GROUPS * ROUNDS passes. T is a power of two up to 8, chosen by bytes and passes. Weights lie in the order of the
 * passes, so that a warp's load is one stretch of 512 bytes:
 *     chunk c of row r lies at [round c / T][group r % GROUPS][thread r / GROUPS * T + c % T][16]
 * and edgedistill/compile/cuda_packing.py packs by the same formulas. Padding is zero. The whole stream:
 *     embedding, then for each layer qkv (3 d rows), out, gate, up, down, then the read-out of bins, of the latent
 * The ring of values is laid out as the matrix (d, slots) that it is for its sums; the ring of keys as
 * [head][16 dims][slot][16], a slot a thread.
 */
#ifndef ED_STUDENT_LAYOUT_H
#define ED_STUDENT_LAYOUT_H

#include ED_MODEL_HEADER

#include "ed_weights.h"

#define ED_THREADS 512
#define ED_WARPS (ED_THREADS / 32)
#define ED_CHUNK 16 /* integers a thread takes at once: one 16-byte load */

constexpr int ed_ceil(int n, int by) { return (n + by - 1) / by; }

/* A matrix of ROWS rows of N integers; see above. */
template <int ROWS, int N> struct ed_spread {
    static constexpr int rows = ROWS;
    static constexpr int chunks = ed_ceil(N, ED_CHUNK);
    static constexpr int groups_of(int t) { return ed_ceil(ROWS * t, ED_THREADS); }
    static constexpr int active_of(int t) { return ed_ceil(ROWS, groups_of(t)) * t; }
    /* A pass costs the loads of its threads, and some instructions: about what 128 threads load meanwhile. */
    static constexpr int cost(int t) { return groups_of(t) * ed_ceil(chunks, t) * (active_of(t) + 128); }
    static constexpr int cheaper(int t, int than) { return cost(t) < cost(than) ? t : than; }

    static constexpr int threads = cheaper(1, cheaper(2, cheaper(4, 8))); /* of a row */
    static constexpr int groups = groups_of(threads);
    static constexpr int rounds = ed_ceil(chunks, threads);
    static constexpr int passes = groups * rounds;
    static constexpr int active = active_of(threads); /* threads that have rows */
    static constexpr int bytes = passes * active * ED_CHUNK;
    static constexpr int padded = rounds * threads * ED_CHUNK; /* integers of the other factor that are read */
    static constexpr int at(int row, int i) {
        return (((i / ED_CHUNK / threads) * groups + row % groups) * active + row / groups * threads +
                i / ED_CHUNK % threads) * ED_CHUNK + i % ED_CHUNK;
    }
};

using ed_embedding = ed_spread<ED_D, ED_TAP_N>;
using ed_qkv = ed_spread<3 * ED_D, ED_D>;
using ed_out = ed_spread<ED_D, ED_D>;
using ed_gate = ed_spread<ED_FF, ED_D>; /* `up` likewise, so that a thread has both of a hidden unit */
using ed_down = ed_spread<ED_D, ED_FF>;
using ed_values = ed_spread<ED_D, ED_WINDOW>;

/* ---------------------------------------------------------------- weights, in bytes */

constexpr int ed_layer_bytes = ed_qkv::bytes + ed_out::bytes + 2 * ed_gate::bytes + ed_down::bytes;

/* The read-outs have few rows: a warp has one, each lane every 32nd chunk (of bins) or word (of the latent). */
constexpr int ed_lag_rounds = ed_ceil(ED_LAG_N, 32 * ED_CHUNK);   /* [output][round][lane][16] */
constexpr int ed_word_rounds = ed_ceil(ED_DP / 4, 32);            /* [output][round][lane][4] */
constexpr int ed_lags_at = ed_embedding::bytes + ED_LAYERS * ed_layer_bytes;
constexpr int ed_latent_at = ed_lags_at + ED_OUTPUTS * ed_lag_rounds * 32 * ED_CHUNK;
constexpr int ed_weight_bytes = ed_latent_at + ED_OUTPUTS * ed_word_rounds * 32 * 4;

/* ---------------------------------------------------------------- tables, in floats */

enum { ED_BIN_INV, ED_LATENT_INV, ED_MODEL_SCALARS = 4 };
enum {
    ED_ATTN_INV, ED_Q_INV, ED_K_INV, ED_V_INV, ED_CONTEXT_INV, ED_MLP_INV, ED_HIDDEN_INV, ED_SCORE_SCALE, ED_V_SCALE,
    ED_LAYER_SCALARS = 12
};

/* After the scalars of the model and of all layers: multipliers ("m") by row, and biases. */
constexpr int ed_embed_m_at = ED_MODEL_SCALARS + ED_LAYERS * ED_LAYER_SCALARS;
constexpr int ed_embed_bias_at = ed_embed_m_at + ED_D;
constexpr int ed_latent_m_at = ed_embed_bias_at + ED_D;
constexpr int ed_lags_m_at = ed_latent_m_at + ED_OUTPUTS;
constexpr int ed_readout_bias_at = ed_lags_m_at + ED_OUTPUTS;
constexpr int ed_layers_at = ed_readout_bias_at + ED_OUTPUTS;
/* In the table of a layer. Age biases are (heads, ED_BIAS_ROW), as in ed_weights.h. */
constexpr int ed_qkv_m_at = 0;
constexpr int ed_out_m_at = ed_qkv_m_at + 3 * ED_D;
constexpr int ed_gate_m_at = ed_out_m_at + ED_D;
constexpr int ed_up_m_at = ed_gate_m_at + ED_FF;
constexpr int ed_down_m_at = ed_up_m_at + ED_FF;
constexpr int ed_age_bias_at = ed_down_m_at + ED_D;
constexpr int ed_layer_floats = ed_age_bias_at + ED_HEADS * ED_BIAS_ROW;
constexpr int ed_table_floats = ed_layers_at + ED_LAYERS * ed_layer_floats;

/* ---------------------------------------------------------------- rings, in bytes of one layer */

constexpr int ed_key_parts = ED_DHP / ED_CHUNK; /* chunks of a key */
constexpr int ed_key_at(int head, int slot, int i) {
    return ((head * ed_key_parts + i / ED_CHUNK) * ED_WP + slot) * ED_CHUNK + i % ED_CHUNK;
}
constexpr int ed_keys_bytes = ED_HEADS * ED_WP * ED_DHP;

#endif
