/*
 * A libnvinfer for the tests of tensorrt/engine.cpp. Its "plans" are texts. It checks everything that TensorRT requires
 * of the functions used there (addresses, directions, versions, registries). A plan:
 *
 *     version 10.3
 *     plugin EdAttention                 this creator must be registered, and is asked for a plugin; may be left out
 *     kernel PATH NAME                   what a step launches: NAME(void *const *tensors), tensors in the order below
 *     tensor NAME in|chw32|out TYPE SIZE...   an input is row-major, or of that format
 *     absent                             the place of a tensor that the model does not have
 *
 * FAKE_TENSORRT in the environment makes one thing fail: runtime, memory (deserialization), context, enqueue, capture.
 */
#include <cuda.h>
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "tensorrt_stubs.h"

using namespace nvinfer1;

namespace {

int enqueued = 0, alive = 0;
ILogger *logger = nullptr;   /* the first one, which TensorRT keeps for messages of no runtime */
std::set<ILogger *> loggers; /* all loggers that were given */

bool fails(const char *what) {
    const char *fault = std::getenv("FAKE_TENSORRT");
    return fault && std::string(fault) == what;
}

template <typename Function> Function *driver(const char *name) {
    void *library = dlopen(ED_CUDA_DRIVER, RTLD_NOW); /* the fake that the engine was told of as well */
    void *found = library ? dlsym(library, name) : nullptr;
    if (!found) std::abort();
    return reinterpret_cast<Function *>(found);
}

struct Counted {
    Counted() { alive++; }
    ~Counted() { alive--; }
};

/* ---------------------------------------------------------------- plugins */

struct Finder final : ILoggerFinder {
    ILogger *findLogger() override { return logger; }
} finder;

struct Registry final : apiv::StubIPluginRegistry {
    std::map<std::string, IPluginCreatorInterface *> creators;

    PluginLibraryHandle loadLibrary(const AsciiChar *path) noexcept override {
        void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        auto set = library ? reinterpret_cast<void (*)(ILoggerFinder *)>(dlsym(library, "setLoggerFinder")) : nullptr;
        auto get = library
                       ? reinterpret_cast<IPluginCreatorInterface *const *(*)(int32_t &)>(dlsym(library, "getCreators"))
                       : nullptr;
        if (!set || !get) return nullptr;
        set(&finder);
        int32_t count = 0;
        IPluginCreatorInterface *const *all = get(count);
        for (int32_t i = 0; i < count; i++)
            creators[static_cast<IPluginCreatorV3One *>(all[i])->getPluginName()] = all[i];
        return library;
    }
    void deregisterLibrary(PluginLibraryHandle handle) noexcept override {
        creators.clear();
        dlclose(handle);
    }
    IPluginCreatorInterface *getCreator(const AsciiChar *name, const AsciiChar *, const AsciiChar *) noexcept override {
        return creators.count(name) ? creators[name] : nullptr;
    }
};

/* ---------------------------------------------------------------- plans */

struct Tensor {
    TensorIOMode mode;
    DataType type;
    Dims dims;
    size_t place;
    bool odd; /* its format is not row-major */
};

struct Plan {
    std::string version, plugin, kernel_file, kernel;
    std::vector<std::string> names; /* by place; empty for absent tensors */
    std::map<std::string, Tensor> tensors;

    explicit Plan(const std::string &text) {
        std::istringstream lines(text);
        for (std::string line; std::getline(lines, line);) {
            std::istringstream words(line);
            std::string kind, name, direction;
            words >> kind;
            if (kind == "version") words >> version;
            if (kind == "plugin") words >> plugin;
            if (kind == "kernel") words >> kernel_file >> kernel;
            if (kind == "absent") names.emplace_back();
            if (kind != "tensor") continue;
            Tensor tensor{};
            int type = 0;
            words >> name >> direction >> type;
            tensor.odd = direction == "chw32";
            tensor.mode = direction != "out" ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
            tensor.type = static_cast<DataType>(type);
            for (int size; words >> size;) tensor.dims.d[tensor.dims.nbDims++] = size;
            tensor.place = names.size();
            names.push_back(name);
            tensors[name] = tensor;
        }
    }
    const Tensor *find(const char *name) const {
        auto found = tensors.find(name);
        return found == tensors.end() ? nullptr : &found->second;
    }
};

struct Context final : IExecutionContext, Counted {
    Context(const Plan &plan, IErrorRecorder *recorder) : impl(plan, recorder) { mImpl = &impl; }

    struct Impl final : apiv::StubVExecutionContext {
        Impl(const Plan &of, IErrorRecorder *to) : plan(of), recorder(to), addresses(of.names.size()) {
            CUresult result = driver<decltype(cuModuleLoad)>("cuModuleLoad")(&module, plan.kernel_file.c_str());
            if (!result)
                result = driver<decltype(cuModuleGetFunction)>("cuModuleGetFunction")(&function, module,
                                                                                      plan.kernel.c_str());
            if (result) std::fprintf(stderr, "%s of %s: %d\n", plan.kernel.c_str(), plan.kernel_file.c_str(), result);
        }
        ~Impl() override { driver<decltype(cuModuleUnload)>("cuModuleUnload")(module); }

