/*
 * Launches and times kernels and graphs of them, for benchmarks/gpu/device.py.
 *
 * It calls the driver API, like the engine, so that nothing of NVIDIA's is linked. It works in the primary context, so
 * that PyTorch in the same process uses the same device. A host time is that of one launch and the wait for its end,
 * between two readings of the clock. A device time lies between two events around one launch. The kernel that flushes
 * the caches ends before either begins.
 *
 * Every function returns 0, or a code of the driver whose meaning bench_error() tells.
 */
#include <stdint.h>
#include <stdio.h>
#include <time.h>

#include <vector>

#include "driver.h"

/* Functions of the driver that driver.h does not have. */
#define BENCH_FUNCTIONS(F)  \
    F(cuDeviceGetAttribute) \
    F(cuEventCreate)        \
    F(cuEventRecord)        \
    F(cuEventSynchronize)   \
    F(cuEventElapsedTime)   \
    F(cuFuncGetAttribute)   \
    F(cuFuncSetAttribute)   \
    F(cuGetErrorString)     \
    F(cuGraphAddEmptyNode)  \
    F(cuGraphCreate)

struct bench_launch {
    CUfunction function;
    uint32_t grid_x, grid_y, block, shared; /* blocks, threads, dynamic shared bytes */
    void **arguments;
};

typedef int (*step_function)(void *, const float *, float *);

