/*
 * Private: what both GPU engines hold open on the device, and the steps they share: loading a kernel from the build
 * directory, allocating memory, capturing one decoder step as a CUDA graph, replaying it, and freeing everything.
 * cuda/engine.cpp and tensorrt/engine.cpp differ in what they put into the graph, and in how they lay out the state.
 *
 * Every function that returns int returns ED_OK or an error code of edgedistill.h. The context must be current on the
 * calling thread (ed_driver_use in driver.h).
 */
#ifndef ED_RESOURCES_H
#define ED_RESOURCES_H

#include <cstring>

#include "build_file.h"
#include "driver.h"

#pragma GCC visibility push(hidden) /* for the reason given in driver.h */

/* Addresses are multiples of this many bytes: IExecutionContext::setTensorAddress requires it, and wide loads gain. */
constexpr size_t ED_GPU_ALIGN = 256;

constexpr size_t ed_gpu_round_up(size_t bytes) { return (bytes + ED_GPU_ALIGN - 1) / ED_GPU_ALIGN * ED_GPU_ALIGN; }

/* A struct of zeros is valid, and means that nothing has been opened yet. */
struct ed_gpu {
    ed_driver cuda;
    CUstream stream; /* waits for no other stream, so that decoders can run beside PyTorch or TensorRT */
    CUmodule module;
    CUgraphExec graph;  /* one decoder step */
    CUdeviceptr memory; /* all that the engine keeps on the device, in one piece */
    char *host;         /* pinned memory for the bin and the result of a step */
};

/* Waits until the stream is idle, unless `result` is already an error. Returns the code of the first failure. */
inline int ed_gpu_wait(ed_gpu *gpu, CUresult result = CUDA_SUCCESS) {
    if (!result) result = gpu->cuda.cuStreamSynchronize(gpu->stream);
    return ed_driver_error(result);
}

inline int ed_gpu_open_stream(ed_gpu *gpu) {
    return ed_driver_error(gpu->cuda.cuStreamCreate(&gpu->stream, CU_STREAM_NON_BLOCKING));
}

/* Loads directory/file, which is machine code of this chip, and finds the kernel `name` in it. */
inline int ed_gpu_load_kernel(ed_gpu *gpu, const char *directory, const char *file, const char *name,
                              CUfunction *kernel) {
    const ed_build_file cubin(directory, file);
    if (!cubin.is_elf()) return ED_ERROR_FILE;
    CUresult result = gpu->cuda.cuModuleLoadData(&gpu->module, cubin.bytes);
    if (!result) result = gpu->cuda.cuModuleGetFunction(kernel, gpu->module, name);
    return ed_driver_error(result);
}

/* Allocates device memory, whose contents are undefined, and pinned host memory, which is set to zeros. `flags` are
 * those of cuMemHostAlloc. */
inline int ed_gpu_allocate(ed_gpu *gpu, size_t device_bytes, size_t host_bytes, unsigned flags) {
    void *host = nullptr;
    CUresult result = gpu->cuda.cuMemAlloc(&gpu->memory, device_bytes);
    if (!result) result = gpu->cuda.cuMemHostAlloc(&host, host_bytes, flags);
    if (result) return ed_driver_error(result);
    gpu->host = static_cast<char *>(std::memset(host, 0, host_bytes));
    return ED_OK;
}

/* Records what `enqueue` puts on the stream as the graph of a step. `enqueue` returns an error code. Only this thread
 * is captured, so that other threads of the program may use the GPU meanwhile. Run `enqueue` once before this call:
 * the driver and TensorRT load some code at its first use, which a capture does not allow. */
template <class Enqueue> int ed_gpu_capture(ed_gpu *gpu, Enqueue enqueue) {
    const ed_driver &cuda = gpu->cuda;
    CUgraph captured = nullptr;
    CUresult result = cuda.cuStreamBeginCapture(gpu->stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
    if (result) return ed_driver_error(result);
    const int error = enqueue();
    result = cuda.cuStreamEndCapture(gpu->stream, &captured); /* after an error too, or the stream stays unusable */
    if (!result && !error) result = cuda.cuGraphInstantiateWithFlags(&gpu->graph, captured, 0);
    if (captured) cuda.cuGraphDestroy(captured);
    return error ? error : ed_driver_error(result);
}

/* Replays the graph and waits for its end. */
inline int ed_gpu_launch(ed_gpu *gpu) { return ed_gpu_wait(gpu, gpu->cuda.cuGraphLaunch(gpu->graph, gpu->stream)); }

inline void ed_gpu_free_graph(ed_gpu *gpu) {
    if (gpu->graph) gpu->cuda.cuGraphExecDestroy(gpu->graph);
    gpu->graph = nullptr;
}

/* Frees all but the driver, which ed_driver_close releases. Errors are ignored: after a failure on the device nothing
 * more can be done, and the context frees the rest when it is released. */
inline void ed_gpu_free(ed_gpu *gpu) {
    ed_gpu_free_graph(gpu);
    if (gpu->host) gpu->cuda.cuMemFreeHost(gpu->host);
    if (gpu->memory) gpu->cuda.cuMemFree(gpu->memory);
    if (gpu->module) gpu->cuda.cuModuleUnload(gpu->module);
    if (gpu->stream) gpu->cuda.cuStreamDestroy(gpu->stream);
}

#pragma GCC visibility pop

#endif
