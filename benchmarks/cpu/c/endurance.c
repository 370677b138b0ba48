/*
 * Runs a decoder for millions of steps without a stop, alone or so that endurance.py can compare it with the oracle.
 *
 * It is linked with the engine. With -DED_TRACE the engine hands over every integer tensor. They are written one after
 * the other, in the order in which a step makes them, to the buffer that trace_to was given.
 */
#include <math.h>
#include <string.h>

#include "edgedistill.h"

int run(ed_decoder *decoder, const float *bins, size_t n, float *kinematics);
size_t run_alone(ed_decoder *decoder, const float *bins, size_t rows, size_t first, size_t n);
size_t push_alone(ed_decoder *decoder, const float *frames, size_t rows, size_t first, size_t n);
void trace_to(unsigned char *buffer, size_t bytes);
size_t trace_left(void);
void ed_trace(const char *name, int layer, const void *data, size_t bytes);

static unsigned char *at, *end;

void trace_to(unsigned char *buffer, size_t bytes) {
    at = buffer;
    end = buffer ? buffer + bytes : buffer;
}

size_t trace_left(void) { return (size_t)(end - at); }

void ed_trace(const char *name, int layer, const void *data, size_t bytes) {
    (void)name, (void)layer;
    if (!at || (size_t)(end - at) < bytes) return;
    memcpy(at, data, bytes);
    at += bytes;
}

/* Steps over bins (n, channels) and writes kinematics (n, outputs). */
int run(ed_decoder *decoder, const float *bins, size_t n, float *kinematics) {
    const ed_info *info = ed_info_get(decoder);
    int error = 0;
    for (size_t i = 0; i < n; i++) error |= ed_step(decoder, bins + i * info->inputs, kinematics + i * info->outputs);
    return error;
}

/* Makes steps `first` to `first + n` over bins (rows, channels), used again from the top, and counts outputs that are
 * not finite. */
size_t run_alone(ed_decoder *decoder, const float *bins, size_t rows, size_t first, size_t n) {
    const ed_info *info = ed_info_get(decoder);
    float kinematics[ED_MAX_OUTPUTS];
    size_t wild = 0;
    for (size_t i = first; i < first + n; i++) {
        wild += ed_step(decoder, bins + i % rows * info->inputs, kinematics) != ED_OK;
        for (uint32_t o = 0; o < info->outputs; o++) wild += !isfinite(kinematics[o]);
    }
    return wild;
}

/* Does the same with frames (rows, channels), which pass the front end one by one. */
size_t push_alone(ed_decoder *decoder, const float *frames, size_t rows, size_t first, size_t n) {
    const ed_info *info = ed_info_get(decoder);
    ed_output output;
    size_t wild = 0, made;
    for (size_t i = first; i < first + n; i++) {
        wild += ed_push(decoder, frames + i % rows * info->channels, 1, &output, 1, &made) != ED_OK;
        for (uint32_t o = 0; made && o < info->outputs; o++)
            wild += !isfinite(output.kinematics[o]) || !isfinite(output.deviation[o]);
    }
    return wild;
}
