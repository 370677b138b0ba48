/*
 * Returns the sizes that only the headers of one compiled student know, for benchmarks/gpu/students.py: what the memory
 * of the kernel must hold, and how it is launched. Compile it with -DED_MODEL_HEADER='"model_NAME.h"'.
 */
#include "student_state.h"

extern "C" {
size_t student_weight_bytes() { return ed_weight_bytes; }
size_t student_table_bytes() { return ed_table_floats * sizeof(float); }
size_t student_state_bytes() { return sizeof(ed_cuda_state); }
size_t student_ring_bytes() { return ED_LAYERS * (size_t)(ed_keys_bytes + ed_values::bytes); }
size_t student_out_floats() { return ED_OUT_FLOATS; }
size_t student_threads() { return ED_THREADS; }
}
