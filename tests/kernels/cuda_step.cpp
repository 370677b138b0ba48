/* For tests. Runs the emulated step through many bins in one call, and records states and integers on the way. */
#include <stddef.h>
#include <string.h>

#include "student_state.h"

#include ED_MODEL_WEIGHTS

extern "C" int ed_student_step_emulated(unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                                        size_t shared_bytes, void **arguments);

static_assert(sizeof ed_weights == (size_t)(ed_weight_bytes + 7) / 8 * 8, "the weights are not as the step reads them");
static_assert(sizeof ed_tables == sizeof(float) * ed_table_floats, "the tables are not as the step reads them");

namespace {
unsigned char *at, *end; /* where the trace goes; null for nowhere */
ed_cuda_state state;
} // namespace

extern "C" {

void trace_to(unsigned char *buffer, size_t bytes) {
    at = buffer;
    end = buffer + bytes;
}

/* Writes records of 32 bytes (name, layer, size), each followed by its data. */
void ed_trace(const char *name, int layer, const void *data, size_t bytes) {
    if (!at || (size_t)(end - at) < 32 + bytes) return;
    uint64_t size = bytes;
    memset(at, 0, 32);
    strncpy((char *)at, name, 15);
    memcpy(at + 16, &layer, sizeof layer);
    memcpy(at + 24, &size, sizeof size);
    memcpy(at + 32, data, bytes);
    at += 32 + bytes;
}

size_t exchanged_bytes() { return ED_EXCHANGED_BYTES; }
void reset() { ed_cuda_state_reset(&state); }

/* student is (ED_EXCHANGED_BYTES,), and where is {pos, live}. */
void export_state(int8_t *student, int32_t *where) { ed_cuda_state_export(&state, student, &where[0], &where[1]); }
void import_state(const int8_t *student, const int32_t *where) {
    memset(&state, 0xa5, sizeof state);
    ed_cuda_state_import(&state, student, where[0], where[1]);
}

/* Decodes n bins to outs (n, ED_OUT_FLOATS). students (n, ED_EXCHANGED_BYTES) and where (n, 2) may be null. */
int run(const float *bins, size_t n, float *outs, int8_t *students, int32_t *where) {
    for (size_t i = 0; i < n; i++) {
        const void *weights = ed_weights, *tables = ed_tables;
        void *own = &state;
        const float *bin = bins + i * ED_CHANNELS;
        float *out = outs + i * ED_OUT_FLOATS;
        void *arguments[] = {&weights, &tables, &own, &bin, &out};
        int error = ed_student_step_emulated(1, 1, 1, ED_THREADS, 1, 1, 0, arguments);
        if (error) return error;
        if (students) export_state(students + i * ED_EXCHANGED_BYTES, where + 2 * i);
    }
    return 0;
}
}
