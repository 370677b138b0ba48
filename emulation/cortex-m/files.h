/* Reads in.bin and writes out.bin: files of this machine, or with ED_TEST_BARE of the host, through semihosting. */
#ifndef FILES_H
#define FILES_H

#include <stddef.h>
#include <stdint.h>

#ifdef ED_TEST_BARE

#include "semihosting.h"

#define HOST __attribute__((section(".host"))) /* for what only a test needs (mps2.ld) */

static int32_t in_file, out_file;

static void open_files(void) {
    in_file = host_open("in.bin", 6, HOST_READ);
    out_file = host_open("out.bin", 7, HOST_WRITE);
}

/* Both functions return whether all bytes were transferred. */
static int take(void *to, size_t bytes) { return !bytes || !host_read(in_file, to, bytes); }
static int put(const void *from, size_t bytes) { return !bytes || !host_write(out_file, from, bytes); }

#else

#include <stdio.h>

#define HOST

static FILE *in_file, *out_file;

static void open_files(void) {
    in_file = fopen("in.bin", "rb");
    out_file = fopen("out.bin", "wb");
}

static int take(void *to, size_t bytes) { return fread(to, 1, bytes, in_file) == bytes; }
static int put(const void *from, size_t bytes) {
    return fwrite(from, 1, bytes, out_file) == bytes && !fflush(out_file);
}

#endif
#endif
