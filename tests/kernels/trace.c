/* For tests. Steps through many bins in one call, and records the state and every integer tensor on the way. */
#include <string.h>

#include "edgedistill.h"

static unsigned char *at, *end; /* where the trace goes; null for nowhere */

void trace_to(unsigned char *buffer, size_t bytes) {
    at = buffer;
    end = buffer + bytes;
}

size_t trace_left(void) { return (size_t)(end - at); }

/* Writes records of 32 bytes (name, layer, size), each followed by its data. */
void ed_trace(const char *name, int layer, const void *data, size_t bytes);
void ed_trace(const char *name, int layer, const void *data, size_t bytes) {
    if (!at || (size_t)(end - at) < 32 + bytes) return;
    uint64_t size = bytes;
    memset(at, 0, 32);
    strncpy((char *)at, name, 15);
    memcpy(at + 16, &layer, sizeof layer);
    memcpy(at + 24, &size, sizeof size);
    memcpy(at + 32, data, bytes);
    at += 32 + bytes;
}

/* Decodes n bins. kinematics (n, outputs), latents (n, latent) and states (n, export_bytes) may each be null. */
int run(ed_decoder *decoder, const float *bins, size_t n, float *kinematics, float *latents, unsigned char *states) {
    const ed_info *info = ed_info_get(decoder);
    for (size_t i = 0; i < n; i++) {
        int error = ed_step(decoder, bins + i * info->inputs, kinematics + i * info->outputs);
        if (!error && latents) error = ed_latent(decoder, latents + i * info->latent, info->latent);
        if (!error && states) error = ed_state_export(decoder, states + i * info->export_bytes, info->export_bytes);
        if (error) return error;
    }
    return ED_OK;
}
