/*
 * Counts the instructions of the operators of a step in CMSIS-NN on an emulated Cortex-M7, and writes them to out.bin,
 * for cmsis_nn.py. peer_model.h holds the sizes and the weights.
 *
 * Operators that CMSIS-NN has run in the order of a step, on random activations. What it lacks is left out and so costs
 * nothing: root mean square norms, SiLU, the move of the rings and of the lagged bins, the turn of the age bias, and the
 * conversion of floats. Keys and values lie as its matrix product reads them, so that nothing is transposed.
 *
 * The words of out.bin are the ticks of a loop of 2 million instructions, the bytes of stack, and for each call the
 * ticks of the whole step and of each kind of operator alone. Softmax skips what lies far below the maximum, so it is
 * timed on the scores that the step has left.
 */
#include "arm_nnfunctions.h"
#include "semihosting.h"

typedef struct {
    const int8_t *w;
    const int32_t *multiplier, *shift; /* of each row, or of the matrix where it has four bits */
    int32_t rows, n, four;
} matrix;

#include "peer_model.h"

#define DH (D / HEADS)
#define SYST_CSR (*(volatile uint32_t *)0xE000E010u)
#define SYST_RVR (*(volatile uint32_t *)0xE000E014u)
#define SYST_CVR (*(volatile uint32_t *)0xE000E018u)

enum { LINEAR = 1, PRODUCTS = 2, SOFTMAX = 4, ELEMENTWISE = 8, ALL = 15 };
static const unsigned timed[] = {ALL, SOFTMAX, LINEAR, PRODUCTS, ELEMENTWISE};
#define TIMED (sizeof timed / sizeof *timed)

size_t stack_used(void);

_Alignas(4) static int8_t keys[LAYERS][HEADS * WINDOW * DH], values[LAYERS][HEADS * DH * WINDOW];
_Alignas(4) static int8_t taps[TAPS * CHANNELS], lags[(LAGS + 1) * CHANNELS];
_Alignas(4) static int8_t x[D], a[D], qkv[3 * D], scores[HEADS * WINDOW], p[HEADS * WINDOW], context[D],
    gate_up[2 * FF], hidden[FF];
_Alignas(4) static int8_t kinematics[2][OUTPUTS];
__attribute__((section(".host"))) static uint32_t words[2 + CALLS * TIMED];

static uint32_t now(void) { return 0xFFFFFF - SYST_CVR; }
static uint32_t since(uint32_t began) { return (now() - began) & 0xFFFFFF; }

/* Fills x with noise over all its values. */
static void fill(int8_t *to, size_t n) {
    static uint32_t seed = 1;
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        to[i] = (int8_t)((int32_t)seed >> 24);
    }
}

static void multiply(const matrix *m, const int8_t *in, int8_t *out) {
    const cmsis_nn_context none = {0};
    const cmsis_nn_fc_params params = {.activation = {-128, 127}};
    const cmsis_nn_dims one = {.n = 1}, filter = {.n = m->n, .c = m->rows}, output = {.n = 1, .c = m->rows};
    if (m->four) {
        const cmsis_nn_per_tensor_quant_params quant = {*m->multiplier, *m->shift};
        arm_fully_connected_s4(&none, &params, &quant, &one, in, &filter, m->w, &one, 0, &output, out);
    } else {
        const cmsis_nn_per_channel_quant_params quant = {(int32_t *)m->multiplier, (int32_t *)m->shift};
        arm_fully_connected_per_channel_s8(&none, &params, &quant, &one, in, &filter, m->w, &one, 0, &output, out);
    }
}

/* Multiplies a vector of each head (HEADS, n) by its matrix (HEADS, rows, n). */
static void multiply_heads(const int8_t *in, const int8_t *of_heads, int32_t rows, int32_t n, int8_t *out) {
    const cmsis_nn_context none = {0};
    const cmsis_nn_bmm_params params = {.fc_params = {.activation = {-128, 127}}};
    const cmsis_nn_per_tensor_quant_params quant = {1 << 30, -6};
    const cmsis_nn_dims left = {1, HEADS, 1, n}, right = {1, HEADS, rows, n}, output = {1, HEADS, 1, rows};
    arm_batch_matmul_s8(&none, &params, &quant, &left, in, &right, of_heads, &output, out);
}

static void add(const int8_t *in, int8_t *to, int32_t n) {
    arm_elementwise_add_s8(in, to, 0, 1 << 30, 0, 0, 1 << 30, 0, 20, to, 0, 1 << 30, -19, -128, 127, n);
}

static void layer(int i, unsigned parts) {
    if (parts & LINEAR) multiply(&layers[i][0], a, qkv);
    if (parts & PRODUCTS) multiply_heads(qkv, keys[i], WINDOW, DH, scores);
    if (parts & ELEMENTWISE) add(age_bias[i], scores, HEADS * WINDOW);
    if (parts & SOFTMAX) arm_softmax_s8(scores, HEADS, WINDOW, SOFTMAX_MULTIPLIER, SOFTMAX_SHIFT, SOFTMAX_LEAST, p);
    if (parts & PRODUCTS) multiply_heads(p, values[i], DH, WINDOW, context);
    if (parts & LINEAR) multiply(&layers[i][1], context, a);
    if (parts & ELEMENTWISE) add(a, x, D);
    if (parts & LINEAR) multiply(&layers[i][2], a, gate_up);
    if (parts & ELEMENTWISE) arm_elementwise_mul_s8(gate_up, gate_up + FF, 0, 0, hidden, 0, 1 << 30, -6, -128, 127, FF);
    if (parts & LINEAR) multiply(&layers[i][3], hidden, a);
    if (parts & ELEMENTWISE) add(a, x, D);
}

static void step(unsigned parts) {
    if (parts & LINEAR) multiply(&embedding, taps, x);
    for (int i = 0; i < LAYERS; i++) layer(i, parts);
    if (parts & LINEAR) multiply(&readout_latent, x, kinematics[0]);
    if (parts & LINEAR) multiply(&readout_lags, lags, kinematics[1]);
    if (parts & ELEMENTWISE) add(kinematics[1], kinematics[0], OUTPUTS);
}

int main(void) {
    SYST_RVR = 0xFFFFFF;
    SYST_CVR = 0;
    SYST_CSR = 5; /* counts the processor's clock, without interrupts */
    uint32_t began = now(), loops = 1000000;
    __asm__ volatile("1: subs %0, #1\n bne 1b" : "+r"(loops)::"cc");
    words[0] = since(began);
    fill(keys[0], sizeof keys);
    fill(values[0], sizeof values);
    for (int i = 0; i < CALLS; i++)
        for (size_t part = 0; part < TIMED; part++) {
            fill(taps, sizeof taps);
            fill(lags, sizeof lags);
            fill(a, sizeof a);
            began = now();
            step(timed[part]);
            words[2 + (size_t)i * TIMED + part] = since(began);
        }
    words[1] = (uint32_t)stack_used();
    return host_write(host_open("out.bin", 7, HOST_WRITE), words, sizeof words) != 0;
}
