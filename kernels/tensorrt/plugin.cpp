/*
 * The attention core of one layer as a TensorRT plugin, so that a layer's attention is one kernel with integers on both
 * sides. The operator is EdAttention, version "1", without a namespace. docs/numerics.md, "Attention core", defines
 * what it computes. The kernel is ../cuda/attention_step.cu; this file only introduces it to TensorRT.
 *
 *     input   q, k, v int8 (H, Dh); ring_k, ring_v int8 (H, W-1, Dh); age_bias float32 (H, W) by age; pos, live int32
 *             (1,)
 *     field   score_scale, v_scale, context_inv: one float32 each
 *     output  context int8 (H, Dh)
 *
 * Shapes are static and formats linear. No input is aliased to the output: the step reads the rings, and engine.cpp
 * appends to them. There is no registration macro, because it would need libnvinfer at load time. TensorRT finds the
 * creator through getCreators, the entry point of IPluginRegistry::loadLibrary and of trtexec's --dynamicPlugins. So
 * this library has no undefined TensorRT symbol, and loads where there is no TensorRT.
 *
 * It needs TensorRT's headers, 10.3 to 11.x, and nothing else of it. tests/kernels/test_tensorrt_plugin.py compiles it
 * against several versions and calls every function below, enqueue with the kernel emulated. In test_tensorrt_registry.py
 * the registries of 10.16, 11.4 and TensorRT for RTX 1.7 load it, and tests/compile/tensorrt/test_nvidia_builder.py has
 * NVIDIA's builder build it into a plan. TensorRT has not executed it.
 */
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <new>

#include <NvInferRuntime.h>

#include "attention_step.h"

using namespace nvinfer1;

