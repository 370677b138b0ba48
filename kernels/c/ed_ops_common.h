/*
 * Private: the steps of a layer, made of a variant's integer kernels and the pinned float arithmetic of ed_math.h.
 *
 * A variant with vectors of floats defines ED_OPS_FLOATS, and the functions between #ifndef and #endif by itself.
 *
 * `rows` and `n` are constants wherever these functions are called, so that compilers unroll and vectorize the loops
 * for the shape. All vectors are padded as ed_weights.h says, and their padding stays zero.
 */
#ifndef ED_OPS_COMMON_H
#define ED_OPS_COMMON_H

#ifndef ED_OPS_FLOATS

/* Computes q = quantize(x), n values. */
ED_INLINE void ed_quantize_all(const float *x, int n, float inv_scale, int8_t *q) {
    for (int i = 0; i < n; i++) q[i] = ed_quantize(x[i], inv_scale);
}

/* Computes a = quantize(rms(x)), (ED_DP,). */
ED_INLINE void ed_norm_quantize(const float *x, float inv_scale, int8_t *a) {
    float factor = ed_rms_factor(x);
    for (int i = 0; i < ED_DP; i++) a[i] = ed_quantize(x[i] * factor, inv_scale);
}

/* Computes y = float(acc) * m, (rows,). */
ED_INLINE void ed_scale(const int32_t *acc, const float *m, int rows, float *y) {
    for (int o = 0; o < rows; o++) y[o] = (float)acc[o] * m[o];
}

/* Adds float(acc) * m to x, (ED_DP,). */
ED_INLINE void ed_scale_add(const int32_t *acc, const float *m, float *x) {
    for (int o = 0; o < ED_DP; o++) x[o] = x[o] + (float)acc[o] * m[o];
}

/* Computes hidden = silu(gate) * up from y (2 ED_FP,), which holds 16 values of gate, 16 of up, 16 of gate, ... */
ED_INLINE void ed_silu_up(const float *y, float *hidden) {
    for (int at = 0; at < ED_FP; at += 16)
        for (int i = 0; i < 16; i++) hidden[at + i] = ed_silu(y[2 * at + i]) * y[2 * at + 16 + i];
}

/* Computes the scores of n slots. Where it is called twice it is a function of its own, so that a slot takes as many
 * instructions in the first piece of the bias as in the second. */
#if ED_BIAS_ONCE
static
    __attribute__((noinline))
#else
ED_INLINE
#endif
    void
    ed_score(const int32_t *acc, float scale, const float *bias, const int32_t *seen, int n, float *score) {
    for (int s = 0; s < n; s++) {
        float value = (float)acc[s] * scale + bias[s];
        score[s] = ed_choose(seen[s], value, ED_DEAD);
    }
}

/* Computes p[s] = rint(127 exp(s - max)) of one head for the bin in `slot`, 0 where a slot is not seen, and returns
 * their sum. */
ED_INLINE int32_t ed_softmax(const int32_t *acc, float scale, const float *age_bias, int slot, const int32_t *seen,
                             uint8_t *p) {
    const int split = ED_BIAS_ONCE ? slot + 1 : ED_WP; /* the slot whose bias stands at the beginning of the row */
    float score[ED_WP], high = ED_DEAD;
    ed_score(acc, scale, age_bias + ED_WINDOW - 1 - slot, seen, split, score);
    if (ED_BIAS_ONCE) ed_score(acc + split, scale, age_bias, seen + split, ED_WP - split, score + split);
    float lanes[ED_LANES];
    for (int i = 0; i < ED_LANES; i++) lanes[i] = high;
    for (int at = 0; at < ED_WP; at += ED_LANES)
        for (int i = 0; i < ED_LANES; i++) lanes[i] = ed_larger(lanes[i], score[at + i]);
    for (int i = 0; i < ED_LANES; i++) high = ed_larger(high, lanes[i]);
    int32_t total = 0;
    for (int s = 0; s < ED_WP; s++) {
        int32_t weight = ed_rint(ED_LEVELS * ed_exp(score[s] - high));
        p[s] = (uint8_t)weight;
        total += weight;
    }
    return total;
}

#endif

#define ED_MOST_ROWS (3 * ED_DP > 2 * ED_FP ? 3 * ED_DP : 2 * ED_FP) /* the largest number of rows of a matrix */

/* Computes acc = w a of any weights, (rows,). */
ED_INLINE void ed_multiply(const struct ed_matrix *part, const int8_t *a, int rows, int n, int32_t *acc) {
    if (ED_FOUR(*part))
        ed_matvec4(part->q, a, rows, n, acc);
    else
        ed_matvec(part->w, a, rows, n, acc);
}

/* Computes y = float(acc) * m, (rows,). */
ED_INLINE void ed_linear(const struct ed_matrix *part, const int8_t *a, int rows, int n, float *y) {
    int32_t acc[ED_MOST_ROWS];
    ed_multiply(part, a, rows, n, acc);
    ed_scale(acc, part->m, rows, y);
}

/* Adds float(acc) * m to x, (ED_DP,). */
ED_INLINE void ed_linear_add(const struct ed_matrix *part, const int8_t *a, int n, float *x) {
    int32_t acc[ED_DP];
    ed_multiply(part, a, ED_DP, n, acc);
    ed_scale_add(acc, part->m, x);
}

/* Computes q, k and v of one bin, (3, ED_DP). */
ED_INLINE void ed_linear_qkv(const struct ed_layer *layer, const int8_t *a, int8_t *qkv) {
    float y[3 * ED_DP];
    ed_linear(&layer->qkv, a, 3 * ED_DP, ED_UP(ED_D, 4), y);
    ed_quantize_all(y, ED_DP, layer->q_inv, qkv);
    ed_quantize_all(y + ED_DP, ED_DP, layer->k_inv, qkv + ED_DP);
    ed_quantize_all(y + 2 * ED_DP, ED_DP, layer->v_inv, qkv + 2 * ED_DP);
}

/* Computes quantize(silu(gate) * up), (ED_FP,). */
ED_INLINE void ed_linear_gate_up(const struct ed_layer *layer, const int8_t *a, int8_t *hidden8) {
    float y[2 * ED_FP], hidden[ED_FP];
    ed_linear(&layer->gate_up, a, 2 * ED_FP, ED_UP(ED_D, 4), y);
    ed_silu_up(y, hidden);
    ed_quantize_all(hidden, ED_FP, layer->hidden_inv, hidden8);
}

/* Computes the context (ED_D,) of the bin in `slot`, over the slots that are seen. */
ED_INLINE void ed_attend(const struct ed_layer *layer, const struct ed_ring *ring, const int8_t *q, int slot,
                         const int32_t *seen, float *context) {
    for (int h = 0; h < ED_HEADS; h++) {
        int8_t head[ED_DHP] = {0};
        int32_t acc[ED_WP], weighted[ED_DHP];
        uint8_t p[ED_WP];
        memcpy(head, q + h * ED_DH, ED_DH);
        ed_scores(ring, h, head, acc);
        const float *bias = layer->age_bias + h * ED_BIAS_ROW;
        float total = (float)ed_softmax(acc, layer->score_scale, bias, slot, seen, p);
        ed_weighted(ring, h, p, weighted);
        for (int i = 0; i < ED_DH; i++) context[h * ED_DH + i] = ((float)weighted[i] * layer->v_scale) / total;
    }
}

#endif
