/*
 * edgedistill turns raw LFP frames into decoded kinematics, one output for each bin (10 ms).
 *
 *     static _Alignas(ED_ALIGN) unsigned char memory[...];         at least ed_state_bytes(&ed_model_NAME)
 *     ed_decoder *decoder;
 *     int error = ed_init(&ed_model_NAME, memory, sizeof memory, &decoder);
 *     ...
 *     ed_output outputs[8];
 *     size_t n;
 *     error = ed_push(decoder, frames_uv, n_frames, outputs, 8, &n);
 *     for (size_t i = 0; i < n; i++)
 *         if (!(outputs[i].flags & (ED_WARMUP | ED_INVALID))) use(outputs[i].kinematics);
 *
 * A frame is one sample of every channel, in microvolts, time first: frames_uv[frame * channels + channel]. Channels
 * are in the order of ed_info.channel_ids. Frames may arrive in chunks of any size: the bits of the outputs do not
 * depend on the chunks, and no output depends on a frame after its end_frame. A channel that is lost is filled in from
 * the others, and each output says how far it may be off.
 *
 * A library made for a GPU opens the folder it was built in instead, and must be closed in the end:
 *
 *     error = ed_open("NAME.edge/build/jetson", &decoder);
 *     ...
 *     ed_close(decoder);
 *
 * Only ed_open allocates. Nothing prints, reads a clock or keeps global state. The C engine takes no lock and needs
 * nothing beyond memcpy, memmove and memset; a GPU engine also does what the CUDA driver does. Several decoders and
 * several models can live in one program. A decoder belongs to one thread at a time; different decoders are
 * independent. The time of a step does not depend on the data. Bins with lost frames may take less time than others.
 *
 * Every function that returns int returns ED_OK (0) or one of the negative codes below. On error it has changed neither
 * the decoder nor the caller's buffers. ed_info_get and ed_reset return no code; they ignore a null decoder.
 *
 * GPU engines have one exception. A call during which the device fails returns what failed, and afterwards every
 * function of that decoder that returns int returns ED_ERROR_DEVICE, so that only ed_close is left to call. By then
 * ed_push has written the outputs of the bins before the failure, *n_out of them, and perhaps a part of the next one;
 * ed_state_export may have written a part of the state. A device that fails in ed_reset reports it at the next call.
 *
 * Floating point: the caller must leave the processor in its default state, which rounds to nearest and keeps denormals
 * (no flush to zero). Otherwise outputs differ from the reference in their last bits.
 */
#ifndef EDGEDISTILL_H
#define EDGEDISTILL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define ED_API __attribute__((visibility("default")))
#else
#define ED_API
#endif

#define ED_ABI_VERSION 4
#define ED_ALIGN 64       /* alignment in bytes of the memory given to ed_init: one cache line, one vector */
#define ED_MAX_OUTPUTS 16 /* upper limit of ed_info.outputs */

/* ---------------------------------------------------------------- outputs */

/* Bits of ed_output.flags. */
enum {
    /* fewer bins have been decoded than ed_info.warmup_bins, or the filters of most channels have not settled since
     * they started: after the start of a stream, a long gap, or an artefact on the whole array */
    ED_WARMUP = 1,
    ED_MASKED = 2,  /* at least one channel was bad and filled in, apart from those that the settings leave out */
    ED_GAP = 4,     /* frames of this bin were lost: declared so, or without a finite sample in any channel */
    ED_INVALID = 8, /* no channel is usable, or a result is not finite: do not act on it */
    /* the running amplitude of most channels has been outside 0.25 to 4 times the expected for 10 s: another gain, unit
     * or amplifier. Do not trust the kinematics until the cause is known; ed_set_normalization takes a new scale */
    ED_SHIFTED = 16,
};

/* The output of one completed bin. */
typedef struct {
    uint64_t bin;          /* index of the bin since the start, bin 0 first */
    uint64_t end_frame;    /* the raw frame that completed it */
    uint32_t flags;        /* ED_WARMUP | ED_MASKED | ED_GAP | ED_INVALID | ED_SHIFTED */
    uint32_t bad_channels; /* number of bad channels, without those that the settings leave out */
    /* ed_info.outputs values in ed_info.output_units; the others are 0. They are smoothed if ed_info.smoothing_states
     * is above 0 */
    float kinematics[ED_MAX_OUTPUTS];
    /* standard deviation of each value, in the same units; the others are 0. It was calibrated so that nine in ten true
     * values lie within 1.645 of it, and grows with the decoded speed and with the number of lost channels */
    float deviation[ED_MAX_OUTPUTS];
} ed_output;

