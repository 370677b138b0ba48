/*
 * States for the fuzzer: changes an exported state to extreme values and to any bytes, and tells which states
 * edgedistill.h allows, as far as that header describes them.
 */
#ifndef STATES_H
#define STATES_H

#include <float.h>

#include "edgedistill.h"
#include "tape.h"

#define LAST_FRAME (INT64_C(1) << 62) /* of a stream; it has no more bins either */

/* Returns where the front end begins, with its frame count, whether the bin in progress has lost frames, and the lost
 * bins in a row, 8 bytes each. */
static size_t front_end_at(ed_state_header header) {
    size_t rings = 2 * (size_t)header.layers * header.d * (header.window - 1);
    return (sizeof header + rings + (size_t)header.lag_rows * header.channels + 7) / 8 * 8;
}

static int64_t frame_of(const unsigned char *state) {
    ed_state_header header;
    int64_t frame;
    memcpy(&header, state, sizeof header);
    memcpy(&frame, state + front_end_at(header), sizeof frame);
    return frame;
}

/* Returns where the running amplitude begins: a counter, then a float for each channel of a frame, of which the header
 * says nothing. The filter of the outputs, a float for each of its states, ends a state. */
static size_t shift_at(ed_state_header header, size_t channels) {
    return (size_t)header.bytes - (4 + 4 * (channels + header.smoothing_states) + 7) / 8 * 8;
}

static size_t smoothing_at(ed_state_header header, size_t channels) {
    return shift_at(header, channels) + 4 + 4 * channels;
}

/* Ends the warm-up and sets the running amplitude, in range and just outside, mostly so that it shifts soon. */
static void change_shift(tape *t, unsigned char *state, size_t channels) {
    static const uint32_t counts[] = {0, 990, 998, 999, 1000, 1001, 0x80000000u, UINT32_MAX};
    static const float powers[] = {1.0f, 17.0f, 16.0f, 0.0625f, 0.05f, 0.0f, 256.0f, 256.1f, -1e-45f, INFINITY, NAN};
    ed_state_header header;
    memcpy(&header, state, sizeof header);
    header.seen += 1000000;
    memcpy(state, &header, sizeof header);
    unsigned char *shift = state + shift_at(header, channels);
    memcpy(shift, &counts[byte_of(t) % 8], sizeof *counts);
    for (size_t c = 0; c < channels; c++) memcpy(shift + 4 + 4 * c, &powers[byte_of(t) % 11], sizeof *powers);
}

/* Sets the filter of the outputs, in range and just outside. */
static void change_smoothing(tape *t, unsigned char *state, size_t channels) {
    static const float values[] = {0.0f,   -0.0f,     1.0f,       -3.0f,     0x1p80f, -0x1p80f, 0x1.000002p80f,
                                   1e-45f, 0x1p-100f, -0x1p-100f, 0x1p-101f, 1e30f,   INFINITY, NAN};
    ed_state_header header;
    memcpy(&header, state, sizeof header);
    for (size_t i = 0; i < header.smoothing_states; i++)
        memcpy(state + smoothing_at(header, channels) + 4 * i, &values[byte_of(t) % 14], sizeof *values);
}

/* Sets the counters to the ends of their ranges, and near them. */
static void change_counters(tape *t, unsigned char *state) {
    static const int64_t counts[] = {
        0,  1,         INT64_C(1) << 53, LAST_FRAME / 2,  LAST_FRAME - 64, LAST_FRAME,    LAST_FRAME + 1, INT64_MAX,
        -1, INT64_MIN, LAST_FRAME,       LAST_FRAME - 64, INT64_MAX - 8,   INT64_MAX / 2, 1000,           4000};
    static const int64_t gaps[] = {0, 1, 2, -1, INT64_MAX, INT64_MIN}, lost[] = {0, 1, 5, 6, -1, 201, INT64_MAX};
    ed_state_header header;
    memcpy(&header, state, sizeof header);
    unsigned char *front_end = state + front_end_at(header);
    uint64_t frame = (uint64_t)counts[byte_of(t) % 16];
    frame += (uint64_t)(int64_t)(int8_t)byte_of(t);
    memcpy(front_end, &frame, sizeof frame);
    if (byte_of(t) % 4 == 0) memcpy(front_end + 8, &gaps[byte_of(t) % 6], sizeof *gaps);
    if (byte_of(t) % 4 == 0) memcpy(front_end + 16, &lost[byte_of(t) % 7], sizeof *lost);
    if (byte_of(t) % 4 == 0) header.seen = (uint64_t)counts[byte_of(t) % 16] + byte_of(t) % 2;
    memcpy(state, &header, sizeof header);
}

