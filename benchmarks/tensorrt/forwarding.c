/*
 * Lets TensorRT's Python bindings, and our builder with them, call TensorRT for RTX or a lean runtime. It is compiled
 * under the names of the three libraries that the bindings are linked with. Each of the nine functions that they need
 * is looked up in the real library. A function that the real library does not have returns null.
 *
 *     gcc -shared -fPIC -DED_TENSORRT='"libtensorrt_rtx.so"' -DED_PARSER='"libtensorrt_onnxparser_rtx.so"' \
 *         -Wl,-soname,libnvinfer.so.11 -o libnvinfer.so.11 forwarding.c
 */
#include <dlfcn.h>

typedef void *function(void *, void *, void *);

static function *find(const char *library, const char *name) {
    void *opened = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    return opened ? (function *)dlsym(opened, name) : 0;
}

/* None of the functions takes more than three arguments, and each is a pointer or an integer. */
#define FORWARD(library, name)                   \
    void *name(void *a, void *b, void *c) {      \
        function *real = find(library, #name);   \
        return real ? real(a, b, c) : (void *)0; \
    }

FORWARD(ED_TENSORRT, createInferBuilder_INTERNAL)
FORWARD(ED_TENSORRT, createInferRefitter_INTERNAL)
FORWARD(ED_TENSORRT, createInferRuntime_INTERNAL)
FORWARD(ED_TENSORRT, getBuilderPluginRegistry)
FORWARD(ED_TENSORRT, getPluginRegistry)
FORWARD(ED_PARSER, createNvOnnxParser_INTERNAL)
FORWARD(ED_PARSER, createNvOnnxParserRefitter_INTERNAL)
FORWARD(ED_PARSER, getNvOnnxParserVersion)
FORWARD(ED_TENSORRT, initLibNvInferPlugins)
