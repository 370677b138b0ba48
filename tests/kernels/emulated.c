/*
 * A program for tests under an emulator. What to do comes from a file, and the results go to another.
 *
 * In: records of two words, what to do and how many, each followed by its data. Out: name (16), layer, bytes, data. On
 * Linux in.bin and out.bin are ordinary files; on a bare Cortex-M7 they are files of the host, through semihosting.
 */
#include <string.h>

#include "edgedistill.h"

#define MOST 64 /* most bins or frames of one record */
#define OF_THE_HOST (1024u * 1024u)

extern const ed_model ed_model_test;
static _Alignas(ED_ALIGN) unsigned char memory[ED_TEST_STATE_BYTES];

/* ---------------------------------------------------------------- files and time */

#include "files.h"

#ifdef ED_TEST_BARE

#define SYST_CSR (*(volatile uint32_t *)0xE000E010u)
#define SYST_RVR (*(volatile uint32_t *)0xE000E014u)
#define SYST_CVR (*(volatile uint32_t *)0xE000E018u)

size_t stack_used(void);

static void start_clock(void) {
    SYST_RVR = 0xFFFFFF;
    SYST_CVR = 0;
    SYST_CSR = 5; /* clock of the processor, no interrupt */
}

static uint32_t clock_now(void) { return 0xFFFFFF - SYST_CVR; }

/* Executes 2 n instructions. */
static void loop(uint32_t n) { __asm__ volatile("1: subs %0, #1\n bne 1b" : "+r"(n)::"cc"); }

#else

static void start_clock(void) {}
static uint32_t clock_now(void) { return 0; }
static size_t stack_used(void) { return 0; }
static void loop(uint32_t n) { (void)n; }

#endif

HOST static unsigned char data[OF_THE_HOST], answers[OF_THE_HOST];
HOST static ed_output outputs[MOST];
static size_t answered;
static int failed;

static void flush(void) {
    failed |= !put(answers, answered);
    answered = 0;
}

void ed_trace(const char *name, int layer, const void *values, size_t bytes);
void ed_trace(const char *name, int layer, const void *values, size_t bytes) {
    uint32_t size = (uint32_t)bytes;
    if (answered + 24 + bytes > sizeof answers) flush();
    unsigned char *to = answers + answered;
    memset(to, 0, 16);
    for (int i = 0; i < 15 && name[i]; i++) to[i] = (unsigned char)name[i];
    memcpy(to + 16, &layer, 4);
    memcpy(to + 20, &size, 4);
    memcpy(to + 24, values, bytes);
    answered += 24 + bytes;
}

/* ---------------------------------------------------------------- operations */

static int step(ed_decoder *decoder, const ed_info *info, size_t n) {
    HOST static float kinematics[ED_MAX_OUTPUTS], latent[1024];
    for (size_t i = 0; i < n; i++) {
        const float *bin = (const float *)(const void *)data + i * info->inputs;
        uint32_t began = clock_now();
        int error = ed_step(decoder, bin, kinematics);
        uint32_t ticks = (clock_now() - began) & 0xFFFFFF;
        if (error || (error = ed_latent(decoder, latent, info->latent))) return error;
        ed_trace("kinematics", -1, kinematics, info->outputs * sizeof *kinematics);
        ed_trace("latents", -1, latent, info->latent * sizeof *latent);
        ed_trace("ticks", -1, &ticks, sizeof ticks);
    }
    return ED_OK;
}

static int push(ed_decoder *decoder, size_t n) {
    size_t made;
    uint32_t began = clock_now();
    int error = ed_push(decoder, (const float *)(const void *)data, n, outputs, MOST, &made);
    uint32_t ticks = (clock_now() - began) & 0xFFFFFF;
    if (error) return error;
    for (size_t i = 0; i < made; i++) ed_trace("output", -1, &outputs[i], sizeof outputs[i]);
    ed_trace("push", -1, &ticks, sizeof ticks);
    return ED_OK;
}

/* Measures how the clock counts a loop of 2 n instructions. */
static int count(uint32_t n) {
    uint32_t began = clock_now();
    loop(n);
    uint32_t ticks = (clock_now() - began) & 0xFFFFFF;
    ed_trace("loop", -1, &ticks, sizeof ticks);
    return ED_OK;
}

/* Returns half of the smallest normal number, which is 0 where denormals are flushed. */
static float denormal(void) {
    static volatile float smallest = 0x1p-126f;
    return smallest * 0.5f;
}

static int answer(ed_decoder *decoder, const ed_info *info, uint32_t what, size_t n) {
    size_t frame = info->channels * sizeof(float), bin = info->inputs * sizeof(float);
    switch (what) {
    case 'S': return take(data, n * bin) ? step(decoder, info, n) : -100;
    case 'P': return take(data, n * frame) ? push(decoder, n) : -100;
    case 'R': return ed_reset(decoder), ED_OK;
    case 'C': return count((uint32_t)n);
    case 'I': return take(data, n) ? ed_state_import(decoder, data, n) : -100;
    case 'E':
        if (ed_state_export(decoder, data, info->export_bytes)) return -101;
        ed_trace("state", -1, data, info->export_bytes);
        return ED_OK;
    default: return -102;
    }
}

int main(void) {
    uint32_t record[2];
    int32_t error;
    ed_decoder *decoder;
    const ed_info *info = ed_model_info(&ed_model_test);
    open_files();
    start_clock();
    error = info->export_bytes > sizeof data ? -103 : ed_init(&ed_model_test, memory, sizeof memory, &decoder);
    while (!error && take(record, sizeof record) && record[0]) error = answer(decoder, info, record[0], record[1]);
    uint32_t sizes[2] = {(uint32_t)info->state_bytes, (uint32_t)stack_used()};
    float tiny = denormal();
    ed_trace("sizes", -1, sizes, sizeof sizes);
    ed_trace("denormal", -1, &tiny, sizeof tiny);
    ed_trace("error", -1, &error, sizeof error);
    flush();
    return failed;
}
