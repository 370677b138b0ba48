/* Reads and writes files of the computer that runs the debugger or emulator, through Arm semihosting. It is for tests
 * only: a board without a debugger stops at the first call. */
#ifndef SEMIHOSTING_H
#define SEMIHOSTING_H

#include <stddef.h>
#include <stdint.h>

enum { HOST_READ = 1, HOST_WRITE = 5 }; /* "rb" and "wb" */

static inline int32_t host_call(uint32_t operation, const void *argument) {
    register uint32_t r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return (int32_t)r0;
}

/* Returns a handle, or -1. */
static inline int32_t host_open(const char *name, size_t length, uint32_t mode) {
    const uintptr_t block[3] = {(uintptr_t)name, mode, length};
    return host_call(0x01, block);
}

/* Both functions return how many bytes were not transferred. */
static inline size_t host_write(int32_t file, const void *from, size_t bytes) {
    const uintptr_t block[3] = {(uintptr_t)file, (uintptr_t)from, bytes};
    return (size_t)host_call(0x05, block);
}

static inline size_t host_read(int32_t file, void *to, size_t bytes) {
    const uintptr_t block[3] = {(uintptr_t)file, (uintptr_t)to, bytes};
    return (size_t)host_call(0x06, block);
}

__attribute__((noreturn)) static inline void host_exit(int code) {
    for (;;) host_call(0x18, (const void *)(code ? 0x20023u : 0x20026u)); /* run-time error, or normal end */
}

#endif
