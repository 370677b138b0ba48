/*
 * Reads frames from stdin and prints decoded kinematics. This is everything that a program needs to embed a decoder.
 *
 *     edgedistill compile decoder.edge
 *     gcc -DMODEL=ed_model_NAME -Idecoder.edge/build/host/include kernels/examples/decode_stdin.c \
 *         decoder.edge/build/host/libed_NAME.so -o decode
 *     ./decode < frames.f32
 *
 * NAME is the bundle's name. A frame is one little-endian float32 for each channel, in microvolts. Each line of output
 * is the bin, its flags (ED_WARMUP, ED_MASKED, ED_GAP, ED_INVALID, ED_SHIFTED), and for each output its value and the
 * standard deviation of it. The program owns the memory; the decoder allocates nothing.
 */
#include <stdio.h>
#include <stdlib.h>

#include "edgedistill.h"

extern const ed_model MODEL;

static void fail(const char *what) {
    fprintf(stderr, "decode: %s\n", what);
    exit(1);
}

static void print_header(const ed_info *info) {
    printf("# %s (%s), %u channels\n# bin flags", info->name, info->variant, (unsigned)info->channels);
    for (uint32_t i = 0; i < info->outputs; i++) printf(" %s[%s] sd", info->output_names[i], info->output_units[i]);
    printf("\n");
}

static void print_output(const ed_info *info, const ed_output *output) {
    printf("%llu %u", (unsigned long long)output->bin, (unsigned)output->flags);
    for (uint32_t i = 0; i < info->outputs; i++)
        printf(" %.9g %.9g", (double)output->kinematics[i], (double)output->deviation[i]);
    printf("\n");
    fflush(stdout); /* whoever reads the lines wants each one now, every 10 ms */
}

int main(void) {
    const ed_info *info = ed_model_info(&MODEL);
    size_t bytes = (info->state_bytes + ED_ALIGN - 1) / ED_ALIGN * ED_ALIGN;
    void *memory = aligned_alloc(ED_ALIGN, bytes); /* in firmware, a static array aligned to ED_ALIGN */
    float *frame = malloc(info->channels * sizeof *frame);
    if (!memory || !frame) fail("out of memory");

    ed_decoder *decoder;
    int error = ed_init(&MODEL, memory, bytes, &decoder);
    if (error) fail(ed_strerror(error));
    print_header(info);

    size_t got;
    while ((got = fread(frame, sizeof *frame, info->channels, stdin)) == info->channels) {
        ed_output output; /* a bin has at least one frame, so one frame completes at most one bin */
        size_t made;
        error = ed_push(decoder, frame, 1, &output, 1, &made);
        if (error) fail(ed_strerror(error));
        if (made) print_output(info, &output);
    }
    if (got) fail("stdin ended inside a frame");

    free(frame);
    free(memory);
    return 0;
}
