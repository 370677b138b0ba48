/*
 * The public functions of edgedistill.h. Each checks its arguments, then calls the model's own function. This file
 * knows no shape and is compiled once, however many models a program holds. With -DED_DEVICE it is part of a library of
 * one model, which ed_open opens.
 */
#include "ed_model.h"

#ifdef ED_DEVICE
#include <stdlib.h>

#include ED_MODEL_HEADER
extern const ed_model ED_MODEL_SYMBOL;
#endif

/* Most frames of one call. This is far beyond any buffer, and far below a negative count that was converted. */
#define ED_MAX_FRAMES (SIZE_MAX >> (sizeof(size_t) > 4 ? 16 : 1))

const char *ed_strerror(int code) {
    switch (code) {
    case ED_OK: return "no error";
    case ED_ERROR_NULL: return "a pointer that must not be null is null";
    case ED_ERROR_SIZE: return "a buffer has the wrong size; ed_info states the sizes of state, export and latent";
    case ED_ERROR_ALIGN: return "the decoder's memory is not aligned to ED_ALIGN bytes, or a state not to 8";
    case ED_ERROR_COUNT: return "the number of frames is zero, or more than a call or a stream can have";
    case ED_ERROR_CAPACITY: return "too few places for the outputs; ed_outputs_for() says how many are needed";
    case ED_ERROR_VALUE: return "a value is not finite, or a standard deviation is negative";
    case ED_ERROR_STATE: return "the state is damaged, out of range or of another model";
    case ED_ERROR_GAIN: return "ed_push_i16 needs ed_set_gain first";
    case ED_ERROR_DECODER: return "the memory holds no decoder; was ed_init called on it, or was it overwritten?";
    case ED_ERROR_UNSUPPORTED: return "this engine does not have that function";
    case ED_ERROR_DRIVER:
        return "there is no GPU here, no CUDA driver, or one older than CUDA 11.4 or than TensorRT needs; `edgedistill "
               "doctor` says what is missing";
    case ED_ERROR_CHIP:
        return "compiled for another chip, toolkit or driver; `edgedistill compile` on this machine mends it";
    case ED_ERROR_MEMORY: return "out of memory, of the device or of the host; close other programs, then open again";
    case ED_ERROR_FILE:
        return "the build folder lacks a file, or one is damaged or of another model; `edgedistill compile --force` "
               "makes it anew";
    case ED_ERROR_DEVICE: return "the device reported a failure; ed_close the decoder, then open another";
    case ED_ERROR_TENSORRT:
        return "there is no TensorRT of the version this was compiled with; `edgedistill compile` with the one that "
               "is here mends it";
    default: return "unknown error code";
    }
}

static int require_decoder(const ed_decoder *decoder) {
    if (!decoder) return ED_ERROR_NULL;
    if (decoder->magic == ED_DECODER_MAGIC) return ED_OK;
    return decoder->magic == ED_DECODER_FAILED ? ED_ERROR_DEVICE : ED_ERROR_DECODER;
}

/* Returns the code of a call that reached the model. After a failure, rings and front end no longer belong together, so
 * the decoder becomes useless, and one whose memory was overwritten is none. The other codes have changed nothing. */
static int ended(ed_decoder *decoder, int error) {
    const int unchanged = error == ED_ERROR_STATE || error == ED_ERROR_UNSUPPORTED || error == ED_ERROR_COUNT;
    if (error && !unchanged) decoder->magic = error == ED_ERROR_DECODER ? 0 : ED_DECODER_FAILED;
    return error;
}

/* Tells whether all values are finite: the comparison is false for NaN. */
static int all_finite(const float *x, size_t n) {
    uint32_t wild = 0;
    for (size_t i = 0; i < n; i++) wild |= (uint32_t) !(__builtin_fabsf(x[i]) <= 3.402823466e38f);
    return !wild;
}

static int all_finite_double(const double *x, size_t n) {
    uint32_t wild = 0;
    for (size_t i = 0; i < n; i++) wild |= (uint32_t) !(__builtin_fabs(x[i]) <= 1.7976931348623157e308);
    return !wild;
}

