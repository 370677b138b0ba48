/*
 * The engine of a `cuda` build: it runs the student as one CUDA kernel behind the C ABI (../c/ed_device.h).
 *
 * It opens one file in the build directory:
 *     student_step.cubin    student_step.cu, compiled for the chip
 * Weights and tables are compiled into this library. They lie in one piece of device memory together with the state,
 * which only the device reads and writes. Bin and result lie in host memory that the device reaches directly, so that a
 * step is one launch and no copy. The launch is captured once as a CUDA graph, since replaying a graph costs the
 * processor less than launching a kernel.
 *
 * ed_device_open allocates, uploads, runs one step (in which the driver loads what it loads at first use), captures a
 * step and replays it. After that, only ed_device_close allocates or frees. Each call makes the context current for
 * itself, on a stream that waits for no other, so that the engine can share a process with PyTorch or TensorRT.
 *
 * student_step.cu states what bounds a step. A graph launch and a wait, which the driver does, add 5 to 10 us.
 * tests/kernels/test_cuda_engine.py runs this file over a driver that emulates the GPU.
 */
#include <cstdlib>
#include <cstring>

#include "ed_device.h"
#include "resources.h"
#include "student_state.h"

#include ED_MODEL_WEIGHTS

extern "C" const char ed_device_name[] = "cuda";

namespace {

constexpr char CUBIN[] = "student_step.cubin";
constexpr char IDENTITY[] = ED_MANIFEST_SHA256; /* of the bundle; the cubin holds it too */

/* Offsets into the device memory (weights, tables, state), and into the host memory (bin, result). */
constexpr size_t TABLES_AT = ed_gpu_round_up(sizeof ed_weights);
constexpr size_t STATE_AT = TABLES_AT + ed_gpu_round_up(sizeof ed_tables);
constexpr size_t DEVICE_BYTES = STATE_AT + sizeof(ed_cuda_state);
constexpr size_t OUT_AT = ed_gpu_round_up(ED_CHANNELS * sizeof(float));
constexpr size_t HOST_BYTES = OUT_AT + ED_OUT_FLOATS * sizeof(float);
static_assert(sizeof IDENTITY <= OUT_AT, "the identity does not fit into the place of a bin");

static_assert(sizeof ed_weights >= ed_weight_bytes && sizeof ed_tables >= ed_table_floats * sizeof(float),
              "model_NAME_weights.h was written for another version of student_layout.h");

} // namespace

struct ed_device {
    ed_gpu gpu;
    CUdeviceptr mapped; /* gpu.host as the device reaches it */
    ed_cuda_state copy; /* the state on its way between the device and the exchanged layout */
};

namespace {

/* ---------------------------------------------------------------- memory */

int upload(ed_gpu *gpu, size_t at, const void *from, size_t bytes) {
    return ed_gpu_wait(gpu, gpu->cuda.cuMemcpyHtoDAsync(gpu->memory + at, from, bytes, gpu->stream));
}

int allocate(ed_device *device) {
    ed_gpu *gpu = &device->gpu;
    int error = ed_gpu_allocate(gpu, DEVICE_BYTES, HOST_BYTES, CU_MEMHOSTALLOC_DEVICEMAP);
    if (!error) error = ed_driver_error(gpu->cuda.cuMemHostGetDevicePointer(&device->mapped, gpu->host, 0));
    if (!error) error = upload(gpu, 0, ed_weights, sizeof ed_weights);
    if (!error) error = upload(gpu, TABLES_AT, ed_tables, sizeof ed_tables);
    return error ? error : ed_device_reset(device);
}

/* Checks that the cubin was compiled for the model whose weights this library holds. A kernel is asked, since a symbol
 * that is no kernel is not always found in a cubin. It writes its answer to the place of the bin. */
int require_identity(ed_device *device) {
    ed_gpu *gpu = &device->gpu;
    CUfunction identity = nullptr;
    void *parameters[] = {&device->mapped};
    CUresult result = gpu->cuda.cuModuleGetFunction(&identity, gpu->module, "ed_student_identity");
    if (!result) result = gpu->cuda.cuLaunchKernel(identity, 1, 1, 1, 1, 1, 1, 0, gpu->stream, parameters, nullptr);
    const int error = ed_gpu_wait(gpu, result);
    if (error) return error;
    const bool same = !std::memcmp(gpu->host, IDENTITY, sizeof IDENTITY);
    std::memset(gpu->host, 0, sizeof IDENTITY);
    return same ? ED_OK : ED_ERROR_FILE;
}

/* ---------------------------------------------------------------- the graph */

CUresult enqueue(ed_device *device, CUfunction kernel) {
    ed_gpu *gpu = &device->gpu;
    CUdeviceptr weights = gpu->memory, tables = weights + TABLES_AT, state = weights + STATE_AT;
    CUdeviceptr bin = device->mapped, out = bin + OUT_AT;
    void *parameters[] = {&weights, &tables, &state, &bin, &out};
    return gpu->cuda.cuLaunchKernel(kernel, 1, 1, 1, ED_THREADS, 1, 1, 0, gpu->stream, parameters, nullptr);
}

/* Runs a step outside any graph, then captures one. The upload keeps its cost out of the first replay. */
int capture(ed_device *device, CUfunction kernel) {
    ed_gpu *gpu = &device->gpu;
    int error = ed_gpu_wait(gpu, enqueue(device, kernel));
    if (!error) error = ed_gpu_capture(gpu, [=] { return ed_driver_error(enqueue(device, kernel)); });
    return error ? error : ed_gpu_wait(gpu, gpu->cuda.cuGraphUpload(gpu->graph, gpu->stream));
}

/* ---------------------------------------------------------------- open */

int open_within(ed_device *device, const char *directory) {
    const ed_driver_use use(device->gpu.cuda);
    if (use.failed()) return ED_ERROR_DEVICE;
    CUfunction kernel = nullptr;
    int error = ed_gpu_open_stream(&device->gpu);
    if (!error) error = ed_gpu_load_kernel(&device->gpu, directory, CUBIN, "ed_student_step", &kernel);
    if (!error) error = allocate(device);
    if (!error) error = require_identity(device);
    if (!error) error = capture(device, kernel);
    if (!error) error = ed_gpu_launch(&device->gpu); /* the bin is all zeros */
    return error ? error : ed_device_reset(device);
}

} // namespace

