/*
 * A libcuda.so.1 for tests, with the functions of kernels/gpu/driver.h and those that describe the GPU.
 *
 *     g++ -std=c++17 -shared -fPIC -Wl,-soname,libcuda.so.1 driver.cpp -o libcuda.so.1 -ldl
 *
 * When a process has loaded it, every dlopen("libcuda.so.1") of the process finds it. Device memory is host memory
 * filled with 0xa5. A "cubin" is a shared object of a .cu compiled with -DED_EMULATED (cuda_on_cpu.h). It is stricter
 * than a driver: nothing runs before a stream is waited for, so that a result that is read too early is not there. A
 * call without a current context, a copy beyond an allocation, a handle that was destroyed, and what a capture does not
 * allow are errors.
 *
 * Failures can be ordered: ED_FAKE_CUDA=FUNCTION:N:CODE, or fake_cuda_fail(), makes the N-th call of a function from
 * then on return a code, for instance cuMemAlloc_v2:1:2. Codes from 700 on end the context, as on a device: all later
 * calls return them until it is released. fake_cuda_alive() counts what has not been freed, and fake_cuda_calls() lists
 * the calls.
 */
#include <cuda.h>
#include <dlfcn.h>
#include <elf.h>
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#define FAKE_API extern "C" __attribute__((visibility("default")))

namespace {

using Operation = std::function<CUresult()>;
using Operations = std::vector<Operation>;
using Bytes = std::vector<unsigned char>;

/* The objects that handles point to. */
struct Stream {
    bool capturing = false;
    Operations queued;
};
struct Graph {
    Operations operations;
};
struct Executable {
    Operations operations;
};
struct Function {
    int (*launch)(unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, size_t, void **);
    const unsigned *sizes; /* bytes of the parameters, then 0 */
};
struct Module {
    void *library = nullptr;
    std::map<std::string, Function> functions;
    ~Module() {
        if (library) dlclose(library);
    }
};

template <class T> using Owned = std::map<const void *, std::unique_ptr<T>>;

struct Device {
    bool initialized = false;
    int retained = 0; /* how often the primary context was retained */
    unsigned flags = 0;
    CUresult ended = CUDA_SUCCESS; /* the error that ended the context */
    Owned<Stream> streams;
    Owned<Graph> graphs;
    Owned<Executable> executables;
    Owned<Module> modules;
    std::map<uintptr_t, std::unique_ptr<Bytes>> memory, pinned;

    std::string fails; /* this function fails at its call number `at`, with `code` */
    int at = 0, code = 0, calls = 0;
    std::string log; /* names of functions, in the order of calls */
    size_t alive() const {
        return streams.size() + graphs.size() + executables.size() + modules.size() + memory.size() + pinned.size() +
               static_cast<size_t>(retained);
    }
} device;

/* A call holds the lock from its first check on. Calls do not call each other. */
pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
thread_local std::vector<CUcontext> current;
thread_local int captures = 0; /* captures of this thread */
int the_context;               /* its address is the primary context */

void fail_at(const std::string &text) {
    const size_t first = text.find(':'), second = text.find(':', first + 1);
    if (second == std::string::npos) return;
    device.fails = text.substr(0, first);
    device.at = std::atoi(text.c_str() + first + 1);
    device.code = std::atoi(text.c_str() + second + 1);
    device.calls = 0;
}

CUresult ended_by(CUresult code) {
    if (code >= 700 && !device.ended) device.ended = code;
    return code;
}

enum Needs { NOTHING, INITIALIZED, CONTEXT, NO_CAPTURE };

/* Stands at the start of every call. */
struct Call {
    CUresult refused = CUDA_SUCCESS;

