/*
 * The engine of a `tensorrt` build: it runs the student as a TensorRT plan behind the C ABI (../c/ed_device.h).
 *
 * It opens in the build directory:
 *     student.plan       one step: bin, rings, pos, live and lags go in; kinematics, latent, and new keys and values
 *                        come out
 *     libed_plugin.so    plugin.cpp, if the plan needs it; a plan of standard operators does not
 *     append.cubin       ../cuda/append.cu, which writes the new values into the rings and lags, then moves pos and
 *                        live on
 *
 * The whole state lies in one piece of device memory. TensorRT reads the rings and writes only what is new. A step is
 * one CUDA graph: the bin is copied from pinned memory, TensorRT runs, the append kernel follows, and kinematics and
 * latent are copied to pinned memory. The graph is captured once, after one run outside a graph in which TensorRT and
 * the driver load what they load at first use. A graph freezes addresses and values, so pos and live are in device
 * memory.
 *
 * A plan may keep its rings in int8 (exchanged with every other engine), float16 or float32 (not exchanged).
 * TensorRT asks for addresses that are multiples of 256 bytes, hence the strides between rings.
 *
 * libnvinfer is looked up by the major version of the headers this file was compiled with, libcuda by ../gpu/driver.h.
 * Neither is linked, so that the library loads on any machine and can say what is missing. With
 * EDGEDISTILL_TENSORRT_LOG=FILE in the environment, TensorRT's errors and warnings are appended to that file.
 *
 * tests/kernels/test_tensorrt_engine.py compiles this file against several versions of TensorRT's headers and runs it
 * over a fake libnvinfer and a fake libcuda, and test_tensorrt_runtime.py over NVIDIA's runtime, as far as it goes
 * without a GPU. TensorRT has not executed a plan in it.
 */
#include <dlfcn.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#include <NvInferRuntime.h>

#include ED_MODEL_HEADER

#include "append.h"
#include "ed_device.h"
#include "ed_weights.h"
#include "edgedistill.h"
#include "resources.h"

using namespace nvinfer1;

namespace {

/* Tests name a fake library here, so that the machine's own stays untouched. */
#ifndef ED_NVINFER
#define ED_NVINFER "libnvinfer.so." ED_DRIVER_TEXT(NV_TENSORRT_MAJOR)
#endif

constexpr size_t RINGS = 2 * ED_LAYERS;

/* ---------------------------------------------------------------- messages of TensorRT */

thread_local int errors_here = 0; /* errors that TensorRT reported in this thread */

/* Appends messages to the file that EDGEDISTILL_TENSORRT_LOG names, if it is set. It is thread-safe, as TensorRT
 * requires. */
class Log final : public ILogger {
  public:
    void log(Severity severity, const char *text) noexcept override {
        if (severity <= Severity::kERROR) errors_here++;
        const char *path = severity <= Severity::kWARNING ? std::getenv("EDGEDISTILL_TENSORRT_LOG") : nullptr;
        std::FILE *file = path && *path ? std::fopen(path, "a") : nullptr;
        if (!file) return;
        std::fprintf(file, "%s\n", text);
        std::fclose(file);
    }
};

/* Returns the logger that all decoders share. It is never destroyed: TensorRT also sends messages that belong to no
 * runtime to the first logger it was given, even after the decoder that gave it has been closed. */
Log &the_log() {
    alignas(Log) static unsigned char memory[sizeof(Log)];
    static Log *const log = new (memory) Log;
    return *log;
}

/* Keeps the last error. A null result does not say whether memory ran out, but the error code does. */
class Errors final : public IErrorRecorder {
  public:
    int32_t getNbErrors() const noexcept override { return last_ != ErrorCode::kSUCCESS; }
    ErrorCode getErrorCode(int32_t) const noexcept override { return last_; }
    ErrorDesc getErrorDesc(int32_t) const noexcept override { return "see EDGEDISTILL_TENSORRT_LOG"; }
    bool hasOverflowed() const noexcept override { return false; }
    void clear() noexcept override { last_ = ErrorCode::kSUCCESS; }
    bool reportError(ErrorCode code, ErrorDesc text) noexcept override {
        if (last_ != ErrorCode::kFAILED_ALLOCATION) last_ = code;
        the_log().log(ILogger::Severity::kERROR, text);
        return false; /* the thread goes on: the call that failed returns null or false */
    }
    RefCount incRefCount() noexcept override { return ++references_; }
    RefCount decRefCount() noexcept override { return --references_; }

