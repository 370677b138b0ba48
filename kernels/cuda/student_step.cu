/*
 * One step of the INT8 student in one launch of one block: one z-scored bin in, kinematics and latent out, the state
 * moved on by one bin. The definition is numerics/oracle.py; every integer and every float here has its bits.
 *
 * What bounds it. A step reads each weight and each slot of the rings once, from L2, through the port of one
 * multiprocessor: 64 bytes a clock. So all that is not loading must happen while loads are under way: what the block
 * reads, weights and rings alike, is one stream of passes of 16 bytes a thread, in the order of use and known at
 * compile time, and a thread always has the next ED_AHEAD passes under way or in registers: `take` hands out the oldest
 * and issues the load that many passes ahead, across barriers, attention and layers. By Little's law 64 B/clk * 300 clk
 * of latency ask for 19 kB under way; 8 passes are 64 kB, and outlast a barrier, a norm or a softmax as well.
 *
 * A layer has seven barriers: x | q, k, v | largest score | p | context | x | hidden | x.
 *   - norm: each warp computes the factor for itself, a lane rounds four values, shuffles hand them to those who need
 *     them: no barrier;
 *   - products: T threads share a row (student_layout.h) and exchange partial sums so that each lane ends with rows of
 *     its own: T - 1 shuffles for T rows, and no lane is idle while it scales and rounds them;
 *   - attention: 16 / H warps a head, a slot a thread; the new key takes the place of the one that has just left the
 *     window, the new value joins at the end; both rings are written after everybody has read them.
 */
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

