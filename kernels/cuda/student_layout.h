/*
 * Private: where every number of one student lies for the CUDA step, and which thread takes it. C++17.
 *
 * One block of ED_THREADS threads does a step: 512 threads, or 256 for small students (the model's header decides). A
 * matrix (rows, n) is cut into chunks of 16 integers. T threads share a row, and each takes every T-th chunk of it, for
 * GROUPS rows. One pass is 16 bytes a thread, and a matrix takes GROUPS * ROUNDS passes. T is a power of two up to 8,
 * chosen by bytes and passes. Weights lie in the order of the passes, so that a warp's load is one stretch of 512
 * bytes; padding is zero:
 *
 *     chunk c of row r lies at [round c / T][turned(r % GROUPS, c % T)][thread r / GROUPS * T + c % T][16]
 *
 * A matrix of four-bit weights q * factor lies in the same order, with two differences. A chunk has 32 integers, which
 * share a factor. And GROUPS is even: two rows, in the places 2 g and 2 g + 1, share the bytes of two passes. A byte holds
 * one input of both, 16 q of the first row plus q + 8 of the second one. The first of the two passes has the first half
 * of the chunk. Behind the passes lie the factors, a byte each, in the order [place in the passes / 4][thread][4].
 *
 * The packing in edgedistill/compile uses the same formulas. The whole stream is:
 *
 *     embedding, then for each layer qkv (3 d rows), out, gate, up, down, then the read-out of bins, of the latent
 *
 * The ring of values is laid out as the matrix (d, slots) that its sums need. The ring of keys is [head][16
 * dims][slot][16], with one slot for each thread.
 *
 * Sums over the T threads of a row halve the work at each step: of two threads that are `bit` lanes apart, each gives
 * away half of its partial sums and takes over the sums of the other half. To let all threads give their upper half and
 * keep their lower one, without a choice at run time, the groups of a thread are turned: where `bit` is set in its
 * number, halves are exchanged. This goes on while the number of groups left is even. Then all threads that are left
 * add all sums, and each takes its own.
 */
#ifndef ED_STUDENT_LAYOUT_H
#define ED_STUDENT_LAYOUT_H

#include ED_MODEL_HEADER

#include "ed_weights.h"

#ifndef ED_THREADS
#error "the model's header says for how many threads its weights are packed"
#endif
#define ED_WARPS (ED_THREADS / 32)
#define ED_CHUNK 16 /* integers that a thread takes at once: one 16-byte load */

#ifdef __CUDACC__
#define ED_EITHER __host__ __device__ constexpr
#else
#define ED_EITHER constexpr
#endif

ED_EITHER int ed_ceil(int n, int by) { return (n + by - 1) / by; }

/* The layout of a matrix of ROWS rows of N integers, as described above. FOUR says whether they have four bits, and at
 * most MOST threads share a row. */
