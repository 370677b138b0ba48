/*
 * Uses the plugin as TensorRT does, for ctypes: it loads the library, takes its creators, makes plugins from fields,
 * and calls their capabilities through TensorRT's own interfaces. It provides what TensorRT would: a logger and an
 * expression builder. A registry of NVIDIA's can take the place of its own (`open_registered`).
 */
#include <dlfcn.h>

#include <deque>
#include <string>
#include <vector>

#include <NvInferRuntime.h>

using namespace nvinfer1;

namespace {

std::string last_complaint, facts;
IPluginCreatorV3One *creator = nullptr;

struct Logger final : ILogger {
    void log(Severity severity, const char *text) noexcept override {
        if (severity <= Severity::kERROR) last_complaint = text;
    }
} logger;

struct Finder final : ILoggerFinder {
    ILogger *findLogger() override { return &logger; }
} finder;

/* A dimension whose value is known, as in any static graph. */
struct Dimension final : IDimensionExpr, private apiv::VDimensionExpr {
    explicit Dimension(int64_t value) : value_(value) { mImpl = this; }
    bool isConstant() const override { return true; }
    int64_t getConstantValue() const override { return value_; }
    bool isSizeTensor() const override { return false; }
    int64_t value_;
};

struct Builder final : IExprBuilder, private apiv::VExprBuilder {
    Builder() { mImpl = this; }
    const IDimensionExpr *constant(int64_t value) override { return &made.emplace_back(value); }
    const IDimensionExpr *operation(DimensionOperation, const IDimensionExpr &, const IDimensionExpr &) override {
        return nullptr;
    }
    const IDimensionExpr *declareSizeTensor(int32_t, const IDimensionExpr &, const IDimensionExpr &) override {
        return nullptr;
    }
    std::deque<Dimension> made;
};

template <typename Interface> Interface *capability(IPluginV3 *plugin, PluginCapabilityType type) {
    return static_cast<Interface *>(plugin->getCapabilityInterface(type));
}
IPluginV3OneCore *core(IPluginV3 *plugin) { return capability<IPluginV3OneCore>(plugin, PluginCapabilityType::kCORE); }
IPluginV3OneBuild *build(IPluginV3 *plugin) {
    return capability<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);
}
IPluginV3OneRuntime *runtime(IPluginV3 *plugin) {
    return capability<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
}

/* Describes tensors of `count` shapes: ranks (count,), sizes one after the other, types and formats (count,). */
std::vector<PluginTensorDesc> tensor_descriptions(int count, const int *ranks, const int64_t *sizes, const int *types,
                                                  const int *formats) {
    std::vector<PluginTensorDesc> tensors(static_cast<size_t>(count));
    for (auto &tensor : tensors) {
        tensor.dims.nbDims = *ranks++;
        for (int i = 0; i < tensor.dims.nbDims; i++) tensor.dims.d[i] = *sizes++;
        tensor.type = static_cast<DataType>(*types++);
        tensor.format = static_cast<TensorFormat>(*formats++);
        tensor.scale = 1;
    }
    return tensors;
}

std::vector<DynamicPluginTensorDesc> dynamic(const std::vector<PluginTensorDesc> &tensors) {
    std::vector<DynamicPluginTensorDesc> all;
    for (const auto &tensor : tensors) all.push_back({tensor, tensor.dims, tensor.dims, tensor.dims});
    return all;
}

/* The registry as TensorRT 11 lays it out. TensorRT 10, whose headers this may be compiled with, has other functions
 * before and among these. */
struct Registry11 {
    virtual ~Registry11() = default;
    virtual void setErrorRecorder(IErrorRecorder *) noexcept = 0;
    virtual IErrorRecorder *getErrorRecorder() const noexcept = 0;
    virtual bool isParentSearchEnabled() const = 0;
    virtual void setParentSearchEnabled(bool) = 0;
    virtual void *loadLibrary(const char *path) noexcept = 0;
    virtual void deregisterLibrary(void *handle) noexcept = 0;
    virtual bool registerCreator(IPluginCreatorInterface &, const char *) noexcept = 0;
    virtual IPluginCreatorInterface *const *getAllCreators(int32_t *) const noexcept = 0;
    virtual IPluginCreatorInterface *getCreator(const char *name, const char *version, const char *space) noexcept = 0;
};