        bool setTensorAddress(const char *name, void *data) noexcept override {
            const Tensor *tensor = plan.find(name);
            if (!tensor || !data || reinterpret_cast<uintptr_t>(data) % 256) return false;
            addresses[tensor->place] = data;
            return true;
        }
        bool enqueueV3(cudaStream_t stream) noexcept override {
            for (const auto &entry : plan.tensors)
                if (!addresses[entry.second.place]) return false;
            enqueued++;
            if (fails("enqueue") || (fails("capture") && enqueued > 1)) {
                if (recorder) recorder->reportError(ErrorCode::kFAILED_EXECUTION, "told to fail");
                return false;
            }
            void *const *tensors = addresses.data();
            void *parameters[] = {&tensors};
            return driver<decltype(cuLaunchKernel)>("cuLaunchKernel")(function, 1, 1, 1, 32, 1, 1, 0,
                                                                      reinterpret_cast<CUstream>(stream), parameters,
                                                                      nullptr) == CUDA_SUCCESS;
        }
        const Plan &plan;
        IErrorRecorder *recorder;
        std::vector<void *> addresses;
        CUmodule module = nullptr;
        CUfunction function = nullptr;
    } impl;
};

struct Engine final : ICudaEngine, Counted {
    Engine(const Plan &plan, IErrorRecorder *recorder) : impl(plan, recorder) { mImpl = &impl; }

    struct Impl final : apiv::StubVCudaEngine {
        Impl(const Plan &of, IErrorRecorder *to) : plan(of), recorder(to) {}

        IExecutionContext *createExecutionContext(ExecutionContextAllocationStrategy) noexcept override {
            if (!fails("context")) return new Context(plan, recorder);
            if (recorder) recorder->reportError(ErrorCode::kFAILED_ALLOCATION, "no memory for a context");
            return nullptr;
        }
        Dims getTensorShape(const char *name) const noexcept override {
            const Tensor *tensor = plan.find(name);
            Dims unknown{};
            unknown.nbDims = -1;
            return tensor ? tensor->dims : unknown;
        }
        DataType getTensorDataType(const char *name) const noexcept override {
            const Tensor *tensor = plan.find(name);
            return tensor ? tensor->type : DataType::kFLOAT;
        }
        TensorIOMode getTensorIOMode(const char *name) const noexcept override {
            const Tensor *tensor = plan.find(name);
            return tensor ? tensor->mode : TensorIOMode::kNONE;
        }
        TensorFormat getTensorFormat(const char *name) const noexcept override {
            const Tensor *tensor = plan.find(name);
            return tensor && tensor->odd ? TensorFormat::kCHW32 : TensorFormat::kLINEAR;
        }
        TensorLocation getTensorLocation(const char *) const noexcept override { return TensorLocation::kDEVICE; }
        int32_t getNbIOTensors() const noexcept override { return static_cast<int32_t>(plan.tensors.size()); }
        const Plan plan;
        IErrorRecorder *recorder;
    } impl;
};

/* ---------------------------------------------------------------- the runtime */

struct Runtime final : IRuntime, Counted {
    Runtime() { mImpl = &impl; }

    struct Impl final : apiv::StubVRuntime {
        void setErrorRecorder(IErrorRecorder *given) noexcept override {
            recorder = given;
            recorder->incRefCount();
        }
        ~Impl() override {
            if (recorder) recorder->decRefCount();
        }
        IPluginRegistry &getPluginRegistry() noexcept override { return registry; }

        ICudaEngine *deserializeCudaEngine(const void *blob, std::size_t size) noexcept override {
            const Plan plan(std::string(static_cast<const char *>(blob), size));
            const std::string own = std::to_string(NV_TENSORRT_MAJOR) + "." + std::to_string(NV_TENSORRT_MINOR);
            if (fails("memory")) return refuse(ErrorCode::kFAILED_ALLOCATION, "no memory for the weights");
            if (plan.version != own) return refuse(ErrorCode::kINVALID_CONFIG, "the plan is of another version");
            if (!plan.plugin.empty() && !makes(plan.plugin))
                return refuse(ErrorCode::kINVALID_STATE, "no creator of a plugin");
            return new Engine(plan, recorder);
        }
        ICudaEngine *refuse(ErrorCode code, const char *text) {
            if (recorder) recorder->reportError(code, text);
            return nullptr;
        }
        /* A plan holds the plugin's fields, and the creator is asked for the plugin. */
        bool makes(const std::string &name) {
            auto *creator = static_cast<IPluginCreatorV3One *>(registry.getCreator(name.c_str(), "1", ""));
            if (!creator) return false;
            const float one = 1;
            const PluginField fields[] = {{"score_scale", &one, PluginFieldType::kFLOAT32, 1},
                                          {"v_scale", &one, PluginFieldType::kFLOAT32, 1},
                                          {"context_inv", &one, PluginFieldType::kFLOAT32, 1}};
            const PluginFieldCollection given{3, fields};
            IPluginV3 *plugin = creator->createPlugin("layer", &given, TensorRTPhase::kRUNTIME);
            delete plugin;
            return plugin != nullptr;
        }
        Registry registry;
        IErrorRecorder *recorder = nullptr;
    } impl;
};

} // namespace

extern "C" __attribute__((visibility("default"))) void *createInferRuntime_INTERNAL(void *given,
                                                                                    int32_t version) noexcept {
    loggers.insert(static_cast<ILogger *>(given));
    if (!logger) logger = static_cast<ILogger *>(given);
    return fails("runtime") || version != NV_TENSORRT_VERSION ? nullptr : static_cast<IRuntime *>(new Runtime);
}

extern "C" __attribute__((visibility("default"))) int fake_enqueued() { return enqueued; }
extern "C" __attribute__((visibility("default"))) int fake_alive() { return alive; }
extern "C" __attribute__((visibility("default"))) int fake_loggers() { return static_cast<int>(loggers.size()); }