const ed_info *ed_model_info(const ed_model *model) { return model ? &model->info : NULL; }

size_t ed_state_bytes(const ed_model *model) { return model ? model->info.state_bytes : 0; }

static int start(const ed_model *model, const char *build_directory, ed_decoder *made, ed_decoder **decoder) {
    made->model = model;
    made->has_gain = 0;
    int error = model->init(made, build_directory);
    if (error) return error;
    made->magic = ED_DECODER_MAGIC;
    *decoder = made;
    return ED_OK;
}

int ed_init(const ed_model *model, void *memory, size_t bytes, ed_decoder **decoder) {
    if (!model || !memory || !decoder) return ED_ERROR_NULL;
    if ((uintptr_t)memory % ED_ALIGN) return ED_ERROR_ALIGN;
    if (bytes < model->info.state_bytes) return ED_ERROR_SIZE;
    if (model->close) return ED_ERROR_UNSUPPORTED; /* such a model must be closed, and a decoder of ed_init never is */
    return start(model, NULL, memory, decoder);
}

#ifdef ED_DEVICE
int ed_open(const char *build_directory, ed_decoder **decoder) {
    if (!build_directory || !decoder) return ED_ERROR_NULL;
    ed_decoder *memory = aligned_alloc(ED_ALIGN, ED_MODEL_SYMBOL.info.state_bytes);
    if (!memory) return ED_ERROR_MEMORY;
    int error = start(&ED_MODEL_SYMBOL, build_directory, memory, decoder);
    if (error) free(memory);
    return error;
}

void ed_close(ed_decoder *decoder) {
    int error = require_decoder(decoder);
    if (error && error != ED_ERROR_DEVICE) return;
    decoder->magic = 0;
    decoder->model->close(decoder);
    free(decoder);
}
#else
int ed_open(const char *build_directory, ed_decoder **decoder) {
    return build_directory && decoder ? ED_ERROR_UNSUPPORTED : ED_ERROR_NULL;
}

void ed_close(ed_decoder *decoder) { (void)decoder; }
#endif

const ed_info *ed_info_get(const ed_decoder *decoder) {
    int error = require_decoder(decoder);
    return !error || error == ED_ERROR_DEVICE ? &decoder->model->info : NULL;
}

void ed_reset(ed_decoder *decoder) {
    if (require_decoder(decoder) == ED_OK) ended(decoder, decoder->model->reset(decoder));
}

size_t ed_outputs_for(const ed_decoder *decoder, size_t n_frames) {
    if (require_decoder(decoder) != ED_OK || n_frames > ED_MAX_FRAMES) return 0;
    return (size_t)decoder->model->outputs_for(decoder, n_frames);
}

static int push(ed_decoder *decoder, ed_frames frames, size_t n_frames, ed_output *outputs, size_t capacity,
                size_t *n_out) {
    if (!n_out) return ED_ERROR_NULL;
    if (!n_frames || n_frames > ED_MAX_FRAMES) return ED_ERROR_COUNT;
    uint64_t expected = decoder->model->outputs_for(decoder, n_frames);
    if (expected && !outputs) return ED_ERROR_NULL;
    if (expected > capacity) return ED_ERROR_CAPACITY;
    return ended(decoder, decoder->model->push(decoder, frames, n_frames, outputs, capacity, n_out));
}

int ed_push(ed_decoder *decoder, const float *frames_uv, size_t n_frames, ed_output *outputs, size_t capacity,
            size_t *n_out) {
    int error = require_decoder(decoder);
    if (error) return error;
    if (!frames_uv) return ED_ERROR_NULL;
    return push(decoder, (ed_frames){frames_uv, NULL}, n_frames, outputs, capacity, n_out);
}

int ed_push_i16(ed_decoder *decoder, const int16_t *frames, size_t n_frames, ed_output *outputs, size_t capacity,
                size_t *n_out) {
    int error = require_decoder(decoder);
    if (error) return error;
    if (!frames) return ED_ERROR_NULL;
    if (!decoder->has_gain) return ED_ERROR_GAIN;
    return push(decoder, (ed_frames){NULL, frames}, n_frames, outputs, capacity, n_out);
}

