/*
 * Private: the CUDA driver. It is found at run time and never linked, so that a library loads on a machine that has no
 * driver and can say so. Both GPU engines use it; types come from <cuda.h>.
 *
 * The context is the primary one of device 0 (CUDA_VISIBLE_DEVICES chooses which device that is). The CUDA runtime, and
 * so TensorRT and PyTorch, use the same context in the same process. It is current only inside a call of ours.
 */
#ifndef ED_DRIVER_H
#define ED_DRIVER_H

#include <cuda.h>
#include <dlfcn.h>

#include "edgedistill.h"

/* These symbols are hidden, however a library is compiled, so that each of two loaded libraries calls its own. */
#pragma GCC visibility push(hidden)

/* Every function that an engine calls. Many names are macros of <cuda.h> for a versioned name, such as
 * cuMemAlloc for cuMemAlloc_v2; fields and symbols have the versioned name. All exist from CUDA 11.4 to 13 with
 * the same parameters. cuGraphInstantiate is not among them, because it has five parameters in CUDA 11,
 * and from CUDA 12 on it stands for cuGraphInstantiateWithFlags. */
#define ED_DRIVER_FUNCTIONS(F)     \
    F(cuInit)                      \
    F(cuDeviceGet)                 \
    F(cuDevicePrimaryCtxGetState)  \
    F(cuDevicePrimaryCtxSetFlags)  \
    F(cuDevicePrimaryCtxRetain)    \
    F(cuDevicePrimaryCtxRelease)   \
    F(cuCtxPushCurrent)            \
    F(cuCtxPopCurrent)             \
    F(cuStreamCreate)              \
    F(cuStreamDestroy)             \
    F(cuStreamSynchronize)         \
    F(cuStreamBeginCapture)        \
    F(cuStreamEndCapture)          \
    F(cuGraphInstantiateWithFlags) \
    F(cuGraphUpload)               \
    F(cuGraphLaunch)               \
    F(cuGraphDestroy)              \
    F(cuGraphExecDestroy)          \
    F(cuModuleLoadData)            \
    F(cuModuleUnload)              \
    F(cuModuleGetFunction)         \
    F(cuLaunchKernel)              \
    F(cuMemAlloc)                  \
    F(cuMemFree)                   \
    F(cuMemHostAlloc)              \
    F(cuMemFreeHost)               \
    F(cuMemHostGetDevicePointer)   \
    F(cuMemcpyHtoDAsync)           \
    F(cuMemcpyDtoHAsync)           \
    F(cuMemsetD8Async)

/* Tests name a driver that emulates a GPU here, so that the machine's own stays untouched. */
#ifndef ED_CUDA_DRIVER
#define ED_CUDA_DRIVER "libcuda.so.1"
#endif

#define ED_DRIVER_TEXT_OF(x) #x
#define ED_DRIVER_TEXT(x) ED_DRIVER_TEXT_OF(x)

/* Returns what a driver's result means to a caller of the C ABI. Results are given by
 * number, because older headers lack some of the names. */
inline int ed_driver_error(CUresult result) {
    switch (static_cast<int>(result)) {
    case 0: return ED_OK;
    case 2: return ED_ERROR_MEMORY;   /* OUT_OF_MEMORY */
    case 3:                           /* NOT_INITIALIZED */
    case 4:                           /* DEINITIALIZED: the process is ending */
    case 34:                          /* STUB_LIBRARY: the toolkit's library, which is no driver */
    case 36:                          /* CALL_REQUIRES_NEWER_DRIVER */
    case 46:                          /* DEVICE_UNAVAILABLE: another process has exclusive use of it */
    case 100:                         /* NO_DEVICE */
    case 101:                         /* INVALID_DEVICE */
    case 102:                         /* DEVICE_NOT_LICENSED */
    case 304:                         /* OPERATING_SYSTEM */
    case 802:                         /* SYSTEM_NOT_READY */
    case 803:                         /* SYSTEM_DRIVER_MISMATCH: updated without a restart of the machine */
    case 804:                         /* COMPAT_NOT_SUPPORTED_ON_DEVICE */
    case 805: return ED_ERROR_DRIVER; /* MPS_CONNECTION_FAILED */
    case 200:                         /* INVALID_IMAGE: in a form that this driver does not know */
    case 209:                         /* NO_BINARY_FOR_GPU */
    case 218:                         /* INVALID_PTX */
    case 222: return ED_ERROR_CHIP;   /* UNSUPPORTED_PTX_VERSION */
    case 301:                         /* FILE_NOT_FOUND */
    case 500: return ED_ERROR_FILE;   /* NOT_FOUND: a symbol of the kernel's file */
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

/* Finds the driver and retains the primary context. The context spins while it waits, because a step is shorter than
 * a sleep. If somebody in this process has retained it already, it keeps waiting as they chose. */
inline int ed_driver_open(ed_driver *driver) {
    *driver = {};
    void *library = dlopen(ED_CUDA_DRIVER, RTLD_NOW | RTLD_LOCAL); /* stays loaded, because it keeps threads */
    if (!library) return ED_ERROR_DRIVER;
    bool complete = true;
#define ED_DRIVER_FIND(name)                                                                  \
    driver->name = reinterpret_cast<decltype(&::name)>(dlsym(library, ED_DRIVER_TEXT(name))); \
    complete = complete && driver->name;
    ED_DRIVER_FUNCTIONS(ED_DRIVER_FIND)
#undef ED_DRIVER_FIND
    if (!complete) return ED_ERROR_DRIVER;
    unsigned flags = 0;
    int active = 0;
    CUcontext context = nullptr;
    CUresult result = driver->cuInit(0);
    if (result) return result == CUDA_ERROR_OUT_OF_MEMORY ? ED_ERROR_MEMORY : ED_ERROR_DRIVER;
    result = driver->cuDeviceGet(&driver->device, 0);
    if (!result) result = driver->cuDevicePrimaryCtxGetState(driver->device, &flags, &active);
    if (!result && !active) result = driver->cuDevicePrimaryCtxSetFlags(driver->device, CU_CTX_SCHED_SPIN);
    if (!result) result = driver->cuDevicePrimaryCtxRetain(&context, driver->device);
    if (!result) driver->context = context;
    return ed_driver_error(result);
}

inline void ed_driver_close(ed_driver *driver) {
    if (driver->context) driver->cuDevicePrimaryCtxRelease(driver->device);
    driver->context = nullptr;
}

/* Makes the context current on this thread while the object lives, and restores the previous one afterwards. */
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

#pragma GCC visibility pop

#endif
