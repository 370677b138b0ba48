"""Checks that a model obeys TensorRT's rules of explicit quantization.

The input is a model. An EngineError names the first node that breaks a rule, and the rule. A graph that breaks them
still runs in onnxruntime, and often builds, but is then slow or wrong on the device. The rules hold for TensorRT 10.3
to 11 with strong typing. They come from NVIDIA's documentation of QuantizeLinear and DequantizeLinear, from the
importers of onnx-tensorrt, and from docs/numerics.md, which adds one rounding for each tensor, integers from -127
("Quantize"), and exponentials in place of probabilities ("Attention core"). Rules that also hold for graphs without a
quantized tensor are in `typing_rules`, and those of the custom node in `attention_rules`.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from edgedistill.errors import EngineError
from edgedistill.quantization.graph_rules.attention_rules import is_attention, require_attention_node
from edgedistill.quantization.graph_rules.model_reading import (
    ModelByName,
    name_node,
    name_type,
    read_attribute,
    rule_error,
)
from edgedistill.quantization.graph_rules.typing_rules import require_opset, require_typed_model, require_typed_node

LOWEST = -127.5  # in units of the scale: what rounds to -127
QUANTIZED = (TensorProto.INT8, TensorProto.UINT8)


def require_explicit_quantization(model: onnx.ModelProto, keep: Collection[str] = ()) -> None:
    """Raises EngineError that names a node, unless `model` obeys the rules.

    `keep` names parts in higher precision ("layers.0.out"). Products in nodes called `part/…` may then be of floats.
    """
    require_opset(model)
    graph = ModelByName.from_model(model)
    for part in keep:
        if not any(_in_part(node, part) for node in graph.nodes if node.op_type in ("MatMul", "Gemm")):
            raise EngineError(f"the graph has no product of a part '{part}' to keep in higher precision")
    for node in graph.nodes:
        _require_quantized_use(graph, node)
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            _require_scale(graph, node)
            _require_zero_point(graph, node)
        if node.op_type == "QuantizeLinear":
            _require_exponentials(graph, node)
            _require_one_rounding(graph, node)
            _require_symmetric_output(graph, node)
        if node.op_type in ("MatMul", "Gemm") and not any(_in_part(node, part) for part in keep):
            _require_quantized_product(graph, node)
        if is_attention(node):
            require_attention_node(graph, node)
        require_typed_node(graph, node)
    require_typed_model(model, graph)


# ---------------------------------------------------------------- rules


def _require_quantized_use(graph: ModelByName, node: NodeProto) -> None:
    """Requires 8-bit tensors to go from QuantizeLinear to DequantizeLinear, with only a plugin between them."""
    if is_attention(node):
        return
    if node.op_type != "DequantizeLinear":
        for name in node.input[:2] if node.op_type == "QuantizeLinear" else node.input:
            if graph.find_type(name) in QUANTIZED:
                raise rule_error(
                    node, "an 8-bit tensor goes into it", name, "only DequantizeLinear takes 8-bit tensors"
                )
    if node.op_type not in ("QuantizeLinear", "Constant"):
        for name in node.output:
            if graph.find_type(name) in QUANTIZED:
                raise rule_error(node, "it makes an 8-bit tensor", name, "only QuantizeLinear makes 8-bit tensors")


def _require_scale(graph: ModelByName, node: NodeProto) -> None:
    scale = graph.constants.get(node.input[1])
    if scale is None:
        raise rule_error(node, "its scale is not a constant", node.input[1], "known when the engine is built")
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise rule_error(node, "its scale is not positive and finite", scale.min(), "above 0 in every channel")
    floats = graph.find_type(node.input[0] if node.op_type == "QuantizeLinear" else node.output[0])
    if floats not in (None, graph.find_type(node.input[1])):
        raise rule_error(node, "its scale has another type than its tensor", scale.dtype, name_type(floats))
    if scale.size > 1 and not graph.is_weight(node):
        raise rule_error(node, "an activation has several scales", f"{scale.size} scales", "one a tensor")


def _require_zero_point(graph: ModelByName, node: NodeProto) -> None:
    given = len(node.input) > 2 and node.input[2] != ""
    if not given and node.op_type == "DequantizeLinear":
        return  # the default is 0 of the input's own type
    zero = graph.constants.get(node.input[2]) if given else None
    if zero is None:
        raise rule_error(node, "its zero point is not a constant", "none" if not given else node.input[2], "int8 0")
    if zero.dtype != np.int8 or zero.any():
        raise rule_error(node, "its zero point is not int8 0", f"{zero.dtype} {zero.ravel()[:4]}", "symmetric int8")
    if zero.size != graph.constants[node.input[1]].size:
        raise rule_error(
            node, "its zero point and scale differ in size", zero.size, graph.constants[node.input[1]].size
        )


def _require_exponentials(graph: ModelByName, node: NodeProto) -> None:
    """Refuses quantized probabilities: over 254 live bins with equal scores all of them round to zero in 127ths."""
    source = graph.find_producer(graph.trace_moves(node.input[0])[0])
    if source is not None and (source.op_type == "Softmax" or _is_normalized(graph, source)):
        raise rule_error(
            node,
            "it quantizes normalized probabilities",
            name_node(source),
            "quantized exponentials, divided afterwards",
        )


def _is_normalized(graph: ModelByName, node: NodeProto) -> bool:
    """Returns whether a node computes x / sum(x), or x over a sum that the sum of x is a part of."""
    if node.op_type != "Div":
        return False
    waiting = [node.input[1]]
    while waiting:
        source = graph.find_producer(graph.trace_moves(waiting.pop())[0])
        if source is not None and source.op_type == "ReduceSum" and source.input[0] == node.input[0]:
            return True
        waiting += source.input if source is not None and source.op_type == "Add" else []
    return False


def _require_one_rounding(graph: ModelByName, node: NodeProto) -> None:
    scale = graph.constants[node.input[1]]
    for before in graph.find_dequantizers(node.input[0]):
        other = graph.constants.get(before.input[1])
        if other is None or not np.array_equal(other, scale):
            raise rule_error(
                node, f"it rounds what {name_node(before)} gave a second time", "another scale", "the same scale"
            )


def _require_symmetric_output(graph: ModelByName, node: NodeProto) -> None:
    """Requires outputs of at least -127: QuantizeLinear saturates at -128, which other engines cannot import."""
    if node.output[0] not in graph.outputs:
        return
    clip, scale = graph.find_producer(node.input[0]), graph.constants[node.input[1]]
    bounds = [] if clip is None or clip.op_type not in ("Clip", "Max") else clip.input[1:2]
    lowest = graph.constants.get(bounds[0]) if bounds else None
    if lowest is None or (lowest <= LOWEST * scale).any():
        raise rule_error(
            node, f"output '{node.output[0]}' can hold -128", "no bound", "a Clip to -127 scales before it"
        )


def _require_quantized_product(graph: ModelByName, node: NodeProto) -> None:
    for operand in (0, 1):
        name, moves = graph.trace_moves(node.input[operand])
        source = graph.find_producer(name)
        if source is None or source.op_type != "DequantizeLinear":
            raise rule_error(node, "an input of this product is not dequantized", name, "a DequantizeLinear before it")
        if graph.is_weight(source):
            _require_channels(graph, node, operand, source, moves)


def _require_channels(
    graph: ModelByName, node: NodeProto, operand: int, source: NodeProto, moves: list[NodeProto]
) -> None:
    """Requires one scale for each output of a product, even for a single output."""
    last = 1 - operand if read_attribute(node, "transB" if operand else "transA", 0) else operand
    axis = last  # of a 2-D matrix: the columns of a right operand, the rows of a left one
    for move in moves:
        if move.op_type != "Transpose":
            raise rule_error(
                node, "its weights are moved after they are dequantized", name_node(move), "Transpose at most"
            )
        axis = int(read_attribute(move, "perm", [1, 0])[axis])
    weight = graph.find_shape(source.input[0])
    if len(weight) != 2:
        raise rule_error(source, "weights must be a matrix", weight, "(in, out)")
    scale = graph.constants[source.input[1]]
    along = int(read_attribute(source, "axis", 1)) % 2
    if scale.size != weight[axis] or (scale.size > 1 and along != axis):
        got = f"{scale.size} scales along axis {along} of {weight}"
        raise rule_error(source, "weights are not scaled per output channel", got, f"{weight[axis]} along axis {axis}")


def _in_part(node: NodeProto, part: str) -> bool:
    return node.name.startswith(f"{part}/")