    /* Returns the code of edgedistill.h for a call that failed. */
    int code_or(int otherwise) const { return last_ == ErrorCode::kFAILED_ALLOCATION ? ED_ERROR_MEMORY : otherwise; }

  private:
    std::atomic<ErrorCode> last_{ErrorCode::kSUCCESS};
    std::atomic<RefCount> references_{0};
};

/* ---------------------------------------------------------------- device memory */

/* Holds offsets into the device memory, each a multiple of ED_GPU_ALIGN. */
struct Layout {
    size_t bin, pos, live, lags, rings, ring_stride, kinematics, latent, fresh, fresh_stride, bin_new, bytes;
    size_t value, lag_value; /* bytes of one value of a key, and of a lagged bin */

    static Layout of(DataType ring) {
        Layout at{};
        at.value = ring == DataType::kINT8 ? 1 : ring == DataType::kHALF ? 2 : 4;
        at.lag_value = ring == DataType::kINT8 ? 1 : sizeof(float);
        at.ring_stride = ed_gpu_round_up(ED_RING_BYTES * at.value);
        at.fresh_stride = ed_gpu_round_up(ED_D * at.value);
        at.lags = 0;
        at.rings = at.lags + ed_gpu_round_up(static_cast<size_t>(ED_LAG_ROWS) * ED_CHANNELS * at.lag_value);
        at.pos = at.rings + RINGS * at.ring_stride;
        at.live = at.pos + ED_GPU_ALIGN;
        at.bin = at.live + ED_GPU_ALIGN; /* what lies before it is the state, which a reset clears */
        at.kinematics = at.bin + ed_gpu_round_up(ED_CHANNELS * sizeof(float));
        at.latent = at.kinematics + ed_gpu_round_up(ED_OUTPUTS * sizeof(float));
        at.fresh = at.latent + ed_gpu_round_up(ED_D * sizeof(float));
        at.bin_new = at.fresh + RINGS * at.fresh_stride;
        at.bytes = at.bin_new + ed_gpu_round_up(ED_CHANNELS);
        return at;
    }
    size_t result_bytes() const { return fresh - kinematics; }
    size_t pinned_bytes() const { return ed_gpu_round_up(ED_CHANNELS * sizeof(float)) + result_bytes(); }
};

/* ---------------------------------------------------------------- tensors of the plan */

struct Tensor {
    char name[16];
    TensorIOMode mode;
    DataType type;
    int32_t rank;
    int64_t sizes[3];
    size_t at; /* offset in the device memory */
};

constexpr int MOST_TENSORS = 7 + 4 * ED_LAYERS;

/* Lists all tensors of a plan whose rings have this type; returns their number. */
int tensors_of(DataType ring, const Layout &at, Tensor (&tensors)[MOST_TENSORS]) {
    constexpr TensorIOMode IN = TensorIOMode::kINPUT, OUT = TensorIOMode::kOUTPUT;
    const DataType lag = ring == DataType::kINT8 ? DataType::kINT8 : DataType::kFLOAT;
    int n = 0;
    tensors[n++] = {"bin", IN, DataType::kFLOAT, 1, {ED_CHANNELS}, at.bin};
    tensors[n++] = {"pos", IN, DataType::kINT32, 1, {1}, at.pos};
    tensors[n++] = {"live", IN, DataType::kINT32, 1, {1}, at.live};
    tensors[n++] = {"kinematics", OUT, DataType::kFLOAT, 1, {ED_OUTPUTS}, at.kinematics};
    tensors[n++] = {"latent", OUT, DataType::kFLOAT, 1, {ED_D}, at.latent};
    if (ED_LAG_ROWS) tensors[n++] = {"lags", IN, lag, 2, {ED_LAG_ROWS, ED_CHANNELS}, at.lags};
    if (lag == DataType::kINT8) tensors[n++] = {"bin_new", OUT, lag, 1, {ED_CHANNELS}, at.bin_new};
    for (size_t i = 0; i < RINGS; i++) {
        Tensor past = {"", IN, ring, 3, {ED_HEADS, ED_SLOTS, ED_DH}, at.rings + i * at.ring_stride};
        Tensor fresh = {"", OUT, ring, 2, {ED_HEADS, ED_DH}, at.fresh + i * at.fresh_stride};
        const char kind = i % 2 ? 'v' : 'k';
        std::snprintf(past.name, sizeof past.name, "ring_%c_%d", kind, static_cast<int>(i / 2));
        std::snprintf(fresh.name, sizeof fresh.name, "%c_new_%d", kind, static_cast<int>(i / 2));
        tensors[n++] = past;
        tensors[n++] = fresh;
    }
    return n;
}

/* Tells whether the plan has this tensor, row-major and in device memory. For an unknown name, TensorRT returns a
 * direction that is neither input nor output. */
bool has(const ICudaEngine &engine, const Tensor &tensor) {
    if (engine.getTensorIOMode(tensor.name) != tensor.mode || engine.getTensorDataType(tensor.name) != tensor.type)
        return false;
    if (engine.getTensorFormat(tensor.name) != TensorFormat::kLINEAR ||
        engine.getTensorLocation(tensor.name) != TensorLocation::kDEVICE)
        return false;
    const Dims found = engine.getTensorShape(tensor.name);
    bool same = found.nbDims == tensor.rank;
    for (int32_t i = 0; same && i < tensor.rank; i++) same = found.d[i] == tensor.sizes[i];
    return same;
}

/* ---------------------------------------------------------------- finding TensorRT at run time */

using CreateRuntime = void *(void *logger, int32_t version) noexcept;

/* Returns createInferRuntime of the version this file was compiled for, or null. The library stays loaded, because it
 * keeps threads. */
CreateRuntime *create_runtime() {
    void *library = dlopen(ED_NVINFER, RTLD_NOW | RTLD_LOCAL);
    return library ? reinterpret_cast<CreateRuntime *>(dlsym(library, "createInferRuntime_INTERNAL")) : nullptr;
}

} // namespace