void *registry = nullptr, *loaded = nullptr;

/* Calls `use` with the registry, as the major version of its library lays it out. */
template <typename Use> auto with_registry(int major, Use use) {
    return major < 11 ? use(static_cast<IPluginRegistry *>(registry)) : use(static_cast<Registry11 *>(registry));
}

const PluginTensorDesc none{};
const DynamicPluginTensorDesc none_dynamic{};

} // namespace

extern "C" {

const char *complaint() { return last_complaint.c_str(); }
void forget() { last_complaint.clear(); }

/* Does what TensorRT's registry does with a library. Returns 0, or what is missing. */
int open_plugin(const char *path) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        last_complaint = dlerror();
        return 1;
    }
    auto set_finder = reinterpret_cast<void (*)(ILoggerFinder *)>(dlsym(library, "setLoggerFinder"));
    auto get = reinterpret_cast<IPluginCreatorInterface *const *(*)(int32_t &)>(dlsym(library, "getCreators"));
    if (!set_finder || !get) return 2;
    set_finder(&finder);
    int32_t count = 0;
    IPluginCreatorInterface *const *creators = get(count);
    if (count != 1 || std::string(creators[0]->getInterfaceInfo().kind) != "PLUGIN CREATOR_V3ONE") return 3;
    creator = static_cast<IPluginCreatorV3One *>(creators[0]);
    return 0;
}

/* Has the registry of a library of NVIDIA's load the plugin. Returns 0, or what is missing. */
int open_registered(const char *tensorrt, int major, const char *path) {
    void *library = dlopen(tensorrt, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        last_complaint = dlerror();
        return 1;
    }
    auto get = reinterpret_cast<void *(*)()>(dlsym(library, "getPluginRegistry"));
    registry = get ? get() : nullptr;
    if (!registry) return 2;
    loaded = with_registry(major, [&](auto *own) -> void * { return own->loadLibrary(path); });
    if (!loaded) return 3;
    creator = static_cast<IPluginCreatorV3One *>(with_registry(
        major, [](auto *own) -> IPluginCreatorInterface * { return own->getCreator("EdAttention", "1", ""); }));
    return creator ? 0 : 4;
}

/* Takes the plugin out of that registry. Returns 0, or 1 if its creator can still be found there. */
int close_registered(int major) {
    return with_registry(major, [](auto *own) -> int {
        own->deregisterLibrary(loaded);
        return own->getCreator("EdAttention", "1", "") != nullptr;
    });
}

/* Writes name|version|namespace|field:type:length|... */
const char *creator_facts() {
    facts =
        std::string(creator->getPluginName()) + "|" + creator->getPluginVersion() + "|" + creator->getPluginNamespace();
    const PluginFieldCollection *fields = creator->getFieldNames();
    for (int i = 0; i < fields->nbFields; i++)
        facts += "|" + std::string(fields->fields[i].name) + ":" +
                 std::to_string(static_cast<int>(fields->fields[i].type)) + ":" +
                 std::to_string(fields->fields[i].length);
    return facts.c_str();
}

IPluginV3 *create(int count, const char **names, const void *const *data, const int *types, const int *lengths,
                  int at_runtime) {
    std::vector<PluginField> fields;
    for (int i = 0; i < count; i++)
        fields.emplace_back(names[i], data[i], static_cast<PluginFieldType>(types[i]), lengths[i]);
    const PluginFieldCollection given{count, fields.data()};
    return creator->createPlugin("layer", &given, at_runtime ? TensorRTPhase::kRUNTIME : TensorRTPhase::kBUILD);
}

/* Moves a plugin into a plan and out of it. The fields are copied, as by a plan, and the
 * first plugin may be gone by then. */
