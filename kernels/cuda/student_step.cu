/*
 * One step of the INT8 student in one launch of one block. One bin of the models' input goes in, kinematics and latent
 * come out, and the state moves on by one bin. The definition is numerics/oracle.py (docs/numerics.md); every integer
 * and every float here has its bits.
 *
 * What bounds it. A step reads each weight and each slot of the rings once, from L2, through the port of one
 * multiprocessor: 117 bytes a clock, as measured on an H100. So everything that is not loading must happen while loads
 * are under way. What the block reads, weights and rings alike, is one stream of passes of 16 bytes a thread, in the
 * order of use and known at compile time. A thread always has the next `ahead` passes under way or in registers: `take`
 * hands out the oldest and issues the load that many passes ahead, across barriers, attention and layers. By Little's
 * law 117 B/clk * 400 clk of latency need 47 kB under way; 16 passes of 256 threads are 64 kB, and outlast a barrier, a
 * norm or a softmax as well.
 *
 * A layer has seven barriers: x | q, k, v | largest score | p | context | x | hidden | x.
 *   - Norm: each warp computes the factor for itself, a lane rounds four values, and shuffles hand them to the lanes
 *     that need them, without a barrier.
 *   - Products: T threads share a row (student_layout.h) and exchange partial sums so that each lane ends with rows of
 *     its own: T - 1 shuffles for T rows, no choices, and no lane idle while it scales and rounds them.
 *   - Attention: 16 / H warps share a head, with a slot for each thread. The new key takes the place of the one that
 *     has just left the window, and the new value joins at the end. Both rings are written after all threads have read
 *     them. Slots that were never written are masked, not skipped: a cold ring costs what a full one costs.
 *
 * Block: 256 threads of at most 255 registers; 512 for large students (threads_of in edgedistill/compile). Fewer warps
 * issue fewer instructions, because every warp computes the norms and addresses for itself. The following is known
 * without a device, for sm_87, sm_90, sm_110 and ptxas of CUDA 13.0, at 96 channels:
 *
 *   - `edge` takes 230 to 240 registers, `nano` 90 to 107, with no spills and 5 kB of shared memory; `paper`, ten layers
 *     of 256, spills up to 12 words a thread;
 *   - floor: `edge` reads 1.38 MB, 11,800 clocks at 117 bytes a clock; `nano` 0.25 MB, 2,100;
 *   - instructions of a warp: `edge` 5,480, of them 1,236 a layer, 10,950 clocks if four schedulers never waited, where
 *     512 threads took 16,150; `nano` 2,150 and 4,300.
 *
 * Four-bit weights stay packed in the parts whose ED_FOUR_BITS_... is 1 (student_layout.h): half the bytes, and for 64
 * weights of a thread 31 instructions in place of 20. For sm_90 `edge` then takes 181 registers, 6,490 instructions a
 * warp and 0.87 MB, and is projected to be slower; `paper` spills nothing.
 *
 * Measured on an H100, of the version before with 512 threads for `edge`: 38,400 clocks back to back (19.4 us at 1980
 * MHz), and 15,500 for `nano`. A launch that does next to nothing takes 4,200 of them. The rest is explained by 1.64
 * clocks an issued instruction and 260 a stage, but two measured students determine these two numbers, so nothing checks
 * them. With them the present version of `edge` is PROJECTED to take 15.1 us there (docs/gpu.md). Every bit was right.
 *
 * Not done. Products on tensor cores (mma m16n8k32) would take one instruction for four dp4a and need no sums across
 * lanes, a quarter fewer instructions for `edge`; they need another packing and, for sm_75, another instruction. On
 * Hopper and Blackwell a cluster of n blocks could read and multiply 1/n of the stream each and exchange x, q, k, v and
 * hidden through distributed shared memory; every barrier would then be one of the cluster. Orin has no clusters.
 */
#include "student_stream.cuh"

