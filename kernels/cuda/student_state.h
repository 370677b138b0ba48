/*
 * Private: the state of a student on the device, and the conversion between it and the state that engines exchange.
 * C++17.
 *
 * engine.cpp owns the memory, and student_step.cu moves the state on by one bin. Compile with
 * -DED_MODEL_HEADER='"model_NAME.h"'. engine.cpp also includes ED_MODEL_WEIGHTS (model_NAME_weights.h), which defines
 *     static const uint64_t ed_weights[];   ed_weight_bytes bytes, copied to device memory aligned to 16
 *     static const float ed_tables[];       ed_table_floats
 * and launches one block, grid (1, 1, 1), block (ED_THREADS, 1, 1), no dynamic shared memory, with
 *     const uint4 *weights, const float *tables, ed_cuda_state *state, const float *bin, float *out
 * where bin has ED_CHANNELS and out ED_OUT_FLOATS floats: kinematics (ED_OUTPUTS), then the latent (ED_D).
 *
 * The rings have ED_WINDOW slots; the step replaces the slot that has left the window. Bins lie in a ring of their own.
 * A state may be copied as bytes. Conversions happen in host memory.
 */
#ifndef ED_STUDENT_STATE_H
#define ED_STUDENT_STATE_H

#include <stdint.h>
#include <string.h>

#include "student_layout.h"

#define ED_OUT_FLOATS (ED_OUTPUTS + ED_D)
#define ED_BIN_ROWS (ED_LAG_ROWS + 1)
#define ED_EXCHANGED_RING ((size_t)ED_HEADS * ED_SLOTS * ED_DH) /* bytes of k or v of one layer */
#define ED_EXCHANGED_BYTES (2 * ED_LAYERS * ED_EXCHANGED_RING + (size_t)ED_LAG_ROWS * ED_CHANNELS)

struct alignas(16) ed_cuda_state {
    int8_t keys[ED_LAYERS][ed_keys_bytes];      /* at ed_key_at(head, slot, i) */
    int8_t values[ED_LAYERS][ed_values::bytes]; /* at ed_values::at(head * ED_DH + i, slot) */
    int8_t bins[ED_BIN_ROWS * ED_CHANNELS];     /* the bin `age` bins ago in row (row + age) mod ED_BIN_ROWS */
    int32_t slot;                               /* slot that the next bin takes */
    int32_t row;                                /* row of the newest bin */
    int32_t pos, live;                          /* position and fill of the exchanged rings */
};

static inline void ed_cuda_state_reset(struct ed_cuda_state *state) { memset(state, 0, sizeof *state); }

/* Returns the private slot of the bin in exchanged slot `s`. Both kinds of ring hold the
 * bins before the next one by age. */
static inline int ed_cuda_slot(const struct ed_cuda_state *state, int s) {
    int age = state->pos - s;
    age += age <= 0 ? ED_SLOTS : 0;
    int slot = state->slot - age;
    return slot < 0 ? slot + ED_WINDOW : slot;
}

/* Writes student (ED_EXCHANGED_BYTES,): for each layer keys, then values, (heads, window - 1, head_dim) by
 * exchanged slot; then the lagged bins, newest first. */
static inline void ed_cuda_state_export(const struct ed_cuda_state *state, int8_t *student, int32_t *pos,
                                        int32_t *live) {
    for (int layer = 0; layer < ED_LAYERS; layer++, student += 2 * ED_EXCHANGED_RING)
        for (int h = 0; h < ED_HEADS; h++)
            for (int s = 0; s < ED_SLOTS; s++)
                for (int i = 0; i < ED_DH; i++) {
                    size_t at = ((size_t)h * ED_SLOTS + (size_t)s) * ED_DH + (size_t)i;
                    int slot = ed_cuda_slot(state, s);
                    student[at] = state->keys[layer][ed_key_at(h, slot, i)];
                    student[ED_EXCHANGED_RING + at] = state->values[layer][ed_values::at(h * ED_DH + i, slot)];
                }
    for (int age = 0; age < ED_LAG_ROWS; age++)
        memcpy(student + age * ED_CHANNELS, state->bins + (state->row + age) % ED_BIN_ROWS * ED_CHANNELS, ED_CHANNELS);
    *pos = state->pos;
    *live = state->live;
}

/* Reads what ed_cuda_state_export wrote. The caller has checked that pos and live are in range, and that no value is
 * -128. */
static inline void ed_cuda_state_import(struct ed_cuda_state *state, const int8_t *student, int32_t pos, int32_t live) {
    ed_cuda_state_reset(state);
    state->pos = pos;
    state->live = live;
    for (int layer = 0; layer < ED_LAYERS; layer++, student += 2 * ED_EXCHANGED_RING)
        for (int h = 0; h < ED_HEADS; h++)
            for (int s = 0; s < ED_SLOTS; s++)
                for (int i = 0; i < ED_DH; i++) {
                    size_t at = ((size_t)h * ED_SLOTS + (size_t)s) * ED_DH + (size_t)i;
                    int slot = ed_cuda_slot(state, s);
                    state->keys[layer][ed_key_at(h, slot, i)] = student[at];
                    state->values[layer][ed_values::at(h * ED_DH + i, slot)] = student[ED_EXCHANGED_RING + at];
                }
    if (ED_LAG_ROWS) memcpy(state->bins, student, (size_t)ED_LAG_ROWS * ED_CHANNELS);
}

#endif