IPluginV3 *through_a_plan(IPluginV3 *plugin) {
    const PluginFieldCollection *fields = runtime(plugin)->getFieldsToSerialize();
    std::vector<std::string> names;
    std::vector<std::vector<float>> values;
    for (int i = 0; i < fields->nbFields; i++) {
        const PluginField &field = fields->fields[i];
        if (field.type != PluginFieldType::kFLOAT32) return nullptr;
        names.emplace_back(field.name);
        const auto *data = static_cast<const float *>(field.data);
        values.emplace_back(data, data + field.length);
    }
    delete plugin;
    std::vector<PluginField> read;
    for (size_t i = 0; i < names.size(); i++)
        read.emplace_back(names[i].c_str(), values[i].data(), PluginFieldType::kFLOAT32,
                          static_cast<int32_t>(values[i].size()));
    const PluginFieldCollection given{static_cast<int32_t>(read.size()), read.data()};
    return creator->createPlugin("layer", &given, TensorRTPhase::kRUNTIME);
}

void destroy(IPluginV3 *plugin) { delete plugin; }
IPluginV3 *clone_of(IPluginV3 *plugin) { return plugin->clone(); }
IPluginV3 *attached(IPluginV3 *plugin) { return runtime(plugin)->attachToContext(nullptr); }

const char *plugin_facts(IPluginV3 *plugin) {
    const auto *own = core(plugin);
    facts = std::string(own->getPluginName()) + "|" + own->getPluginVersion() + "|" + own->getPluginNamespace() + "|" +
            own->getInterfaceInfo().kind + "|" + build(plugin)->getInterfaceInfo().kind + "|" +
            runtime(plugin)->getInterfaceInfo().kind + "|" + std::to_string(build(plugin)->getNbOutputs());
    return facts.c_str();
}

/* Returns the type of the output, or -1. */
int output_type(IPluginV3 *plugin, int count, const int *types) {
    std::vector<DataType> inputs;
    for (int i = 0; i < count; i++) inputs.push_back(static_cast<DataType>(types[i]));
    auto output = DataType::kFLOAT;
    return build(plugin)->getOutputDataTypes(&output, 1, inputs.data(), count) ? -1 : static_cast<int>(output);
}

/* Returns the rank of the output and writes its sizes to `out`; returns -1 on failure. */
int output_shape(IPluginV3 *plugin, int count, const int *ranks, const int64_t *sizes, int64_t *out) {
    Builder expressions;
    std::vector<DimsExprs> inputs(static_cast<size_t>(count));
    for (auto &input : inputs) {
        input.nbDims = *ranks++;
        for (int i = 0; i < input.nbDims; i++) input.d[i] = expressions.constant(*sizes++);
    }
    DimsExprs output{};
    if (build(plugin)->getOutputShapes(inputs.data(), count, nullptr, 0, &output, 1, expressions)) return -1;
    for (int i = 0; i < output.nbDims; i++) out[i] = output.d[i]->getConstantValue();
    return output.nbDims;
}

/* Tells whether the tensor at `position` of inputs and output may be as described. */
int supports(IPluginV3 *plugin, int position, int count, const int *ranks, const int64_t *sizes, const int *types,
             const int *formats) {
    const auto tensors = dynamic(tensor_descriptions(count, ranks, sizes, types, formats));
    return build(plugin)->supportsFormatCombination(position, tensors.data(), count - 1, 1);
}

int configure(IPluginV3 *plugin, int count, const int *ranks, const int64_t *sizes, const int *types,
              const int *formats) {
    const auto inputs = dynamic(tensor_descriptions(count, ranks, sizes, types, formats));
    return build(plugin)->configurePlugin(inputs.data(), count, &none_dynamic, 1);
}

int shape_change(IPluginV3 *plugin, int count, const int *ranks, const int64_t *sizes, const int *types,
                 const int *formats) {
    const auto inputs = tensor_descriptions(count, ranks, sizes, types, formats);
    return runtime(plugin)->onShapeChange(inputs.data(), count, &none, 1);
}

size_t workspace(IPluginV3 *plugin) { return build(plugin)->getWorkspaceSize(&none_dynamic, 1, &none_dynamic, 1); }

int enqueue(IPluginV3 *plugin, const void *const *inputs, void *const *outputs) {
    return runtime(plugin)->enqueue(&none, &none, inputs, outputs, nullptr, nullptr);
}
}
