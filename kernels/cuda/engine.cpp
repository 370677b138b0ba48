/*
 * The student as one CUDA kernel: what stands behind the C ABI of a `cuda` build (../c/ed_device.h).
 *
 * Opens in the build directory
 *     student_step.cubin    student_step.cu, compiled for the chip
 * and has weights and tables compiled in. They lie in one piece of device memory with the state, which only the device
 * reads and writes; bin and result lie in host memory that the device reaches directly, so that a step is one launch
 * and no copy. The launch is a graph, captured once: replaying it costs the processor less than launching a kernel.
 *
 * ed_device_open allocates, uploads, runs one step, in which the driver loads what it loads at first use, captures one
 * and replays it; after that only ed_device_close and nothing else allocates or frees. Each call makes the context
 * current for itself, on a stream that waits for no other, so that it can live beside PyTorch or TensorRT in a process.
 *
 * What bounds a step is in student_step.cu; around it stand a graph launch and a wait, 5 to 10 us of the driver's.
 * tests/kernels/test_cuda_engine.py runs all of this over a driver that emulates the GPU.
 */
#include <cstdlib>
#include <cstring>

#include "build_file.h"
#include "driver.h"
#include "ed_device.h"
#include "student_state.h"

#include ED_MODEL_WEIGHTS

extern "C" const char ed_device_name[] = "cuda";

namespace {

constexpr char CUBIN[] = "student_step.cubin";
constexpr char IDENTITY[] = ED_MANIFEST_SHA256; /* of the bundle, which the kernel's file states too */

constexpr size_t up(size_t bytes) { return (bytes + 255) / 256 * 256; }

/* Offsets into the device memory, and into the host memory that the device reaches. */
constexpr size_t TABLES_AT = up(sizeof ed_weights);
constexpr size_t STATE_AT = TABLES_AT + up(sizeof ed_tables);
constexpr size_t DEVICE_BYTES = STATE_AT + sizeof(ed_cuda_state);
constexpr size_t OUT_AT = up(ED_CHANNELS * sizeof(float));
constexpr size_t HOST_BYTES = OUT_AT + ED_OUT_FLOATS * sizeof(float);
static_assert(sizeof IDENTITY <= OUT_AT, "an identity in the place of a bin");

static_assert(sizeof ed_weights >= ed_weight_bytes && sizeof ed_tables >= ed_table_floats * sizeof(float),
              "model_NAME_weights.h is not of this version of student_layout.h");

} // namespace

struct ed_device {
    ed_driver cuda;
    CUmodule module;
    CUstream stream;
    CUgraphExec graph;
    CUdeviceptr memory; /* weights, tables, state */
    char *host;         /* bin, result */
    CUdeviceptr mapped; /* the same, as the device reaches it */
    ed_cuda_state copy; /* of the state, on its way between the device and the exchanged layout */
};

