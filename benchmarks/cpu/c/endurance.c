/*
 * Long runs of a decoder without a stop: checked against the definition step by step, or for millions of steps alone.
 *
 * Linked with the engine; with -DED_TRACE the engine hands over every integer tensor, which go one after the other,
 * in the order a step makes them, to where trace_to says.
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

/* bins (n, channels) -> kinematics (n, outputs). */
int run(ed_decoder *decoder, const float *bins, size_t n, float *kinematics) {
    const ed_info *info = ed_info_get(decoder);
    int error = 0;
    for (size_t i = 0; i < n; i++) error |= ed_step(decoder, bins + i * info->channels, kinematics + i * info->outputs);
    return error;
}

/* Steps `first` to `first + n` over bins (rows, channels), used again from the top; how many outputs are not finite. */
size_t run_alone(ed_decoder *decoder, const float *bins, size_t rows, size_t first, size_t n) {
    const ed_info *info = ed_info_get(decoder);
    float kinematics[ED_MAX_OUTPUTS];
    size_t wild = 0;
    for (size_t i = first; i < first + n; i++) {
        wild += ed_step(decoder, bins + i % rows * info->channels, kinematics) != ED_OK;
        for (uint32_t o = 0; o < info->outputs; o++) wild += !isfinite(kinematics[o]);
    }
    return wild;
}

/* The same with frames (rows, channels), `n` of them one by one, through the front end. */
size_t push_alone(ed_decoder *decoder, const float *frames, size_t rows, size_t first, size_t n) {
    const ed_info *info = ed_info_get(decoder);
    ed_output output;
    size_t wild = 0, made;
    for (size_t i = first; i < first + n; i++) {
        wild += ed_push(decoder, frames + i % rows * info->channels, 1, &output, 1, &made) != ED_OK;
        for (uint32_t o = 0; made && o < info->outputs; o++) wild += !isfinite(output.kinematics[o]);
    }
    return wild;
}
