/*
 * Makes the calls of fuzz_decoder.c for given inputs, on a bare Cortex-M or on this machine.
 *
 * In: for each input its number of bytes, then these, and a number beyond MOST_BYTES at the end. Out: for each input the
 * digest of what the decoders gave. What did not hold is the last thing in out.bin: its line and its text after
 * FAILED.
 */
#include <stdlib.h>
#include <string.h>

#include "files.h"
#include "tape.h"

enum { MOST_BYTES = 1 << 16 };

extern uint32_t fuzz_digest;
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

void fail(int line, const char *what) {
    static const char mark[] = "FAILED";
    const int32_t at = line;
    put(mark, sizeof mark - 1);
    put(&at, sizeof at);
    put(what, strlen(what));
#ifdef ED_TEST_BARE
    host_exit(1);
#else
    exit(1);
#endif
}

#ifdef ED_TEST_BARE
#include <malloc.h>

enum { HEAP_BYTES = 1 << 20 };

void *_sbrk(ptrdiff_t bytes);
int posix_memalign(void **memory, size_t align, size_t bytes);

/* Gives memory to malloc. */
void *_sbrk(ptrdiff_t bytes) {
    HOST static _Alignas(64) unsigned char heap[HEAP_BYTES];
    static ptrdiff_t used;
    if (used + bytes > HEAP_BYTES) return (void *)-1;
    used += bytes;
    return heap + used - bytes;
}

/* Newlib's aligned_alloc calls this function, which it has not. */
int posix_memalign(void **memory, size_t align, size_t bytes) {
    *memory = memalign(align, bytes);
    return !*memory;
}
#endif

int main(void) {
    HOST static uint8_t input[MOST_BYTES];
    uint32_t size;
    open_files();
    while (take(&size, sizeof size) && size <= MOST_BYTES) {
        if (!take(input, size)) return 2;
        LLVMFuzzerTestOneInput(input, size);
        if (!put(&fuzz_digest, sizeof fuzz_digest)) return 2;
    }
    return 0;
}