#ifdef ED_TRACE /* for tests in emulation, which define the function; layer is -1 where there is none */
extern "C" void ed_trace(const char *name, int layer, const void *data, size_t bytes);
#define ED_SEEN(name, layer, data, bytes) (threadIdx.x ? (void)0 : ed_trace(name, layer, data, bytes))
#else
#define ED_SEEN(name, layer, data, bytes) ((void)0)
#endif

namespace {

/* ---------------------------------------------------------------- shared memory */

struct shared_memory {
    alignas(16) float x[ED_DP]; /* residual stream, padded with zeros */
    alignas(16) int8_t taps[ed_embedding::padded];
    alignas(16) int8_t recent[ed_lag_rounds * 32 * ED_CHUNK > ED_BIN_ROWS *ED_CHANNELS
                                  ? ed_lag_rounds * 32 * ED_CHUNK
                                  : ED_BIN_ROWS *ED_CHANNELS]; /* bins, newest first */
    alignas(16) int8_t qkv[3][ED_HEADS * ED_DHP];              /* heads padded with zeros */
    alignas(16) int8_t p[ED_HEADS][ed_values::padded];         /* by slot; the value of the new bin is in p_new */
    alignas(16) int8_t context[ed_out::padded];
    alignas(16) int8_t hidden[ed_down::padded];
    int p_new[ED_HEADS];
    float highest[head_rounds * ED_WARPS]; /* highest score that each warp saw */
    int total[head_rounds * ED_WARPS];     /* sum of p of each warp */
    float scalars[ED_LAYERS][ED_LAYER_SCALARS];
};

/* ---------------------------------------------------------------- norm */

constexpr int vector_words = ED_DP / 4; /* words of 4 integers; lane l has words l, l + 32, ... */

/* Returns 1 / root mean square of x: lane i mod 16 adds its values in order, then lanes 8, 4, 2, 1 apart are added. */
ED_INSIDE float norm_factor(const place &t, const float *x) {
    const int own = t.lane() % 16;
    float sum = x[own] * x[own];
    ED_UNROLL_ALL
    for (int i = 16; i < ED_DP; i += 16) sum = sum + x[i + own] * x[i + own];
    return 1.0f / sqrtf(ed_fold_lanes(sum) / (float)ED_D + ED_RMS_EPSILON);
}

ED_INSIDE int packed(int a, int b, int c, int d) {
    return (a & 255) | (b & 255) << 8 | (c & 255) << 16 | (int)((unsigned)d << 24);
}

/* Computes quantize(norm(x)), in words, and returns the factor. */
ED_INSIDE float norm_words(const place &t, const float *x, float inv_scale, int (&words)[ed_word_rounds]) {
    const float factor = norm_factor(t, x);
    ED_UNROLL_ALL
    for (int j = 0; j < ed_word_rounds; j++) {
        const int word = j * 32 + t.lane();
        const bool there = (j + 1) * 32 <= vector_words || word < vector_words;
        const float4 v = ((const float4 *)x)[there ? word : 0];
        words[j] = packed(ed_quantize(v.x * factor, inv_scale), ed_quantize(v.y * factor, inv_scale),
                          ed_quantize(v.z * factor, inv_scale), ed_quantize(v.w * factor, inv_scale));
        words[j] = there ? words[j] : 0;
    }
    return factor;
}

/* Hands out this thread's chunks of a vector that the lanes hold as words, such as norm_words returns. The chunks of a
 * round are at most 128 integers and divide them, so that in a round all lanes use the words of the same number. Those
 * for four-bit weights are put together once, for all matrices that read the vector. */
template <class M> struct lane_chunks {
    const place &t;
    const int (&words)[ed_word_rounds];
    four_bit_inputs prepared[M::rounds];

    ED_INSIDE lane_chunks(const place &whose, const int (&of_lanes)[ed_word_rounds]) : t(whose), words(of_lanes) {
        ED_UNROLL_ALL
        for (int r = 0; M::four && r < M::rounds; r++) {
            const int first = 2 * r * M::threads, own = 2 * t.in_row<M>();
            prepared[r].set(sixteen(first, own), sixteen(first, own + 1));
        }
    }
    ED_INSIDE auto operator()(int r) const {
        if constexpr (M::four)
            return prepared[r];
        else
            return sixteen(r * M::threads, t.in_row<M>());
    }

  private:
    /* Returns chunk `own` of 16 integers of those from chunk `first` on. */
    ED_INSIDE uint4 sixteen(int first, int own) const {
        const int word = words[first / 8], lane = (first % 8 + own) * 4;
        return make_uint4(
            (unsigned)__shfl_sync(0xffffffffu, word, lane), (unsigned)__shfl_sync(0xffffffffu, word, lane + 1),
            (unsigned)__shfl_sync(0xffffffffu, word, lane + 2), (unsigned)__shfl_sync(0xffffffffu, word, lane + 3));
    }
};

#ifdef ED_TRACE
ED_INSIDE void trace_words(const char *name, int layer, const int (&words)[ed_word_rounds]) {
    static int all[ed_word_rounds * 32];
    for (int j = 0; j < ed_word_rounds; j++)
        if (threadIdx.x < 32) all[j * 32 + (int)threadIdx.x] = words[j];
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

/* Loads a thread's part of a table when a stage begins. It is used at the end of the
 * stage, because it comes from as far as the weights. */
template <class M> struct by_thread {
    float of[M::own];
    ED_INSIDE by_thread(const place &t, const float *table) {
        ED_UNROLL_ALL
        for (int i = 0; i < M::own; i++) load_constant(of[i], table + i * ED_THREADS + t.thread);
    }
};

/* Loads biases by age, for a thread's slots. A table's row holds ages so that from
 * ED_WINDOW - 1 - slot on they lie by slot. */
struct age_biases {
    float of[head_rounds][slot_rounds];
    ED_INSIDE age_biases(const place &t, const float *table, int slot) {
        const float *row = table + (t.head() < ED_HEADS ? t.head() : 0) * ED_BIAS_ROW + t.slot() + ED_WINDOW - 1 - slot;
        ED_UNROLL_ALL
        for (int hr = 0; hr < head_rounds; hr++) {
            const bool there = (hr + 1) * heads_at_once <= ED_HEADS || hr * heads_at_once + t.head() < ED_HEADS;
            ED_UNROLL_ALL
            for (int sr = 0; sr < slot_rounds; sr++)
                load_constant(of[hr][sr], row + (there ? hr * heads_at_once * ED_BIAS_ROW : 0) + sr * slots_at_once);
        }
    }
};

/* Computes q, k and v of the new bin. */
ED_INSIDE void project(stream &s, shared_memory &m, int layer, const float *table) {
    const by_thread<ed_qkv> multiplier(s.t, table + ed_qkv_m_at);
    int words[ed_word_rounds], sum[ed_qkv::own];
    norm_words(s.t, m.x, m.scalars[layer][ED_ATTN_INV], words);
    trace_words("attn", layer, words);
    multiply<ed_qkv>(s, qkv_pass, lane_chunks<ed_qkv>(s.t, words), sum);
    ED_UNROLL_ALL
    for (int i = 0; i < ed_qkv::own; i++) {
        const int row = s.t.own_row<ed_qkv>(i);
        if (row < 0) continue;
        const int part = row / ED_D, at = row % ED_D;
        const float y = (float)sum[i] * multiplier.of[i];
        m.qkv[part][at / ED_DH * ED_DHP + at % ED_DH] = (int8_t)ed_quantize(y, m.scalars[layer][ED_Q_INV + part]);
    }
}

/* Computes score[hr][sr] of this thread's slots; the highest of each warp goes to shared memory. */
ED_INSIDE void score_slots(stream &s, shared_memory &m, int layer, const age_biases &bias, int slot, int live,
                           float (&score)[head_rounds][slot_rounds]) {
    const float scale = m.scalars[layer][ED_SCORE_SCALE];
    ED_UNROLL_ALL
    for (int hr = 0; hr < head_rounds; hr++) {
        const int wanted = hr * heads_at_once + s.t.head(), head = wanted < ED_HEADS ? wanted : 0;
        float high = ED_DEAD;
        int of_new = 0; /* what the new key gives, in the place of the one that has left the window */
        ED_UNROLL_ALL
        for (int part = 0; part < ed_key_parts; part++)
            of_new = dot(chunk_at(m.qkv[1], head * ed_key_parts + part), chunk_at(m.qkv[0], head * ed_key_parts + part),
                         of_new);
        ED_UNROLL_ALL
        for (int sr = 0; sr < slot_rounds; sr++) {
            const int own = sr * slots_at_once + s.t.slot();
            int acc = 0, age = slot - own;
            ED_UNROLL_ALL
            for (int part = 0; part < ed_key_parts; part++)
                s.take(keys_pass + (hr * slot_rounds + sr) * ed_key_parts + part,
                       [&](const uint4 &key) { acc = dot(key, chunk_at(m.qkv[0], head * ed_key_parts + part), acc); });
            age += age < 0 ? ED_WINDOW : 0;
            const float value = (float)(own == slot ? of_new : acc) * scale + bias.of[hr][sr];
            score[hr][sr] = own < ED_WINDOW && age <= live ? value : ED_DEAD;
            high = ed_larger(high, score[hr][sr]);
        }
        high = ed_warp_max(high);
        if (s.t.lane() == 0) m.highest[hr * ED_WARPS + s.t.warp()] = high;
    }
}

/* Computes p = rint(127 exp(score - highest)) of this thread's slots, and the sum of each warp. */
ED_INSIDE void weigh_slots(const place &t, shared_memory &m, int slot, const float (&score)[head_rounds][slot_rounds]) {
    const int first = (t.head() < heads_at_once ? t.head() : 0) * head_warps; /* first warp of this head */
    ED_UNROLL_ALL
    for (int hr = 0; hr < head_rounds; hr++) {
        const int head = hr * heads_at_once + t.head();
        float high = m.highest[hr * ED_WARPS + first];
        ED_UNROLL_ALL
        for (int i = 1; i < head_warps; i++) high = ed_larger(high, m.highest[hr * ED_WARPS + first + i]);
        int total = 0;
        ED_UNROLL_ALL
        for (int sr = 0; sr < slot_rounds; sr++) {
            const int own = sr * slots_at_once + t.slot();
            const int weight = t.has_head(hr) ? ed_rint(ED_LEVELS * ed_exp(score[hr][sr] - high)) : 0;
            total += weight;
            if (own < ED_WINDOW && t.has_head(hr)) {
                m.p[head][own] = (int8_t)(own == slot ? 0 : weight);
                if (own == slot) m.p_new[head] = weight;
            }
        }
        total = ed_warp_sum(total);
        if (t.lane() == 0) m.total[hr * ED_WARPS + t.warp()] = total;
    }
}

/* Computes context = quantize(sum p v / sum p). */
ED_INSIDE void mix_values(stream &s, shared_memory &m, int layer) {
    using M = ed_values;
    int acc[M::groups] = {}, sum[M::own];
    const int in_row = s.t.template in_row<M>(), first = (int)(s.t.thread / M::threads) * M::groups;
    ED_UNROLL_ALL
    for (int r = 0; r < M::rounds; r++) {
        ED_UNROLL_ALL
        for (int g = 0; g < M::groups; g++) {
            const int row = first + (ED_DH % M::groups ? M::turned(g, in_row) : 0); /* else all are of one head */
            const int head = row < ED_D ? row / ED_DH : 0;
            const uint4 p = chunk_at(m.p[head], r * M::threads + in_row);
            s.take(values_pass + r * M::groups + g, [&](const uint4 &values) { acc[g] = dot(values, p, acc[g]); });
        }
    }
    gather<M>(s.t, acc, sum);
    const float scale = m.scalars[layer][ED_V_SCALE], inv_scale = m.scalars[layer][ED_CONTEXT_INV];
    ED_UNROLL_ALL
    for (int i = 0; i < M::own; i++) {
        const int row = s.t.template own_row<M>(i);
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

/* Writes keys and values of the new bin in the place of those that have left the window. */
ED_INSIDE void keep(const place &t, const shared_memory &m, ed_cuda_state *state, int layer, int slot) {
    ED_EACH(t, i, ED_D) state->values[layer][ed_values::at(i, slot)] = m.qkv[2][i / ED_DH * ED_DHP + i % ED_DH];
    ED_EACH(t, i, ED_HEADS * ed_key_parts)
    *(uint4 *)(state->keys[layer] + ed_key_at(0, slot, 0) + i * ED_WP * ED_CHUNK) = chunk_at(m.qkv[1], i);
}

/* Adds float(product) * multiplier to x. */
template <class M>
ED_INSIDE void add_product(stream &s, int pass, const int8_t *a, const by_thread<M> &multiplier, float *x) {
    int sum[M::own];
    multiply_shared<M>(s, pass, a, sum);
    ED_UNROLL_ALL
    for (int i = 0; i < M::own; i++) {
        const int row = s.t.template own_row<M>(i);
        if (row >= 0) x[row] = x[row] + (float)sum[i] * multiplier.of[i];
    }
}

/* Computes hidden = quantize(silu(gate) * up). */
ED_INSIDE void activate(stream &s, shared_memory &m, int layer, const float *table) {
    const by_thread<ed_gate> gate_m(s.t, table + ed_gate_m_at), up_m(s.t, table + ed_up_m_at);
    int words[ed_word_rounds], gate[ed_gate::own], up[ed_gate::own];
    norm_words(s.t, m.x, m.scalars[layer][ED_MLP_INV], words);
    trace_words("mlp", layer, words);
    const lane_chunks<ed_gate> chunks(s.t, words);
    multiply<ed_gate>(s, gate_pass, chunks, gate);
    multiply<ed_gate>(s, up_pass, chunks, up);
    ED_UNROLL_ALL
    for (int i = 0; i < ed_gate::own; i++) {
        const int row = s.t.own_row<ed_gate>(i);
        if (row < 0) continue;
        const float y = ed_silu((float)gate[i] * gate_m.of[i]) * ((float)up[i] * up_m.of[i]);
        m.hidden[row] = (int8_t)ed_quantize(y, m.scalars[layer][ED_HIDDEN_INV]);
    }
}

ED_INSIDE void run_layer(stream &s, shared_memory &m, ed_cuda_state *state, const float *table, int layer, int slot,
                         int live) {
    s.t.forget();
    const age_biases bias(s.t, table + ed_age_bias_at, slot);
    float score[head_rounds][slot_rounds];
    project(s, m, layer, table);
    __syncthreads();
    score_slots(s, m, layer, bias, slot, live, score);
    __syncthreads();
    weigh_slots(s.t, m, slot, score);
    __syncthreads();
    const by_thread<ed_out> out_m(s.t, table + ed_out_m_at);
    mix_values(s, m, layer);
    __syncthreads();
    trace_heads("q", layer, m.qkv[0]);
    trace_heads("k", layer, m.qkv[1]);
    trace_heads("v", layer, m.qkv[2]);
    ED_SEEN("context", layer, m.context, ED_D);
    add_product<ed_out>(s, out_pass, m.context, out_m, m.x);
    keep(s.t, m, state, layer, slot);
    __syncthreads();
    activate(s, m, layer, table);
    __syncthreads();
    ED_SEEN("hidden", layer, m.hidden, ED_FF);
    const by_thread<ed_down> down_m(s.t, table + ed_down_m_at);
    add_product<ed_down>(s, down_pass, m.hidden, down_m, m.x);
    s.end_layer();
    __syncthreads();
}

/* ---------------------------------------------------------------- bins */

/* Writes an integer of a bin to the vectors that products read. */
ED_INSIDE void place_bin(shared_memory &m, int age, int channel, int8_t value) {
    m.recent[age * ED_CHANNELS + channel] = value;
    if (age % ED_DILATION == 0 && age / ED_DILATION < ED_TAPS)
        m.taps[age / ED_DILATION * ED_CHANNELS + channel] = value;
}

/* Loads a thread's values of the new bin, which may have a long way, from the host's memory. */
struct new_bin {
    float of[ed_ceil(ED_CHANNELS, ED_THREADS)];
    ED_INSIDE new_bin(const place &t, const float *bin) {
        ED_EACH(t, i, ED_CHANNELS) load_state(of[i / ED_THREADS], bin + i);
    }
};

/* Loads the bins of the state, and the new bin, which joins them in `row`. */
ED_INSIDE void take_bins(const place &t, shared_memory &m, ed_cuda_state *state, const new_bin &bin, float inv_scale,
                         int row) {
    ED_EACH(t, i, ED_BIN_ROWS * ED_CHANNELS) {
        const int age = (i / ED_CHANNELS - row + ED_BIN_ROWS) % ED_BIN_ROWS;
        const int8_t value = state->bins[i];
        if (age) place_bin(m, age, i % ED_CHANNELS, value);
    }
    ED_EACH(t, i, ED_CHANNELS) {
        const int8_t value = (int8_t)ed_quantize(bin.of[i / ED_THREADS], inv_scale);
        place_bin(m, 0, i, value);
        state->bins[row * ED_CHANNELS + i] = value;
    }
}

ED_INSIDE void embed(stream &s, shared_memory &m, const float *tables) {
    using M = ed_embedding;
    const by_thread<M> multiplier(s.t, tables + ed_embed_m_at), bias(s.t, tables + ed_embed_bias_at);
    int sum[M::own];
    multiply_shared<M>(s, -M::passes, m.taps, sum);
    ED_UNROLL_ALL
    for (int i = 0; i < M::own; i++) {
        const int row = s.t.template own_row<M>(i);
        if (row >= 0) m.x[row] = (float)sum[i] * multiplier.of[i] + bias.of[i];
    }
}

/* ---------------------------------------------------------------- read-out: warp o computes output o */

static_assert(ED_OUTPUTS <= ED_WARPS, "an output has no warp");

/* Computes the read-out of the bins. Loads are issued when the step begins and used when they have arrived. */
struct bins_readout {
    uint4 weights[ed_lag_rounds];
    float multiplier;

    ED_INSIDE bins_readout(const place &t, const int8_t *integers, const float *tables) {
        const int output = t.warp() < ED_OUTPUTS ? t.warp() : 0;
        const int8_t *own = integers + ed_lags_at + (output * ed_lag_rounds * 32 + t.lane()) * ED_CHUNK;
        ED_UNROLL_ALL
        for (int r = 0; r < ed_lag_rounds; r++) load_constant(weights[r], own + r * 32 * ED_CHUNK);
        load_constant(multiplier, tables + ed_lags_m_at + output);
    }

    ED_INSIDE float of(const place &t, const int8_t *recent) const {
        int acc = 0;
        if (t.warp() >= ED_OUTPUTS) return 0.0f;
        ED_UNROLL_ALL
        for (int r = 0; r < ed_lag_rounds; r++) acc = dot(weights[r], chunk_at(recent, r * 32 + t.lane()), acc);
        return (float)ed_warp_sum(acc) * multiplier;
    }
};

/* Computes the read-out of the latent, which is loaded before its norm. */
struct latent_readout {
    int weights[ed_word_rounds];
    float inv_scale, multiplier, bias;

    ED_INSIDE latent_readout(const place &t, const int8_t *integers, const float *tables) {
        const int output = t.warp() < ED_OUTPUTS ? t.warp() : 0;
        const int8_t *own = integers + ed_latent_at + (output * ed_word_rounds * 32 + t.lane()) * 4;
        ED_UNROLL_ALL
        for (int j = 0; j < ed_word_rounds; j++) load_constant(weights[j], own + j * 32 * 4);
        load_constant(inv_scale, tables + ED_LATENT_INV);
        load_constant(multiplier, tables + ed_latent_m_at + output);
        load_constant(bias, tables + ed_readout_bias_at + output);
    }

    /* Writes kinematics and latent. */
    ED_INSIDE void write(const place &t, const float *x, float of_bins, float *out) const {
        int words[ed_word_rounds], acc = 0;
        const float factor = norm_words(t, x, inv_scale, words);
        trace_words("latent", -1, words);
        ED_UNROLL_ALL
        for (int j = 0; j < ed_word_rounds; j++) acc = __dp4a(weights[j], words[j], acc);
        acc = ed_warp_sum(acc);
        if (t.warp() < ED_OUTPUTS && t.lane() == 0) out[t.warp()] = ((float)acc * multiplier + of_bins) + bias;
        ED_EACH(t, i, ED_D) out[ED_OUTPUTS + i] = x[i] * factor;
    }
};

} // namespace

/* ---------------------------------------------------------------- the step */

/* student_state.h describes weights and tables. bin (ED_CHANNELS,) is finite, and 0 where masked. out receives
 * kinematics (ED_OUTPUTS,), then latent (ED_D,). bin and out may be host memory that the device reads and writes. */
extern "C" __global__ void __launch_bounds__(ED_THREADS, 1)
    ed_student_step(const uint4 *weights, const float *tables, struct ed_cuda_state *state, const float *bin,
                    float *out) {
    __shared__ shared_memory m;
    const int8_t *integers = (const int8_t *)weights;
    const place t{threadIdx.x};
    const new_bin fresh(t, bin);
    const int slot = state->slot, pos = state->pos, live = state->live;
    const int row = (state->row + ED_BIN_ROWS - 1) % ED_BIN_ROWS;
    stream s(t, integers, state);
    const bins_readout readout(t, integers, tables);
    ED_EACH(t, i, (int)(sizeof m.p / 16))((uint4 *)m.p)[i] = make_uint4(0, 0, 0, 0);
    ED_EACH(t, i, (int)(sizeof m.qkv / 16))((uint4 *)m.qkv)[i] = make_uint4(0, 0, 0, 0);
    ED_EACH(t, i, ED_DP - ED_D) m.x[ED_D + i] = 0.0f;
    ED_EACH(t, i, ED_LAYERS * ED_LAYER_SCALARS)
    m.scalars[i / ED_LAYER_SCALARS][i % ED_LAYER_SCALARS] = tables[ED_MODEL_SCALARS + i];
    take_bins(t, m, state, fresh, tables[ED_BIN_INV], row);
    __syncthreads();
    ED_SEEN("bin", -1, m.recent, ED_CHANNELS);
    if (t.thread == 0) { /* now every thread has read them */
        state->slot = slot + 1 == ED_WINDOW ? 0 : slot + 1;
        state->row = row;
        state->pos = pos + 1 == ED_SLOTS ? 0 : pos + 1;
        state->live = live + (live < ED_SLOTS);
    }
    embed(s, m, tables);
    const float of_bins = readout.of(t, m.recent);
    __syncthreads();
    ED_UNROLL_NONE
    for (int layer = 0; layer < ED_LAYERS; layer++) {
        s.last = layer + 1 == ED_LAYERS;
        run_layer(s, m, state, tables + ed_layers_at + layer * ed_layer_floats, layer, slot, live);
    }
    latent_readout(t, integers, tables).write(t, m.x, of_bins, out);
}
ED_EXPORT_KERNEL(ed_student_step)

/* Writes the hash of the bundle that this file was compiled for. engine.cpp asks for it before it launches a step. */
extern "C" __global__ void ed_student_identity(char *to) {
    const char hash[] = ED_MANIFEST_SHA256;
    for (unsigned i = 0; i < sizeof hash; i++) to[i] = hash[i];
}
ED_EXPORT_KERNEL(ed_student_identity)
