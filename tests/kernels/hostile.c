/* Calls every public function for the sanitizers, with frames of every kind in chunks of every size. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "edgedistill.h"

extern const ed_model ed_model_test;

#define REQUIRE(what)                                              \
    do {                                                           \
        if (!(what)) {                                             \
            fprintf(stderr, "line %d: not %s\n", __LINE__, #what); \
            exit(1);                                               \
        }                                                          \
    } while (0)

static uint32_t seed = 1;

static uint32_t next(void) { return seed = seed * 1664525u + 1013904223u; }

static float wild(void) {
    static const float values[] = {0.0f, -0.0f, 1e-45f, 3e38f, -3e38f, INFINITY, -INFINITY, NAN, 1e-30f, 5.0f};
    return next() >> 28 ? (float)(next() >> 8) * 1e-5f - 80.0f : values[(next() >> 8) % 10];
}

int main(void) {
    const ed_info *info = ed_model_info(&ed_model_test);
    size_t bytes = ed_state_bytes(&ed_model_test);
    void *memory = aligned_alloc(ED_ALIGN, bytes);
    ed_decoder *decoder = NULL;
    REQUIRE(ed_init(&ed_model_test, memory, bytes, &decoder) == ED_OK);

    double *gain = calloc(2 * info->channels, sizeof *gain);
    for (size_t i = 0; i < 2 * info->channels; i++) gain[i] = 0.195;
    REQUIRE(ed_set_gain(decoder, gain, gain + info->channels) == ED_OK);
    unsigned char *state = malloc(info->export_bytes);

    for (int round = 0; round < 800; round++) {
        size_t n = 1 + (next() >> 8) % 40, made = 99, due = ed_outputs_for(decoder, n);
        float *frames = malloc(n * info->channels * sizeof *frames);
        int16_t *integers = malloc(n * info->channels * sizeof *integers);
        for (size_t i = 0; i < n * info->channels; i++) {
            frames[i] = wild();
            integers[i] = (int16_t)(next() >> 16);
        }
        ed_output *outputs = malloc((due + !due) * sizeof *outputs); /* exact, so that one more is an overflow */
        int error = round % 5 == 3   ? ed_push_i16(decoder, integers, n, outputs, due, &made)
                    : round % 5 == 4 ? ed_gap_outputs(decoder, n, outputs, due, &made)
                                     : ed_push(decoder, frames, n, outputs, due, &made);
        REQUIRE(error == ED_OK && made == due);
        for (size_t i = 0; i < made; i++)
            for (size_t o = 0; o < info->outputs; o++) REQUIRE(isfinite(outputs[i].kinematics[o]));
        if (round % 200 == 199) {
            REQUIRE(ed_state_export(decoder, state, info->export_bytes) == ED_OK);
            ed_reset(decoder);
            REQUIRE(ed_state_import(decoder, state, info->export_bytes) == ED_OK);
        }
        free(frames);
        free(integers);
        free(outputs);
    }
    float *latent = malloc(info->latent * sizeof *latent);
    REQUIRE(ed_latent(decoder, latent, info->latent) == ED_OK);
    REQUIRE(ed_gap(decoder, 10000) == ED_OK);
    free(latent);
    free(state);
    free(gain);
    free(memory);
    return 0;
}
