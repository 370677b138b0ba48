/*
 * Private: the functions of ed_step.h for a student that a device computes. The device keeps the rings; only the latent
 * of the last bin is kept here.
 */
#ifndef ED_DEVICE_STEP_H
#define ED_DEVICE_STEP_H

#include <string.h>

#include "ed_device.h"

#define ED_OPS_NAME ed_device_name

struct ed_student {
    ed_device *device;
    float latent[ED_D];
};

static int ed_student_start(struct ed_student *student, const char *build_directory) {
    memset(student->latent, 0, sizeof student->latent);
    return ed_device_open(build_directory, &student->device);
}

static int ed_student_reset(struct ed_student *student) {
    memset(student->latent, 0, sizeof student->latent);
    return ed_device_reset(student->device);
}

/* Decodes bin (ED_CHANNELS,), finite and 0 where masked, to kinematics (ED_OUTPUTS,). */
static int ed_student_step(struct ed_student *student, const float *bin, float *kinematics) {
    return ed_device_step(student->device, bin, kinematics, student->latent);
}

/* Writes rings, then lags, ED_STUDENT_BYTES in all. */
static int ed_student_export(const struct ed_student *student, int8_t *out, int32_t *pos, int32_t *live) {
    return ed_device_export(student->device, out, pos, live);
}

/* Reads what ed_student_export wrote. pos and live are in range, and no value is -128. */
static int ed_student_import(struct ed_student *student, const int8_t *in, int32_t pos, int32_t live) {
    int error = ed_device_import(student->device, in, pos, live);
    if (!error) memset(student->latent, 0, sizeof student->latent);
    return error;
}

#endif
