/*
 * One model: its shape, its weights, its state, and the table through which ed_api.c reaches it.
 *
 * Compile this file once for each model, with -DED_MODEL_HEADER='"model_NAME.h"', the file that edgedistill writes for
 * a bundle. It defines one external symbol, ed_model_NAME, so that several models link into one program. Build with
 * -std=c11 -O3 -ffp-contract=off -fno-math-errno and the flags of the variant, never with -ffast-math. With -DED_DEVICE
 * the student is computed behind ed_device.h, and this file keeps the front end and the stream.
 */
#include ED_MODEL_HEADER

#include "ed_model.h"
#include "ed_weights.h"

#include ED_MODEL_DATA

#ifdef ED_DEVICE
#include "ed_device_step.h"
#else
#include ED_OPS_HEADER

#include "ed_step.h"
#endif

#include "ed_frontend_state.h"

#include "ed_deviation.h"
#include "ed_shift.h"
#include "ed_statistics.h"
#ifdef ED_SMOOTHING_STATES
#include "ed_smoothing.h"
#else
#define ED_SMOOTHING_STATES 0
#define ED_SMOOTHING_DELAY_MS 0.0
#endif

_Static_assert(ED_OUTPUTS <= ED_MAX_OUTPUTS, "more outputs than ed_output holds");
_Static_assert(ED_INPUTS == ED_CHANNELS, "the front end is of another array");
_Static_assert(sizeof(ed_state_header) == 80, "the layout of an exported state");
_Static_assert(sizeof(ed_statistics) == 16 * ED_INPUTS, "the layout of exported statistics");
_Static_assert(sizeof(ed_shift) == 4 + 4 * ED_FE_CHANNELS, "the layout of an exported running amplitude");

/* The memory of a decoder. */
struct ed_engine {
    struct ed_decoder head;
    ED_ALIGNED struct ed_student student;
    ED_ALIGNED ed_fe_state front_end;
    ed_statistics statistics;
#if ED_FE_FOLLOWS
    ed_statistics start; /* those that were set last, with which a stream starts */
#endif
    double gain[ED_FE_CHANNELS], offset[ED_FE_CHANNELS]; /* conversion of int16 frames, uV */
    uint64_t seen;                                       /* bins decoded since the start */
    ed_shift shift;                                      /* running amplitude of the models' input */
    float raw[ED_OUTPUTS];                               /* kinematics of the last bin before they were smoothed */
#if ED_SMOOTHING_STATES
    float smoothing[ED_SMOOTHING_STATES];
#endif
};

static struct ed_engine *engine_of(ed_decoder *decoder) { return (struct ed_engine *)decoder; }
static const struct ed_engine *engine_at(const ed_decoder *decoder) { return (const struct ed_engine *)decoder; }

/* Sets the mean and deviation of one number of a bin, from which a stream also starts. */
static void engine_set_input(struct ed_engine *engine, int i, double mean, double std) {
    engine->statistics.mean[i] = mean;
    engine->statistics.std[i] = std;
#if ED_FE_FOLLOWS
    engine->start.mean[i] = mean;
    engine->start.std[i] = std;
#endif
}

static ED_RARE void engine_rewind(struct ed_engine *engine) {
    ed_fe_reset(&engine->front_end);
#if ED_FE_FOLLOWS
    engine->statistics = engine->start;
#endif
    engine->seen = 0;
    ed_shift_reset(&engine->shift);
    memset(engine->raw, 0, sizeof engine->raw);
#if ED_SMOOTHING_STATES
    ed_smoothing_reset(engine->smoothing);
#endif
}

static ED_RARE int engine_reset(ed_decoder *decoder) {
    engine_rewind(engine_of(decoder));
    return ed_student_reset(&engine_of(decoder)->student);
}

static ED_RARE int engine_init(ed_decoder *decoder, const char *build_directory) {
    struct ed_engine *engine = engine_of(decoder);
    for (int i = 0; i < ED_INPUTS; i++) engine_set_input(engine, i, ed_fe_mean[i], ed_fe_std[i]);
    memset(engine->gain, 0, sizeof engine->gain);
    memset(engine->offset, 0, sizeof engine->offset);
    engine_rewind(engine);
    return ed_student_start(&engine->student, build_directory);
}

#ifdef ED_DEVICE
static void engine_close(ed_decoder *decoder) { ed_device_close(engine_of(decoder)->student.device); }
#endif

