/*
 * Private: the CUDA driver, found at run time and never linked, so that a library loads on a machine that has none and
 * says so. Used by engine.cpp and by ../tensorrt/runtime.cpp; types come from <cuda.h>.
 *
 * The primary context of device 0 (CUDA_VISIBLE_DEVICES chooses which that is): the one that the CUDA runtime, and so
 * TensorRT and PyTorch, use in the same process. It is current only inside a call of ours.
 */
#ifndef ED_DRIVER_H
#define ED_DRIVER_H

#include <cuda.h>
#include <dlfcn.h>

#include "edgedistill.h"

/* Every function that either engine calls. Many names are macros of <cuda.h> for a version's name, cuMemAlloc for
 * cuMemAlloc_v2: as fields and as symbols they stand under that one. */
#define ED_DRIVER_FUNCTIONS(F)                                                                                         \
    F(cuInit)                                                                                                          \
    F(cuDeviceGet)                                                                                                     \
    F(cuDevicePrimaryCtxSetFlags)                                                                                      \
    F(cuDevicePrimaryCtxRetain)                                                                                        \
    F(cuDevicePrimaryCtxRelease)                                                                                       \
    F(cuCtxPushCurrent)                                                                                                \
    F(cuCtxPopCurrent)                                                                                                 \
    F(cuStreamCreate)                                                                                                  \
    F(cuStreamDestroy)                                                                                                 \
    F(cuStreamSynchronize)                                                                                             \
    F(cuStreamBeginCapture)                                                                                            \
    F(cuStreamEndCapture)                                                                                              \
    F(cuGraphInstantiate)                                                                                              \
    F(cuGraphLaunch)                                                                                                   \
    F(cuGraphDestroy)                                                                                                  \
    F(cuGraphExecDestroy)                                                                                              \
    F(cuModuleLoadData)                                                                                                \
    F(cuModuleUnload)                                                                                                  \
    F(cuModuleGetFunction)                                                                                             \
    F(cuLaunchKernel)                                                                                                  \
    F(cuMemAlloc)                                                                                                      \
    F(cuMemFree)                                                                                                       \
    F(cuMemHostAlloc)                                                                                                  \
    F(cuMemFreeHost)                                                                                                   \
    F(cuMemcpyHtoDAsync)                                                                                               \
    F(cuMemcpyDtoHAsync)                                                                                               \
    F(cuMemsetD8Async)

#define ED_DRIVER_TEXT_OF(x) #x
#define ED_DRIVER_TEXT(x) ED_DRIVER_TEXT_OF(x)

/* What a driver's result means to a caller of the C ABI. */
inline int ed_driver_error(CUresult result) {
    switch (result) {
    case CUDA_SUCCESS: return ED_OK;
    case CUDA_ERROR_NO_DEVICE:
    case CUDA_ERROR_INVALID_DEVICE:
    case CUDA_ERROR_NOT_INITIALIZED:
    case CUDA_ERROR_STUB_LIBRARY:
    case CUDA_ERROR_SYSTEM_NOT_READY:
    case CUDA_ERROR_SYSTEM_DRIVER_MISMATCH:
    case CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE: return ED_ERROR_DRIVER;
    case CUDA_ERROR_NO_BINARY_FOR_GPU:
    case CUDA_ERROR_INVALID_IMAGE:
    case CUDA_ERROR_UNSUPPORTED_PTX_VERSION: return ED_ERROR_CHIP;
    case CUDA_ERROR_OUT_OF_MEMORY: return ED_ERROR_MEMORY;
    case CUDA_ERROR_FILE_NOT_FOUND:
    case CUDA_ERROR_NOT_FOUND: return ED_ERROR_FILE;
    default: return ED_ERROR_DEVICE;
    }
}

struct ed_driver {
#define ED_DRIVER_FIELD(name) decltype(&::name) name;
    ED_DRIVER_FUNCTIONS(ED_DRIVER_FIELD)
#undef ED_DRIVER_FIELD
    CUdevice device;
    CUcontext context; /* null until ed_driver_open has retained it */
};

/* Finds the driver, and retains the primary context, spinning while it waits: a step is shorter than a sleep. */
inline int ed_driver_open(ed_driver *driver) {
    *driver = {};
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL); /* stays loaded */
    if (!library) return ED_ERROR_DRIVER;
    bool complete = true;
#define ED_DRIVER_FIND(name)                                                                                           \
    driver->name = reinterpret_cast<decltype(&::name)>(dlsym(library, ED_DRIVER_TEXT(name)));                          \
    complete = complete && driver->name;
    ED_DRIVER_FUNCTIONS(ED_DRIVER_FIND)
#undef ED_DRIVER_FIND
    if (!complete) return ED_ERROR_DRIVER;
    if (driver->cuInit(0) != CUDA_SUCCESS || driver->cuDeviceGet(&driver->device, 0) != CUDA_SUCCESS)
        return ED_ERROR_DRIVER;
    driver->cuDevicePrimaryCtxSetFlags(driver->device, CU_CTX_SCHED_SPIN); /* refused where others use it: as it is */
    CUcontext context;
    const CUresult result = driver->cuDevicePrimaryCtxRetain(&context, driver->device);
    if (result == CUDA_SUCCESS) driver->context = context;
    return ed_driver_error(result);
}

inline void ed_driver_close(ed_driver *driver) {
    if (driver->context) driver->cuDevicePrimaryCtxRelease(driver->device);
    driver->context = nullptr;
}

/* While it lives, the context is current on this thread; then again what was. */
class ed_driver_use {
public:
    explicit ed_driver_use(const ed_driver &driver)
        : driver_(driver), pushed_(driver.context && driver.cuCtxPushCurrent(driver.context) == CUDA_SUCCESS) {}
    ~ed_driver_use() {
        CUcontext ours;
        if (pushed_) driver_.cuCtxPopCurrent(&ours);
    }
    ed_driver_use(const ed_driver_use &) = delete;
    ed_driver_use &operator=(const ed_driver_use &) = delete;
    bool failed() const { return !pushed_; }

private:
    const ed_driver &driver_;
    bool pushed_;
};

#endif