namespace {

constexpr char NAME[] = "EdAttention", VERSION[] = "1", NAMESPACE[] = "";

enum : int { Q, K, V, RING_K, RING_V, AGE_BIAS, POS, LIVE, INPUTS, CONTEXT = INPUTS, TENSORS };

constexpr DataType TYPES[TENSORS] = {DataType::kINT8,  DataType::kINT8,  DataType::kINT8,
                                     DataType::kINT8,  DataType::kINT8,  DataType::kFLOAT,
                                     DataType::kINT32, DataType::kINT32, DataType::kINT8};

constexpr int FIELDS = 3;
constexpr const char *FIELD_NAMES[FIELDS] = {"score_scale", "v_scale", "context_inv"};

/* The fields, in this order. */
struct Scales {
    float of[FIELDS];
};

/* ---------------------------------------------------------------- error messages */

ILoggerFinder *logger_finder = nullptr; /* TensorRT gives it once, when it loads this library */

/* Reports an error: formats `text` as printf does. TensorRT's own error does not say why a plugin refused something.
 * The finder of 10.16 and of 11.4 knows no logger outside a version-compatible plan, so without a logger the text goes
 * to standard error. */
__attribute__((format(printf, 1, 2))) void complain(const char *text, ...) {
    char line[256];
    va_list arguments;
    va_start(arguments, text);
    std::vsnprintf(line, sizeof line, text, arguments);
    va_end(arguments);
    ILogger *logger = logger_finder ? logger_finder->findLogger() : nullptr;
    if (logger)
        logger->log(ILogger::Severity::kERROR, line);
    else
        std::fprintf(stderr, "%s\n", line);
}

/* ---------------------------------------------------------------- shapes */

struct Shape {
    int heads, window, head_dim;
};

/* Tells whether `found` is (a), (a, b) or (a, b, c): as many as are not 0. */
bool same(const Dims &found, int64_t a, int64_t b, int64_t c) {
    const int64_t wanted[] = {a, b, c};
    const int rank = c ? 3 : b ? 2 : 1;
    bool equal = found.nbDims == rank;
    for (int i = 0; equal && i < rank; i++) equal = found.d[i] == wanted[i];
    return equal;
}

/* Finds the shape that all inputs agree on, from their dims (INPUTS,). Returns false, with
 * a complaint, if they do not agree. */
bool shape_of(const Dims *dims, Shape *shape) {
    const Dims &q = dims[Q], &bias = dims[AGE_BIAS];
    if (q.nbDims != 2 || bias.nbDims != 2 || q.d[0] < 1 || q.d[1] < 1 || q.d[1] > ED_MOST_HEAD_DIM || bias.d[1] < 2 ||
        bias.d[1] > ED_MOST_WINDOW) {
        complain("EdAttention: q must be (H, Dh) and age_bias (H, W), static, Dh up to %d, W from 2 to %d",
                 ED_MOST_HEAD_DIM, ED_MOST_WINDOW);
        return false;
    }
    const int64_t heads = q.d[0], head_dim = q.d[1], window = bias.d[1];
    for (int i = 0; i < INPUTS; i++) {
        const bool fits = i == POS || i == LIVE        ? same(dims[i], 1, 0, 0)
                          : i == RING_K || i == RING_V ? same(dims[i], heads, window - 1, head_dim)
                          : i == AGE_BIAS              ? same(dims[i], heads, window, 0)
                                                       : same(dims[i], heads, head_dim, 0);
        if (fits) continue;
        complain("EdAttention: the shape of input %d (of q, k, v, ring_k, ring_v, age_bias, pos, live) does not fit "
                 "H %d, W %d, Dh %d",
                 i, static_cast<int>(heads), static_cast<int>(window), static_cast<int>(head_dim));
        return false;
    }
    *shape = {static_cast<int>(heads), static_cast<int>(window), static_cast<int>(head_dim)};
    return true;
}

/* ---------------------------------------------------------------- the plugin */

class EdAttention final : public IPluginV3,
                          public IPluginV3OneCore,
                          public IPluginV3OneBuild,
                          public IPluginV3OneRuntime {
  public:
    explicit EdAttention(const Scales &scales, const Shape &shape = {}) : scales_(scales), shape_(shape) {}

    IPluginCapability *getCapabilityInterface(PluginCapabilityType type) noexcept override {
        switch (type) {
        case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore *>(this);
        case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild *>(this);
        case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime *>(this);
        }
        return nullptr;
    }

    IPluginV3 *clone() noexcept override { return new (std::nothrow) EdAttention(scales_, shape_); }

    /* core */

    const char *getPluginName() const noexcept override { return NAME; }
    const char *getPluginVersion() const noexcept override { return VERSION; }
    const char *getPluginNamespace() const noexcept override { return NAMESPACE; }

    /* build */

    int32_t getNbOutputs() const noexcept override { return TENSORS - INPUTS; }

    int32_t getOutputDataTypes(DataType *outputs, int32_t n_outputs, const DataType *inputs,
                               int32_t n_inputs) const noexcept override {
        if (n_inputs != INPUTS || n_outputs != TENSORS - INPUTS) return -1;
        for (int i = 0; i < INPUTS; i++)
            if (inputs[i] != TYPES[i]) {
                complain("EdAttention: q, k, v and rings must be int8, age_bias float32, pos and live int32; input %d "
                         "is not",
                         i);
                return -1;
            }
        outputs[0] = TYPES[CONTEXT];
        return 0;
    }

    int32_t getOutputShapes(const DimsExprs *inputs, int32_t n_inputs, const DimsExprs *, int32_t, DimsExprs *outputs,
                            int32_t n_outputs, IExprBuilder &) noexcept override {
        if (n_inputs != INPUTS || n_outputs != TENSORS - INPUTS || inputs[Q].nbDims != 2) return -1;
        outputs[0] = inputs[Q];
        return 0;
    }

    bool supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc *tensors, int32_t n_inputs,
                                   int32_t n_outputs) noexcept override {
        if (n_inputs != INPUTS || n_outputs != TENSORS - INPUTS || position < 0 || position >= TENSORS) return false;
        const PluginTensorDesc &tensor = tensors[position].desc;
        return tensor.format == TensorFormat::kLINEAR && tensor.type == TYPES[position];
    }

    int32_t configurePlugin(const DynamicPluginTensorDesc *inputs, int32_t n_inputs, const DynamicPluginTensorDesc *,
                            int32_t n_outputs) noexcept override {
        if (n_inputs != INPUTS || n_outputs != TENSORS - INPUTS) return -1;
        Dims dims[INPUTS];
        for (int i = 0; i < INPUTS; i++) dims[i] = inputs[i].desc.dims;
        return shape_of(dims, &shape_) ? 0 : -1;
    }

    /* runtime */

    int32_t onShapeChange(const PluginTensorDesc *inputs, int32_t n_inputs, const PluginTensorDesc *,
                          int32_t n_outputs) noexcept override {
        if (n_inputs != INPUTS || n_outputs != TENSORS - INPUTS) return -1;
        Dims dims[INPUTS];
        for (int i = 0; i < INPUTS; i++) dims[i] = inputs[i].dims;
        return shape_of(dims, &shape_) ? 0 : -1;
    }

