"""Looks into an ONNX graph before onnxruntime does: no data outside it, and only operators of our own step graphs.

The bytes of a graph go in, and what is wrong with it comes out. A device has no `onnx` package, so this reads the few
fields of the protocol buffers itself (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3).
"""

from __future__ import annotations

from collections.abc import Iterator

Field = tuple[int, int | memoryview]  # number, and a whole number or bytes

# Where messages lie in each other: the kind of message behind a field, by its number.
PARTS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "step", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "step": {5: "attribute"},  # a node of a function, which calls no function
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {},
    "tensor": {},
}
EXTERNAL_DATA, DATA_LOCATION = 13, 14
# The numbers of (domain, name) in what names an operator.
NAMES = {"node": (7, 4), "step": (7, 4), "function": (10, 1)}
DEEPEST = 12
# The operators of the step graphs and their quantized peers. Control flow and operators that make their own sizes are
# not among them, because with those a few bytes become gigabytes, or a graph never ends.
# fmt: off
ALLOWED = frozenset({
    "Add", "Cast", "Clip", "Concat", "Constant", "DequantizeLinear", "Div", "DynamicQuantizeLinear", "Exp", "Gather",
    "Gemm", "Greater", "LessOrEqual", "MatMul", "MatMulInteger", "Max", "Mod", "Mul", "Pow", "QuantizeLinear",
    "ReduceMax", "ReduceMean", "ReduceSum", "Reshape", "Round", "Sigmoid", "Slice", "Softmax", "Split", "Sqrt", "Sub",
    "Transpose", "Where",
})
# fmt: on
OF_TEACHERS = frozenset({"ConstantOfShape", "Pad"})  # beside these, in the graph of a teacher over its whole window
PLUGIN = ("edgedistill", "EdAttention")  # a node of this domain, and the only function that a model may define


def find_graph_fault(model: bytes, also: frozenset[str] = frozenset()) -> str | None:
    """Returns why a graph must not be opened, or None. It may hold the operators of step graphs and those in `also`."""
    try:
        return _find_fault(memoryview(model), "model", 0, ALLOWED | also)
    except (ValueError, IndexError):
        return "its bytes are no protocol buffer"


def _find_fault(message: memoryview, kind: str, depth: int, allowed: frozenset[str]) -> str | None:
    if depth > DEEPEST:
        return f"graphs lie in each other more than {DEEPEST} deep"
    if kind == "sparse":
        return "a sparse tensor, which claims more than it holds"
    fields = list(_fields(message))
    if kind in NAMES and (fault := _find_name_fault(fields, kind, allowed)) is not None:
        return fault
    for number, value in fields:
        if kind == "tensor" and (number == EXTERNAL_DATA or (number == DATA_LOCATION and value)):
            return "a tensor whose data lie outside the graph"
        if isinstance(value, int):
            continue
        inner = PARTS[kind].get(number)
        if inner is not None and (fault := _find_fault(value, inner, depth + 1, allowed)) is not None:
            return fault
    return None


def _find_name_fault(fields: list[Field], kind: str, allowed: frozenset[str]) -> str | None:
    """Returns why a node or function of this name is refused. What is named twice must be one and the same."""
    domain, name = (
        "/".join(
            sorted(
                {
                    str(bytes(value), "utf-8", "replace")
                    for n, value in fields
                    if n == one and not isinstance(value, int)
                }
            )
        )
        for one in NAMES[kind]
    )
    if (domain, name) == PLUGIN and kind != "step":
        return None
    if not domain and name in allowed and kind != "function":
        return None
    return f"the {'function' if kind == 'function' else 'operator'} {name}, which no graph of edgedistill has"


def _fields(message: memoryview) -> Iterator[Field]:
    """Yields the fields of a message. Raises ValueError or IndexError for bytes that are none."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        if not 8 <= key < 1 << 32:  # protobuf drops the bits above, and takes it for another field
            raise ValueError("a field without a number")
        kind = key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        size, at = _varint(message, at) if kind == 2 else ({1: 8, 5: 4}.get(kind, -1), at)
        if not 0 <= size <= len(message) - at:
            raise ValueError("a field beyond the end")
        if kind == 2:
            yield key >> 3, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            if (byte == 0 and shift) or value >= 1 << 64:
                break  # readers do not agree on what these are
            return value, at
    raise ValueError("a number without an end, or longer than it need be")