extern "C" int ed_device_open(const char *build_directory, ed_device **device) {
    auto *made = static_cast<ed_device *>(std::calloc(1, sizeof(ed_device)));
    if (!made) return ED_ERROR_MEMORY;
    int error = ed_driver_open(&made->gpu.cuda);
    if (!error) error = open_within(made, build_directory);
    if (error)
        ed_device_close(made);
    else
        *device = made;
    return error;
}

extern "C" void ed_device_close(ed_device *device) {
    if (device->gpu.cuda.context) {
        const ed_driver_use use(device->gpu.cuda);
        ed_gpu_free(&device->gpu);
    }
    ed_driver_close(&device->gpu.cuda);
    std::free(device);
}

/* ---------------------------------------------------------------- the stream */

extern "C" int ed_device_step(ed_device *device, const float *bin, float *kinematics, float *latent) {
    const ed_driver_use use(device->gpu.cuda);
    if (use.failed()) return ED_ERROR_DEVICE;
    std::memcpy(device->gpu.host, bin, ED_CHANNELS * sizeof(float));
    const int error = ed_gpu_launch(&device->gpu);
    if (error) return error;
    const char *out = device->gpu.host + OUT_AT;
    std::memcpy(kinematics, out, ED_OUTPUTS * sizeof(float));
    std::memcpy(latent, out + ED_OUTPUTS * sizeof(float), ED_D * sizeof(float));
    return ED_OK;
}

extern "C" int ed_device_reset(ed_device *device) {
    const ed_driver_use use(device->gpu.cuda);
    if (use.failed()) return ED_ERROR_DEVICE;
    ed_cuda_state_reset(&device->copy);
    return upload(&device->gpu, STATE_AT, &device->copy, sizeof device->copy);
}

extern "C" int ed_device_export(ed_device *device, int8_t *student, int32_t *pos, int32_t *live) {
    ed_gpu *gpu = &device->gpu;
    const ed_driver_use use(gpu->cuda);
    if (use.failed()) return ED_ERROR_DEVICE;
    const CUdeviceptr state = gpu->memory + STATE_AT;
    const CUresult result = gpu->cuda.cuMemcpyDtoHAsync(&device->copy, state, sizeof device->copy, gpu->stream);
    const int error = ed_gpu_wait(gpu, result);
    if (!error) ed_cuda_state_export(&device->copy, student, pos, live);
    return error;
}

extern "C" int ed_device_import(ed_device *device, const int8_t *student, int32_t pos, int32_t live) {
    const ed_driver_use use(device->gpu.cuda);
    if (use.failed()) return ED_ERROR_DEVICE;
    ed_cuda_state_import(&device->copy, student, pos, live);
    return upload(&device->gpu, STATE_AT, &device->copy, sizeof device->copy);
}
