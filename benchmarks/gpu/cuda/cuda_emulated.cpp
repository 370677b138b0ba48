/* Runs many steps on the emulated GPU in one call and exports the state after them, for cuda_emulated.py. */
#include "student_state.h"

#include ED_MODEL_WEIGHTS

extern "C" {
int ed_student_step_emulated(unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                             size_t shared_bytes, void **arguments);

static ed_cuda_state state;

size_t exchanged_bytes(void) { return ED_EXCHANGED_BYTES; }
void fresh(void) { ed_cuda_state_reset(&state); }

/* Writes the exported state to student (ED_EXCHANGED_BYTES,), and {pos, live} to where. */
void export_state(int8_t *student, int32_t *where) { ed_cuda_state_export(&state, student, &where[0], &where[1]); }

/* Steps over bins (n, ED_CHANNELS) and writes outs (n, ED_OUT_FLOATS). */
int steps(const float *bins, size_t n, float *outs) {
    const void *weights = ed_weights, *tables = ed_tables;
    void *own = &state;
    for (size_t i = 0; i < n; i++, bins += ED_CHANNELS, outs += ED_OUT_FLOATS) {
        void *arguments[] = {&weights, &tables, &own, &bins, &outs};
        int error = ed_student_step_emulated(1, 1, 1, ED_THREADS, 1, 1, 0, arguments);
        if (error) return error;
    }
    return 0;
}
}