/* Sets a stretch of the front end's numbers, filter states, samples and ranges among them, to an extreme value. */
static void change_numbers(tape *t, unsigned char *state, size_t channels) {
    static const double values[] = {0.0,     -0.0,    1.0,     2.0,          0.1,     0x1p256,  -0x1p256,
                                    0x1p257, 1e-30,   9e-31,   5e-324,       FLT_MAX, -FLT_MAX, 1e39,
                                    0x1p-20, 0x1p512, 0x1p-21, 0x1.1p512,    DBL_MAX, INFINITY, -INFINITY,
                                    NAN,     1430.0,  1431.0,  4294967296.0, -1.0,    1e300,    50.0};
    ed_state_header header;
    memcpy(&header, state, sizeof header);
    size_t from = front_end_at(header) + 24, most = (shift_at(header, channels) - from) / 8;
    size_t at = (size_t)(byte_of(t) << 8 | byte_of(t)) % most, length = 1 + byte_of(t) % 16;
    const double value = values[byte_of(t) % 28];
    for (size_t i = at; i < most && i < at + length; i++) memcpy(state + from + 8 * i, &value, sizeof value);
}

/* Changes bytes anywhere in a state, counters, numbers of the front end, the slot of the next bin, in range and just outside, the running amplitude, or
 * the filter of the outputs. */
static void change(tape *t, unsigned char *state, size_t bytes, size_t channels) {
    if (byte_of(t) % 4 == 0) change_shift(t, state, channels);
    if (byte_of(t) % 4 == 0) change_smoothing(t, state, channels);
    if (byte_of(t) % 2 == 0) change_counters(t, state);
    for (int n = byte_of(t) % 4; n; n--) change_numbers(t, state, channels);
    ed_state_header header;
    memcpy(&header, state, sizeof header);
    int32_t near[] = {0, -1, (int32_t)header.window - 2, (int32_t)header.window - 1, (int32_t)header.window, INT32_MIN};
    if (byte_of(t) % 4 == 0) header.pos = near[byte_of(t) % 6];
    if (byte_of(t) % 4 == 0) header.live = near[byte_of(t) % 6];
    memcpy(state, &header, sizeof header);
    if (byte_of(t) % 8 == 0) state[sizeof header + byte_of(t)] = 0x80; /* -128, which no state has */
    for (int n = byte_of(t) % 6; n; n--) {
        size_t at = (size_t)(byte_of(t) << 8 | byte_of(t)), range = byte_of(t) % 4 ? bytes : sizeof header;
        size_t from = byte_of(t) % 2 ? at % range : bytes - 1 - at % range, length = 1 + byte_of(t) % 8;
        for (size_t i = from; i < bytes && i < from + length; i++) state[i] = byte_of(t);
    }
}

/* Tells whether counters, student, running amplitude and filter of a state are as edgedistill.h describes them. `own` is
 * the header of this model. */
static int is_possible(const unsigned char *state, ed_state_header own, size_t channels) {
    ed_state_header header;
    memcpy(&header, state, sizeof header);
    int32_t slots = (int32_t)own.window - 1;
    if (header.pos < 0 || header.pos >= slots || header.live < 0 || header.live > slots) return 0;
    own.pos = header.pos, own.live = header.live, own.seen = header.seen;
    if (memcmp(&own, &header, sizeof own) != 0) return 0;
    if (own.seen > LAST_FRAME || frame_of(state) < 0 || frame_of(state) > LAST_FRAME) return 0;
    size_t integers = 2 * (size_t)own.layers * own.d * (own.window - 1) + (size_t)own.lag_rows * own.channels;
    uint32_t outside;
    memcpy(&outside, state + shift_at(own, channels), sizeof outside);
    if (outside > 1000) return 0;
    for (size_t c = 0; c < channels; c++) {
        float power;
        memcpy(&power, state + shift_at(own, channels) + 4 + 4 * c, sizeof power);
        if (!(power >= 0x1p-60f && power <= 256)) return 0;
    }
    for (size_t i = 0; i < own.smoothing_states; i++) {
        float value;
        memcpy(&value, state + smoothing_at(own, channels) + 4 * i, sizeof value);
        if (!(fabsf(value) <= 0x1p80f && (fabsf(value) >= 0x1p-100f || value == 0))) return 0;
    }
    for (size_t i = sizeof header + integers; i < front_end_at(own); i++)
        if (state[i]) return 0;
    for (size_t i = smoothing_at(own, channels) + 4 * (size_t)own.smoothing_states; i < own.bytes; i++)
        if (state[i]) return 0;
    return !memchr(state + sizeof header, 0x80, integers);
}

#endif