/* ---------------------------------------------------------------- decoding */

static int engine_step(ed_decoder *decoder, const float *bin, float *kinematics) {
    struct ed_engine *engine = engine_of(decoder);
    int error = ed_student_step(&engine->student, bin, engine->raw);
    if (error) return error;
    engine->seen += engine->seen < ED_CLOCK_MOST;
#if ED_SMOOTHING_STATES
    ed_smooth(engine->smoothing, engine->raw, kinematics);
#else
    memcpy(kinematics, engine->raw, sizeof engine->raw);
#endif
    return ED_OK;
}

static uint32_t engine_flags(const struct ed_engine *engine, const ed_fe_bin *bin, const ed_output *output,
                             uint32_t lost_channels) {
    int finite = 1;
    for (int o = 0; o < ED_OUTPUTS; o++) finite &= __builtin_fabsf(output->kinematics[o]) <= FLT_MAX;
    return (engine->seen < ED_WARMUP_BINS || bin->unsettled ? ED_WARMUP : 0u) |
           (output->bad_channels ? ED_MASKED : 0u) | (bin->lost ? ED_GAP : 0u) |
           (lost_channels < ED_KNOWN_CHANNELS && finite ? 0u : ED_INVALID);
}

/* Decodes the bin that the front end has completed. */
static int engine_decode(struct ed_engine *engine, ed_output *output) {
    ed_across present[ED_FE_FEATURES];
    ED_ALIGNED float z[ED_INPUTS_ROOM];
    uint32_t there[ED_CP];
    ed_fe_bin bin;
    const double(*value)[ED_FE_PADDED] = ed_fe_finish_bin(&engine->front_end, &bin);
    const uint32_t bad = ed_standardize(&engine->statistics, value, engine->front_end.channels.bad, present, there);
    const uint32_t lost = ed_spatial_complete(present, there, z);
    memset(output, 0, sizeof *output);
    int error = engine_step(&engine->head, z, output->kinematics);
    if (error) return error;
    ed_deviate(output->kinematics, lost, output->deviation);
    output->bin = bin.bin;
    output->end_frame = bin.end_frame;
    output->bad_channels = bad - ED_FE_LEFT_OUT;
    output->flags = engine_flags(engine, &bin, output, lost);
    const uint32_t counts = !(output->flags & (ED_WARMUP | ED_GAP));
    ed_shift_update(&engine->shift, z, there, counts);
#if ED_FE_FOLLOWS
    ed_statistics_update(&engine->statistics, value, there, counts);
#endif
    output->flags |= engine->shift.outside_bins >= ED_SHIFT_BINS ? ED_SHIFTED : 0u;
    return ED_OK;
}

static size_t engine_take(struct ed_engine *engine, ed_frames *frames, size_t n, int *complete) {
    ed_fe_state *fe = &engine->front_end;
    size_t used;
    if (frames->uv) {
        used = ed_fe_take(fe, frames->uv, n, complete);
        frames->uv += used * ED_FE_CHANNELS;
    } else if (frames->i16) {
        used = ed_fe_take_i16(fe, frames->i16, n, engine->gain, engine->offset, complete);
        frames->i16 += used * ED_FE_CHANNELS;
    } else {
        used = ed_fe_take_gap(fe, n, complete);
    }
    return used;
}

static int engine_push(ed_decoder *decoder, ed_frames frames, size_t n_frames, ed_output *outputs, size_t capacity,
                       size_t *made) {
    struct ed_engine *engine = engine_of(decoder);
    ed_output dropped;
    if (!ed_fe_has_room(&engine->front_end, n_frames)) return ED_ERROR_COUNT;
    *made = 0;
    while (n_frames) {
        int complete;
        n_frames -= engine_take(engine, &frames, n_frames, &complete);
        if (!complete) continue;
        if (*made == capacity) return ED_ERROR_DECODER; /* the clock counts other bins than outputs_for found */
        int error = engine_decode(engine, outputs ? &outputs[*made] : &dropped);
        if (error) return error;
        ++*made;
    }
    return ED_OK;
}

static uint64_t engine_outputs_for(const ed_decoder *decoder, uint64_t n_frames) {
    return ed_fe_bins_for(&engine_at(decoder)->front_end, n_frames);
}

