/*
 * The public functions: each checks its arguments, then calls the model's own. Knows no shape; compiled once, however
 * many models a program holds.
 */
#include "ed_model.h"

/* Frames of one call: far beyond any buffer, far below a negative count that was converted. */
#define ED_MAX_FRAMES (SIZE_MAX >> (sizeof(size_t) > 4 ? 16 : 1))

const char *ed_strerror(int code) {
    switch (code) {
    case ED_OK: return "no error";
    case ED_ERROR_NULL: return "a pointer that must not be null is null";
    case ED_ERROR_SIZE: return "a buffer has the wrong size; ed_info states the sizes of state, export and latent";
    case ED_ERROR_ALIGN: return "the decoder's memory is not aligned to ED_ALIGN bytes, or a state not to 8";
    case ED_ERROR_COUNT: return "the number of frames is zero or impossibly large";
    case ED_ERROR_CAPACITY: return "too few places for the outputs; ed_outputs_for() says how many are needed";
    case ED_ERROR_VALUE: return "a value is not finite, or a standard deviation is negative";
    case ED_ERROR_STATE: return "the state is damaged, out of range or of another model";
    case ED_ERROR_GAIN: return "ed_push_i16 needs ed_set_gain first";
    case ED_ERROR_DECODER: return "the memory holds no decoder; was ed_init called on it, or was it overwritten?";
    case ED_ERROR_UNSUPPORTED: return "this engine does not have that function";
    default: return "unknown error code";
    }
}

static int require_decoder(const ed_decoder *decoder) {
    if (!decoder) return ED_ERROR_NULL;
    return decoder->magic == ED_DECODER_MAGIC ? ED_OK : ED_ERROR_DECODER;
}

/* NaN and infinities have all bits of the exponent set. */
static int all_finite(const float *x, size_t n) {
    uint32_t wild = 0;
    for (size_t i = 0; i < n; i++) wild |= (uint32_t)!(__builtin_fabsf(x[i]) <= 3.402823466e38f);
    return !wild;
}

static int all_finite_double(const double *x, size_t n) {
    uint32_t wild = 0;
    for (size_t i = 0; i < n; i++) wild |= (uint32_t)!(__builtin_fabs(x[i]) <= 1.7976931348623157e308);
    return !wild;
}

const ed_info *ed_model_info(const ed_model *model) { return model ? &model->info : NULL; }

size_t ed_state_bytes(const ed_model *model) { return model ? model->info.state_bytes : 0; }

int ed_init(const ed_model *model, void *memory, size_t bytes, ed_decoder **decoder) {
    if (!model || !memory || !decoder) return ED_ERROR_NULL;
    if ((uintptr_t)memory % ED_ALIGN) return ED_ERROR_ALIGN;
    if (bytes < model->info.state_bytes) return ED_ERROR_SIZE;
    ed_decoder *made = memory;
    made->model = model;
    made->has_gain = 0;
    model->init(made);
    made->magic = ED_DECODER_MAGIC;
    *decoder = made;
    return ED_OK;
}

int ed_open(const char *build_directory, ed_decoder **decoder) {
    return build_directory && decoder ? ED_ERROR_UNSUPPORTED : ED_ERROR_NULL;
}

void ed_close(ed_decoder *decoder) { (void)decoder; }

const ed_info *ed_info_get(const ed_decoder *decoder) {
    return require_decoder(decoder) == ED_OK ? &decoder->model->info : NULL;
}

void ed_reset(ed_decoder *decoder) {
    if (require_decoder(decoder) == ED_OK) decoder->model->reset(decoder);
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
    *n_out = decoder->model->push(decoder, frames, n_frames, outputs);
    return ED_OK;
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
    decoder->model->push(decoder, (ed_frames){NULL, NULL}, n_frames, NULL);
    return ED_OK;
}

int ed_step(ed_decoder *decoder, const float *bin, float *kinematics) {
    int error = require_decoder(decoder);
    if (error) return error;
    if (!bin || !kinematics) return ED_ERROR_NULL;
    if (!all_finite(bin, decoder->model->info.channels)) return ED_ERROR_VALUE;
    decoder->model->step(decoder, bin, kinematics);
    return ED_OK;
}

int ed_set_normalization(ed_decoder *decoder, const float *mean, const float *std) {
    int error = require_decoder(decoder);
    if (error) return error;
    if (!mean || !std) return ED_ERROR_NULL;
    size_t channels = decoder->model->info.channels;
    if (!all_finite(mean, channels) || !all_finite(std, channels)) return ED_ERROR_VALUE;
    for (size_t i = 0; i < channels; i++)
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

int ed_state_export(const ed_decoder *decoder, void *state, size_t bytes) {
    int error = require_decoder(decoder);
    if (error) return error;
    if (!state) return ED_ERROR_NULL;
    if (bytes != decoder->model->info.export_bytes) return ED_ERROR_SIZE;
    if ((uintptr_t)state % 8) return ED_ERROR_ALIGN;
    decoder->model->export_state(decoder, state);
    return ED_OK;
}

int ed_state_import(ed_decoder *decoder, const void *state, size_t bytes) {
    int error = require_decoder(decoder);
    if (error) return error;
    if (!state) return ED_ERROR_NULL;
    if (bytes != decoder->model->info.export_bytes) return ED_ERROR_SIZE;
    if ((uintptr_t)state % 8) return ED_ERROR_ALIGN;
    return decoder->model->import_state(decoder, state);
}