/* ---------------------------------------------------------------- errors */

enum {
    ED_OK = 0,
    ED_ERROR_NULL = -1,     /* a pointer that must not be null is null */
    ED_ERROR_SIZE = -2,     /* a buffer has the wrong size, or the memory of ed_init is too small */
    ED_ERROR_ALIGN = -3,    /* the memory of ed_init is not aligned to ED_ALIGN, or a state to 8 bytes */
    ED_ERROR_COUNT = -4,    /* no frames, more than a call can have (a negative count), or more than a stream: 2^62 */
    ED_ERROR_CAPACITY = -5, /* there is room for fewer outputs than ed_outputs_for() returns */
    ED_ERROR_VALUE = -6,    /* a value is not finite, or a standard deviation is negative */
    ED_ERROR_STATE = -7,    /* the state is damaged, out of range or of another model */
    ED_ERROR_GAIN = -8,     /* ed_push_i16 was called before ed_set_gain */
    ED_ERROR_DECODER = -9,  /* the memory holds no decoder: ed_init was not called, or it was overwritten */
    ED_ERROR_UNSUPPORTED = -10, /* this engine does not have the function */
    /* the codes below are those of GPU engines */
    ED_ERROR_DRIVER = -11,   /* there is no CUDA driver, no GPU that it may use, or TensorRT needs a newer one */
    ED_ERROR_CHIP = -12,     /* the build is for another chip, toolkit or driver: compile again */
    ED_ERROR_MEMORY = -13,   /* device or host memory is exhausted */
    ED_ERROR_FILE = -14,     /* the build folder lacks a file, or one is damaged or of another model */
    ED_ERROR_DEVICE = -15,   /* the device reported a failure: only ed_close can be called */
    ED_ERROR_TENSORRT = -16, /* there is no TensorRT of the version the library was compiled with */
};

/* Returns the meaning of a code, in English, without a full stop; never null. */
ED_API const char *ed_strerror(int code);

/* ---------------------------------------------------------------- models and decoders */

typedef struct ed_model ed_model;     /* constant data: `extern const ed_model ed_model_NAME;` */
typedef struct ed_decoder ed_decoder; /* one stream through a model */

/* What a caller needs to feed a decoder and to read its outputs. All strings and arrays are constant. */
typedef struct {
    uint32_t abi_version; /* ED_ABI_VERSION of the library */
    uint32_t channels;    /* samples in a frame */
    uint32_t inputs;      /* numbers in a bin of the models' input: channels, times the features of each */
    uint32_t outputs;     /* values of ed_output.kinematics that are in use */
    uint32_t latent;      /* values that ed_latent() writes */
    uint64_t rate_numerator, rate_denominator; /* frames in a second, as an exact fraction */
    uint32_t bin_ms;                           /* milliseconds in a bin */
    uint32_t warmup_bins;                      /* bins with ED_WARMUP at the start of a stream */
    uint32_t smoothing_states;                 /* values in the state of what smooths the outputs; 0 without it */
    double group_delay_ms;                     /* delay of the front end, from a signal to the bin that reports it */
    double smoothing_delay_ms;                 /* delay at 1 Hz of what smooths the outputs; 0 without it */
    size_t state_bytes;                        /* memory that ed_init needs */
    size_t export_bytes;                       /* size of the buffer for ed_state_export */
    const char *name;                          /* name of the model, as in ed_model_NAME */
    const char *variant;                       /* variant of the kernels: "scalar", "avx2", "avx512-vnni", ... */
    const char *const *channel_ids;            /* (channels,) */
    const char *const *output_names;           /* (outputs,) */
    const char *const *output_units;           /* (outputs,) */
    const char *manifest_sha256;               /* hash of the bundle, which covers every file in it; 64 hex digits */
    const char *weights_sha256;                /* hash of student.int8.safetensors */
} ed_info;

/* Returns the facts of a model before there is a decoder; null for null. */
ED_API const ed_info *ed_model_info(const ed_model *model);

/* Returns the bytes that ed_init needs; 0 for null. */
ED_API size_t ed_state_bytes(const ed_model *model);