static ED_RARE void engine_set_normalization(ed_decoder *decoder, const float *mean, const float *std) {
    struct ed_engine *engine = engine_of(decoder);
    for (int i = 0; i < ED_INPUTS; i++) engine_set_input(engine, i, (double)mean[i], (double)std[i]);
    ed_shift_reset(&engine->shift);
}

static ED_RARE void engine_set_gain(ed_decoder *decoder, const double *gain, const double *offset) {
    struct ed_engine *engine = engine_of(decoder);
    memcpy(engine->gain, gain, sizeof engine->gain);
    memcpy(engine->offset, offset, sizeof engine->offset);
}

static void engine_latent(const ed_decoder *decoder, float *latent) {
    memcpy(latent, engine_at(decoder)->student.latent, ED_D * sizeof(float));
}

static void engine_raw_kinematics(const ed_decoder *decoder, float *kinematics) {
    memcpy(kinematics, engine_at(decoder)->raw, ED_OUTPUTS * sizeof(float));
}

/* ---------------------------------------------------------------- state */

#define ED_FRONTEND_AT (sizeof(ed_state_header) + ED_UP(ED_STUDENT_BYTES, 8))
#define ED_STATISTICS_AT (ED_FRONTEND_AT + sizeof(ed_fe_exchange))
#define ED_SHIFT_AT (ED_STATISTICS_AT + (ED_FE_FOLLOWS ? sizeof(ed_statistics) : 0))
#define ED_SMOOTHING_AT (ED_SHIFT_AT + sizeof(ed_shift))
#define ED_EXPORT_BYTES (ED_SHIFT_AT + ED_UP(sizeof(ed_shift) + ED_SMOOTHING_STATES * sizeof(float), 8))

static ed_state_header engine_header(const struct ed_engine *engine, int32_t pos, int32_t live) {
    return (ed_state_header){
        .magic = ED_STATE_MAGIC,
        .abi_version = ED_ABI_VERSION,
        .bytes = ED_EXPORT_BYTES,
        .frontend_bytes = sizeof(ed_fe_exchange),
        .seen = engine->seen,
        .channels = ED_CHANNELS,
        .d = ED_D,
        .layers = ED_LAYERS,
        .heads = ED_HEADS,
        .window = ED_WINDOW,
        .lag_rows = ED_LAG_ROWS,
        .pos = pos,
        .live = live,
        .smoothing_states = ED_SMOOTHING_STATES,
    };
}

static ED_RARE int engine_export(const ed_decoder *decoder, void *state) {
    const struct ed_engine *engine = engine_at(decoder);
    unsigned char *out = state;
    int32_t pos = 0, live = 0;
    int error = ed_student_export(&engine->student, (int8_t *)out + sizeof(ed_state_header), &pos, &live);
    if (error) return error;
    ed_state_header header = engine_header(engine, pos, live);
    memcpy(out, &header, sizeof header);
    memset(out + sizeof header + ED_STUDENT_BYTES, 0, ED_FRONTEND_AT - sizeof header - ED_STUDENT_BYTES);
    ed_fe_export(&engine->front_end, (ed_fe_exchange *)(void *)(out + ED_FRONTEND_AT));
#if ED_FE_FOLLOWS
    memcpy(out + ED_STATISTICS_AT, &engine->statistics, sizeof engine->statistics);
#endif
    memset(out + ED_SHIFT_AT, 0, ED_EXPORT_BYTES - ED_SHIFT_AT);
    memcpy(out + ED_SHIFT_AT, &engine->shift, sizeof engine->shift);
#if ED_SMOOTHING_STATES
    memcpy(out + ED_SMOOTHING_AT, engine->smoothing, sizeof engine->smoothing);
#endif
    return ED_OK;
}

/* Tells whether the bytes from `begin` to `end` are zeros, as what fills a state up must be. */
static int engine_is_zero(const unsigned char *state, size_t begin, size_t end) {
    unsigned char found = 0;
    for (size_t i = begin; i < end; i++) found |= state[i];
    return !found;
}

/* Tells whether this model can have this state: the shape is its own, counts and slots are in range, no value is -128,
 * and only zeros fill it up. */
