/*
 * The kernels that plans of the fake TensorRT launch, so that they run on a stream of the fake driver. `tensors` is as
 * in fake_student.c.
 */
#include ED_MODEL_HEADER

#include "ed_weights.h"
#include "exact.cuh"

extern "C" void fake_student_step(void *const *tensors); /* fake_student.c */

extern "C" __global__ void fake_student(void *const *tensors) {
    if (threadIdx.x == 0) fake_student_step(tensors);
}

/* This is no student, but it reads and writes every value of 16-bit rings and float lags: kinematics are a sum over all
 * rings and one over all lags, each value times a small number that depends on its place. New values depend on their
 * place and the bin. */
extern "C" __global__ void fake_half(void *const *tensors) {
    if (threadIdx.x) return;
    const float *bin = (const float *)tensors[0], *lags = (const float *)tensors[3];
    float *kinematics = (float *)tensors[4], *latent = (float *)tensors[5];
    unsigned sum = 0;
    for (int r = 0; r < 2 * ED_LAYERS; r++) {
        const uint16_t *ring = (const uint16_t *)tensors[7 + 4 * (r / 2) + r % 2];
        uint16_t *fresh = (uint16_t *)tensors[9 + 4 * (r / 2) + r % 2];
        for (int i = 0; i < ED_HEADS * ED_SLOTS * ED_DH; i++) sum += ring[i] * (unsigned)((i + r) % 11);
        for (int i = 0; i < ED_HEADS * ED_DH; i++) fresh[i] = (uint16_t)(1000 * r + i + (int)bin[0]);
    }
    kinematics[0] = (float)(sum % 65521);
    kinematics[1] = 0;
    for (int i = 0; i < ED_LAG_ROWS * ED_CHANNELS; i++) kinematics[1] += lags[i] * (float)(i % 7);
    for (int i = 0; i < ED_D; i++) latent[i] = 0;
    latent[0] = (float)*(const int32_t *)tensors[1];
    latent[1] = (float)*(const int32_t *)tensors[2];
}

ED_EXPORT_KERNEL(fake_student)
ED_EXPORT_KERNEL(fake_half)
