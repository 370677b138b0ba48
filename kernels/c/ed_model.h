/*
 * Private: what ed_api.c needs to know of a model, and what every decoder's memory begins with.
 *
 * ed_api.c checks arguments and knows no shape; ed_engine.c, compiled once a model, knows one shape and trusts its
 * arguments. Between them stands this table. Its functions that return int return ED_OK, or, where a device computes,
 * the error that ends the decoder.
 */
#ifndef ED_MODEL_H
#define ED_MODEL_H

#include "edgedistill.h"

#define ED_DECODER_MAGIC 0x52444445u  /* "EDDR" */
#define ED_DECODER_FAILED 0x58444445u /* "EDDX": its device failed; good for ed_close alone */

/* At the start of the decoder's memory; the model's own state follows. */
struct ed_decoder {
    const ed_model *model;
    uint32_t magic;
    uint32_t has_gain; /* ed_set_gain was called */
};

/* Frames of one call: float or int16 microvolts, or, if both are null, lost ones. */
typedef struct {
    const float *uv;
    const int16_t *i16;
} ed_frames;

struct ed_model {
    ed_info info;
    int (*init)(ed_decoder *, const char *build_directory); /* the rest of the memory; no directory in the C engine */
    void (*close)(ed_decoder *);                            /* null in the C engine */
    int (*reset)(ed_decoder *);                             /* stream only: normalization and gain stay */
    uint64_t (*outputs_for)(const ed_decoder *, uint64_t n_frames);
    /* outputs null: dropped; *made counts those that are whole, on error too */
    int (*push)(ed_decoder *, ed_frames, size_t n_frames, ed_output *outputs, size_t *made);
    int (*step)(ed_decoder *, const float *bin, float *kinematics);
    void (*set_normalization)(ed_decoder *, const float *mean, const float *std);
    void (*set_gain)(ed_decoder *, const double *gain, const double *offset);
    void (*latent)(const ed_decoder *, float *latent);
    int (*export_state)(const ed_decoder *, void *);
    int (*import_state)(ed_decoder *, const void *); /* ED_ERROR_STATE: nothing has changed */
};

#endif
