/* Reads frames (float32) from stdin in uneven chunks, and writes every ed_output and the last state to stdout. */
#include <stdio.h>
#include <stdlib.h>

#include "edgedistill.h"

extern const ed_model MODEL;

int main(void) {
    const ed_info *info = ed_model_info(&MODEL);
    void *memory = aligned_alloc(ED_ALIGN, (info->state_bytes + ED_ALIGN - 1) / ED_ALIGN * ED_ALIGN);
    ed_decoder *decoder;
    if (!memory || ed_init(&MODEL, memory, info->state_bytes, &decoder)) return 1;
    float *frames = malloc(64 * info->channels * sizeof *frames);
    void *state = malloc(info->export_bytes);
    ed_output outputs[64];
    size_t wanted = 1, got, n;
    while ((got = fread(frames, info->channels * sizeof *frames, wanted, stdin)) > 0) {
        int error = ed_push(decoder, frames, got, outputs, 64, &n);
        if (error) return fprintf(stderr, "%s\n", ed_strerror(error)), 1;
        fwrite(outputs, sizeof *outputs, n, stdout);
        wanted = wanted % 61 + 3;
    }
    if (ed_state_export(decoder, state, info->export_bytes)) return 1;
    fwrite(state, 1, info->export_bytes, stdout);
    return 0;
}
