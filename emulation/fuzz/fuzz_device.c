/*
 * A device for the fuzzer: what stands behind ed_device.h computes the C engine's step. ed_engine.c with -DED_DEVICE, and
 * so the checks of the CUDA and TensorRT engines, runs in front of it.
 */
#include <stdlib.h>

#include ED_MODEL_HEADER

#include "edgedistill.h"

#include "ed_device.h"
#include "ed_weights.h"

#include ED_MODEL_DATA
#include ED_OPS_HEADER

#include "ed_step.h"

struct ed_device {
    struct ed_student student;
};

const char ed_device_name[] = "fuzzed";

int ed_device_open(const char *build_directory, ed_device **device) {
    *device = aligned_alloc(ED_ALIGN, sizeof **device);
    return *device ? ed_student_start(&(*device)->student, build_directory) : ED_ERROR_MEMORY;
}

void ed_device_close(ed_device *device) { free(device); }

int ed_device_reset(ed_device *device) { return ed_student_reset(&device->student); }

int ed_device_step(ed_device *device, const float *bin, float *kinematics, float *latent) {
    int error = ed_student_step(&device->student, bin, kinematics);
    memcpy(latent, device->student.latent, ED_D * sizeof(float));
    return error;
}

int ed_device_export(ed_device *device, int8_t *student, int32_t *pos, int32_t *live) {
    return ed_student_export(&device->student, student, pos, live);
}

int ed_device_import(ed_device *device, const int8_t *student, int32_t pos, int32_t live) {
    return ed_student_import(&device->student, student, pos, live);
}
