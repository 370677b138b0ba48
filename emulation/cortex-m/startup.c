/*
 * Leads from reset to main on a bare Cortex-M7 or Cortex-M55: vectors, floating point, memory.
 *
 * The decoder needs the FPU's default state: rounding to nearest, and denormals kept. It is set here explicitly, both
 * for this program (FPSCR) and for interrupt handlers (FPDSCR), so that a boot loader's choice does not stay. Flush to
 * zero (bit 24) would change the last bits of outputs. On a processor with MVE bits 16 to 18 (LTPSIZE) must be 4, or
 * vector instructions leave out the elements beyond a count in LR.
 */
#include <stddef.h>
#include <stdint.h>

#include "semihosting.h"

#define CPACR (*(volatile uint32_t *)0xE000ED88u)  /* access to coprocessors */
#define FPDSCR (*(volatile uint32_t *)0xE000EF3Cu) /* value of FPSCR when a handler begins */
#ifdef __ARM_FEATURE_MVE
#define FPU_STATE (4u << 16)
#else
#define FPU_STATE 0u
#endif
#define PAINT 0xA5A5A5A5u

extern uint32_t ed_data[], ed_data_end[], ed_data_in_flash[], ed_bss[], ed_bss_end[], ed_stack[], ed_stack_top[];

int main(void);
size_t stack_used(void);
void ed_start(void);
void ed_fault(void);

static inline void enable_floats(void) {
    CPACR |= 0xFu << 20;
    __asm__ volatile("dsb\n isb" ::: "memory");
    FPDSCR = FPU_STATE;
    __asm__ volatile("vmsr fpscr, %0" ::"r"(FPU_STATE));
}

__attribute__((noreturn)) void ed_start(void) {
    enable_floats();
    for (volatile uint32_t *to = ed_data, *from = ed_data_in_flash; to != ed_data_end;) *to++ = *from++;
    for (volatile uint32_t *to = ed_bss; to != ed_bss_end;) *to++ = 0;
    uint32_t *top;
    __asm__ volatile("mov %0, sp" : "=r"(top));
    for (volatile uint32_t *to = ed_stack; to != top;) *to++ = PAINT;
    host_exit(main());
}

/* Returns how many bytes of the stack were ever used. */
size_t stack_used(void) {
    const uint32_t *lowest = ed_stack;
    while (lowest != ed_stack_top && *lowest == PAINT) lowest++;
    return (size_t)((const char *)ed_stack_top - (const char *)lowest);
}

__attribute__((noreturn)) void ed_fault(void) { host_exit(1); }

__attribute__((section(".vectors"), used)) static void (*const vectors[16])(void) = {
    (void (*)(void))ed_stack_top,
    ed_start,
    ed_fault,
    ed_fault,
    ed_fault,
    ed_fault,
    ed_fault,
    ed_fault, /* the M55's fault of its security extension */
    [11] = ed_fault,
    [14] = ed_fault,
    [15] = ed_fault,
};