/* Makes a decoder of `model` at the start of a stream, in `memory` of `bytes` bytes aligned to ED_ALIGN. The memory
 * stays the caller's: there is nothing to free, but it must not move while the decoder is in use. Returns
 * ED_ERROR_NULL, ED_ERROR_ALIGN or ED_ERROR_SIZE. */
ED_API int ed_init(const ed_model *model, void *memory, size_t bytes, ed_decoder **decoder);

/* Opens the one model of a library made for a GPU (CUDA, TensorRT) on this machine. `build_directory` is the folder the
 * library was built in. What lies there is loaded and run, and nothing of it is checked: name a folder that you compiled
 * and that nobody else can write to, not one that came with a bundle. Everything is allocated here, and ed_close frees
 * it. A process that forks must call ed_open after the fork. Returns ED_ERROR_NULL, ED_ERROR_DRIVER, ED_ERROR_CHIP,
 * ED_ERROR_MEMORY, ED_ERROR_FILE, ED_ERROR_DEVICE or ED_ERROR_TENSORRT, and leaves *decoder untouched on error. In such
 * a library ed_init returns ED_ERROR_UNSUPPORTED. In the C engine ed_open returns ED_ERROR_UNSUPPORTED and ed_close does nothing.
 *
 * Two such libraries have functions of the same names, but each ed_open knows only its own model. A program with
 * several models loads each library with dlopen(..., RTLD_NOW | RTLD_LOCAL) and looks up each one's own ed_open. */
ED_API int ed_open(const char *build_directory, ed_decoder **decoder);
ED_API void ed_close(ed_decoder *decoder);

/* Returns the facts of a decoder's model; null for null. */
ED_API const ed_info *ed_info_get(const ed_decoder *decoder);

/* Starts a fresh stream: the next frame is frame 0. Normalization and gain are those that were set last, also where
 * statistics have followed the signal since. */
ED_API void ed_reset(ed_decoder *decoder);

/* ---------------------------------------------------------------- decoding */

/* Returns how many outputs the next `n_frames` frames will complete, which is the capacity that ed_push needs; 0 for
 * null, and for a number that ed_push refuses. */
ED_API size_t ed_outputs_for(const ed_decoder *decoder, size_t n_frames);

/* Decodes `n_frames` frames (n_frames, channels) in microvolts, and writes the outputs of the bins they complete,
 * *n_out of them, which may be 0. Samples that are not finite are no error: their channel is filled in and counted. A
 * frame without any finite sample, apart from channels that the settings leave out, is a lost frame.
 * Returns ED_ERROR_NULL, ED_ERROR_COUNT or ED_ERROR_CAPACITY. outputs may be null if no bin is completed. */
ED_API int ed_push(ed_decoder *decoder, const float *frames_uv, size_t n_frames, ed_output *outputs, size_t capacity,
                   size_t *n_out);

/* Decodes an amplifier's integers as ed_push does: microvolts = sample * gain + offset, in float64, rounded once to
 * float32. */
ED_API int ed_push_i16(ed_decoder *decoder, const int16_t *frames, size_t n_frames, ed_output *outputs, size_t capacity,
                       size_t *n_out);

/* Copies the gain in microvolts a step and the offset in microvolts, (channels,) each, for ed_push_i16. Returns
 * ED_ERROR_VALUE if one is not finite. */
ED_API int ed_set_gain(ed_decoder *decoder, const double *gain_uv, const double *offset_uv);

/* Declares `n_frames` frames lost. They carry nothing: time goes on, the filters stay as they are, and every bin that
 * they touch is flagged ED_GAP and has no channel. Bins that are completed inside the gap are decoded, since later bins
 * attend to them. ed_gap drops their outputs; ed_gap_outputs returns them, as ed_push does. It takes no longer than
 * pushing that many frames. */
ED_API int ed_gap(ed_decoder *decoder, size_t n_frames);
ED_API int ed_gap_outputs(ed_decoder *decoder, size_t n_frames, ed_output *outputs, size_t capacity, size_t *n_out);

/* Decodes one bin of the models' input (inputs,) to kinematics (outputs,) in ed_info.output_units. Everything before
 * the student is bypassed and keeps its state: filters, statistics, and what fills in lost channels. The input has
 * number f * channels + c for feature f of channel c. Feature 0 is the slow LFP, and the others are the log power of
 * each band. The kinematics are smoothed as those of ed_push are, and move the state of that filter. Returns
 * ED_ERROR_VALUE if a value is not finite, because it would stay in the attention window. */