namespace {

/* ---------------------------------------------------------------- the kernel */

int load_kernel(ed_device *device, const char *directory, CUfunction *kernel) {
    const ed_build_file cubin(directory, CUBIN);
    if (!cubin.is_elf()) return ED_ERROR_FILE;
    CUresult result = device->cuda.cuModuleLoadData(&device->module, cubin.bytes);
    if (!result) result = device->cuda.cuModuleGetFunction(kernel, device->module, "ed_student_step");
    return ed_driver_error(result);
}

/* ---------------------------------------------------------------- memory */

int wait(ed_device *device, CUresult result) {
    if (!result) result = device->cuda.cuStreamSynchronize(device->stream);
    return ed_driver_error(result);
}

int upload(ed_device *device, size_t at, const void *from, size_t bytes) {
    return wait(device, device->cuda.cuMemcpyHtoDAsync(device->memory + at, from, bytes, device->stream));
}

int allocate(ed_device *device) {
    void *host = nullptr;
    CUresult result = device->cuda.cuMemAlloc(&device->memory, DEVICE_BYTES);
    if (!result) result = device->cuda.cuMemHostAlloc(&host, HOST_BYTES, CU_MEMHOSTALLOC_DEVICEMAP);
    device->host = static_cast<char *>(host);
    if (!result) result = device->cuda.cuMemHostGetDevicePointer(&device->mapped, host, 0);
    if (result) return ed_driver_error(result);
    std::memset(host, 0, HOST_BYTES);
    int error = upload(device, 0, ed_weights, sizeof ed_weights);
    if (!error) error = upload(device, TABLES_AT, ed_tables, sizeof ed_tables);
    return error ? error : ed_device_reset(device);
}

/* Whether the kernels were compiled for the model whose weights this library holds: they are asked, since a symbol
 * that is no kernel is not always found in a cubin. The answer goes where bins will lie. */
int require_identity(ed_device *device) {
    CUfunction identity = nullptr;
    void *parameters[] = {&device->mapped};
    CUresult result = device->cuda.cuModuleGetFunction(&identity, device->module, "ed_student_identity");
    if (!result)
        result = device->cuda.cuLaunchKernel(identity, 1, 1, 1, 1, 1, 1, 0, device->stream, parameters, nullptr);
    const int error = wait(device, result);
    if (error) return error;
    const bool same = !std::memcmp(device->host, IDENTITY, sizeof IDENTITY);
    std::memset(device->host, 0, sizeof IDENTITY);
    return same ? ED_OK : ED_ERROR_FILE;
}

/* ---------------------------------------------------------------- the graph */

CUresult enqueue(ed_device *device, CUfunction kernel) {
    CUdeviceptr weights = device->memory, tables = weights + TABLES_AT, state = weights + STATE_AT;
    CUdeviceptr bin = device->mapped, out = bin + OUT_AT;
    void *parameters[] = {&weights, &tables, &state, &bin, &out};
    return device->cuda.cuLaunchKernel(kernel, 1, 1, 1, ED_THREADS, 1, 1, 0, device->stream, parameters, nullptr);
}

/* A capture of this thread alone: what other threads of the program do with the GPU meanwhile does not concern it. The
 * kernel runs once before: a driver that loads kernels when they are first launched does so outside the capture. */
int capture(ed_device *device, CUfunction kernel) {
    ed_driver &cuda = device->cuda;
    CUgraph captured = nullptr;
    const int error = wait(device, enqueue(device, kernel));
    if (error) return error;
    CUresult result = cuda.cuStreamBeginCapture(device->stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
    if (result) return ed_driver_error(result);
    const CUresult enqueued = enqueue(device, kernel);
    result = cuda.cuStreamEndCapture(device->stream, &captured); /* in any case, or the stream stays useless */
    if (enqueued) result = enqueued;
    if (!result) result = cuda.cuGraphInstantiateWithFlags(&device->graph, captured, 0);
    if (captured) cuda.cuGraphDestroy(captured);
    if (!result) result = cuda.cuGraphUpload(device->graph, device->stream);
    return wait(device, result);
}

int launch(ed_device *device) { return wait(device, device->cuda.cuGraphLaunch(device->graph, device->stream)); }

/* ---------------------------------------------------------------- open */

int open_within(ed_device *device, const char *directory) {
    const ed_driver_use use(device->cuda);
    if (use.failed()) return ED_ERROR_DEVICE;
    CUfunction kernel = nullptr;
    int error = ed_driver_error(device->cuda.cuStreamCreate(&device->stream, CU_STREAM_NON_BLOCKING));
    if (!error) error = load_kernel(device, directory, &kernel);
    if (!error) error = allocate(device);
    if (!error) error = require_identity(device);
    if (!error) error = capture(device, kernel);
    if (!error) error = launch(device); /* a bin of zeros */
    return error ? error : ed_device_reset(device);
}

} // namespace

extern "C" int ed_device_open(const char *build_directory, ed_device **device) {
    auto *made = static_cast<ed_device *>(std::calloc(1, sizeof(ed_device)));
    if (!made) return ED_ERROR_MEMORY;
    int error = ed_driver_open(&made->cuda);
    if (!error) error = open_within(made, build_directory);
    if (error)
        ed_device_close(made);
    else
        *device = made;
    return error;
}

/* Results are of no use here: what can be freed is freed, and after a failure the context takes the rest with it. */
extern "C" void ed_device_close(ed_device *device) {
    ed_driver &cuda = device->cuda;
    if (cuda.context) {
        const ed_driver_use use(cuda);
        if (device->graph) cuda.cuGraphExecDestroy(device->graph);
        if (device->host) cuda.cuMemFreeHost(device->host);
        if (device->memory) cuda.cuMemFree(device->memory);
        if (device->module) cuda.cuModuleUnload(device->module);
        if (device->stream) cuda.cuStreamDestroy(device->stream);
    }
    ed_driver_close(&cuda);
    std::free(device);
}

/* ---------------------------------------------------------------- the stream */

extern "C" int ed_device_step(ed_device *device, const float *bin, float *kinematics, float *latent) {
    const ed_driver_use use(device->cuda);
    if (use.failed()) return ED_ERROR_DEVICE;
    std::memcpy(device->host, bin, ED_CHANNELS * sizeof(float));
    const int error = launch(device);
    if (error) return error;
    const char *out = device->host + OUT_AT;
    std::memcpy(kinematics, out, ED_OUTPUTS * sizeof(float));
    std::memcpy(latent, out + ED_OUTPUTS * sizeof(float), ED_D * sizeof(float));
    return ED_OK;
}

extern "C" int ed_device_reset(ed_device *device) {
    const ed_driver_use use(device->cuda);
    if (use.failed()) return ED_ERROR_DEVICE;
    ed_cuda_state_reset(&device->copy);
    return upload(device, STATE_AT, &device->copy, sizeof device->copy);
}

extern "C" int ed_device_export(ed_device *device, int8_t *student, int32_t *pos, int32_t *live) {
    const ed_driver_use use(device->cuda);
    if (use.failed()) return ED_ERROR_DEVICE;
    const CUdeviceptr state = device->memory + STATE_AT;
    const CUresult result = device->cuda.cuMemcpyDtoHAsync(&device->copy, state, sizeof device->copy, device->stream);
    const int error = wait(device, result);
    if (!error) ed_cuda_state_export(&device->copy, student, pos, live);
    return error;
}

extern "C" int ed_device_import(ed_device *device, const int8_t *student, int32_t pos, int32_t live) {
    const ed_driver_use use(device->cuda);
    if (use.failed()) return ED_ERROR_DEVICE;
    ed_cuda_state_import(&device->copy, student, pos, live);
    return upload(device, STATE_AT, &device->copy, sizeof device->copy);
}
