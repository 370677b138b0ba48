/*
 * The emulated driver, with what benchmarks/gpu/cuda/device.cpp calls beyond the engines: events, attributes of kernels,
 * and graphs made by hand. Times are those of the CPU and show only that the loops ran.
 */
#include "../../emulation/cuda/driver.cpp"

#include <ctime>

namespace {

struct Event {
    CUstream stream = nullptr; /* the stream that it was last recorded in */
    double ms = 0;
};

Owned<Event> events;

double now_ms() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return static_cast<double>(t.tv_sec) * 1e3 + static_cast<double>(t.tv_nsec) * 1e-6;
}

} // namespace

FAKE_API CUresult cuEventCreate(CUevent *event, unsigned) {
    CALL(NO_CAPTURE);
    *event = handle_of<Event, CUevent>(events, std::make_unique<Event>());
    return CUDA_SUCCESS;
}

FAKE_API CUresult cuEventRecord(CUevent handle, CUstream stream) {
    CALL(CONTEXT);
    Event *event = found(events, handle);
    if (!event) return CUDA_ERROR_INVALID_HANDLE;
    event->stream = stream;
    return queue(stream, [event] {
        event->ms = now_ms();
        return CUDA_SUCCESS;
    });
}

FAKE_API CUresult cuEventSynchronize(CUevent handle) {
    Event *event = found(events, handle);
    return event ? cuStreamSynchronize(event->stream) : CUDA_ERROR_INVALID_HANDLE;
}

FAKE_API CUresult cuEventElapsedTime(float *ms, CUevent from, CUevent to) {
    CALL(CONTEXT);
    const Event *first = found(events, from), *second = found(events, to);
    if (!first || !second) return CUDA_ERROR_INVALID_HANDLE;
    *ms = static_cast<float>(second->ms - first->ms);
    return CUDA_SUCCESS;
}

FAKE_API CUresult cuFuncGetAttribute(int *value, CUfunction_attribute, CUfunction) {
    CALL(CONTEXT);
    *value = 0;
    return CUDA_SUCCESS;
}

FAKE_API CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute attribute, int value) {
    CALL(CONTEXT);
    const bool known = attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES && value <= 163 * 1024;
    return known ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

FAKE_API CUresult cuGraphCreate(CUgraph *graph, unsigned) {
    CALL(INITIALIZED);
    *graph = handle_of<Graph, CUgraph>(device.graphs, std::make_unique<Graph>());
    return CUDA_SUCCESS;
}

FAKE_API CUresult cuGraphAddEmptyNode(CUgraphNode *node, CUgraph handle, const CUgraphNode *, size_t) {
    CALL(INITIALIZED);
    Graph *graph = found(device.graphs, handle);
    if (!graph) return CUDA_ERROR_INVALID_HANDLE;
    graph->operations.push_back([] { return CUDA_SUCCESS; });
    *node = nullptr;
    return CUDA_SUCCESS;
}