namespace {

struct bench_driver {
#define BENCH_FIELD(name) decltype(&::name) name;
    BENCH_FUNCTIONS(BENCH_FIELD)
#undef BENCH_FIELD
};

ed_driver cu;
bench_driver more;
CUstream stream;
CUevent before, after;
bench_launch flushing; /* without a function nothing is flushed */
char error_text[256] = "nothing failed";

constexpr int lacking = -1; /* codes of the driver are never negative */

int failed(const char *what, int code) {
    const char *meaning = "";
    if (code == lacking || !more.cuGetErrorString || more.cuGetErrorString((CUresult)code, &meaning) != CUDA_SUCCESS)
        meaning = "no further explanation";
    snprintf(error_text, sizeof error_text, "%s answers %d (%s)", what, code, meaning);
    return code;
}

#define CALL(api, function, ...)                                        \
    do {                                                                \
        const CUresult result_ = (api).function(__VA_ARGS__);           \
        if (result_ != CUDA_SUCCESS) return failed(#function, result_); \
    } while (0)
#define DONE(call)                                    \
    do {                                              \
        if (const int error_ = (call)) return error_; \
    } while (0)

uint64_t now_ns() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

int enqueue(const bench_launch &it) {
    CALL(cu, cuLaunchKernel, it.function, it.grid_x, it.grid_y, 1, it.block, 1, 1, it.shared, stream, it.arguments,
         nullptr);
    return 0;
}

int wait() {
    CALL(cu, cuStreamSynchronize, stream);
    return 0;
}

/* Reads far more than the L2 holds, so that what is timed next finds none of its data there. */
int flush(int wanted) {
    if (wanted && flushing.function) DONE(enqueue(flushing));
    return wait();
}

bool find_more() {
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    bool complete = library;
#define BENCH_FIND(name)                                                                                        \
    more.name = complete ? reinterpret_cast<decltype(&::name)>(dlsym(library, ED_DRIVER_TEXT(name))) : nullptr; \
    complete = complete && more.name;
    BENCH_FUNCTIONS(BENCH_FIND)
#undef BENCH_FIND
    return complete;
}

} // namespace

extern "C" {

const char *bench_error() { return error_text; }

/* Makes the primary context current on this thread for good. */
int bench_open() {
    if (!find_more())
        return failed("finding the driver's functions in libcuda.so.1 (none there, "
                      "or older than the toolkit)",
                      lacking);
    if (const int code = ed_driver_open(&cu)) return failed("ed_driver_open", code);
    CALL(cu, cuCtxPushCurrent, cu.context);
    CALL(cu, cuStreamCreate, &stream, CU_STREAM_NON_BLOCKING);
    CALL(more, cuEventCreate, &before, CU_EVENT_DEFAULT);
    CALL(more, cuEventCreate, &after, CU_EVENT_DEFAULT);
    return 0;
}

int bench_attribute(int attribute, int *value) {
    CALL(more, cuDeviceGetAttribute, value, (CUdevice_attribute)attribute, cu.device);
    return 0;
}

/* ---------------------------------------------------------------- memory */

int bench_alloc(size_t bytes, CUdeviceptr *at) {
    CALL(cu, cuMemAlloc, at, bytes);
    return 0;
}

int bench_free(CUdeviceptr at) {
    CALL(cu, cuMemFree, at);
    return 0;
}

int bench_write(CUdeviceptr at, const void *from, size_t bytes) {
    CALL(cu, cuMemcpyHtoDAsync, at, from, bytes, stream);
    return wait();
}

int bench_read(void *into, CUdeviceptr at, size_t bytes) {
    CALL(cu, cuMemcpyDtoHAsync, into, at, bytes, stream);
    return wait();
}

/* ---------------------------------------------------------------- kernels */

int bench_module(const char *path, CUmodule *module) {
    FILE *file = fopen(path, "rb");
    if (!file) return failed(path, CUDA_ERROR_FILE_NOT_FOUND);
    std::vector<char> image;
    char part[65536];
    while (const size_t n = fread(part, 1, sizeof part, file)) image.insert(image.end(), part, part + n);
    fclose(file);
    image.push_back(0);
    CALL(cu, cuModuleLoadData, module, image.data());
    return 0;
}

/* Finds a kernel. `shared` is the most dynamic shared bytes that it will be launched with. */
int bench_function(CUmodule module, const char *name, uint32_t shared, CUfunction *function) {
    CALL(cu, cuModuleGetFunction, function, module, name);
    if (shared > 48 * 1024)
        CALL(more, cuFuncSetAttribute, *function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, (int)shared);
    return 0;
}

int bench_function_attribute(CUfunction function, int attribute, int *value) {
    CALL(more, cuFuncGetAttribute, value, (CUfunction_attribute)attribute, function);
    return 0;
}

int bench_launch_all(const bench_launch *launches, size_t count) {
    for (size_t i = 0; i < count; i++) DONE(enqueue(launches[i]));
    return wait();
}

/* Records launches one after the other as a graph that can be replayed. */
int bench_graph(const bench_launch *launches, size_t count, CUgraphExec *graph) {
    CUgraph recorded = nullptr;
    CALL(cu, cuStreamBeginCapture, stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
    int error = 0;
    for (size_t i = 0; i < count && !error; i++) error = enqueue(launches[i]);
    const CUresult ended = cu.cuStreamEndCapture(stream, &recorded);
    if (error) return error;
    if (ended != CUDA_SUCCESS) return failed("cuStreamEndCapture", ended);
    CALL(cu, cuGraphInstantiate, graph, recorded, 0);
    CALL(cu, cuGraphDestroy, recorded);
    return 0;
}

/* Makes a graph of one node that does nothing, which shows what any replay costs. */
int bench_empty_graph(CUgraphExec *graph) {
    CUgraph empty;
    CUgraphNode node;
    CALL(more, cuGraphCreate, &empty, 0);
    CALL(more, cuGraphAddEmptyNode, &node, empty, nullptr, 0);
    CALL(cu, cuGraphInstantiate, graph, empty, 0);
    CALL(cu, cuGraphDestroy, empty);
    return 0;
}

int bench_replay(CUgraphExec graph) {
    CALL(cu, cuGraphLaunch, graph, stream);
    return wait();
}

void bench_flush_with(const bench_launch *launch) { flushing = *launch; }

int bench_flush() { return flush(1); }

/* ---------------------------------------------------------------- timing */

/* Times graphs in turn, from launch to synchronize. */
int bench_time_graphs(const CUgraphExec *graphs, size_t n, size_t count, int flushed, uint64_t *ns) {
    for (size_t i = 0; i < count; i++) {
        DONE(flush(flushed));
        const uint64_t began = now_ns();
        CALL(cu, cuGraphLaunch, graphs[i % n], stream);
        CALL(cu, cuStreamSynchronize, stream);
        ns[i] = now_ns() - began;
    }
    return 0;
}

/* Times plain launches in turn, from launch to synchronize. */
int bench_time_launches(const bench_launch *launches, size_t n, size_t count, int flushed, uint64_t *ns) {
    for (size_t i = 0; i < count; i++) {
        DONE(flush(flushed));
        const uint64_t began = now_ns();
        DONE(enqueue(launches[i % n]));
        CALL(cu, cuStreamSynchronize, stream);
        ns[i] = now_ns() - began;
    }
    return 0;
}

/* Times graphs in turn, from event to event. */
int bench_time_device(const CUgraphExec *graphs, size_t n, size_t count, int flushed, uint64_t *ns) {
    for (size_t i = 0; i < count; i++) {
        DONE(flush(flushed));
        float ms;
        CALL(more, cuEventRecord, before, stream);
        CALL(cu, cuGraphLaunch, graphs[i % n], stream);
        CALL(more, cuEventRecord, after, stream);
        CALL(more, cuEventSynchronize, after);
        CALL(more, cuEventElapsedTime, &ms, before, after);
        ns[i] = (uint64_t)((double)ms * 1e6);
    }
    return 0;
}

/* Times a decoder's step, host to host, through the C ABI. Bins (rows, channels) are used again from the top. */
int bench_time_steps(step_function step, void *decoder, const float *bins, size_t channels, size_t rows, size_t count,
                     int flushed, uint64_t *ns) {
    float kinematics[ED_MAX_OUTPUTS];
    for (size_t i = 0; i < count; i++) {
        DONE(flush(flushed));
        const uint64_t began = now_ns();
        if (const int code = step(decoder, bins + i % rows * channels, kinematics)) return failed("ed_step", code);
        ns[i] = now_ns() - began;
    }
    return 0;
}
}