template <int ROWS, int N, bool FOUR = false, int MOST = 8> struct ed_row_layout {
    static constexpr int rows = ROWS;
    static constexpr bool four = FOUR;
    static constexpr int chunk = FOUR ? 2 * ED_CHUNK : ED_CHUNK;
    static constexpr int chunks = ed_ceil(N, chunk);
    static constexpr int groups_of(int t) { return (1 + FOUR) * ed_ceil(ROWS * t, (1 + FOUR) * ED_THREADS); }
    static constexpr int active_of(int t) { return ed_ceil(ROWS, groups_of(t)) * t; }
    /* A pass costs the loads of its threads, and some instructions, which cost about what
     * 128 threads load meanwhile. */
    static constexpr int cost(int t) { return groups_of(t) * ed_ceil(chunks, t) * (active_of(t) + 128); }
    static constexpr int cheaper(int t, int than) { return cost(t) < cost(than) ? t : than; }

    static constexpr int threads = cheaper(1, cheaper(2, MOST < 8 ? 4 : cheaper(4, 8))); /* threads that share a row */
    static constexpr int groups = groups_of(threads);
    static constexpr int rounds = ed_ceil(chunks, threads);
    static constexpr int passes = groups * rounds;
    static constexpr int active = active_of(threads); /* threads that have rows */
    static constexpr int factors_at = passes * active * ED_CHUNK;
    static constexpr int factor_words = FOUR ? ed_ceil(passes, 4) : 0; /* of a thread */
    static constexpr int bytes = factors_at + ed_ceil(factor_words * active * 4, ED_CHUNK) * ED_CHUNK;
    static constexpr int padded = rounds * threads * chunk; /* integers of the other factor that are read */

    /* Groups and threads that are left when the groups are no longer even or one thread is left. */
    static constexpr int left_of(int n, int t, bool groups_left) {
        return t > 1 && n % 2 == 0 ? left_of(n / 2, t / 2, groups_left) : groups_left ? n : t;
    }
    static constexpr int left = left_of(groups, threads, true);
    static constexpr int threads_left = left_of(groups, threads, false);
    static constexpr int own = ed_ceil(left, threads_left); /* the most rows that a thread ends with */

    /* Returns the group that thread t of a row has in the place of `group`, and the other way round. */
    static ED_EITHER int turned(int group, int t) {
        int turned = group;
        for (int bit = threads / 2, half = groups / 2; bit >= threads_left; bit /= 2, half /= 2)
            if (t & bit) turned += group / half % 2 ? -half : half;
        return turned;
    }
    /* Returns where an integer of eight bits lies. */
    static ED_EITHER int at(int row, int i) {
        static_assert(!FOUR, "four-bit weights have no addresses of their own");
        const int t = i / ED_CHUNK % threads, round = i / ED_CHUNK / threads;
        const int thread = row / groups * threads + t;
        return ((round * groups + turned(row % groups, t)) * active + thread) * ED_CHUNK + i % ED_CHUNK;
    }
    /* Returns the i-th of a thread's own rows, or -1 if it has none. */
    static ED_EITHER int own_row(int thread, int i) {
        const int t = thread % threads, rest = t % threads_left + i * threads_left;
        const int row = thread / threads * groups + turned(0, t) + rest;
        return rest < left && row < rows ? row : -1;
    }
};

/* Which parts are packed as four-bit weights, in all layers; the model's header says so. */
#ifndef ED_FOUR_BITS_EMBED
#define ED_FOUR_BITS_EMBED 0
#endif
#ifndef ED_FOUR_BITS_QKV
#define ED_FOUR_BITS_QKV 0
#endif
#ifndef ED_FOUR_BITS_OUT
#define ED_FOUR_BITS_OUT 0
#endif
#ifndef ED_FOUR_BITS_GATE_UP
#define ED_FOUR_BITS_GATE_UP 0
#endif
#ifndef ED_FOUR_BITS_DOWN
#define ED_FOUR_BITS_DOWN 0
#endif
/* Threads that share a row take chunks of 32 integers from at most 32 lanes, where these hold the vector. */
#define ED_BY_LANES(four) ((four) ? 4 : 8)

using ed_embedding = ed_row_layout<ED_D, ED_TAP_N, ED_FOUR_BITS_EMBED>;
using ed_qkv = ed_row_layout<3 * ED_D, ED_D, ED_FOUR_BITS_QKV, ED_BY_LANES(ED_FOUR_BITS_QKV)>;
using ed_out = ed_row_layout<ED_D, ED_D, ED_FOUR_BITS_OUT>;
/* `up` is spread likewise, so that a thread has both of a hidden unit */
using ed_gate = ed_row_layout<ED_FF, ED_D, ED_FOUR_BITS_GATE_UP, ED_BY_LANES(ED_FOUR_BITS_GATE_UP)>;
using ed_down = ed_row_layout<ED_D, ED_FF, ED_FOUR_BITS_DOWN>;
using ed_values = ed_row_layout<ED_D, ED_WINDOW>;