/* ---------------------------------------------------------------- the device */

struct ed_device {
    enum Direction { IN, OUT };

    ed_gpu gpu{}; /* in gpu.host lies the bin and, at result_at(), the result of a step */
    Errors errors;
    IRuntime *runtime = nullptr;
    void *plugin = nullptr;
    ICudaEngine *engine = nullptr;
    IExecutionContext *context = nullptr;
    CUfunction append = nullptr;
    Layout layout{};
    DataType ring = DataType::kINT8;

    int open(const char *directory);
    void close();
    int reset();
    int step(const float *bin, float *kinematics, float *latent);
    int move_state(Direction direction, int8_t *student, int32_t *pos, int32_t *live);

  private:
    int open_plan(const char *directory);
    int load_plugin(const char *directory, const ed_build_file &plan);
    int bind();
    int enqueue();
    int capture();

    char *result_at() { return gpu.host + ed_gpu_round_up(ED_CHANNELS * sizeof(float)); }
    void *at(size_t offset) { return reinterpret_cast<void *>(gpu.memory + offset); }
};

int ed_device::open(const char *directory) {
    int error = ed_driver_open(&gpu.cuda);
    if (error) return error;
    ed_driver_use use(gpu.cuda);
    if (use.failed()) return ED_ERROR_DEVICE;
    error = ed_gpu_open_stream(&gpu);
    if (!error) error = ed_gpu_load_kernel(&gpu, directory, "append.cubin", "ed_append", &append);
    if (!error) error = open_plan(directory);
    if (!error) error = bind();
    if (!error) error = capture();
    return error ? error : reset();
}

int ed_device::open_plan(const char *directory) {
    const ed_build_file plan(directory, "student.plan");
    if (!plan.bytes) return ED_ERROR_FILE;
    CreateRuntime *create = create_runtime();
    ILogger *logger = &the_log();
    if (!create) return ED_ERROR_TENSORRT;
    /* Where 10.16 and 11.4 find no driver that they can use, they report an error and return a pointer to nothing. */
    const int before = errors_here;
    void *created = create(logger, NV_TENSORRT_VERSION);
    if (!created || errors_here != before) return ED_ERROR_DRIVER;
    runtime = static_cast<IRuntime *>(created);
    runtime->setErrorRecorder(&errors);
    const int error = load_plugin(directory, plan);
    if (error) return error;
    engine = runtime->deserializeCudaEngine(plan.bytes, plan.size);
    if (!engine) return errors.code_or(ED_ERROR_CHIP); /* it is of another version or chip, or damaged */
    context = engine->createExecutionContext();
    return context ? ED_OK : errors.code_or(ED_ERROR_DEVICE);
}

