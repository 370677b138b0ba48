/*
 * Private: one step of the INT8 student. One bin of the models' input goes in, kinematics come out, and the state moves
 * on by one bin.
 *
 * The definition is numerics/oracle.py (docs/numerics.md); every integer and every float here has its bits. The private
 * rings hold ED_WINDOW slots. The new bin is written first, over the bin that has just left the window, so that
 * attention reads one ring without special cases. Slots that were never written are masked, not skipped: a cold ring
 * costs what a full one costs. Lagged bins lie in a ring that is written twice, so that any stretch of them is
 * contiguous.
 *
 * Roofline: a step reads and multiplies every weight once. `edge` at 96 channels has 1.11 MB of weights and 0.21 MB of
 * rings, so a step takes as long as streaming 1.3 MB from the cache they lie in.
 */
#ifndef ED_STEP_H
#define ED_STEP_H

#define ED_BINS (ED_LAG_ROWS + 1)            /* number of bins that a step sees: the new one and those before it */
#define ED_KEPT(part) (ED_KEEPS && (part).f) /* kept in float32; a constant 0 for a model that keeps nothing */

#ifdef ED_TRACE
/* Tests define this function. layer is -1 where there is none. */
void ed_trace(const char *name, int layer, const void *data, size_t bytes);
#define ED_SEEN(name, layer, data, bytes) ed_trace(name, layer, data, bytes)
#else
#define ED_SEEN(name, layer, data, bytes) ((void)0)
#endif

/* The memory of a student and its working memory. Except for rings and bins, everything is written before it is
 * read. */
struct ed_student {
    ED_ALIGNED struct ed_ring rings[ED_LAYERS];
    ED_ALIGNED int8_t bins[2 * ED_BINS][ED_CHANNELS]; /* row r and row r + ED_BINS hold the same bin */
    ED_ALIGNED float latent[ED_DP];
    ED_ALIGNED int32_t seen[ED_WP]; /* for each slot: -1 if it is in the window and was ever written, else 0 */
    int32_t slot;                   /* private slot of the next bin */
    int32_t row;                    /* row of `bins` with the newest bin; older ones follow */
    int32_t pos, live;              /* position and fill of the exchanged rings */
};

/* This and the other functions that ed_engine.c calls return ED_OK. Those of ed_device_step.h may fail, these may
 * not. */
static inline int ed_student_reset(struct ed_student *student) {
    memset(student, 0, sizeof *student);
    for (int i = 0; i < ED_LAYERS; i++) ed_ring_clear(&student->rings[i]);
    return ED_OK;
}

static inline int ed_student_start(struct ed_student *student, const char *build_directory) {
    (void)build_directory; /* the weights are linked into the program */
    return ed_student_reset(student);
}

/* ---------------------------------------------------------------- bins */

static void ed_take_bin(struct ed_student *student, const float *bin) {
    float wide[ED_UP(ED_CHANNELS, 16)] = {0};
    int8_t a[ED_UP(ED_CHANNELS, 64)];
    memcpy(wide, bin, ED_CHANNELS * sizeof(float));
    ed_quantize_all(wide, ED_UP(ED_CHANNELS, 16), ed_bin_inv, a);
    student->row = student->row ? student->row - 1 : ED_BINS - 1;
    memcpy(student->bins[student->row], a, ED_CHANNELS);
    memcpy(student->bins[student->row + ED_BINS], a, ED_CHANNELS);
    ED_SEEN("bin", -1, a, ED_CHANNELS);
}

/* Computes float(bin8) * scale, for a part that reads bins and is kept in float32. */
static inline void ed_bins_as_floats(const int8_t *a, int n, float *x) {
    for (int i = 0; i < n; i++) x[i] = (float)a[i] * ed_bin_scale;
}