static int engine_accepts(const struct ed_engine *engine, const unsigned char *state) {
    ed_state_header found;
    memcpy(&found, state, sizeof found);
    ed_state_header own = engine_header(engine, found.pos, found.live);
    if (found.pos < 0 || found.pos >= ED_SLOTS || found.live < 0 || found.live > ED_SLOTS) return 0;
    if (found.seen > ED_CLOCK_MOST) return 0;
    own.seen = found.seen;
    const unsigned char *own_bytes = (const unsigned char *)&own, *found_bytes = (const unsigned char *)&found;
    int wild = 0; /* a loop, because firmware may have no memcmp */
    for (size_t i = 0; i < sizeof own; i++) wild |= own_bytes[i] != found_bytes[i];
    for (size_t i = 0; i < ED_STUDENT_BYTES; i++) wild |= state[sizeof found + i] == 0x80;
    return !wild && engine_is_zero(state, sizeof found + ED_STUDENT_BYTES, ED_FRONTEND_AT) &&
           engine_is_zero(state, ED_SMOOTHING_AT + ED_SMOOTHING_STATES * sizeof(float), ED_EXPORT_BYTES);
}

static ED_RARE int engine_import(ed_decoder *decoder, const void *state) {
    struct ed_engine *engine = engine_of(decoder);
    const unsigned char *in = state;
    const ed_fe_exchange *front_end = (const ed_fe_exchange *)(const void *)(in + ED_FRONTEND_AT);
    const ed_shift *shift = (const ed_shift *)(const void *)(in + ED_SHIFT_AT);
    if (!engine_accepts(engine, in) || !ed_fe_is_state(front_end) || !ed_shift_is_state(shift)) return ED_ERROR_STATE;
#if ED_FE_FOLLOWS
    const ed_statistics *statistics = (const ed_statistics *)(const void *)(in + ED_STATISTICS_AT);
    if (!ed_are_statistics(statistics)) return ED_ERROR_STATE;
#endif
#if ED_SMOOTHING_STATES
    const float *smoothing = (const float *)(const void *)(in + ED_SMOOTHING_AT);
    if (!ed_is_smoothing_state(smoothing)) return ED_ERROR_STATE;
#endif
    ed_state_header header;
    memcpy(&header, in, sizeof header);
    int error = ed_student_import(&engine->student, (const int8_t *)in + sizeof header, header.pos, header.live);
    if (error) return error;
    ed_fe_import(&engine->front_end, front_end);
#if ED_FE_FOLLOWS
    engine->statistics = *statistics;
#endif
    engine->shift = *shift;
#if ED_SMOOTHING_STATES
    memcpy(engine->smoothing, smoothing, sizeof engine->smoothing);
#endif
    engine->seen = header.seen;
    return ED_OK;
}

/* ---------------------------------------------------------------- the table */

extern const ed_model ED_MODEL_SYMBOL;

ED_API const ed_model ED_MODEL_SYMBOL = {
    .info =
        {
            .abi_version = ED_ABI_VERSION,
            .channels = ED_FE_CHANNELS,
            .inputs = ED_INPUTS,
            .outputs = ED_OUTPUTS,
            .latent = ED_D,
            .rate_numerator = ED_RATE_NUMERATOR,
            .rate_denominator = ED_RATE_DENOMINATOR,
            .bin_ms = ED_BIN_MS,
            .warmup_bins = ED_WARMUP_BINS,
            .smoothing_states = ED_SMOOTHING_STATES,
            .group_delay_ms = ED_GROUP_DELAY_MS,
            .smoothing_delay_ms = ED_SMOOTHING_DELAY_MS,
            .state_bytes = sizeof(struct ed_engine),
            .export_bytes = ED_EXPORT_BYTES,
            .name = ED_NAME,
            .variant = ED_OPS_NAME,
            .channel_ids = ed_channel_ids,
            .output_names = ed_output_names,
            .output_units = ed_output_units,
            .manifest_sha256 = ED_MANIFEST_SHA256,
            .weights_sha256 = ED_WEIGHTS_SHA256,
        },
    .init = engine_init,
#ifdef ED_DEVICE
    .close = engine_close,
#endif
    .reset = engine_reset,
    .outputs_for = engine_outputs_for,
    .push = engine_push,
    .step = engine_step,
    .set_normalization = engine_set_normalization,
    .set_gain = engine_set_gain,
    .latent = engine_latent,
    .raw_kinematics = engine_raw_kinematics,
    .export_state = engine_export,
    .import_state = engine_import,
};