    Call(const char *name, Needs needs) {
        pthread_mutex_lock(&lock);
        static const bool told = [] {
            if (const char *fault = std::getenv("ED_FAKE_CUDA")) fail_at(fault);
            return true;
        }();
        (void)told;
        device.log += device.log.empty() ? name : std::string(" ") + name;
        if (device.fails == name && ++device.calls == device.at)
            refused = ended_by(static_cast<CUresult>(device.code));
        else if (needs >= INITIALIZED && !device.initialized)
            refused = CUDA_ERROR_NOT_INITIALIZED;
        else if (needs >= CONTEXT && (current.empty() || !device.retained))
            refused = CUDA_ERROR_INVALID_CONTEXT;
        else if (needs >= CONTEXT && device.ended)
            refused = device.ended;
        else if (needs >= NO_CAPTURE && captures)
            refused = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    ~Call() { pthread_mutex_unlock(&lock); }
    Call(const Call &) = delete;
    Call &operator=(const Call &) = delete;
};

#define CALL(needs)                   \
    const Call call(__func__, needs); \
    if (call.refused) return call.refused

template <class T, class Handle> Handle handle_of(Owned<T> &owned, std::unique_ptr<T> made) {
    T *at = made.get();
    owned[at] = std::move(made);
    return reinterpret_cast<Handle>(at);
}

template <class T> T *found(Owned<T> &owned, const void *handle) {
    const auto at = owned.find(handle);
    return at == owned.end() ? nullptr : at->second.get();
}

template <class T> CUresult destroyed(Owned<T> &owned, const void *handle) {
    return owned.erase(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

using Memory = std::map<uintptr_t, std::unique_ptr<Bytes>>;

uintptr_t allocated(Memory &memory, size_t bytes) {
    auto made = std::make_unique<Bytes>(bytes + 256, static_cast<unsigned char>(0xa5));
    const uintptr_t at = (reinterpret_cast<uintptr_t>(made->data()) + 255) / 256 * 256; /* aligned as by a driver */
    made->resize(at - reinterpret_cast<uintptr_t>(made->data()) + bytes);
    memory[at] = std::move(made);
    return at;
}

bool holds(const Memory &memory, uintptr_t at, size_t bytes) {
    auto after = memory.upper_bound(at);
    if (after == memory.begin()) return false;
    const Bytes &block = *(--after)->second;
    const auto end = reinterpret_cast<uintptr_t>(block.data()) + block.size();
    return at <= end && bytes <= end - at;
}

CUresult queue(CUstream handle, Operation operation) {
    Stream *stream = found(device.streams, handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE; /* the default stream cannot be captured, and it waits for others */
    stream->queued.push_back(std::move(operation));
    return CUDA_SUCCESS;
}

/* ---------------------------------------------------------------- modules */

size_t bytes_of_elf(const unsigned char *image) {
    Elf64_Ehdr header;
    std::memcpy(&header, image, sizeof header);
    if (std::memcmp(header.e_ident, ELFMAG, SELFMAG)) return 0;
    size_t end = header.e_shoff + header.e_shnum * sizeof(Elf64_Shdr);
    for (unsigned i = 0; i < header.e_shnum; i++) {
        Elf64_Shdr section;
        std::memcpy(&section, image + header.e_shoff + i * sizeof section, sizeof section);
        if (section.sh_type != SHT_NOBITS) end = std::max<size_t>(end, section.sh_offset + section.sh_size);
    }
    return end;
}

/* Every load gets a copy of the shared object, since every module has its own variables. Each copy needs its own
 * name, because the loader takes a name that it knows for the same file, even after that was closed. */
CUresult load(const unsigned char *image, size_t bytes, CUmodule *module) {
    char path[] = P_tmpdir "/emulated-cubin-XXXXXX";
    const int file = mkstemp(path);
    if (file < 0) return CUDA_ERROR_OPERATING_SYSTEM;
    const bool written = write(file, image, bytes) == static_cast<ssize_t>(bytes);
    auto made = std::make_unique<Module>();
    if (written && bytes) made->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    close(file);
    unlink(path);
    if (!made->library) return CUDA_ERROR_INVALID_IMAGE;
    *module = handle_of<Module, CUmodule>(device.modules, std::move(made));
    return CUDA_SUCCESS;
}

} // namespace

/* ---------------------------------------------------------------- for tests */

FAKE_API void fake_cuda_fail(const char *function_call_code) { fail_at(function_call_code); }
FAKE_API size_t fake_cuda_alive(void) { return device.alive(); }

/* Returns the calls since it was last called. */
FAKE_API const char *fake_cuda_calls(void) {
    static std::string told;
    told.swap(device.log);
    device.log.clear();
    return told.c_str();
}

FAKE_API unsigned fake_cuda_flags(void) { return device.flags; }
FAKE_API size_t fake_cuda_current(void) { return current.size(); } /* number of contexts on this thread's stack */

/* ---------------------------------------------------------------- the GPU */

FAKE_API CUresult cuInit(unsigned) {
    CALL(NOTHING);
    device.initialized = true;
    return CUDA_SUCCESS;
}

FAKE_API CUresult cuDriverGetVersion(int *version) {
    CALL(NOTHING);
    const char *told = std::getenv("ED_FAKE_CUDA_DRIVER");
    *version = told ? std::atoi(told) : 13000;
    return CUDA_SUCCESS;
}

FAKE_API CUresult cuDeviceGetCount(int *count) {
    CALL(INITIALIZED);
    *count = 1;
    return CUDA_SUCCESS;
}

FAKE_API CUresult cuDeviceGet(CUdevice *found_device, int ordinal) {
    CALL(INITIALIZED);
    *found_device = 0;
    return ordinal ? CUDA_ERROR_INVALID_DEVICE : CUDA_SUCCESS;
}

FAKE_API CUresult cuDeviceGetName(char *name, int bytes, CUdevice) {
    CALL(INITIALIZED);
    std::snprintf(name, static_cast<size_t>(bytes), "emulated GPU");
    return CUDA_SUCCESS;
}

/* The chip is sm_87 unless ED_FAKE_CUDA_CHIP says otherwise. Every other attribute is 0. */
FAKE_API CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice) {
    CALL(INITIALIZED);
    const char *told = std::getenv("ED_FAKE_CUDA_CHIP");
    const int chip = told && !std::strncmp(told, "sm_", 3) ? std::atoi(told + 3) : 87;
    const bool major = attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
    const bool minor = attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR;
    *value = major ? chip / 10 : minor ? chip % 10 : 0;
    return CUDA_SUCCESS;
}

FAKE_API CUresult cuGetErrorString(CUresult, const char **text) {
    *text = "an error of the emulated driver";
    return CUDA_SUCCESS;
}

/* ---------------------------------------------------------------- contexts */

FAKE_API CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned *flags, int *active) {
    CALL(INITIALIZED);
    *flags = device.flags;
    *active = device.retained > 0;
    return CUDA_SUCCESS;
}

FAKE_API CUresult cuDevicePrimaryCtxSetFlags(CUdevice, unsigned flags) {
    CALL(INITIALIZED);
    device.flags = flags;
    return CUDA_SUCCESS;
}

FAKE_API CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice) {
    CALL(INITIALIZED);
    device.retained++;
    *context = reinterpret_cast<CUcontext>(&the_context);
    return CUDA_SUCCESS;
}

/* The last release of a context that has ended frees what is left, since no other call could. */
FAKE_API CUresult cuDevicePrimaryCtxRelease(CUdevice) {
    CALL(INITIALIZED);
    if (!device.retained) return CUDA_ERROR_INVALID_CONTEXT;
    if (--device.retained || !device.ended) return CUDA_SUCCESS;
    device.streams.clear();
    device.graphs.clear();
    device.executables.clear();
    device.modules.clear();
    device.memory.clear();
    device.pinned.clear();
    device.ended = CUDA_SUCCESS;
    return CUDA_SUCCESS;
}

FAKE_API CUresult cuCtxPushCurrent(CUcontext context) {
    CALL(INITIALIZED);
    if (context != reinterpret_cast<CUcontext>(&the_context)) return CUDA_ERROR_INVALID_CONTEXT;
    current.push_back(context);
    return CUDA_SUCCESS;
}

FAKE_API CUresult cuCtxPopCurrent(CUcontext *context) {
    CALL(INITIALIZED);
    if (current.empty()) return CUDA_ERROR_INVALID_CONTEXT;
    *context = current.back();
    current.pop_back();
    return CUDA_SUCCESS;
}

/* ---------------------------------------------------------------- memory */

FAKE_API CUresult cuMemAlloc(CUdeviceptr *at, size_t bytes) {
    CALL(NO_CAPTURE);
    if (!bytes) return CUDA_ERROR_INVALID_VALUE;
    *at = allocated(device.memory, bytes);
    return CUDA_SUCCESS;
}

FAKE_API CUresult cuMemFree(CUdeviceptr at) {
    CALL(NO_CAPTURE);
    return device.memory.erase(static_cast<uintptr_t>(at)) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

FAKE_API CUresult cuMemHostAlloc(void **at, size_t bytes, unsigned) {
    CALL(NO_CAPTURE);
    if (!bytes) return CUDA_ERROR_INVALID_VALUE;
    *at = reinterpret_cast<void *>(allocated(device.pinned, bytes));
    return CUDA_SUCCESS;
}

FAKE_API CUresult cuMemFreeHost(void *at) {
    CALL(NO_CAPTURE);
    return device.pinned.erase(reinterpret_cast<uintptr_t>(at)) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

FAKE_API CUresult cuMemHostGetDevicePointer(CUdeviceptr *at, void *host, unsigned) {
    CALL(CONTEXT);
    *at = reinterpret_cast<uintptr_t>(host);
    return holds(device.pinned, reinterpret_cast<uintptr_t>(host), 1) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* Memory that is not pinned is read at once, as by a driver, because it may be gone when the copy is made. */
FAKE_API CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void *from, size_t bytes, CUstream stream) {
    CALL(CONTEXT);
    if (!holds(device.memory, static_cast<uintptr_t>(to), bytes)) return CUDA_ERROR_INVALID_VALUE;
    void *at = reinterpret_cast<void *>(to);
    const auto *source = static_cast<const unsigned char *>(from);
    if (!holds(device.pinned, reinterpret_cast<uintptr_t>(from), bytes))
        return queue(stream, [at, kept = Bytes(source, source + bytes)] {
            std::memcpy(at, kept.data(), kept.size());
            return CUDA_SUCCESS;
        });
    return queue(stream, [=] {
        std::memcpy(at, source, bytes);
        return CUDA_SUCCESS;
    });
}

FAKE_API CUresult cuMemcpyDtoHAsync(void *to, CUdeviceptr from, size_t bytes, CUstream stream) {
    CALL(CONTEXT);
    if (!holds(device.memory, static_cast<uintptr_t>(from), bytes)) return CUDA_ERROR_INVALID_VALUE;
    return queue(stream, [=] {
        std::memcpy(to, reinterpret_cast<const void *>(from), bytes);
        return CUDA_SUCCESS;
    });
}

FAKE_API CUresult cuMemsetD8Async(CUdeviceptr at, unsigned char value, size_t bytes, CUstream stream) {
    CALL(CONTEXT);
    if (!holds(device.memory, static_cast<uintptr_t>(at), bytes)) return CUDA_ERROR_INVALID_VALUE;
    return queue(stream, [=] {
        std::memset(reinterpret_cast<void *>(at), value, bytes);
        return CUDA_SUCCESS;
    });
}

/* ---------------------------------------------------------------- modules and launches */

FAKE_API CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    CALL(NO_CAPTURE);
    const auto *bytes = static_cast<const unsigned char *>(image);
    return load(bytes, bytes_of_elf(bytes), module);
}

FAKE_API CUresult cuModuleLoad(CUmodule *module, const char *path) {
    CALL(NO_CAPTURE);
    std::FILE *file = std::fopen(path, "rb");
    if (!file) return CUDA_ERROR_FILE_NOT_FOUND;
    Bytes bytes;
    for (int byte; (byte = std::fgetc(file)) != EOF;) bytes.push_back(static_cast<unsigned char>(byte));
    std::fclose(file);
    return load(bytes.data(), bytes.size(), module);
}

FAKE_API CUresult cuModuleUnload(CUmodule module) {
    CALL(NO_CAPTURE);
    return destroyed(device.modules, module);
}

FAKE_API CUresult cuModuleGetFunction(CUfunction *function, CUmodule handle, const char *name) {
    CALL(CONTEXT);
    Module *module = found(device.modules, handle);
    if (!module) return CUDA_ERROR_INVALID_HANDLE;
    void *launch = dlsym(module->library, (std::string(name) + "_emulated").c_str());
    void *sizes = dlsym(module->library, (std::string(name) + "_parameters").c_str());
    if (!launch || !sizes) return CUDA_ERROR_NOT_FOUND;
    Function &made = module->functions[name];
    made.launch = reinterpret_cast<decltype(made.launch)>(launch);
    made.sizes = reinterpret_cast<const unsigned *(*)()>(sizes)();
    *function = reinterpret_cast<CUfunction>(&made);
    return CUDA_SUCCESS;
}

FAKE_API CUresult cuLaunchKernel(CUfunction handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                                 unsigned bz, unsigned shared, CUstream stream, void **parameters, void **) {
    CALL(CONTEXT);
    const Function function = *reinterpret_cast<const Function *>(handle);
    std::vector<Bytes> values; /* a launch copies their present values */
    for (const unsigned *size = function.sizes; *size; size++) {
        const auto *value = static_cast<const unsigned char *>(*parameters++);
        values.emplace_back(value, value + *size);
    }
    return queue(stream, [=]() mutable {
        std::vector<void *> pointers;
        for (Bytes &value : values) pointers.push_back(value.data());
        const int error = function.launch(gx, gy, gz, bx, by, bz, shared, pointers.data());
        return ended_by(static_cast<CUresult>(error));
    });
}

/* ---------------------------------------------------------------- streams and graphs */

FAKE_API CUresult cuStreamCreate(CUstream *stream, unsigned) {
    CALL(NO_CAPTURE);
    *stream = handle_of<Stream, CUstream>(device.streams, std::make_unique<Stream>());
    return CUDA_SUCCESS;
}

FAKE_API CUresult cuStreamDestroy(CUstream stream) {
    CALL(NO_CAPTURE);
    return destroyed(device.streams, stream);
}

FAKE_API CUresult cuStreamSynchronize(CUstream handle) {
    CALL(CONTEXT);
    Stream *stream = found(device.streams, handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capturing) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    Operations queued;
    queued.swap(stream->queued);
    for (const Operation &operation : queued)
        if (const CUresult failed = operation()) return failed;
    return CUDA_SUCCESS;
}

FAKE_API CUresult cuStreamBeginCapture(CUstream handle, CUstreamCaptureMode) {
    CALL(CONTEXT);
    Stream *stream = found(device.streams, handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capturing || !stream->queued.empty()) return CUDA_ERROR_ILLEGAL_STATE; /* engines wait before it */
    stream->capturing = true;
    captures++;
    return CUDA_SUCCESS;
}

/* A capture ends even if this call fails. */
FAKE_API CUresult cuStreamEndCapture(CUstream handle, CUgraph *graph) {
    const Call call(__func__, CONTEXT);
    Stream *stream = found(device.streams, handle);
    if (!stream || !stream->capturing) return CUDA_ERROR_ILLEGAL_STATE;
    auto made = std::make_unique<Graph>();
    made->operations.swap(stream->queued);
    stream->capturing = false;
    captures--;
    if (call.refused) return call.refused;
    *graph = handle_of<Graph, CUgraph>(device.graphs, std::move(made));
    return CUDA_SUCCESS;
}

FAKE_API CUresult cuGraphInstantiateWithFlags(CUgraphExec *executable, CUgraph handle, unsigned long long) {
    CALL(CONTEXT);
    Graph *graph = found(device.graphs, handle);
    if (!graph) return CUDA_ERROR_INVALID_HANDLE;
    auto made = std::make_unique<Executable>();
    made->operations = graph->operations;
    *executable = handle_of<Executable, CUgraphExec>(device.executables, std::move(made));
    return CUDA_SUCCESS;
}

FAKE_API CUresult cuGraphUpload(CUgraphExec executable, CUstream stream) {
    CALL(CONTEXT);
    if (!found(device.executables, executable)) return CUDA_ERROR_INVALID_HANDLE;
    return queue(stream, [] { return CUDA_SUCCESS; });
}

FAKE_API CUresult cuGraphLaunch(CUgraphExec handle, CUstream stream) {
    CALL(CONTEXT);
    Executable *executable = found(device.executables, handle);
    if (!executable) return CUDA_ERROR_INVALID_HANDLE;
    return queue(stream, [executable] {
        for (const Operation &operation : executable->operations)
            if (const CUresult failed = operation()) return failed;
        return CUDA_SUCCESS;
    });
}

FAKE_API CUresult cuGraphDestroy(CUgraph graph) {
    CALL(CONTEXT);
    return destroyed(device.graphs, graph);
}

FAKE_API CUresult cuGraphExecDestroy(CUgraphExec executable) {
    CALL(CONTEXT);
    return destroyed(device.executables, executable);
}