    /* Only launches the kernel, so the call may be captured into a graph. */
    int32_t enqueue(const PluginTensorDesc *, const PluginTensorDesc *, const void *const *in, void *const *out, void *,
                    cudaStream_t stream) noexcept override {
        return ed_launch_attention_step(
            static_cast<const int8_t *>(in[Q]), static_cast<const int8_t *>(in[K]), static_cast<const int8_t *>(in[V]),
            static_cast<const int8_t *>(in[RING_K]), static_cast<const int8_t *>(in[RING_V]),
            static_cast<const float *>(in[AGE_BIAS]), static_cast<const int32_t *>(in[POS]),
            static_cast<const int32_t *>(in[LIVE]), scales_.of[0], scales_.of[1], scales_.of[2], shape_.heads,
            shape_.window, shape_.head_dim, static_cast<int8_t *>(out[0]), stream);
    }

    IPluginV3 *attachToContext(IPluginResourceContext *) noexcept override { return clone(); }

    const PluginFieldCollection *getFieldsToSerialize() noexcept override {
        for (int i = 0; i < FIELDS; i++) fields_[i] = {FIELD_NAMES[i], &scales_.of[i], PluginFieldType::kFLOAT32, 1};
        collection_ = {FIELDS, fields_};
        return &collection_;
    }

  private:
    Scales scales_;
    Shape shape_{};
    PluginField fields_[FIELDS];
    PluginFieldCollection collection_{};
};

/* ---------------------------------------------------------------- its creator */

/* Reads all three fields, each one positive float32. Returns false, with a complaint, if
 * one is missing, wrong or unknown. */
bool scales_of(const PluginFieldCollection *given, Scales *scales) {
    bool found[FIELDS] = {};
    for (int32_t i = 0; given && i < given->nbFields; i++) {
        const PluginField &field = given->fields[i];
        int at = 0;
        while (at < FIELDS && std::strcmp(field.name ? field.name : "", FIELD_NAMES[at])) at++;
        if (at == FIELDS || !field.data || field.type != PluginFieldType::kFLOAT32 || field.length != 1) {
            complain("EdAttention: field '%.64s' is none of its three single float32", field.name ? field.name : "");
            return false;
        }
        std::memcpy(&scales->of[at], field.data, sizeof(float));
        if (!std::isfinite(scales->of[at]) || scales->of[at] <= 0) {
            complain("EdAttention: %s must be above 0, got %g", FIELD_NAMES[at], static_cast<double>(scales->of[at]));
            return false;
        }
        found[at] = true;
    }
    for (int at = 0; at < FIELDS; at++)
        if (!found[at]) {
            complain("EdAttention: field %s is missing", FIELD_NAMES[at]);
            return false;
        }
    return true;
}

class EdAttentionCreator final : public IPluginCreatorV3One {
  public:
    EdAttentionCreator() {
        for (int i = 0; i < FIELDS; i++) fields_[i] = {FIELD_NAMES[i], nullptr, PluginFieldType::kFLOAT32, 1};
    }

    /* The fields are the same in both phases: attributes of the graph's node, or what
     * getFieldsToSerialize put in a plan. */
    IPluginV3 *createPlugin(const char *, const PluginFieldCollection *given, TensorRTPhase) noexcept override {
        Scales scales{};
        return scales_of(given, &scales) ? new (std::nothrow) EdAttention(scales) : nullptr;
    }

    const PluginFieldCollection *getFieldNames() noexcept override { return &collection_; }
    const char *getPluginName() const noexcept override { return NAME; }
    const char *getPluginVersion() const noexcept override { return VERSION; }
    const char *getPluginNamespace() const noexcept override { return NAMESPACE; }

  private:
    PluginField fields_[FIELDS];
    PluginFieldCollection collection_{FIELDS, fields_};
};

} // namespace

/* ---------------------------------------------------------------- symbols that TensorRT looks for */

extern "C" __attribute__((visibility("default"))) void setLoggerFinder(ILoggerFinder *finder) {
    logger_finder = finder;
}

extern "C" __attribute__((visibility("default"))) IPluginCreatorInterface *const *getCreators(int32_t &count) {
    static EdAttentionCreator creator;
    static IPluginCreatorInterface *const creators[] = {&creator};
    count = 1;
    return creators;
}