/* Loads the plugin into the registry of this runtime alone, so that builds of several bundles can be open at once. A
 * plan that needs the plugin contains its name. */
int ed_device::load_plugin(const char *directory, const ed_build_file &plan) {
    constexpr char NAME[] = "EdAttention";
    const ed_build_path path(directory, "libed_plugin.so");
    const ed_build_file file(directory, "libed_plugin.so");
    if (!file.bytes && !path.exists())
        return memmem(plan.bytes, plan.size, NAME, sizeof NAME - 1) ? ED_ERROR_FILE : ED_OK;
    if (!file.is_elf()) return ED_ERROR_FILE; /* a truncated library would crash the loader */
    IPluginRegistry &registry = runtime->getPluginRegistry();
    plugin = registry.loadLibrary(path.text);
    return plugin || registry.getCreator(NAME, "1", "") ? ED_OK : ED_ERROR_FILE;
}

/* Checks that the plan is of this model, and gives each of its tensors an address. */
int ed_device::bind() {
    ring = engine->getTensorDataType("ring_k_0");
    if (ring != DataType::kINT8 && ring != DataType::kHALF && ring != DataType::kFLOAT) return ED_ERROR_FILE;
    layout = Layout::of(ring);
    Tensor tensors[MOST_TENSORS];
    const int n = tensors_of(ring, layout, tensors);
    if (engine->getNbIOTensors() != n) return ED_ERROR_FILE;
    for (int i = 0; i < n; i++)
        if (!has(*engine, tensors[i])) return ED_ERROR_FILE;
    const int error = ed_gpu_allocate(&gpu, layout.bytes, layout.pinned_bytes(), 0);
    if (error) return error;
    for (int i = 0; i < n; i++)
        if (!context->setTensorAddress(tensors[i].name, at(tensors[i].at))) return errors.code_or(ED_ERROR_DEVICE);
    return ED_OK;
}

/* Puts one step on the stream: it runs at once, or is recorded if the stream is being captured. */
int ed_device::enqueue() {
    const ed_driver &cuda = gpu.cuda;
    CUstream stream = gpu.stream;
    CUresult result = cuda.cuMemcpyHtoDAsync(gpu.memory + layout.bin, gpu.host, ED_CHANNELS * sizeof(float), stream);
    if (result) return ed_driver_error(result);
    if (!context->enqueueV3(reinterpret_cast<cudaStream_t>(stream))) return errors.code_or(ED_ERROR_DEVICE);
    /* The kernel moves bytes, so sizes are in bytes. Lags in float32 are the bins as they came in. */
    void *fresh = at(layout.fresh), *rings = at(layout.rings), *lags = at(layout.lags);
    void *bin_new = at(ring == DataType::kINT8 ? layout.bin_new : layout.bin), *pos = at(layout.pos);
    void *live = at(layout.live);
    size_t fresh_stride = layout.fresh_stride, ring_stride = layout.ring_stride;
    int layers = ED_LAYERS, heads = ED_HEADS, window = ED_WINDOW, lag_rows = ED_LAG_ROWS;
    int head_bytes = ED_DH * static_cast<int>(layout.value),
        lag_bytes = ED_CHANNELS * static_cast<int>(layout.lag_value);
    void *parameters[] = {&fresh, &fresh_stride, &rings, &ring_stride, &bin_new,    &lags,     &pos,
                          &live,  &layers,       &heads, &window,      &head_bytes, &lag_rows, &lag_bytes};
    result = cuda.cuLaunchKernel(append, 1, 1, 1, ED_APPEND_THREADS, 1, 1, 0, stream, parameters, nullptr);
    if (!result)
        result = cuda.cuMemcpyDtoHAsync(result_at(), gpu.memory + layout.kinematics, layout.result_bytes(), stream);
    return ed_driver_error(result);
}