/* ---------------------------------------------------------------- weights, in bytes */

constexpr int ed_layer_bytes = ed_qkv::bytes + ed_out::bytes + 2 * ed_gate::bytes + ed_down::bytes;

/* The read-outs have few rows. A warp has one row, and each lane takes every 32nd chunk
 * (of bins) or word (of the latent). */
constexpr int ed_lag_rounds = ed_ceil(ED_LAG_N, 32 * ED_CHUNK); /* [output][round][lane][16] */
constexpr int ed_word_rounds = ed_ceil(ED_DP / 4, 32);          /* [output][round][lane][4] */
constexpr int ed_lags_at = ed_embedding::bytes + ED_LAYERS * ed_layer_bytes;
constexpr int ed_latent_at = ed_lags_at + ED_OUTPUTS * ed_lag_rounds * 32 * ED_CHUNK;
constexpr int ed_weight_bytes = ed_latent_at + ED_OUTPUTS * ed_word_rounds * 32 * 4;

/* ---------------------------------------------------------------- tables, in floats */

enum { ED_BIN_INV, ED_LATENT_INV, ED_MODEL_SCALARS = 4 };
enum {
    ED_ATTN_INV,
    ED_Q_INV,
    ED_K_INV,
    ED_V_INV,
    ED_CONTEXT_INV,
    ED_MLP_INV,
    ED_HIDDEN_INV,
    ED_SCORE_SCALE,
    ED_V_SCALE,
    ED_LAYER_SCALARS = 12
};

/* A table of a matrix (multipliers, biases) is laid out by the threads that have the rows:
 * [own][ED_THREADS], 0 where a thread has none. */
template <class M> constexpr int ed_by_thread = M::own *ED_THREADS;

/* The tables follow the scalars of the model and of all layers. */
constexpr int ed_embed_m_at = ED_MODEL_SCALARS + ED_LAYERS * ED_LAYER_SCALARS;
constexpr int ed_embed_bias_at = ed_embed_m_at + ed_by_thread<ed_embedding>;
constexpr int ed_latent_m_at = ed_embed_bias_at + ed_by_thread<ed_embedding>;
constexpr int ed_lags_m_at = ed_latent_m_at + ED_OUTPUTS;
constexpr int ed_readout_bias_at = ed_lags_m_at + ED_OUTPUTS;
constexpr int ed_layers_at = ed_readout_bias_at + ED_OUTPUTS;
/* Offsets in the tables of a layer. Age biases are (heads, ED_BIAS_ROW), as in ed_weights.h. */
constexpr int ed_qkv_m_at = 0;
constexpr int ed_out_m_at = ed_qkv_m_at + ed_by_thread<ed_qkv>;
constexpr int ed_gate_m_at = ed_out_m_at + ed_by_thread<ed_out>;
constexpr int ed_up_m_at = ed_gate_m_at + ed_by_thread<ed_gate>;
constexpr int ed_down_m_at = ed_up_m_at + ed_by_thread<ed_gate>;
constexpr int ed_age_bias_at = ed_down_m_at + ed_by_thread<ed_down>;
constexpr int ed_layer_floats = ed_age_bias_at + ED_HEADS * ED_BIAS_ROW;
/* Threads also read the bias of slots that do not exist, up to a round of slots beyond the last. */
constexpr int ed_table_floats = ed_layers_at + ED_LAYERS * ed_layer_floats + ED_THREADS;

/* ---------------------------------------------------------------- rings, in bytes of one layer */

constexpr int ed_key_parts = ED_DHP / ED_CHUNK; /* chunks of one key */
ED_EITHER int ed_key_at(int head, int slot, int i) {
    return ((head * ed_key_parts + i / ED_CHUNK) * ED_WP + slot) * ED_CHUNK + i % ED_CHUNK;
}
constexpr int ed_keys_bytes = ED_HEADS * ED_WP * ED_DHP;

#endif
