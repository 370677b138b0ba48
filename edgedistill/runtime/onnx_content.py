"""Looks into an ONNX graph before onnxruntime does: no data outside it, and no operator that makes its own sizes.

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
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
OPERATOR, EXTERNAL_DATA, DATA_LOCATION = 4, 13, 14
DEEPEST = 12
# With these a few bytes become gigabytes, or a graph never ends.
REFUSED = frozenset({"Loop", "Scan", "If", "Expand", "Tile", "Range", "Resize", "Upsample", "OneHot", "EyeLike"})


def find_graph_fault(model: bytes) -> str | None:
    """Returns why a graph must not be opened, or None."""
    try:
        return _find_fault(memoryview(model), "model", 0)
    except (ValueError, IndexError):
        return "its bytes are no protocol buffer"


def _find_fault(message: memoryview, kind: str, depth: int) -> str | None:
    if depth > DEEPEST:
        return f"graphs lie in each other more than {DEEPEST} deep"
    for number, value in _fields(message):
        if kind == "tensor" and (number == EXTERNAL_DATA or (number == DATA_LOCATION and value)):
            return "a tensor whose data lie outside the graph"
        if isinstance(value, int):
            continue
        if kind == "node" and number == OPERATOR and (name := str(bytes(value), "utf-8", "replace")) in REFUSED:
            return f"the operator {name}, which no step graph of edgedistill has"
        inner = PARTS[kind].get(number)
        if inner is not None and (fault := _find_fault(value, inner, depth + 1)) is not None:
            return fault
    return None


def _fields(message: memoryview) -> Iterator[Field]:
    """Yields the fields of a message. Raises ValueError or IndexError for bytes that are none."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
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
            return value, at
    raise ValueError("a number without an end")