static void ed_embed(const struct ed_student *student, float *x) {
    ED_ALIGNED int8_t a[ED_UP(ED_TAP_N, 64)];
    memset(a + ED_TAP_N / 64 * 64, 0, sizeof a - ED_TAP_N / 64 * 64);
    for (int tap = 0; tap < ED_TAPS; tap++)
        memcpy(a + tap * ED_CHANNELS, student->bins[student->row + tap * ED_DILATION], ED_CHANNELS);
    if (ED_KEPT(ed_embedding)) {
        float wide[ED_UP(ED_TAP_N, 16)];
        ed_bins_as_floats(a, ED_UP(ED_TAP_N, 16), wide);
        ed_float_product(ed_embedding.f, wide, ED_DP, ED_UP(ED_TAP_N, 16), x);
    } else {
        ed_linear(&ed_embedding, a, ED_DP, ED_UP(ED_TAP_N, 4), x);
    }
    for (int i = 0; i < ED_DP; i++) x[i] = x[i] + ed_embed_bias[i];
}

/* Marks the slots that the bin in `slot` sees: ages 0 to live. */
static void ed_find_seen(struct ed_student *student) {
    for (int s = 0; s < ED_WP; s++) {
        int32_t age = student->slot - s;
        age += age < 0 ? ED_WINDOW : 0;
        student->seen[s] = -(int32_t)((age <= student->live) & (s < ED_WINDOW));
    }
}

/* ---------------------------------------------------------------- a layer */

static inline void ed_qkv(const struct ed_layer *layer, int i, const float *x, int8_t *qkv) {
    if (ED_KEPT(layer->qkv)) {
        float n[ED_DP], y[3 * ED_DP];
        float factor = ed_rms_factor(x);
        for (int j = 0; j < ED_DP; j++) n[j] = x[j] * factor;
        ed_float_product(layer->qkv.f, n, 3 * ED_DP, ED_DP, y);
        for (int j = 0; j < ED_DP; j++) {
            qkv[j] = ed_quantize(y[j], layer->q_inv);
            qkv[ED_DP + j] = ed_quantize(y[ED_DP + j], layer->k_inv);
            qkv[2 * ED_DP + j] = ed_quantize(y[2 * ED_DP + j], layer->v_inv);
        }
    } else {
        ED_ALIGNED int8_t a[ED_UP(ED_D, 64)];
        ed_norm_quantize(x, layer->attn_inv, a);
        ED_SEEN("attn", i, a, ED_D);
        ed_linear_qkv(layer, a, qkv);
    }
    ED_SEEN("q", i, qkv, ED_D);
    ED_SEEN("k", i, qkv + ED_DP, ED_D);
    ED_SEEN("v", i, qkv + 2 * ED_DP, ED_D);
    (void)i;
}

static inline void ed_attention(struct ed_student *student, const struct ed_layer *layer, int i, float *x) {
    ED_ALIGNED int8_t qkv[3 * ED_DP];
    ED_ALIGNED float context[ED_DP];
    struct ed_ring *ring = &student->rings[i];
    ed_qkv(layer, i, x, qkv);
    ed_ring_put(ring, student->slot, qkv + ED_DP, qkv + 2 * ED_DP);
    memset(context + ED_D, 0, sizeof context - ED_D * sizeof(float));
    ed_attend(layer, ring, qkv, student->slot, student->seen, context);
    if (ED_KEPT(layer->out)) {
        float y[ED_DP];
        ed_float_product(layer->out.f, context, ED_DP, ED_DP, y);
        for (int j = 0; j < ED_DP; j++) x[j] = x[j] + y[j];
    } else {
        ED_ALIGNED int8_t a[ED_UP(ED_D, 64)];
        ed_quantize_all(context, ED_DP, layer->context_inv, a);
        ED_SEEN("context", i, a, ED_D);
        ed_linear_add(&layer->out, a, ED_UP(ED_D, 4), x);
    }
}