int ed_gap_outputs(ed_decoder *decoder, size_t n_frames, ed_output *outputs, size_t capacity, size_t *n_out) {
    int error = require_decoder(decoder);
    if (error) return error;
    return push(decoder, (ed_frames){NULL, NULL}, n_frames, outputs, capacity, n_out);
}

int ed_gap(ed_decoder *decoder, size_t n_frames) {
    int error = require_decoder(decoder);
    if (error) return error;
    if (!n_frames || n_frames > ED_MAX_FRAMES) return ED_ERROR_COUNT;
    size_t dropped;
    return ended(decoder, decoder->model->push(decoder, (ed_frames){NULL, NULL}, n_frames, NULL, SIZE_MAX, &dropped));
}

int ed_step(ed_decoder *decoder, const float *bin, float *kinematics) {
    int error = require_decoder(decoder);
    if (error) return error;
    if (!bin || !kinematics) return ED_ERROR_NULL;
    if (!all_finite(bin, decoder->model->info.inputs)) return ED_ERROR_VALUE;
    return ended(decoder, decoder->model->step(decoder, bin, kinematics));
}

int ed_set_normalization(ed_decoder *decoder, const float *mean, const float *std) {
    int error = require_decoder(decoder);
    if (error) return error;
    if (!mean || !std) return ED_ERROR_NULL;
    size_t inputs = decoder->model->info.inputs;
    if (!all_finite(mean, inputs) || !all_finite(std, inputs)) return ED_ERROR_VALUE;
    for (size_t i = 0; i < inputs; i++)
        if (std[i] < 0) return ED_ERROR_VALUE;
    decoder->model->set_normalization(decoder, mean, std);
    return ED_OK;
}

int ed_set_gain(ed_decoder *decoder, const double *gain_uv, const double *offset_uv) {
    int error = require_decoder(decoder);
    if (error) return error;
    if (!gain_uv || !offset_uv) return ED_ERROR_NULL;
    size_t channels = decoder->model->info.channels;
    if (!all_finite_double(gain_uv, channels) || !all_finite_double(offset_uv, channels)) return ED_ERROR_VALUE;
    decoder->model->set_gain(decoder, gain_uv, offset_uv);
    decoder->has_gain = 1;
    return ED_OK;
}

int ed_latent(const ed_decoder *decoder, float *latent, size_t count) {
    int error = require_decoder(decoder);
    if (error) return error;
    if (!latent) return ED_ERROR_NULL;
    if (count != decoder->model->info.latent) return ED_ERROR_SIZE;
    decoder->model->latent(decoder, latent);
    return ED_OK;
}

int ed_raw_kinematics(const ed_decoder *decoder, float *kinematics, size_t count) {
    int error = require_decoder(decoder);
    if (error) return error;
    if (!kinematics) return ED_ERROR_NULL;
    if (count != decoder->model->info.outputs) return ED_ERROR_SIZE;
    decoder->model->raw_kinematics(decoder, kinematics);
    return ED_OK;
}

int ed_state_export(const ed_decoder *decoder, void *state, size_t bytes) {
    int error = require_decoder(decoder);
    if (error) return error;
    if (!state) return ED_ERROR_NULL;
    if (bytes != decoder->model->info.export_bytes) return ED_ERROR_SIZE;
    if ((uintptr_t)state % 8) return ED_ERROR_ALIGN;
    return ended((ed_decoder *)decoder, decoder->model->export_state(decoder, state));
}

int ed_state_import(ed_decoder *decoder, const void *state, size_t bytes) {
    int error = require_decoder(decoder);
    if (error) return error;
    if (!state) return ED_ERROR_NULL;
    if (bytes != decoder->model->info.export_bytes) return ED_ERROR_SIZE;
    if ((uintptr_t)state % 8) return ED_ERROR_ALIGN;
    return ended(decoder, decoder->model->import_state(decoder, state));
}