ED_API int ed_step(ed_decoder *decoder, const float *bin, float *kinematics);

/* Sets another day's statistics, (inputs,) each in the order of ed_step, from the next bin on: mean and standard
 * deviation in microvolts of the filtered channels, before the common average, then those of the log power of each
 * band. A standard deviation of 0 of its slow LFP silences a channel, which is then filled in. That of a band makes
 * this number 0. Where statistics follow the signal, they follow from these on, and ed_reset goes back to these. The
 * running amplitude behind ED_SHIFTED starts again. Returns ED_ERROR_VALUE if one is not finite or a deviation is
 * negative. */
ED_API int ed_set_normalization(ed_decoder *decoder, const float *mean, const float *std);

/* Writes the latent (ed_info.latent,) of the last bin, before the gain of the last norm; zeros before the first bin.
 * Returns ED_ERROR_SIZE unless `count` is ed_info.latent. */
ED_API int ed_latent(const ed_decoder *decoder, float *latent, size_t count);

/* Writes the kinematics (ed_info.outputs,) of the last bin before they were smoothed, which are those of the student
 * itself and come without ed_info.smoothing_delay_ms; zeros before the first bin. They are no part of a state. Returns
 * ED_ERROR_SIZE unless `count` is ed_info.outputs. */
ED_API int ed_raw_kinematics(const ed_decoder *decoder, float *kinematics, size_t count);

/* ---------------------------------------------------------------- state
 *
 * A state is everything that later outputs depend on, except for gain and for statistics that were set. Statistics that
 * follow the signal are part of it. All engines of a model share its layout: when one exports a state and another
 * imports it, the stream goes on with the same bits. Little-endian:
 *
 *     ed_state_header, 80 bytes
 *     for each layer: int8 ring_k (heads, window - 1, head_dim) by slot, then int8 ring_v of the same shape
 *     int8 lags (lag_rows, inputs), newest bin first
 *     zeros up to a multiple of 8
 *     front end (frontend_bytes), in the layout of kernels/c/ed_frontend_state.h
 *     if statistics follow the signal: double mean (inputs,), then double std (inputs,), at most 2^256
 *     running amplitude: uint32 bins outside, at most 1000, then float32 power (channels,), each from 2^-60 to 256
 *     float32 state of the filter that smooths outputs (smoothing_states,), each 0 or of 2^-100 to 2^80 in magnitude
 *     zeros up to a multiple of 8
 *
 * `pos` is the slot that the next bin takes, and `live` the number of filled slots. No value is -128.
 *
 * A state may come from anywhere: ed_state_import checks every field against what a stream can reach, as
 * docs/numerics.md lists it ("The exported bytes"), and no state that it takes makes a later call leave its bounds. Two
 * things it cannot know: who made the state, and whether the stream that it belongs to was this one.
 */
typedef struct {
    uint32_t magic;                                        /* ED_STATE_MAGIC */
    uint32_t abi_version;                                  /* ED_ABI_VERSION */
    uint64_t bytes;                                        /* size of the whole state: ed_info.export_bytes */
    uint64_t frontend_bytes;                               /* size of the front end's part */
    uint64_t seen;                                         /* bins decoded since the start, at most 2^62 */
    uint32_t channels, d, layers, heads, window, lag_rows; /* of the student, whose channels are ed_info.inputs */
    int32_t pos, live;
    uint32_t smoothing_states;
    uint32_t reserved[3]; /* 0 */
} ed_state_header;

#define ED_STATE_MAGIC 0x54534445u /* "EDST" */

/* Writes the state, exactly ed_info.export_bytes, to a buffer aligned to 8 bytes. Returns ED_ERROR_SIZE or
 * ED_ERROR_ALIGN. */
ED_API int ed_state_export(const ed_decoder *decoder, void *state, size_t bytes);

/* Goes on from an exported state. Returns ED_ERROR_SIZE, ED_ERROR_ALIGN, or ED_ERROR_STATE if it is not a state of this
 * model. */
ED_API int ed_state_import(ed_decoder *decoder, const void *state, size_t bytes);

#ifdef __cplusplus
}
#endif

#endif
