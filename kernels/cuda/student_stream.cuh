/*
 * Private: what a step reads, weights and rings alike, as one stream of passes of 16 bytes a thread, and the products
 * that use it. student_step.cu gives the reasons, and student_layout.h says where everything lies.
 *
 * A thread holds the next `ahead` passes: `stream::take` hands out the oldest and issues the load that many passes ahead.
 * The numbers of those registers must be constant in machine code, so all loops over passes are unrolled.
 */
#ifndef ED_STUDENT_STREAM_CUH
#define ED_STUDENT_STREAM_CUH

#include "exact.cuh"
#include "student_state.h"

#ifdef ED_EMULATED
#define ED_UNROLL_ALL
#define ED_UNROLL_NONE
#else
#define ED_UNROLL_ALL _Pragma("unroll")
#define ED_UNROLL_NONE _Pragma("unroll 1")
#endif
#define ED_INSIDE __device__ __forceinline__

/* Deals i = 0 ... n - 1 to the threads; n is a constant. */
#define ED_EACH(t, i, n)                                     \
    ED_UNROLL_ALL                                            \
    for (int i##_at = 0; i##_at < (n); i##_at += ED_THREADS) \
        if (const int i = i##_at + (int)(t).thread; i < (n))

namespace {

/* ---------------------------------------------------------------- threads of the attention */

constexpr int head_warps = ED_HEADS < ED_WARPS ? ED_WARPS / ED_HEADS : 1; /* warps that share a head */
constexpr int heads_at_once = ED_WARPS / head_warps;
constexpr int head_rounds = ed_ceil(ED_HEADS, heads_at_once);
constexpr int slots_at_once = head_warps * 32;
constexpr int slot_rounds = ed_ceil(ED_WINDOW, slots_at_once);

/* ---------------------------------------------------------------- the passes of a layer, in order */

constexpr int qkv_pass = 0;
constexpr int keys_pass = qkv_pass + ed_qkv::passes;
constexpr int values_pass = keys_pass + head_rounds * slot_rounds * ed_key_parts;
constexpr int out_pass = values_pass + ed_values::passes;
constexpr int gate_pass = out_pass + ed_out::passes;
constexpr int up_pass = gate_pass + ed_gate::passes;
constexpr int down_pass = up_pass + ed_gate::passes;
constexpr int used_passes = down_pass + ed_down::passes;

/* The stream lies in registers whose numbers must be constants and the same in every layer. So a
 * layer is filled up to a multiple of the depth with empty passes, which load nothing. The depth is
 * the one with the fewest empty passes: of 6 to 8, or of 12 to 16 for blocks of at most 256 threads,
 * which have twice the registers and must keep as many bytes under way. */
constexpr int filled(int depth) { return ed_ceil(used_passes, depth) * depth; }
constexpr int best_depth(int least, int most) {
    int best = most;
    for (int depth = most - 1; depth >= least; depth--)
        if (filled(depth) < filled(best)) best = depth;
    return best;
}
#ifndef ED_AHEAD
#define ED_AHEAD (ED_THREADS > 256 ? best_depth(6, 8) : best_depth(12, 16))
#endif
constexpr int ahead = ED_AHEAD;
constexpr int layer_passes = filled(ahead);

/* Words of factors of four-bit weights that a thread holds: those of the embedding, then those of the matrices of a
 * layer, in order. Returns the first one of the matrix that begins at `pass`. */
ED_EITHER int factors_of(int pass) {
    int first = 0;
    if (pass >= qkv_pass) first += ed_embedding::factor_words;
    if (pass >= out_pass) first += ed_qkv::factor_words;
    if (pass >= gate_pass) first += ed_out::factor_words;
    if (pass >= up_pass) first += ed_gate::factor_words;
    if (pass >= down_pass) first += ed_gate::factor_words;
    return first;
}
constexpr int factor_words = factors_of(down_pass) + ed_down::factor_words;

/* Offsets in bytes at which the weights of a layer's matrices begin. */
constexpr int out_at = ed_qkv::bytes;
constexpr int gate_at = out_at + ed_out::bytes;
constexpr int up_at = gate_at + ed_gate::bytes;
constexpr int down_at = up_at + ed_gate::bytes;

/* ---------------------------------------------------------------- loads */

/* These loads are issued where they stand; compilers would move them to where their result
 * is used. A value that is not `wanted` is left as it is, or undefined. Weights and tables
 * do not change; rings and bins do, from step to step. */
#ifdef ED_EMULATED
template <class T> ED_INSIDE void load_constant(T &into, const void *from, bool wanted = true) {
    if (wanted) into = *(const T *)from;
}
template <class T> ED_INSIDE void load_state(T &into, const void *from, bool wanted = true) {
    load_constant(into, from, wanted);
}
#else
#define ED_LOAD(kind, result) asm volatile("ld.global" kind " %0, [%1];" : result(into) : "l"(from))
ED_INSIDE void load_constant(float &into, const void *from) { ED_LOAD(".nc.f32", "=f"); }
ED_INSIDE void load_constant(int &into, const void *from) { ED_LOAD(".nc.s32", "=r"); }
ED_INSIDE void load_state(float &into, const void *from) { ED_LOAD(".f32", "=f"); }
ED_INSIDE void load_constant(unsigned &into, const void *from) { ED_LOAD(".nc.u32", "+r"); }
ED_INSIDE void load_constant(unsigned &into, const void *from, bool wanted) {
    asm volatile("{.reg .pred p; setp.ne.u32 p, %1, 0; @p ld.global.nc.u32 %0, [%2];}"
                 : "+r"(into)
                 : "r"((unsigned)wanted), "l"(from));
}

/* "+" loads into the same registers, after their last use. Otherwise all loads would come
 * first, in registers of their own. */
#define ED_LOAD_16(kind)                                                            \
    asm volatile("ld.global" kind ".L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];" \
                 : "+r"(into.x), "+r"(into.y), "+r"(into.z), "+r"(into.w)           \
                 : "l"(from))
#define ED_LOAD_16_IF(kind)                                               \
    asm volatile("{.reg .pred p; setp.ne.u32 p, %4, 0; @p ld.global" kind \
                 ".L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%5];}"       \
                 : "+r"(into.x), "+r"(into.y), "+r"(into.z), "+r"(into.w) \
                 : "r"((unsigned)wanted), "l"(from))
ED_INSIDE void load_constant(uint4 &into, const void *from) { ED_LOAD_16(".nc"); }
ED_INSIDE void load_constant(uint4 &into, const void *from, bool wanted) { ED_LOAD_16_IF(".nc"); }
ED_INSIDE void load_state(uint4 &into, const void *from) { ED_LOAD_16(""); }
ED_INSIDE void load_state(uint4 &into, const void *from, bool wanted) { ED_LOAD_16_IF(""); }
#endif

/* ---------------------------------------------------------------- a thread's place */

/* Identifies a thread. What follows from it is computed anew in each layer, since keeping it over
 * all layers would take more registers than there are. */
struct place {
    unsigned thread;

    ED_INSIDE void forget() {
#ifndef ED_EMULATED
        asm volatile("" : "+r"(thread)); /* the compiler must assume that the value has changed */
#endif
    }
    ED_INSIDE int lane() const { return (int)(thread % 32); }
    ED_INSIDE int warp() const { return (int)(thread / 32); }
    /* Place of the thread among those that share a row of M; and the thread's i-th own row, -1 if there is none. */
    template <class M> ED_INSIDE int in_row() const { return (int)(thread % M::threads); }
    template <class M> ED_INSIDE int own_row(int i) const { return M::own_row((int)thread, i); }
    /* In attention: its head among those of a round, its slot among those of a round, and
     * whether there is such a head. */
    ED_INSIDE int head() const { return (int)(thread / (head_warps * 32)); }
    ED_INSIDE int slot() const { return (int)(thread % (head_warps * 32)); }
    ED_INSIDE bool has_head(int round) const {
        return (ED_WARPS % head_warps == 0 || head() < heads_at_once) &&
               ((round + 1) * heads_at_once <= ED_HEADS || round * heads_at_once + head() < ED_HEADS);
    }
};

/* Adds the first `before` sums of threads that are `bit`, bit / 2, ... 1 apart. A thread gives half of them away while
 * their number is even. Bounds are template arguments, because the compiler unrolls an inner loop before it knows the
 * bounds that an outer one sets, and would keep the sums in registers that are chosen at run time. */
template <int bit, int before, int n> ED_INSIDE void exchange(int (&acc)[n]) {
    if constexpr (bit > 0) {
        constexpr int given = before % 2 == 0 ? before / 2 : 0, left = before - given;
        ED_UNROLL_ALL
        for (int i = 0; i < left; i++) acc[i] += __shfl_xor_sync(0xffffffffu, acc[given + i], bit);
        exchange<bit / 2, left>(acc);
    }
}

/* Adds over the T threads of a row, for all rows at once (student_layout.h): own[i] is then
 * the sum of the thread's i-th own row. Destroys acc. */
template <class M> ED_INSIDE void gather(const place &t, int (&acc)[M::groups], int (&own)[M::own]) {
    exchange<M::threads / 2, M::groups>(acc);
    const int first = (int)(t.thread % M::threads_left);
    ED_UNROLL_ALL
    for (int i = 0; i < M::own; i++) {
        own[i] = acc[i * M::threads_left];
        ED_UNROLL_ALL
        for (int j = 1; j < M::threads_left; j++)
            if (i * M::threads_left + j < M::left && first == j) own[i] = acc[i * M::threads_left + j];
    }
}

/* ---------------------------------------------------------------- the stream */

struct stream {
    place t;
    uint4 held[ahead];
    unsigned factors[factor_words + !factor_words];    /* of four-bit weights, four to a word */
    const int8_t *embedding, *weights, *keys, *values; /* pointers into this layer, at this thread's place */
    const int8_t *factor_base;                         /* what `weights` would be for loads of four bytes, if any */
    bool last;                                         /* whether this layer is the last */

    ED_INSIDE stream(const place &whose, const int8_t *all, const ed_cuda_state *state) : t(whose), last(false) {
        embedding = all + t.thread * ED_CHUNK;
        weights = embedding + ed_embedding::bytes;
        factor_base = factor_words ? all + ed_embedding::bytes + t.thread * 4 : weights;
        keys = state->keys[0] + ed_key_at(t.head(), t.slot(), 0);
        values = state->values[0] + t.thread * ED_CHUNK;
        ED_UNROLL_ALL
        for (int i = 0; i < ahead; i++) held[i] = make_uint4(0, 0, 0, 0);
        ED_UNROLL_ALL
        for (int i = 0; i < factor_words; i++) factors[i] = 0;
        ED_UNROLL_ALL
        for (int i = 0; i < ahead; i++) fetch(i - ed_embedding::passes);
    }

    /* Hands the oldest 16 bytes to `use`, and then loads the next ones into their registers. Were the load issued first,
     * the oldest would have to be copied. `pass` counts from the start of this layer; passes of the embedding are
     * negative. */
    template <class F> ED_INSIDE void take(int pass, F use) {
        use(held[position(pass)]);
        fetch(pass + ahead);
    }

    /* Returns a factor of the matrix that begins at `pass`. It is there until the matrix's pass of that number, and those
     * up to the next multiple of four, have been taken. */
    ED_INSIDE int factor(int pass, int number) const {
        return (int)__byte_perm(factors[factors_of(pass) + number / 4], 0, 0x4440 + number % 4);
    }

    ED_INSIDE void end_layer() {
        ED_UNROLL_ALL
        for (int pass = used_passes; pass < layer_passes; pass++) fetch(pass + ahead);
        weights += ed_layer_bytes;
        if (factor_words) factor_base += ed_layer_bytes;
        keys += ed_keys_bytes;
        values += ed_values::bytes;
    }

  private:
    static ED_EITHER int position(int pass) { return (pass + ed_ceil(ed_embedding::passes, ahead) * ahead) % ahead; }

    ED_INSIDE void fetch(int pass) {
        uint4 &into = held[position(pass)];
        if (pass < 0)
            fetch_matrix<ed_embedding>(into, embedding, factor_base - ed_embedding::bytes, -ed_embedding::passes, pass,
                                       true, true);
        else
            fetch_in_layer(into, pass % layer_passes, pass / layer_passes);
    }

    /* `next` is 1 for the passes of the next layer, if there is one. */
    ED_INSIDE void fetch_in_layer(uint4 &into, int pass, int next) {
        const int8_t *from = weights + next * ed_layer_bytes, *words = factor_base + next * ed_layer_bytes;
        const bool always = !next, wanted = always || !last;
        if (pass < keys_pass)
            fetch_matrix<ed_qkv>(into, from, words, qkv_pass, pass, always, wanted);
        else if (pass < values_pass)
            fetch_keys(into, keys + next * ed_keys_bytes, pass - keys_pass, always, wanted);
        else if (pass < out_pass)
            fetch_values(into, values + next * ed_values::bytes, pass - values_pass, always, wanted);
        else if (pass < gate_pass)
            fetch_matrix<ed_out>(into, from + out_at, words + out_at, out_pass, pass, always, wanted);
        else if (pass < up_pass)
            fetch_matrix<ed_gate>(into, from + gate_at, words + gate_at, gate_pass, pass, always, wanted);
        else if (pass < down_pass)
            fetch_matrix<ed_gate>(into, from + up_at, words + up_at, up_pass, pass, always, wanted);
        else if (pass < used_passes)
            fetch_matrix<ed_down>(into, from + down_at, words + down_at, down_pass, pass, always, wanted);
    }

    /* Fetches pass `pass` of the matrix that begins with pass `first` and lies at `from`, or at `words` for loads of four
     * bytes. The factors of four passes come with the last of them: by then those of the layer before have been used, and
     * they are there before the first of the four passes is. */
    template <class M>
    ED_INSIDE void fetch_matrix(uint4 &into, const int8_t *from, const int8_t *words, int first, int pass, bool always,
                                bool wanted) {
        static_assert(!M::four || ahead > 3, "factors come too late");
        const int number = pass - first;
        fetch_part<M>(into, from + number * M::active * ED_CHUNK, always, wanted);
        if (M::four && (number % 4 == 3 || number == M::passes - 1))
            fetch_part<M>(factors[factors_of(first) + number / 4], words + M::factors_at + number / 4 * M::active * 4,
                          always, wanted);
    }

    template <class M, class T> ED_INSIDE void fetch_part(T &into, const int8_t *from, bool always, bool wanted) {
        if (always && M::active == ED_THREADS)
            load_constant(into, from);
        else
            load_constant(into, from, wanted && t.thread < M::active);
    }

    ED_INSIDE void fetch_keys(uint4 &into, const int8_t *from, int pass, bool always, bool wanted) {
        const int part = pass % ed_key_parts, hr = pass / ed_key_parts / slot_rounds;
        const int slot = pass / ed_key_parts % slot_rounds * slots_at_once;
        from += ed_key_at(hr * heads_at_once, slot, part * ED_CHUNK);
        if (always && ED_WARPS % head_warps == 0 && (hr + 1) * heads_at_once <= ED_HEADS &&
            slot + slots_at_once <= ED_WINDOW)
            load_state(into, from);
        else
            load_state(into, from, wanted && t.has_head(hr) && slot + t.slot() < ED_WINDOW);
    }

    ED_INSIDE void fetch_values(uint4 &into, const int8_t *from, int pass, bool always, bool wanted) {
        using M = ed_values;
        const int chunk = pass / M::groups * M::threads;
        from += pass * M::active * ED_CHUNK;
        if (always && M::active == ED_THREADS && chunk + M::threads <= M::chunks)
            load_state(into, from);
        else
            load_state(into, from, wanted && t.thread < M::active && chunk + t.in_row<M>() < M::chunks);
    }
};

/* ---------------------------------------------------------------- products */

ED_INSIDE uint4 chunk_at(const int8_t *integers, int chunk) { return ((const uint4 *)integers)[chunk]; }

ED_INSIDE int dot(uint4 a, uint4 b, int acc) {
    acc = __dp4a((int)a.x, (int)b.x, acc);
    acc = __dp4a((int)a.y, (int)b.y, acc);
    acc = __dp4a((int)a.z, (int)b.z, acc);
    return __dp4a((int)a.w, (int)b.w, acc);
}

ED_INSIDE uint4 lower_nibbles(uint4 w) {
    return make_uint4(w.x & 0x0f0f0f0fu, w.y & 0x0f0f0f0fu, w.z & 0x0f0f0f0fu, w.w & 0x0f0f0f0fu);
}

/* A thread's 32 integers of a vector that four-bit weights are multiplied with, and -8 times their sum. */
struct four_bit_inputs {
    uint4 half[2];
    int offset;

    ED_INSIDE void set(uint4 first, uint4 second) {
        const uint4 minus_eight = make_uint4(0xf8f8f8f8u, 0xf8f8f8f8u, 0xf8f8f8f8u, 0xf8f8f8f8u);
        half[0] = first;
        half[1] = second;
        offset = dot(second, minus_eight, dot(first, minus_eight, 0));
    }
};

/* Adds the products of round r with weights of eight bits. */
template <class M> ED_INSIDE void add_round(stream &s, int pass, int r, const uint4 &a, int (&acc)[M::groups]) {
    ED_UNROLL_ALL
    for (int g = 0; g < M::groups; g++)
        s.take(pass + r * M::groups + g, [&](const uint4 &weights) { acc[g] = dot(weights, a, acc[g]); });
}

/* Adds the products of round r with four-bit weights. Bytes as they lie give 16 times the sum of the first of two rows
 * plus that of the second one, and their lower halves give that of the second one alone. The first sum stays 16 times too
 * large, which 32 bits hold (packing in edgedistill/compile sees to it). */
template <class M>
ED_INSIDE void add_round(stream &s, int pass, int r, const four_bit_inputs &a, int (&acc)[M::groups]) {
    ED_UNROLL_ALL
    for (int g = 0; g < M::groups; g += 2) {
        const int number = r * M::groups + g, first = s.factor(pass, number), second = s.factor(pass, number + 1);
        int both = a.offset, lower = a.offset;
        ED_UNROLL_ALL
        for (int h = 0; h < 2; h++)
            s.take(pass + number + h, [&](const uint4 &w) {
                both = dot(w, a.half[h], both);
                lower = dot(lower_nibbles(w), a.half[h], lower);
            });
        acc[g] += first * (both - lower);
        acc[g + 1] += second * lower;
    }
}

/* Computes own[i], the product of a vector with the thread's i-th own row of the matrix that begins at `pass`.
 * chunk(r) is the vector's chunk of this thread in round r: a uint4, or four_bit_inputs. */
template <class M, class F> ED_INSIDE void multiply(stream &s, int pass, const F &chunk, int (&own)[M::own]) {
    int acc[M::groups];
    ED_UNROLL_ALL
    for (int g = 0; g < M::groups; g++) acc[g] = 0;
    ED_UNROLL_ALL
    for (int r = 0; r < M::rounds; r++) add_round<M>(s, pass, r, chunk(r), acc);
    ED_UNROLL_ALL
    for (int g = 0; M::four && g < M::groups; g += 2) acc[g] >>= 4; /* exact */
    gather<M>(s.t, acc, own);
}

/* Computes what multiply() does, for a vector in shared memory. */
template <class M> ED_INSIDE void multiply_shared(stream &s, int pass, const int8_t *a, int (&own)[M::own]) {
    const int in_row = s.t.template in_row<M>();
    const auto chunk = [&](int r) {
        const int number = r * M::threads + in_row;
        if constexpr (M::four) {
            four_bit_inputs found;
            found.set(chunk_at(a, 2 * number), chunk_at(a, 2 * number + 1));
            return found;
        } else {
            return chunk_at(a, number);
        }
    };
    multiply<M>(s, pass, chunk, own);
}

} // namespace

#endif