/* Computes the gated MLP of a layer with at least one part kept in float32. */
static inline void ed_kept_mlp(const struct ed_layer *layer, int i, float *x) {
    float n[ED_DP], y[2 * ED_FP], hidden[ED_FP], added[ED_DP];
    ED_ALIGNED int8_t a[ED_UP(ED_D, 64)], hidden8[ED_UP(ED_FF, 64)];
    float factor = ed_rms_factor(x);
    for (int j = 0; j < ED_DP; j++) n[j] = x[j] * factor;
    if (layer->gate_up.f) {
        ed_float_product(layer->gate_up.f, n, 2 * ED_FP, ED_DP, y);
    } else {
        ed_quantize_all(n, ED_DP, layer->mlp_inv, a);
        ED_SEEN("mlp", i, a, ED_D);
        ed_linear(&layer->gate_up, a, 2 * ED_FP, ED_UP(ED_D, 4), y);
    }
    for (int at = 0; at < ED_FP; at += 16)
        for (int j = 0; j < 16; j++) hidden[at + j] = ed_silu(y[2 * at + j]) * y[2 * at + 16 + j];
    if (layer->down.f) {
        ed_float_product(layer->down.f, hidden, ED_DP, ED_FP, added);
        for (int j = 0; j < ED_DP; j++) x[j] = x[j] + added[j];
    } else {
        ed_quantize_all(hidden, ED_FP, layer->hidden_inv, hidden8);
        ED_SEEN("hidden", i, hidden8, ED_FF);
        ed_linear_add(&layer->down, hidden8, ED_UP(ED_FF, 4), x);
    }
    (void)i;
}

static inline void ed_mlp(const struct ed_layer *layer, int i, float *x) {
    if (ED_KEPT(layer->gate_up) || ED_KEPT(layer->down)) {
        ed_kept_mlp(layer, i, x);
        return;
    }
    ED_ALIGNED int8_t a[ED_UP(ED_D, 64)], hidden8[ED_UP(ED_FF, 64)];
    ed_norm_quantize(x, layer->mlp_inv, a);
    ED_SEEN("mlp", i, a, ED_D);
    ed_linear_gate_up(layer, a, hidden8);
    ED_SEEN("hidden", i, hidden8, ED_FF);
    ed_linear_add(&layer->down, hidden8, ED_UP(ED_FF, 4), x);
    (void)i;
}

/* ---------------------------------------------------------------- read-out */

/* Computes the read-out of the last bins, (ED_OUTPUTS,). */
static void ed_readout_of_bins(const struct ed_student *student, float *y) {
    ED_ALIGNED int8_t a[ED_UP(ED_LAG_N, 64)];
    memset(a + ED_LAG_N / 64 * 64, 0, sizeof a - ED_LAG_N / 64 * 64);
    memcpy(a, &student->bins[0][0] + (ptrdiff_t)student->row * ED_CHANNELS, ED_LAG_N);
    if (ED_KEPT(ed_readout_lags)) {
        float wide[ED_UP(ED_LAG_N, 16)];
        ed_bins_as_floats(a, ED_UP(ED_LAG_N, 16), wide);
        ed_float_product(ed_readout_lags.f, wide, ED_OUTPUTS, ED_UP(ED_LAG_N, 16), y);
    } else {
        int32_t acc[ED_OUTPUTS];
        ed_rows(ed_readout_lags.w, a, ED_OUTPUTS, ED_UP(ED_LAG_N, 64), acc);
        for (int o = 0; o < ED_OUTPUTS; o++) y[o] = (float)acc[o] * ed_readout_lags.m[o];
    }
}

/* Computes the read-out of the latent, (ED_OUTPUTS,). */
static void ed_readout_of_latent(const float *latent, float *y) {
    if (ED_KEPT(ed_readout_latent)) {
        ed_float_product(ed_readout_latent.f, latent, ED_OUTPUTS, ED_DP, y);
    } else {
        ED_ALIGNED int8_t a[ED_UP(ED_D, 64)] = {0};
        int32_t acc[ED_OUTPUTS];
        for (int i = 0; i < ED_DP; i++) a[i] = ed_quantize(latent[i], ed_latent_inv);
        ED_SEEN("latent", -1, a, ED_D);
        ed_rows(ed_readout_latent.w, a, ED_OUTPUTS, ED_UP(ED_D, 64), acc);
        for (int o = 0; o < ED_OUTPUTS; o++) y[o] = (float)acc[o] * ed_readout_latent.m[o];
    }
}

/* ---------------------------------------------------------------- the step */