/* Runs a step outside any graph, captures one, and replays it, so that the first step of a stream loads nothing. */
int ed_device::capture() {
    int error = reset();
    if (!error) error = enqueue();
    if (!error) error = ed_gpu_wait(&gpu);
    if (!error) error = ed_gpu_capture(&gpu, [this] { return enqueue(); });
    return error ? error : ed_gpu_launch(&gpu);
}

void ed_device::close() {
    ed_driver_use use(gpu.cuda);
    if (gpu.stream) ed_gpu_wait(&gpu);
    ed_gpu_free_graph(&gpu);
    delete context;
    delete engine;
    if (plugin) runtime->getPluginRegistry().deregisterLibrary(plugin); /* nothing of it is in use any more */
    delete runtime;
    ed_gpu_free(&gpu);
}

int ed_device::reset() { return ed_gpu_wait(&gpu, gpu.cuda.cuMemsetD8Async(gpu.memory, 0, layout.bin, gpu.stream)); }

int ed_device::step(const float *bin, float *kinematics, float *latent) {
    std::memcpy(gpu.host, bin, ED_CHANNELS * sizeof(float));
    const int error = ed_gpu_launch(&gpu);
    if (error) return error;
    std::memcpy(kinematics, result_at(), ED_OUTPUTS * sizeof(float));
    std::memcpy(latent, result_at() + (layout.latent - layout.kinematics), ED_D * sizeof(float));
    return ED_OK;
}

/* Copies the state between the exchanged layout, which has no gaps, and the device. */
int ed_device::move_state(Direction direction, int8_t *student, int32_t *pos, int32_t *live) {
    CUresult result = CUDA_SUCCESS;
    auto move = [&](size_t offset, void *host, size_t bytes) {
        if (result || !bytes) return;
        result = direction == OUT ? gpu.cuda.cuMemcpyDtoHAsync(host, gpu.memory + offset, bytes, gpu.stream)
                                  : gpu.cuda.cuMemcpyHtoDAsync(gpu.memory + offset, host, bytes, gpu.stream);
    };
    for (size_t i = 0; i < RINGS; i++)
        move(layout.rings + i * layout.ring_stride, student + i * ED_RING_BYTES, ED_RING_BYTES);
    move(layout.lags, student + RINGS * ED_RING_BYTES, static_cast<size_t>(ED_LAG_ROWS) * ED_CHANNELS);
    move(layout.pos, pos, sizeof *pos);
    move(layout.live, live, sizeof *live);
    const int error = ed_gpu_wait(&gpu); /* after a failure too: copies may be in flight to the caller's memory */
    return result ? ed_driver_error(result) : error;
}

/* ---------------------------------------------------------------- ed_device.h */

extern "C" const char ed_device_name[] = "tensorrt";

int ed_device_open(const char *build_directory, ed_device **device) {
    ed_device *opened = new (std::nothrow) ed_device;
    if (!opened) return ED_ERROR_MEMORY;
    const int error = opened->open(build_directory);
    if (error)
        ed_device_close(opened);
    else
        *device = opened;
    return error;
}

void ed_device_close(ed_device *device) {
    device->close();
    ed_driver_close(&device->gpu.cuda);
    delete device;
}

int ed_device_reset(ed_device *device) {
    const ed_driver_use use(device->gpu.cuda);
    return use.failed() ? ED_ERROR_DEVICE : device->reset();
}

int ed_device_step(ed_device *device, const float *bin, float *kinematics, float *latent) {
    const ed_driver_use use(device->gpu.cuda);
    return use.failed() ? ED_ERROR_DEVICE : device->step(bin, kinematics, latent);
}

/* Only integers can be exchanged, so a plan of another precision refuses. */
int ed_device_export(ed_device *device, int8_t *student, int32_t *pos, int32_t *live) {
    if (device->ring != DataType::kINT8) return ED_ERROR_UNSUPPORTED;
    const ed_driver_use use(device->gpu.cuda);
    return use.failed() ? ED_ERROR_DEVICE : device->move_state(ed_device::OUT, student, pos, live);
}

int ed_device_import(ed_device *device, const int8_t *student, int32_t pos, int32_t live) {
    if (device->ring != DataType::kINT8) return ED_ERROR_UNSUPPORTED;
    const ed_driver_use use(device->gpu.cuda);
    if (use.failed()) return ED_ERROR_DEVICE;
    return device->move_state(ed_device::IN, const_cast<int8_t *>(student), &pos, &live); /* which is only read */
}
