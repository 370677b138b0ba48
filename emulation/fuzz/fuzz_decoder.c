/*
 * A target for libFuzzer: it makes calls of any kind, in any order, with frames, states and statistics of any bits.
 *
 * models.h, which the fuzzing benchmark generates, lists the models: one student in every variant that this CPU runs,
 * for each of several arrays. One of the arrays also has the engine of a device, behind ed_open, whose student
 * fuzz_device.c computes. An input chooses an array, then imports states with extreme values, then makes the same calls
 * on the decoders of all variants. The first gets its frames in one piece, the others in chunks. Besides what the
 * sanitizers see, these are required:
 *   - the codes that edgedistill.h promises, and after an error the same state as before;
 *   - as many outputs as ed_outputs_for says, in buffers of exactly that size;
 *   - kinematics that are finite, or flagged ED_INVALID, and deviations that are finite and above 0;
 *   - the same bits of outputs and exported states from all variants and all chunks.
 *
 * fuzz_replay.c makes the same calls on a bare Cortex-M. There the digest of an input is compared with that of a CPU.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "edgedistill.h"
#include "models.h" /* ARRAYS, VARIANTS, models[ARRAYS][VARIANTS], and DEVICE_ARRAY where there is one */
#include "states.h"
#include "tape.h"

enum { MOST_FRAMES = 64, MOST_GAP = 300 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

uint32_t fuzz_digest; /* of all that the decoders of one input gave */

#ifndef FUZZ_REPLAYED
#include <stdio.h>

void fail(int line, const char *what) {
    fprintf(stderr, "line %d: not %s\n", line, what);
    abort();
}
#endif

/* Takes bytes into the digest (FNV-1a). */
static void digest(const void *bytes, size_t n) {
    for (const unsigned char *at = bytes, *end = at + n; at < end; at++) fuzz_digest = (fuzz_digest ^ *at) * 16777619u;
}

/* ---------------------------------------------------------------- decoders */

typedef struct {
    const ed_info *info;
    ed_decoder *decoders[VARIANTS + 1];
    int count; /* of decoders */
    int has_gain;
} stream;

typedef struct {
    const float *uv;    /* or */
    const int16_t *i16; /* the frames are lost if both pointers are null */
    size_t n;
} frames_of_call;

static void *exported(ed_decoder *decoder) {
    size_t bytes = ed_info_get(decoder)->export_bytes;
    void *state = allocated(bytes);
    REQUIRE(ed_state_export(decoder, state, bytes) == ED_OK);
    return state;
}

static void require_state(ed_decoder *decoder, const void *expected) {
    void *state = exported(decoder);
    REQUIRE(memcmp(state, expected, ed_info_get(decoder)->export_bytes) == 0);
    free(state);
}

static void require_same_states(stream *s) {
    void *state = exported(s->decoders[0]);
    digest(state, s->info->export_bytes);
    for (int v = 1; v < s->count; v++) require_state(s->decoders[v], state);
    free(state);
}

static void require_same_raw_kinematics(stream *s) {
    float first[ED_MAX_OUTPUTS], other[ED_MAX_OUTPUTS];
    REQUIRE(ed_raw_kinematics(s->decoders[0], first, s->info->outputs) == ED_OK);
    for (int v = 1; v < s->count; v++) {
        REQUIRE(ed_raw_kinematics(s->decoders[v], other, s->info->outputs) == ED_OK);
        REQUIRE(memcmp(first, other, s->info->outputs * sizeof *first) == 0);
    }
    REQUIRE(ed_raw_kinematics(s->decoders[0], first, s->info->outputs + 1) == ED_ERROR_SIZE);
}

static void require_same_latents(stream *s) {
    float *first = allocated(s->info->latent * sizeof *first), *other = allocated(s->info->latent * sizeof *other);
    REQUIRE(ed_latent(s->decoders[0], first, s->info->latent) == ED_OK);
    for (int v = 1; v < s->count; v++) {
        REQUIRE(ed_latent(s->decoders[v], other, s->info->latent) == ED_OK);
        REQUIRE(memcmp(first, other, s->info->latent * sizeof *first) == 0);
    }
    REQUIRE(ed_latent(s->decoders[0], first, s->info->latent + 1) == ED_ERROR_SIZE);
    free(first);
    free(other);
}

/* ---------------------------------------------------------------- calls */

static int push(ed_decoder *decoder, frames_of_call f, ed_output *outputs, size_t capacity, size_t *made) {
    if (f.uv) return ed_push(decoder, f.uv, f.n, outputs, capacity, made);
    if (f.i16) return ed_push_i16(decoder, f.i16, f.n, outputs, capacity, made);
    return ed_gap_outputs(decoder, f.n, outputs, capacity, made);
}

/* Pushes the same frames, cut anywhere. */
static size_t push_in_chunks(tape *t, ed_decoder *decoder, frames_of_call f, size_t channels, ed_output *outputs) {
    size_t total = 0;
    while (f.n) {
        frames_of_call part = f;
        part.n = 1 + random_of(t) % f.n;
        size_t made = 99, due = ed_outputs_for(decoder, part.n);
        ed_output *own = allocated(due * sizeof *own);
        REQUIRE(push(decoder, part, due ? own : NULL, due, &made) == ED_OK && made == due);
        memcpy(outputs + total, own, due * sizeof *own);
        free(own);
        total += made;
        f.n -= part.n;
        if (f.uv) f.uv += part.n * channels;
        if (f.i16) f.i16 += part.n * channels;
    }
    return total;
}

static void require_refusals(ed_decoder *decoder, frames_of_call f, size_t due) {
    size_t made = 77;
    void *before = exported(decoder);
    ed_output *outputs = allocated(due * sizeof *outputs);
    if (due) REQUIRE(push(decoder, f, outputs, due - 1, &made) == ED_ERROR_CAPACITY);
    if (due) REQUIRE(push(decoder, f, NULL, due, &made) == ED_ERROR_NULL);
    REQUIRE(push(decoder, f, outputs, due, NULL) == ED_ERROR_NULL);
    f.n = 0;
    REQUIRE(push(decoder, f, outputs, due, &made) == ED_ERROR_COUNT);
    f.n = (size_t)-3;
    REQUIRE(push(decoder, f, outputs, due, &made) == ED_ERROR_COUNT && made == 77);
    require_state(decoder, before);
    free(outputs);
    free(before);
}

/* Tells whether a stream near its last frame has no room for these. Then it refuses them, and nothing has changed. */
static int has_ended(stream *s, frames_of_call f) {
    unsigned char *before = exported(s->decoders[0]);
    const int ended = LAST_FRAME - frame_of(before) < (int64_t)f.n;
    ed_output output;
    size_t made = 77;
    for (int v = 0; ended && v < s->count; v++) {
        REQUIRE(ed_outputs_for(s->decoders[v], f.n) == 0);
        REQUIRE(push(s->decoders[v], f, &output, 1, &made) == ED_ERROR_COUNT && made == 77);
        REQUIRE(ed_gap(s->decoders[v], f.n) == ED_ERROR_COUNT);
        require_state(s->decoders[v], before);
    }
    free(before);
    return ended;
}

static void push_all(tape *t, stream *s, frames_of_call f) {
    if (has_ended(s, f)) return;
    size_t due = ed_outputs_for(s->decoders[0], f.n), made = 99;
    if (random_of(t) % 16 == 0) require_refusals(s->decoders[0], f, due);
    ed_output *first = allocated(due * sizeof *first), *other = allocated(due * sizeof *other);
    REQUIRE(push(s->decoders[0], f, due ? first : NULL, due, &made) == ED_OK && made == due);
    for (size_t i = 0; i < due; i++)
        for (uint32_t o = 0; o < ED_MAX_OUTPUTS; o++) {
            REQUIRE(isfinite(first[i].kinematics[o]) || (first[i].flags & ED_INVALID));
            REQUIRE(isfinite(first[i].deviation[o]) && first[i].deviation[o] >= 0);
            REQUIRE((o < s->info->outputs) == (first[i].deviation[o] > 0));
        }
    digest(first, due * sizeof *first);
    for (int v = 1; v < s->count; v++) {
        REQUIRE(push_in_chunks(t, s->decoders[v], f, s->info->channels, other) == due);
        REQUIRE(memcmp(first, other, due * sizeof *first) == 0);
    }
    free(first);
    free(other);
}

static void call_push(tape *t, stream *s) {
    size_t n = 1 + byte_of(t) % MOST_FRAMES, values = n * s->info->channels;
    float *frames = allocated(values * sizeof *frames);
    fill(t, frames, values);
    push_all(t, s, (frames_of_call){frames, NULL, n});
    free(frames);
}

static void call_push_i16(tape *t, stream *s) {
    size_t n = 1 + byte_of(t) % MOST_FRAMES, values = n * s->info->channels, made;
    int16_t *frames = allocated(values * sizeof *frames);
    for (size_t i = 0; i < values; i++) frames[i] = (int16_t)(byte_of(t) << 8 | byte_of(t));
    if (s->has_gain)
        push_all(t, s, (frames_of_call){NULL, frames, n});
    else
        REQUIRE(ed_push_i16(s->decoders[0], frames, n, NULL, 0, &made) == ED_ERROR_GAIN);
    free(frames);
}

static void call_gap(tape *t, stream *s) {
    size_t n = 1 + (size_t)(byte_of(t) << 8 | byte_of(t)) % MOST_GAP;
    if (byte_of(t) % 4) {
        push_all(t, s, (frames_of_call){NULL, NULL, n});
    } else {
        if (has_ended(s, (frames_of_call){NULL, NULL, n})) return;
        for (int v = 0; v < s->count; v++) REQUIRE(ed_gap(s->decoders[v], n) == ED_OK);
        REQUIRE(ed_gap(s->decoders[0], 0) == ED_ERROR_COUNT);
    }
}

static void call_step(tape *t, stream *s) {
    float *bin = allocated(s->info->inputs * sizeof *bin), first[ED_MAX_OUTPUTS], other[ED_MAX_OUTPUTS];
    int finite = 1;
    fill(t, bin, s->info->inputs);
    for (uint32_t i = 0; i < s->info->inputs; i++) finite &= !!isfinite(bin[i]);
    for (int v = 0; v < s->count; v++) {
        float *to = v ? other : first;
        REQUIRE(ed_step(s->decoders[v], bin, to) == (finite ? ED_OK : ED_ERROR_VALUE));
        for (uint32_t o = 0; finite && o < s->info->outputs; o++)
            REQUIRE(isfinite(to[o]) && memcmp(&to[o], &first[o], sizeof(float)) == 0);
    }
    if (finite) digest(first, s->info->outputs * sizeof *first);
    free(bin);
}

static void call_set_normalization(tape *t, stream *s) {
    size_t inputs = s->info->inputs;
    float *mean = allocated(inputs * sizeof *mean), *std = allocated(inputs * sizeof *std);
    int fine = 1;
    fill(t, mean, inputs);
    fill(t, std, inputs);
    if (byte_of(t) % 2)
        for (size_t i = 0; i < inputs; i++) std[i] = fabsf(std[i]); /* otherwise few would be accepted */
    for (size_t i = 0; i < inputs; i++) fine &= isfinite(mean[i]) && isfinite(std[i]) && !(std[i] < 0);
    for (int v = 0; v < s->count; v++)
        REQUIRE(ed_set_normalization(s->decoders[v], mean, std) == (fine ? ED_OK : ED_ERROR_VALUE));
    free(mean);
    free(std);
}

static void call_set_gain(tape *t, stream *s) {
    size_t channels = s->info->channels;
    float *values = allocated(2 * channels * sizeof *values);
    double *gain = allocated(2 * channels * sizeof *gain);
    int fine = 1;
    fill(t, values, 2 * channels);
    for (size_t c = 0; c < 2 * channels; c++) {
        gain[c] = (double)values[c] * (byte_of(t) % 8 ? 1.0 : 1e260);
        fine &= !!isfinite(gain[c]);
    }
    for (int v = 0; v < s->count; v++)
        REQUIRE(ed_set_gain(s->decoders[v], gain, gain + channels) == (fine ? ED_OK : ED_ERROR_VALUE));
    s->has_gain |= fine;
    free(values);
    free(gain);
}

/* Imports a changed state. Either all variants accept it, or all refuse it and nothing has changed. */
static void call_import(tape *t, stream *s) {
    size_t bytes = s->info->export_bytes, channels = s->info->channels;
    unsigned char *before = exported(s->decoders[0]), *state = allocated(bytes);
    ed_state_header own;
    memcpy(&own, before, sizeof own);
    memcpy(state, before, bytes);
    change(t, state, bytes, channels);
    int code = ed_state_import(s->decoders[0], state, bytes);
    REQUIRE(code == ED_OK || code == ED_ERROR_STATE);
    REQUIRE(code == ED_ERROR_STATE || is_possible(state, own, channels));
    if (code) require_state(s->decoders[0], before);
    for (int v = 1; v < s->count; v++) REQUIRE(ed_state_import(s->decoders[v], state, bytes) == code);
    require_same_states(s);
    free(before);
    free(state);
}

/* Uses buffers of any size, at any address. */
static void call_with_wrong_sizes(tape *t, stream *s) {
    size_t bytes = (size_t)(byte_of(t) << 8 | byte_of(t)), shift = byte_of(t) % 8;
    unsigned char *buffer = allocated(bytes + 8);
    memset(buffer, byte_of(t), bytes + 8);
    int code = bytes != s->info->export_bytes ? ED_ERROR_SIZE : shift ? ED_ERROR_ALIGN : ED_OK;
    if (code) {
        void *before = exported(s->decoders[0]);
        REQUIRE(ed_state_import(s->decoders[0], buffer + shift, bytes) == code);
        REQUIRE(ed_state_export(s->decoders[0], buffer + shift, bytes) == code);
        require_state(s->decoders[0], before);
        free(before);
    }
    REQUIRE(ed_state_import(s->decoders[0], NULL, bytes) == ED_ERROR_NULL);
    REQUIRE(ed_push(NULL, (const float *)(const void *)buffer, 1, NULL, 0, NULL) == ED_ERROR_NULL);
    free(buffer);
}

static void call_reset(tape *t, stream *s) {
    (void)t;
    for (int v = 0; v < s->count; v++) ed_reset(s->decoders[v]);
}

/* ---------------------------------------------------------------- an input */

static void *memory_of(const ed_model *model, size_t *bytes) {
    *bytes = (ed_state_bytes(model) + ED_ALIGN - 1) / ED_ALIGN * ED_ALIGN;
    void *memory = aligned_alloc(ED_ALIGN, *bytes);
    REQUIRE(memory);
    memset(memory, 0xa5, *bytes); /* a decoder must not depend on the bytes that were there */
    return memory;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static void (*const calls[])(tape *, stream *) = {
        call_push,   call_push, call_push,  call_push,   call_push_i16,          call_push_i16, call_gap,
        call_import, call_step, call_reset, call_import, call_set_normalization, call_set_gain, call_with_wrong_sizes,
    };
    tape t = {data, data + size, 1};
    int array = byte_of(&t) % ARRAYS;
    void *memory[VARIANTS];
    stream s = {.info = ed_model_info(models[array][0]), .count = VARIANTS};
    for (int v = 0; v < VARIANTS; v++) {
        size_t bytes;
        memory[v] = memory_of(models[array][v], &bytes);
        REQUIRE(ed_init(models[array][v], memory[v], bytes, &s.decoders[v]) == ED_OK);
    }
#ifdef DEVICE_ARRAY
    if (array == DEVICE_ARRAY) REQUIRE(ed_open("", &s.decoders[s.count++]) == ED_OK);
#endif
    fuzz_digest = 2166136261u;
    for (int n = byte_of(&t) % 4; n; n--) call_import(&t, &s);
    while (t.at < t.end) {
        t.seed ^= (uint32_t)(t.end - t.at);
        calls[byte_of(&t) % (sizeof calls / sizeof *calls)](&t, &s);
    }
    require_same_states(&s);
    require_same_latents(&s);
    require_same_raw_kinematics(&s);
#ifdef DEVICE_ARRAY
    if (array == DEVICE_ARRAY) ed_close(s.decoders[VARIANTS]);
#endif
    for (int v = 0; v < VARIANTS; v++) free(memory[v]);
    return 0;
}
