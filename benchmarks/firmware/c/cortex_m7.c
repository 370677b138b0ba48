/*
 * Counts the instructions of a decoder on an emulated Cortex-M7 and writes them to out.bin, for cortex_m7.py.
 *
 * With -icount shift=0, QEMU moves its clock by 1 ns with each instruction, and SysTick counts that clock at 25 MHz.
 * Each call is timed alone. The words of out.bin are the ticks of a loop of 2 million instructions, the bytes of stack,
 * the ticks of CALLS calls of ed_step, and those of CALLS calls of ed_push with the frames of one bin.
 */
#include "edgedistill.h"
#include "semihosting.h"

#define CALLS 300
#define FRAMES 10
#define MOST_CHANNELS 32
#define SYST_CSR (*(volatile uint32_t *)0xE000E010u)
#define SYST_RVR (*(volatile uint32_t *)0xE000E014u)
#define SYST_CVR (*(volatile uint32_t *)0xE000E018u)

extern const ed_model ed_model_subject;
size_t stack_used(void);

static _Alignas(ED_ALIGN) unsigned char memory[STATE_BYTES];
static float frames[FRAMES * MOST_CHANNELS];
__attribute__((section(".host"))) static uint32_t words[2 + 2 * CALLS];

static uint32_t now(void) { return 0xFFFFFF - SYST_CVR; }
static uint32_t since(uint32_t began) { return (now() - began) & 0xFFFFFF; }

/* Fills x with noise of a few units. */
static void fill(float *x, size_t n) {
    static uint32_t seed = 1;
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = (float)(int32_t)seed * 0x1p-29f;
    }
}

int main(void) {
    ed_decoder *decoder;
    ed_output output;
    float kinematics[ED_MAX_OUTPUTS];
    const ed_info *info = ed_model_info(&ed_model_subject);
    size_t channels = info->channels, inputs = info->inputs, made;
    if (channels > MOST_CHANNELS || inputs > FRAMES * MOST_CHANNELS ||
        ed_init(&ed_model_subject, memory, sizeof memory, &decoder))
        return 1;
    SYST_RVR = 0xFFFFFF;
    SYST_CVR = 0;
    SYST_CSR = 5; /* counts the processor's clock, without interrupts */

    uint32_t began = now(), loops = 1000000;
    __asm__ volatile("1: subs %0, #1\n bne 1b" : "+r"(loops)::"cc");
    words[0] = since(began);
    for (int i = 0; i < CALLS; i++) {
        fill(frames, inputs);
        began = now();
        if (ed_step(decoder, frames, kinematics)) return 1;
        words[2 + i] = since(began);
    }
    ed_reset(decoder);
    for (int i = 0; i < CALLS; i++) {
        fill(frames, FRAMES * channels);
        began = now();
        if (ed_push(decoder, frames, FRAMES, &output, 1, &made) || made != 1) return 1;
        words[2 + CALLS + i] = since(began);
    }
    words[1] = (uint32_t)stack_used();
    return host_write(host_open("out.bin", 7, HOST_WRITE), words, sizeof words) != 0;
}
