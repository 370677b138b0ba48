/*
 * Private: a student that a device computes, as ed_engine.c sees it. With -DED_DEVICE the front end, the checks and the
 * stream are those of the C engine. A library has one of two implementations of these functions,
 * kernels/cuda/engine.cpp or kernels/tensorrt/engine.cpp.
 *
 * Each returns ED_OK or an error code of edgedistill.h. ed_device_open does all allocation and compilation; later calls
 * allocate nothing. After an error other than ED_ERROR_UNSUPPORTED only ed_device_close is called. Sizes are those of
 * the model that the library was compiled for. Pointers are never null, and values have been checked.
 */
#ifndef ED_DEVICE_H
#define ED_DEVICE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* These symbols are hidden, so that a program with two such libraries never calls one's functions for the other's
 * decoder. */
#if defined(__GNUC__)
#pragma GCC visibility push(hidden)
#endif

typedef struct ed_device ed_device;

extern const char ed_device_name[]; /* ed_info.variant: "cuda", "tensorrt" */

/* Opens a fresh stream on the device of this machine, from the files in `build_directory`. On error there is nothing to
 * close, and *device is untouched. */
int ed_device_open(const char *build_directory, ed_device **device);
void ed_device_close(ed_device *device);

/* Starts a fresh stream. */
int ed_device_reset(ed_device *device);

/* Decodes bin (channels,), which is finite, to kinematics (outputs,) and latent (d,). All are in host memory, and the
 * results are complete when it returns. On error neither result is written. */
int ed_device_step(ed_device *device, const float *bin, float *kinematics, float *latent);

/* Move rings and lagged bins in the exchanged layout of edgedistill.h, from the first ring to the last lagged bin. They
 * return ED_ERROR_UNSUPPORTED, with nothing changed, where a device keeps its state in another precision; the stream
 * can go on. */
int ed_device_export(ed_device *device, int8_t *student, int32_t *pos, int32_t *live);
int ed_device_import(ed_device *device, const int8_t *student, int32_t pos, int32_t live);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#ifdef __cplusplus
}
#endif

#endif
