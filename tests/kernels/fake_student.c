/*
 * What the plan of the fake TensorRT computes: the C engine's step on the tensors of a plan, with the state outside.
 *
 * tensors: bin, pos, live, lags, kinematics, latent, bin_new, then for each layer ring_k, ring_v, k_new, v_new. Lags
 * are null where the model has none.
 */
#include ED_MODEL_HEADER

#include "edgedistill.h"

#include "ed_weights.h"

#include ED_MODEL_DATA
#include ED_OPS_HEADER

#include "ed_step.h"

static struct ed_student student;
static int8_t before[ED_STUDENT_BYTES], after[ED_STUDENT_BYTES];

/* Reads slot `pos` of a ring (H, slots, Dh) as (H, Dh). */
static void newest(const int8_t *ring, int32_t pos, int8_t *to) {
    for (int h = 0; h < ED_HEADS; h++) memcpy(to + h * ED_DH, ring + ((ptrdiff_t)h * ED_SLOTS + pos) * ED_DH, ED_DH);
}

void fake_student_step(void *const *tensors) {
    const int32_t pos = *(const int32_t *)tensors[1], live = *(const int32_t *)tensors[2];
    for (size_t ring = 0; ring < 2 * ED_LAYERS; ring++)
        memcpy(before + ring * ED_RING_BYTES, tensors[7 + 4 * (ring / 2) + ring % 2], ED_RING_BYTES);
    if (ED_LAG_ROWS) memcpy(before + 2 * ED_LAYERS * ED_RING_BYTES, tensors[3], (size_t)ED_LAG_ROWS * ED_CHANNELS);
    int32_t moved_pos, moved_live;
    ed_student_import(&student, before, pos, live);
    ed_student_step(&student, tensors[0], tensors[4]);
    ed_student_export(&student, after, &moved_pos, &moved_live);
    memcpy(tensors[5], student.latent, ED_D * sizeof(float));
    memcpy(tensors[6], student.bins[student.row], ED_CHANNELS);
    for (size_t ring = 0; ring < 2 * ED_LAYERS; ring++)
        newest(after + ring * ED_RING_BYTES, pos, tensors[9 + 4 * (ring / 2) + ring % 2]);
}