/* i = 0 ... n - 1, dealt to the threads; n is a constant. */
#define ED_EACH(i, n)                                        \
    ED_UNROLL_ALL                                            \
    for (int i##_at = 0; i##_at < (n); i##_at += ED_THREADS) \
        if (const int i = i##_at + (int)threadIdx.x; i < (n))

#ifdef ED_TRACE /* tests, in emulation: the caller's; layer -1: of none */
extern "C" void ed_trace(const char *name, int layer, const void *data, size_t bytes);
#define ED_SEEN(name, layer, data, bytes) (threadIdx.x ? (void)0 : ed_trace(name, layer, data, bytes))
#else
#define ED_SEEN(name, layer, data, bytes) ((void)0)
#endif

namespace {

#define ED_DEAD_SCORE (-1e30f) /* of a slot that is not seen: its exponential rounds to 0 */

/* ---------------------------------------------------------------- who does what in attention */

constexpr int head_warps = ED_HEADS < ED_WARPS ? ED_WARPS / ED_HEADS : 1; /* that share a head */
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

/* The stream lies in registers whose numbers must be constants, in every layer the same: a layer is filled up with
 * empty passes, which load nothing, to a multiple of the depth; of 8, 7 and 6 the depth with the fewest of them. */
constexpr int filled(int depth) { return ed_ceil(used_passes, depth) * depth; }
constexpr int shorter(int depth, int than) { return filled(depth) < filled(than) ? depth : than; }
#ifndef ED_AHEAD
#define ED_AHEAD shorter(6, shorter(7, 8))
#endif
constexpr int ahead = ED_AHEAD;
constexpr int layer_passes = filled(ahead);

/* Where the weights of a layer's matrices begin, in bytes. */
constexpr int out_at = ed_qkv::bytes;
constexpr int gate_at = out_at + ed_out::bytes;
constexpr int up_at = gate_at + ed_gate::bytes;
constexpr int down_at = up_at + ed_gate::bytes;

/* ---------------------------------------------------------------- loads */

/* Loads that are issued where they stand: compilers would move them to where their result is used. */
#ifdef ED_EMULATED
ED_INSIDE void load_weights(uint4 &into, const void *from, bool wanted) {
    if (wanted) into = *(const uint4 *)from;
}
ED_INSIDE void load_ring(uint4 &into, const void *from, bool wanted) { load_weights(into, from, wanted); }
ED_INSIDE float load_float(const float *from) { return *from; }
ED_INSIDE int load_int(const void *from) { return *(const int *)from; }
#else
#define ED_LOAD_IF(kind)                                                            \
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.u32 p, %5, 0;\n\t@p ld.global" kind \
                 ".v4.u32 {%0, %1, %2, %3}, [%4];\n\t}"                             \
                 : "+r"(into.x), "+r"(into.y), "+r"(into.z), "+r"(into.w)           \
                 : "l"(from), "r"((unsigned)wanted))
ED_INSIDE void load_weights(uint4 &into, const void *from, bool wanted) { ED_LOAD_IF(".nc.L1::no_allocate"); }
ED_INSIDE void load_ring(uint4 &into, const void *from, bool wanted) { ED_LOAD_IF(".L1::no_allocate"); }
ED_INSIDE float load_float(const float *from) {
    float value;
    asm volatile("ld.global.nc.f32 %0, [%1];" : "=f"(value) : "l"(from));
    return value;
}
ED_INSIDE int load_int(const void *from) {
    int value;
    asm volatile("ld.global.nc.s32 %0, [%1];" : "=r"(value) : "l"(from));
    return value;
}
#endif

/* ---------------------------------------------------------------- a thread's place */

ED_INSIDE int lane_of() { return (int)(threadIdx.x % 32); }
ED_INSIDE int warp_of() { return (int)(threadIdx.x / 32); }

/* Of the head among those of a round, and of the slot among those of a round: this thread's. */
ED_INSIDE int head_of() { return (int)(threadIdx.x / (head_warps * 32)); }
ED_INSIDE int slot_of() { return (int)(threadIdx.x % (head_warps * 32)); }

/* Sums over the T threads of a row, all rows at once (student_layout.h): own[i] is then the sum of the thread's i-th
 * own row. Destroys acc. */
template <class M>
ED_INSIDE void gather(int (&acc)[M::groups], int (&own)[M::own]) {
    int left = M::groups;
    ED_UNROLL_ALL
    for (int bit = M::threads / 2; bit; bit /= 2) {
        const int given = left % 2 == 0 ? left / 2 : 0; /* from here on */
        left -= given;
        ED_UNROLL_ALL
        for (int i = 0; i < left; i++) acc[i] += __shfl_xor_sync(0xffffffffu, acc[given + i], bit);
    }
    const int first = (int)(threadIdx.x % M::threads_left);
    ED_UNROLL_ALL
    for (int i = 0; i < M::own; i++) {
        own[i] = acc[i * M::threads_left];
        ED_UNROLL_ALL
        for (int j = 1; j < M::threads_left; j++)
            if (i * M::threads_left + j < M::left && first == j) own[i] = acc[i * M::threads_left + j];
    }
}

/* Whether this thread has a head in a round. */
ED_INSIDE bool has_head(int round) {
    return (ED_WARPS % head_warps == 0 || head_of() < heads_at_once) &&
           ((round + 1) * heads_at_once <= ED_HEADS || round * heads_at_once + head_of() < ED_HEADS);
}

/* ---------------------------------------------------------------- the stream */

struct stream {
    uint4 held[ahead];
    const int8_t *embedding, *weights, *keys, *values; /* of this layer, at this thread's place */
    bool last;                                         /* this layer is the last */

    ED_INSIDE stream(const int8_t *all, const ed_cuda_state *state) : last(false) {
        embedding = all + threadIdx.x * ED_CHUNK;
        weights = embedding + ed_embedding::bytes;
        keys = state->keys[0] + ed_key_at(head_of(), slot_of(), 0);
        values = state->values[0] + threadIdx.x * ED_CHUNK;
        ED_UNROLL_ALL
        for (int i = 0; i < ahead; i++) held[i] = make_uint4(0, 0, 0, 0);
        ED_UNROLL_ALL
        for (int i = 0; i < ahead; i++) fetch(i - ed_embedding::passes);
    }

    /* The next 16 bytes. `pass` counts from the start of this layer; the embedding's are negative. */
    ED_INSIDE uint4 take(int pass) {
        const uint4 oldest = held[place(pass)];
        fetch(pass + ahead);
        return oldest;
    }

    ED_INSIDE void end_layer() {
        ED_UNROLL_ALL
        for (int pass = used_passes; pass < layer_passes; pass++) fetch(pass + ahead);
        weights += ed_layer_bytes;
        keys += ed_keys_bytes;
        values += ed_values::bytes;
    }

   private:
    static ED_EITHER int place(int pass) { return (pass + ed_ceil(ed_embedding::passes, ahead) * ahead) % ahead; }

    ED_INSIDE void fetch(int pass) {
        const int next = pass >= layer_passes;
        const int at = pass - next * layer_passes;
        const bool wanted = !(next && last);
        uint4 &into = held[place(pass)];
        if (at < 0)
            fetch_matrix<ed_embedding>(into, embedding, at + ed_embedding::passes, true);
        else if (at < keys_pass)
            fetch_matrix<ed_qkv>(into, weights + next * ed_layer_bytes, at - qkv_pass, wanted);
        else if (at < values_pass)
            fetch_keys(into, keys + next * ed_keys_bytes, at - keys_pass, wanted);
        else if (at < out_pass)
            fetch_values(into, values + next * ed_values::bytes, at - values_pass, wanted);
        else if (at < gate_pass)
            fetch_matrix<ed_out>(into, weights + next * ed_layer_bytes + out_at, at - out_pass, wanted);
        else if (at < up_pass)
            fetch_matrix<ed_gate>(into, weights + next * ed_layer_bytes + gate_at, at - gate_pass, wanted);
        else if (at < down_pass)
            fetch_matrix<ed_gate>(into, weights + next * ed_layer_bytes + up_at, at - up_pass, wanted);
        else if (at < used_passes)
            fetch_matrix<ed_down>(into, weights + next * ed_layer_bytes + down_at, at - down_pass, wanted);
    }

    template <class M>
    ED_INSIDE static void fetch_matrix(uint4 &into, const int8_t *from, int pass, bool wanted) {
        const bool active = M::active == ED_THREADS || threadIdx.x < M::active;
        load_weights(into, from + pass * M::active * ED_CHUNK, active && wanted);
    }

    ED_INSIDE static void fetch_keys(uint4 &into, const int8_t *from, int pass, bool wanted) {
        const int part = pass % ed_key_parts, round = pass / ed_key_parts;
        const int hr = round / slot_rounds, slot = round % slot_rounds * slots_at_once;
        const bool has_slot = slot + slots_at_once <= ED_WINDOW || slot + slot_of() < ED_WINDOW;
        load_ring(into, from + ed_key_at(hr * heads_at_once, slot, part * ED_CHUNK),
                  has_head(hr) && has_slot && wanted);
    }

    ED_INSIDE static void fetch_values(uint4 &into, const int8_t *from, int pass, bool wanted) {
        using M = ed_values;
        const int chunk = pass / M::groups * M::threads;
        const bool active = (M::active == ED_THREADS || threadIdx.x < M::active) &&
                            (chunk + M::threads <= M::chunks || chunk + (int)(threadIdx.x % M::threads) < M::chunks);
        load_ring(into, from + pass * M::active * ED_CHUNK, active && wanted);
    }
};

/* ---------------------------------------------------------------- what the threads share */

struct shared_memory {
    alignas(16) float x[ED_DP]; /* residual stream, padded with zeros */
    alignas(16) int8_t taps[ed_embedding::padded];
    alignas(16) int8_t recent[ed_lag_rounds * 32 * ED_CHUNK > ED_BIN_ROWS *ED_CHANNELS
                                  ? ed_lag_rounds * 32 * ED_CHUNK
                                  : ED_BIN_ROWS *ED_CHANNELS]; /* bins, newest first */
    alignas(16) int8_t qkv[3][ED_HEADS * ED_DHP];
    alignas(16) int8_t p[ED_HEADS][ed_values::padded]; /* by slot; the new bin's stands in p_new */
    alignas(16) int8_t context[ed_out::padded];
    alignas(16) int8_t hidden[ed_down::padded];
    int p_new[ED_HEADS];
    float highest[head_rounds * ED_WARPS]; /* score that a warp saw */
    int total[head_rounds * ED_WARPS];     /* of p, of a warp */
    float scalars[ED_LAYERS][ED_LAYER_SCALARS];
};

ED_INSIDE uint4 chunk_at(const int8_t *integers, int chunk) { return ((const uint4 *)integers)[chunk]; }

ED_INSIDE int dot(uint4 a, uint4 b, int acc) {
    acc = __dp4a((int)a.x, (int)b.x, acc);
    acc = __dp4a((int)a.y, (int)b.y, acc);
    acc = __dp4a((int)a.z, (int)b.z, acc);
    return __dp4a((int)a.w, (int)b.w, acc);
}

/* own[i] = the thread's i-th own row of the matrix that begins at `pass`, by a vector; chunk(r) is the vector's chunk
 * of this thread in round r. */
template <class M, class F>
ED_INSIDE void multiply(stream &s, int pass, F chunk, int (&own)[M::own]) {
    int acc[M::groups];
    ED_UNROLL_ALL
    for (int g = 0; g < M::groups; g++) acc[g] = 0;
    ED_UNROLL_ALL
    for (int r = 0; r < M::rounds; r++) {
        const uint4 a = chunk(r);
        ED_UNROLL_ALL
        for (int g = 0; g < M::groups; g++) acc[g] = dot(s.take(pass + r * M::groups + g), a, acc[g]);
    }
    gather<M>(acc, own);
}

/* The same for a vector in shared memory. */
template <class M>
ED_INSIDE void multiply_shared(stream &s, int pass, const int8_t *a, int (&own)[M::own]) {
    const int t = (int)(threadIdx.x % M::threads);
    multiply<M>(
        s, pass, [&](int r) { return chunk_at(a, r * M::threads + t); }, own);
}

/* ---------------------------------------------------------------- sums over a warp */

ED_INSIDE int warp_sum(int value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    return __reduce_add_sync(0xffffffffu, value);
#else
    for (int bit = 16; bit; bit /= 2) value += __shfl_xor_sync(0xffffffffu, value, bit);
    return value;
#endif
}

/* Of finite values. Bits as an integer have the order of floats once those of negative ones are turned round. */
ED_INSIDE float warp_max(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    int bits = __float_as_int(value);
    bits = __reduce_max_sync(0xffffffffu, bits ^ ((bits >> 31) & 0x7fffffff));
    return __int_as_float(bits ^ ((bits >> 31) & 0x7fffffff));
#else
    for (int bit = 16; bit; bit /= 2) value = ed_larger(value, __shfl_xor_sync(0xffffffffu, value, bit));
    return value;
#endif
}

/* ---------------------------------------------------------------- norm */

constexpr int vector_words = ED_DP / 4; /* of 4 integers; lane l has words l, l + 32, ... */

/* 1 / root mean square of x: lane i mod 16 adds its values in order, then lanes 8, 4, 2, 1 apart are added. */
ED_INSIDE float norm_factor(const float *x) {
    const int own = lane_of() % 16;
    float sum = x[own] * x[own];
    ED_UNROLL_ALL
    for (int i = 16; i < ED_DP; i += 16) sum = sum + x[i + own] * x[i + own];
    ED_UNROLL_ALL
    for (int bit = 8; bit; bit /= 2) sum = sum + __shfl_xor_sync(0xffffffffu, sum, bit);
    return 1.0f / sqrtf(sum / (float)ED_D + ED_RMS_EPSILON);
}

ED_INSIDE int packed(int a, int b, int c, int d) {
    return (a & 255) | (b & 255) << 8 | (c & 255) << 16 | (int)((unsigned)d << 24);
}

/* quantize(norm(x)), in words. */
ED_INSIDE void norm_words(const float *x, float inv_scale, int (&words)[ed_word_rounds]) {
    const float factor = norm_factor(x);
    ED_UNROLL_ALL
    for (int j = 0; j < ed_word_rounds; j++) {
        const int word = j * 32 + lane_of();
        const bool there = (j + 1) * 32 <= vector_words || word < vector_words;
        const float4 v = ((const float4 *)x)[there ? word : 0];
        words[j] = packed(ed_quantize(v.x * factor, inv_scale), ed_quantize(v.y * factor, inv_scale),
                          ed_quantize(v.z * factor, inv_scale), ed_quantize(v.w * factor, inv_scale));
        words[j] = there ? words[j] : 0;
    }
}

/* The same for a vector that the lanes hold as words. T divides 8, so that the words of a round of chunks are the same
 * ones of all lanes. */
template <class M>
ED_INSIDE void multiply_words(stream &s, int pass, const int (&words)[ed_word_rounds], int (&own)[M::own]) {
    const int t = (int)(threadIdx.x % M::threads);
    const auto chunk = [&](int r) {
        const int word = words[r * M::threads / 8], lane = (r * M::threads % 8 + t) * 4;
        return make_uint4(
            (unsigned)__shfl_sync(0xffffffffu, word, lane), (unsigned)__shfl_sync(0xffffffffu, word, lane + 1),
            (unsigned)__shfl_sync(0xffffffffu, word, lane + 2), (unsigned)__shfl_sync(0xffffffffu, word, lane + 3));
    };
    multiply<M>(s, pass, chunk, own);
}

#ifdef ED_TRACE
ED_INSIDE void trace_words(const char *name, int layer, const int (&words)[ed_word_rounds]) {
    static int all[ed_word_rounds * 32];
    for (int j = 0; j < ed_word_rounds; j++)
        if (warp_of() == 0) all[j * 32 + lane_of()] = words[j];
    __syncthreads();
    ED_SEEN(name, layer, all, ED_D);
    __syncthreads();
}

ED_INSIDE void trace_heads(const char *name, int layer, const int8_t *padded) {
    int8_t all[ED_D];
    for (int i = 0; i < ED_D; i++) all[i] = padded[i / ED_DH * ED_DHP + i % ED_DH];
    ED_SEEN(name, layer, all, ED_D);
}
#else
#define trace_words(name, layer, words) ((void)0)
#define trace_heads(name, layer, padded) ((void)0)
#endif

/* ---------------------------------------------------------------- a layer */

/* A thread's part of a table. */
template <class M>
struct by_thread {
    float of[M::own];
    ED_INSIDE void load(const float *table) {
        ED_UNROLL_ALL
        for (int i = 0; i < M::own; i++) of[i] = load_float(table + i * ED_THREADS + threadIdx.x);
    }
};

/* What a thread needs of a layer's tables: loaded when the layer begins, since it comes from as far as the weights. */
struct layer_floats {
    by_thread<ed_qkv> qkv;
    by_thread<ed_out> out;
    by_thread<ed_gate> gate, up;
    by_thread<ed_down> down;
    float bias[head_rounds][slot_rounds]; /* by age, of this thread's slots */

    ED_INSIDE layer_floats(const float *table, int slot) {
        qkv.load(table + ed_qkv_m_at);
        load_bias(table + ed_age_bias_at, slot);
        out.load(table + ed_out_m_at);
        gate.load(table + ed_gate_m_at);
        up.load(table + ed_up_m_at);
        down.load(table + ed_down_m_at);
    }

    /* A table's row holds ages so that from ED_WINDOW - 1 - slot on they lie by slot. */
    ED_INSIDE void load_bias(const float *table, int slot) {
        const float *row =
            table + (head_of() < ED_HEADS ? head_of() : 0) * ED_BIAS_ROW + slot_of() + ED_WINDOW - 1 - slot;
        ED_UNROLL_ALL
        for (int hr = 0; hr < head_rounds; hr++) ED_UNROLL_ALL
        for (int sr = 0; sr < slot_rounds; sr++) {
            const bool there = (hr + 1) * heads_at_once <= ED_HEADS || hr * heads_at_once + head_of() < ED_HEADS;
            bias[hr][sr] = load_float(row + (there ? hr * heads_at_once * ED_BIAS_ROW : 0) + sr * slots_at_once);
        }
    }
};

/* q, k and v of the new bin. */
ED_INSIDE void project(stream &s, shared_memory &m, int layer, const layer_floats &floats) {
    int words[ed_word_rounds], sum[ed_qkv::own];
    norm_words(m.x, m.scalars[layer][ED_ATTN_INV], words);
    trace_words("attn", layer, words);
    multiply_words<ed_qkv>(s, qkv_pass, words, sum);
    ED_UNROLL_ALL
    for (int i = 0; i < ed_qkv::own; i++) {
        const int row = ed_qkv::own_row((int)threadIdx.x, i);
        if (row < 0) continue;
        const int part = row / ED_D, at = row % ED_D;
        const float y = (float)sum[i] * floats.qkv.of[i];
        m.qkv[part][at / ED_DH * ED_DHP + at % ED_DH] = (int8_t)ed_quantize(y, m.scalars[layer][ED_Q_INV + part]);
    }
}

/* score[hr][sr] of this thread's slots; the highest of each warp goes to shared memory. */
ED_INSIDE void score_slots(stream &s, shared_memory &m, int layer, const layer_floats &floats, int slot, int live,
                           float (&score)[head_rounds][slot_rounds]) {
    const float scale = m.scalars[layer][ED_SCORE_SCALE];
    ED_UNROLL_ALL
    for (int hr = 0; hr < head_rounds; hr++) {
        const int wanted = hr * heads_at_once + head_of(), head = wanted < ED_HEADS ? wanted : 0;
        float high = ED_DEAD_SCORE;
        ED_UNROLL_ALL
        for (int sr = 0; sr < slot_rounds; sr++) {
            const int own = sr * slots_at_once + slot_of();
            int acc = 0, age = slot - own;
            ED_UNROLL_ALL
            for (int part = 0; part < ed_key_parts; part++) {
                uint4 key = s.take(keys_pass + (hr * slot_rounds + sr) * ed_key_parts + part);
                if (own == slot) key = chunk_at(m.qkv[1], head * ed_key_parts + part);
                acc = dot(key, chunk_at(m.qkv[0], head * ed_key_parts + part), acc);
            }
            age += age < 0 ? ED_WINDOW : 0;
            const float value = (float)acc * scale + floats.bias[hr][sr];
            score[hr][sr] = own < ED_WINDOW && age <= live ? value : ED_DEAD_SCORE;
            high = ed_larger(high, score[hr][sr]);
        }
        high = warp_max(high);
        if (lane_of() == 0) m.highest[hr * ED_WARPS + warp_of()] = high;
    }
}

/* p = rint(127 exp(score - highest)) of this thread's slots, and the sum of each warp. */
ED_INSIDE void weigh_slots(shared_memory &m, int slot, const float (&score)[head_rounds][slot_rounds]) {
    const int first = head_of() * head_warps; /* warp of this head */
    ED_UNROLL_ALL
    for (int hr = 0; hr < head_rounds; hr++) {
        const int head = hr * heads_at_once + head_of();
        float high = m.highest[hr * ED_WARPS + first];
        ED_UNROLL_ALL
        for (int i = 1; i < head_warps; i++) high = ed_larger(high, m.highest[hr * ED_WARPS + first + i]);
        int total = 0;
        ED_UNROLL_ALL
        for (int sr = 0; sr < slot_rounds; sr++) {
            const int own = sr * slots_at_once + slot_of();
            const int weight = ed_rint(127.0f * ed_exp(score[hr][sr] - high));
            total += weight;
            if (own < ED_WINDOW && has_head(hr)) {
                m.p[head][own] = (int8_t)(own == slot ? 0 : weight);
                if (own == slot) m.p_new[head] = weight;
            }
        }
        total = warp_sum(total);
        if (lane_of() == 0) m.total[hr * ED_WARPS + warp_of()] = total;
    }
}

/* context = quantize(sum p v / sum p). */
ED_INSIDE void mix_values(stream &s, shared_memory &m, int layer) {
    using M = ed_values;
    int acc[M::groups] = {}, sum[M::own];
    const int first = (int)(threadIdx.x / M::threads) * M::groups, t = (int)(threadIdx.x % M::threads);
    ED_UNROLL_ALL
    for (int r = 0; r < M::rounds; r++) {
        ED_UNROLL_ALL
        for (int g = 0; g < M::groups; g++) {
            const int row = first + (ED_DH % M::groups ? M::turned(g, t) : 0); /* or all rows are of one head */
            const int head = row < ED_D ? row / ED_DH : 0;
            acc[g] = dot(s.take(values_pass + r * M::groups + g), chunk_at(m.p[head], r * M::threads + t), acc[g]);
        }
    }
    gather<M>(acc, sum);
    const float scale = m.scalars[layer][ED_V_SCALE], inv_scale = m.scalars[layer][ED_CONTEXT_INV];
    ED_UNROLL_ALL
    for (int i = 0; i < M::own; i++) {
        const int row = M::own_row((int)threadIdx.x, i);
        if (row < 0) continue;
        const int head = row / ED_DH, at = head * ED_DHP + row % ED_DH;
        const int *totals = m.total + head / heads_at_once * ED_WARPS + head % heads_at_once * head_warps;
        int total = totals[0];
        ED_UNROLL_ALL
        for (int w = 1; w < head_warps; w++) total += totals[w];
        const int weighted = sum[i] + m.p_new[head] * m.qkv[2][at];
        m.context[row] = (int8_t)ed_quantize(((float)weighted * scale) / (float)total, inv_scale);
    }
}

/* Keys and values of the new bin take the place of those that have left the window. */
ED_INSIDE void keep(const shared_memory &m, ed_cuda_state *state, int layer, int slot) {
    ED_EACH(i, ED_D) state->values[layer][ed_values::at(i, slot)] = m.qkv[2][i / ED_DH * ED_DHP + i % ED_DH];
    ED_EACH(i, ED_HEADS * ed_key_parts)
    *(uint4 *)(state->keys[layer] + ed_key_at(0, slot, 0) + i * ED_WP * ED_CHUNK) = chunk_at(m.qkv[1], i);
}

/* x += float(product) * multiplier. */
template <class M>
ED_INSIDE void add_product(stream &s, int pass, const int8_t *a, const by_thread<M> &multiplier, float *x) {
    int sum[M::own];
    multiply_shared<M>(s, pass, a, sum);
    ED_UNROLL_ALL
    for (int i = 0; i < M::own; i++) {
        const int row = M::own_row((int)threadIdx.x, i);
        if (row >= 0) x[row] = x[row] + (float)sum[i] * multiplier.of[i];
    }
}

/* hidden = quantize(silu(gate) * up). */
ED_INSIDE void activate(stream &s, shared_memory &m, int layer, const layer_floats &floats) {
    int words[ed_word_rounds], gate[ed_gate::own], up[ed_gate::own];
    norm_words(m.x, m.scalars[layer][ED_MLP_INV], words);
    trace_words("mlp", layer, words);
    multiply_words<ed_gate>(s, gate_pass, words, gate);
    multiply_words<ed_gate>(s, up_pass, words, up);
    ED_UNROLL_ALL
    for (int i = 0; i < ed_gate::own; i++) {
        const int row = ed_gate::own_row((int)threadIdx.x, i);
        if (row < 0) continue;
        const float y = ed_silu((float)gate[i] * floats.gate.of[i]) * ((float)up[i] * floats.up.of[i]);
        m.hidden[row] = (int8_t)ed_quantize(y, m.scalars[layer][ED_HIDDEN_INV]);
    }
}

ED_INSIDE void run_layer(stream &s, shared_memory &m, ed_cuda_state *state, const float *table, int layer, int slot,
                         int live) {
    const layer_floats floats(table, slot);
    float score[head_rounds][slot_rounds];
    project(s, m, layer, floats);
    __syncthreads();
    score_slots(s, m, layer, floats, slot, live, score);
    __syncthreads();
    weigh_slots(m, slot, score);
    __syncthreads();
    mix_values(s, m, layer);
    __syncthreads();
    trace_heads("q", layer, m.qkv[0]);
    trace_heads("k", layer, m.qkv[1]);
    trace_heads("v", layer, m.qkv[2]);
    ED_SEEN("context", layer, m.context, ED_D);
    add_product<ed_out>(s, out_pass, m.context, floats.out, m.x);
    keep(m, state, layer, slot);
    __syncthreads();
    activate(s, m, layer, floats);
    __syncthreads();
    ED_SEEN("hidden", layer, m.hidden, ED_FF);
    add_product<ed_down>(s, down_pass, m.hidden, floats.down, m.x);
    s.end_layer();
    __syncthreads();
}

/* ---------------------------------------------------------------- bins */

/* An integer of a bin into the vectors that products read. */
ED_INSIDE void place_bin(shared_memory &m, int age, int channel, int8_t value) {
    m.recent[age * ED_CHANNELS + channel] = value;
    if (age % ED_DILATION == 0 && age / ED_DILATION < ED_TAPS)
        m.taps[age / ED_DILATION * ED_CHANNELS + channel] = value;
}

/* The bins of the state, and the new one, which joins them in `row`. */
ED_INSIDE void take_bins(shared_memory &m, ed_cuda_state *state, const float *bin, float inv_scale, int row) {
    ED_EACH(i, ED_BIN_ROWS * ED_CHANNELS) {
        const int age = (i / ED_CHANNELS - row + ED_BIN_ROWS) % ED_BIN_ROWS;
        const int8_t value = state->bins[i];
        if (age) place_bin(m, age, i % ED_CHANNELS, value);
    }
    ED_EACH(i, ED_CHANNELS) {
        const int8_t value = (int8_t)ed_quantize(bin[i], inv_scale);
        place_bin(m, 0, i, value);
        state->bins[row * ED_CHANNELS + i] = value;
    }
}

ED_INSIDE void embed(stream &s, shared_memory &m, const float *tables) {
    using M = ed_embedding;
    by_thread<M> multiplier, bias;
    int sum[M::own];
    multiplier.load(tables + ed_embed_m_at);
    bias.load(tables + ed_embed_bias_at);
    multiply_shared<M>(s, -M::passes, m.taps, sum);
    ED_UNROLL_ALL
    for (int i = 0; i < M::own; i++) {
        const int row = M::own_row((int)threadIdx.x, i);
        if (row >= 0) m.x[row] = (float)sum[i] * multiplier.of[i] + bias.of[i];
    }
}

/* ---------------------------------------------------------------- read-out: warp o computes output o */

ED_INSIDE float readout_of_bins(const shared_memory &m, const int8_t *weights, const float *tables) {
    if (warp_of() >= ED_OUTPUTS) return 0.0f;
    int acc = 0;
    ED_UNROLL_ALL
    for (int r = 0; r < ed_lag_rounds; r++) {
        uint4 w = make_uint4(0, 0, 0, 0);
        load_weights(w, weights + ed_lags_at + ((warp_of() * ed_lag_rounds + r) * 32 + lane_of()) * ED_CHUNK, true);
        acc = dot(w, chunk_at(m.recent, r * 32 + lane_of()), acc);
    }
    return (float)warp_sum(acc) * load_float(tables + ed_lags_m_at + warp_of());
}

ED_INSIDE void finish(const shared_memory &m, const int (&weights)[ed_word_rounds], float of_bins, const float *tables,
                      float *out) {
    int words[ed_word_rounds], acc = 0;
    norm_words(m.x, load_float(tables + ED_LATENT_INV), words);
    trace_words("latent", -1, words);
    ED_UNROLL_ALL
    for (int j = 0; j < ed_word_rounds; j++) acc = __dp4a(weights[j], words[j], acc);
    acc = warp_sum(acc);
    if (warp_of() < ED_OUTPUTS && lane_of() == 0) {
        const float of_latent = (float)acc * load_float(tables + ed_latent_m_at + warp_of());
        out[warp_of()] = (of_latent + of_bins) + load_float(tables + ed_readout_bias_at + warp_of());
    }
    const float factor = norm_factor(m.x);
    ED_EACH(i, ED_D) out[ED_OUTPUTS + i] = m.x[i] * factor;
}

}  // namespace

/* ---------------------------------------------------------------- the step */

/* weights, tables: see student_state.h. bin (ED_CHANNELS,) finite, 0 where masked; out: kinematics (ED_OUTPUTS,), then
 * latent (ED_D,). bin and out may be host memory that the device reads and writes. */
extern "C" __global__ void __launch_bounds__(ED_THREADS, 1)
    ed_student_step(const uint4 *weights, const float *tables, struct ed_cuda_state *state, const float *bin,
                    float *out) {
    __shared__ shared_memory m;
    const int8_t *integers = (const int8_t *)weights;
    const int slot = state->slot, live = state->live, row = (state->row + ED_BIN_ROWS - 1) % ED_BIN_ROWS;
    stream s(integers, state);
    ED_EACH(i, (int)(sizeof m.p / 16))((uint4 *)m.p)[i] = make_uint4(0, 0, 0, 0);
    ED_EACH(i, ED_DP - ED_D) m.x[ED_D + i] = 0.0f;
    ED_EACH(i, ED_LAYERS * ED_LAYER_SCALARS) m.scalars[0][i] = tables[ED_MODEL_SCALARS + i];
    take_bins(m, state, bin, tables[ED_BIN_INV], row);
    __syncthreads();
    ED_SEEN("bin", -1, m.recent, ED_CHANNELS);
    embed(s, m, tables);
    const float of_bins = readout_of_bins(m, integers, tables);
    __syncthreads();
    ED_UNROLL_NONE
    for (int layer = 0; layer < ED_LAYERS; layer++) {
        s.last = layer + 1 == ED_LAYERS;
        run_layer(s, m, state, tables + ed_layers_at + layer * ed_layer_floats, layer, slot, live);
    }
    int readout[ed_word_rounds];
    ED_UNROLL_ALL
    for (int j = 0; j < ed_word_rounds; j++) {
        const int output = warp_of() < ED_OUTPUTS ? warp_of() : 0;
        readout[j] = load_int(integers + ed_latent_at + ((output * ed_word_rounds + j) * 32 + lane_of()) * 4);
    }
    finish(m, readout, of_bins, tables, out);
    if (threadIdx.x == 0) {
        state->slot = slot + 1 == ED_WINDOW ? 0 : slot + 1;
        state->row = row;
        state->pos = state->pos + 1 == ED_SLOTS ? 0 : state->pos + 1;
        state->live = live + (live < ED_SLOTS);
    }
}
ED_EXPORT_KERNEL(ed_student_step)
