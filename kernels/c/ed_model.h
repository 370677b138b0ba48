/*
 * Private: the table of a model's functions that ed_api.c calls, and the start of every decoder's memory.
 *
 * ed_api.c checks arguments and knows no shape. ed_engine.c is compiled once for each model, knows one shape, and
 * trusts its arguments. Functions of the table that return int return ED_OK or, where a device computes, the error that
 * ends the decoder.
 */
#ifndef ED_MODEL_H
#define ED_MODEL_H

#include "edgedistill.h"

#define ED_DECODER_MAGIC 0x52444445u  /* "EDDR" */
#define ED_DECODER_FAILED 0x58444445u /* "EDDX": the device failed, and only ed_close is left to call */

/* Stands at the start of a decoder's memory; the model's own state follows. */
struct ed_decoder {
    const ed_model *model;
    uint32_t magic;
    uint32_t has_gain; /* ed_set_gain was called */
};

/* Holds the frames of one call: float microvolts, int16 samples, or lost frames if both pointers are null. */
typedef struct {
    const float *uv;
    const int16_t *i16;
} ed_frames;

struct ed_model {
    ed_info info;
    /* fills the rest of the memory; the C engine needs no directory */
    int (*init)(ed_decoder *, const char *build_directory);
    void (*close)(ed_decoder *); /* null in the C engine */
    int (*reset)(ed_decoder *);  /* only the stream: normalization and gain stay */
    uint64_t (*outputs_for)(const ed_decoder *, uint64_t n_frames);
    /* At most `capacity` outputs are written; they are dropped if the pointer is null. *made counts complete ones, on
     * error too. ED_ERROR_COUNT changes nothing, *made included. */
    int (*push)(ed_decoder *, ed_frames, size_t n_frames, ed_output *outputs, size_t capacity, size_t *made);
    int (*step)(ed_decoder *, const float *bin, float *kinematics);
    void (*set_normalization)(ed_decoder *, const float *mean, const float *std);
    void (*set_gain)(ed_decoder *, const double *gain, const double *offset);
    void (*latent)(const ed_decoder *, float *latent);
    void (*raw_kinematics)(const ed_decoder *, float *kinematics);
    int (*export_state)(const ed_decoder *, void *);
    int (*import_state)(ed_decoder *, const void *); /* nothing has changed after ED_ERROR_STATE */
};

#endif
