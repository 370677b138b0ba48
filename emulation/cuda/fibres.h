/*
 * Private: fibres, which are separate stacks that hand the processor to one another explicitly.
 *
 * A switch saves what a call must preserve and restores the other's. Together with block.h's choice of who goes on, it
 * takes 6 to 13 ns on an x86-64 server, more with more stacks. Processors other than x86-64 and aarch64 use ucontext,
 * which takes 180 ns because it asks the system for the signal mask. AddressSanitizer is told of each switch. This file
 * needs no C++ library, so that it also compiles where only a C library is installed.
 */
#ifndef ED_FIBRES_H
#define ED_FIBRES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#define ED_FIBRES_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ED_FIBRES_ASAN 1
#endif
#endif

#ifdef ED_FIBRES_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if (!defined(__x86_64__) && !defined(__aarch64__)) || defined(ED_FIBRES_UCONTEXT)
#undef ED_FIBRES_UCONTEXT
#define ED_FIBRES_UCONTEXT 1
#include <ucontext.h>
#elif defined(__x86_64__)

/* ed_fibre_switch(where to leave this stack's pointer, the other's pointer) puts what a
 * callee preserves on the stack. */
asm(R"(
    .pushsection .text
    .weak ed_fibre_switch
    .hidden ed_fibre_switch
    .type ed_fibre_switch, @function
ed_fibre_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size ed_fibre_switch, . - ed_fibre_switch
    .popsection
)");
/* Six registers, the address to return to, and the return address that the entry function sees. */
#define ED_FIBRE_FRAME 64
#define ED_FIBRE_RETURN 48
#else
asm(R"(
    .pushsection .text
    .weak ed_fibre_switch
    .hidden ed_fibre_switch
    .type ed_fibre_switch, %function
ed_fibre_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
    .size ed_fibre_switch, . - ed_fibre_switch
    .popsection
)");
#define ED_FIBRE_FRAME 160
#define ED_FIBRE_RETURN 88
#endif

#ifndef ED_FIBRES_UCONTEXT
extern "C" __attribute__((visibility("hidden"))) void ed_fibre_switch(void **save, void *other);
#endif

/* Hidden, so that each shared object has its own: the dynamic linker would merge those of one name. */
#pragma GCC visibility push(hidden)

namespace ed_emulated {

#ifdef ED_FIBRES_ASAN
constexpr size_t stack_bytes = 512 << 10; /* needed for the redzones around every array */
#else
constexpr size_t stack_bytes = 128 << 10; /* address space only, because a page counts once it is touched */
#endif

struct fibre {
#ifdef ED_FIBRES_UCONTEXT
    ucontext_t context;
#else
    void *top;
#endif
    char *stack; /* its lowest byte, and its size. For the caller's own stack only AddressSanitizer knows them */
    size_t size;
    void *fake_frames; /* used by AddressSanitizer */
};

/* The distance from one stack to the next is an odd number of pages, so that stacks do not compete for a
 * few entries of the translation buffers. The lower end of each stack holds a pattern that shows an
 * overflow when the block is finished. A guard page would show it at once, but a process has only 65,530
 * mappings, and each shared object has a thousand stacks. */
inline size_t stack_distance() {
    static const size_t distance = stack_bytes + static_cast<size_t>(sysconf(_SC_PAGESIZE));
    return distance;
}

constexpr uint64_t untouched = 0x5afe57acc5afe57a;
constexpr size_t watched = 64; /* words */

inline uint64_t *end_of_stack(char *stacks, size_t i) {
    return reinterpret_cast<uint64_t *>(stacks + i * stack_distance());
}

/* Reserves address space for `count` stacks; returns null if there is none. */
inline char *map_stacks(size_t count) {
    const size_t bytes = count * stack_distance();
    void *all = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return all == MAP_FAILED ? nullptr : static_cast<char *>(all);
}

inline void unmap_stacks(char *stacks, size_t count) { munmap(stacks, count * stack_distance()); }

/* Tells whether a fibre has left its stack and written to the next stack or to unused memory. */
inline bool overflowed(char *stacks, size_t i) {
    const uint64_t *end = end_of_stack(stacks, i);
    bool same = true;
    for (size_t word = 0; word < watched; word++) same &= end[word] == untouched;
    return !same;
}

/* Makes `f` the i-th of `stacks`, ready to call `entry`, which may not return. The tops are staggered: at the same
 * place in each page, the stacks of a block would share a few sets of the cache. */
inline void make_fibre(fibre &f, char *stacks, size_t i, void (*entry)()) {
    f.stack = stacks + (i + 1) * stack_distance() - stack_bytes;
    for (size_t word = 0; word < watched; word++) end_of_stack(stacks, i)[word] = untouched;
    f.size = stack_bytes - i * 448 % 4096;
    f.fake_frames = nullptr;
#ifdef ED_FIBRES_ASAN
    __asan_unpoison_memory_region(f.stack, stack_bytes);
#endif
#ifdef ED_FIBRES_UCONTEXT
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack;
    f.context.uc_stack.ss_size = f.size;
    f.context.uc_link = nullptr;
    makecontext(&f.context, entry, 0);
#else
    char *top = f.stack + f.size - ED_FIBRE_FRAME;
    memset(top, 0, ED_FIBRE_FRAME);
    memcpy(top + ED_FIBRE_RETURN, &entry, sizeof entry);
    f.top = top;
#endif
}

/* Goes on in `to`. It returns when another fibre goes on in `from`, and never if `from` is finished. */
inline void switch_fibre(fibre &from, fibre &to, bool over = false) {
#ifdef ED_FIBRES_ASAN
    __sanitizer_start_switch_fiber(over ? nullptr : &from.fake_frames, to.stack, to.size);
#endif
#ifdef ED_FIBRES_UCONTEXT
    swapcontext(&from.context, &to.context);
#else
    ed_fibre_switch(&from.top, to.top);
#endif
#ifdef ED_FIBRES_ASAN
    __sanitizer_finish_switch_fiber(from.fake_frames, nullptr, nullptr);
#endif
    (void)over;
}

/* Must be called first in an entry. If the fibre was entered from the thread's own stack,
 * it tells `caller` where that stack lies. */
inline void enter_fibre(fibre *caller) {
#ifdef ED_FIBRES_ASAN
    const void *stack = nullptr;
    size_t size = 0;
    __sanitizer_finish_switch_fiber(nullptr, &stack, &size);
    if (!caller) return;
    caller->stack = static_cast<char *>(const_cast<void *>(stack));
    caller->size = size;
#endif
    (void)caller;
}

} // namespace ed_emulated

#pragma GCC visibility pop

#endif