/* Decodes bin (ED_CHANNELS,), finite and 0 where masked, to kinematics (ED_OUTPUTS,). */
static inline int ed_student_step(struct ed_student *student, const float *bin, float *kinematics) {
    ED_ALIGNED float x[ED_DP];
    float of_bins[ED_OUTPUTS], of_latent[ED_OUTPUTS];
    ed_take_bin(student, bin);
    ed_find_seen(student);
    ed_embed(student, x);
    for (int i = 0; i < ED_LAYERS; i++) {
        ed_attention(student, &ed_layers[i], i, x);
        ed_mlp(&ed_layers[i], i, x);
    }
    float factor = ed_rms_factor(x);
    for (int i = 0; i < ED_DP; i++) student->latent[i] = x[i] * factor;
    ed_readout_of_latent(student->latent, of_latent);
    ed_readout_of_bins(student, of_bins);
    for (int o = 0; o < ED_OUTPUTS; o++) kinematics[o] = (of_latent[o] + of_bins[o]) + ed_readout_bias[o];
    student->slot = student->slot + 1 == ED_WINDOW ? 0 : student->slot + 1;
    student->pos = student->pos + 1 == ED_SLOTS ? 0 : student->pos + 1;
    student->live += student->live < ED_SLOTS;
    return ED_OK;
}

/* ---------------------------------------------------------------- the exchanged layout */

/* Returns the private slot of the bin in exchanged slot `s`. Both kinds of ring hold the bins before the next one by
 * age. */
static inline int ed_private_slot(const struct ed_student *student, int s) {
    int age = student->pos - s;
    age += age <= 0 ? ED_SLOTS : 0;
    int slot = student->slot - age;
    return slot < 0 ? slot + ED_WINDOW : slot;
}

/* Writes rings, then lags, ED_STUDENT_BYTES in all. */
static inline int ed_student_export(const struct ed_student *student, int8_t *out, int32_t *pos, int32_t *live) {
    int8_t k[ED_D], v[ED_D];
    for (int i = 0; i < ED_LAYERS; i++, out += 2 * ED_RING_BYTES)
        for (int s = 0; s < ED_SLOTS; s++) {
            ed_ring_get(&student->rings[i], ed_private_slot(student, s), k, v);
            for (int h = 0; h < ED_HEADS; h++) {
                ptrdiff_t at = ((ptrdiff_t)h * ED_SLOTS + s) * ED_DH;
                memcpy(out + at, k + h * ED_DH, ED_DH);
                memcpy(out + ED_RING_BYTES + at, v + h * ED_DH, ED_DH);
            }
        }
    memcpy(out, &student->bins[0][0] + (ptrdiff_t)student->row * ED_CHANNELS, (size_t)ED_LAG_ROWS * ED_CHANNELS);
    *pos = student->pos;
    *live = student->live;
    return ED_OK;
}

/* Reads what ed_student_export wrote. pos and live are in range, and no value is -128. */
static inline int ed_student_import(struct ed_student *student, const int8_t *in, int32_t pos, int32_t live) {
    int8_t k[ED_D], v[ED_D];
    ed_student_reset(student);
    student->pos = pos;
    student->live = live;
    for (int i = 0; i < ED_LAYERS; i++, in += 2 * ED_RING_BYTES)
        for (int s = 0; s < ED_SLOTS; s++) {
            for (int h = 0; h < ED_HEADS; h++) {
                ptrdiff_t at = ((ptrdiff_t)h * ED_SLOTS + s) * ED_DH;
                memcpy(k + h * ED_DH, in + at, ED_DH);
                memcpy(v + h * ED_DH, in + ED_RING_BYTES + at, ED_DH);
            }
            ed_ring_put(&student->rings[i], ed_private_slot(student, s), k, v);
        }
    for (int r = 0; r < ED_LAG_ROWS; r++) {
        memcpy(student->bins[r], in + (ptrdiff_t)r * ED_CHANNELS, ED_CHANNELS);
        memcpy(student->bins[r + ED_BINS], in + (ptrdiff_t)r * ED_CHANNELS, ED_CHANNELS);
    }
    return ED_OK;
}

#endif
