"""Does a graph obey TensorRT's rules of explicit quantization? A model goes in; an EngineError names the first node
that breaks one, and the rule.

A graph that breaks them still runs in onnxruntime, and often builds: it is then slow, or wrong, on the device. The
rules hold for TensorRT 10.3 to 11 with strong typing; sources are NVIDIA's documentation of QuantizeLinear and
DequantizeLinear, the importers of onnx-tensorrt, and numerics.md for what our arithmetic adds: one rounding a
tensor, integers from -127, exponentials and never probabilities. Rules that a graph without a quantized tensor has to
obey as well are in `graph_typing`, those of the custom node in `attention_rules`.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from edgedistill.errors import EngineError
from edgedistill.quantization.graph_rules.attention_rules import is_attention, require_attention_node
from edgedistill.quantization.graph_rules.model_reading import ModelByName, attribute, broken, named, type_name
from edgedistill.quantization.graph_rules.typing_rules import require_opset, require_typed_model, require_typed_node

LOWEST = -127.5  # in units of the scale: what rounds to -127
QUANTIZED = (TensorProto.INT8, TensorProto.UINT8)


def require_explicit_quantization(model: onnx.ModelProto, keep: Collection[str] = ()) -> None:
    """EngineError, naming the node, unless `model` obeys the rules.

    `keep` names parts in higher precision ("layers.0.out"): products in nodes called `part/…` may be of floats.
    """
    require_opset(model)
    graph = ModelByName.of(model)
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
    """8-bit tensors exist between a QuantizeLinear and a DequantizeLinear; only a plugin stands between them."""
    if is_attention(node):
        return
    if node.op_type != "DequantizeLinear":
        for name in node.input[:2] if node.op_type == "QuantizeLinear" else node.input:
            if graph.type(name) in QUANTIZED:
                raise broken(node, "an 8-bit tensor goes into it", name, "only DequantizeLinear takes 8-bit tensors")
    if node.op_type not in ("QuantizeLinear", "Constant"):
        for name in node.output:
            if graph.type(name) in QUANTIZED:
                raise broken(node, "it makes an 8-bit tensor", name, "only QuantizeLinear makes 8-bit tensors")


def _require_scale(graph: ModelByName, node: NodeProto) -> None:
    scale = graph.constants.get(node.input[1])
    if scale is None:
        raise broken(node, "its scale is not a constant", node.input[1], "known when the engine is built")
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise broken(node, "its scale is not positive and finite", scale.min(), "above 0 in every channel")
    floats = graph.type(node.input[0] if node.op_type == "QuantizeLinear" else node.output[0])
    if floats not in (None, graph.type(node.input[1])):
        raise broken(node, "its scale has another type than its tensor", scale.dtype, type_name(floats))
    if scale.size > 1 and not graph.is_weight(node):
        raise broken(node, "an activation has several scales", f"{scale.size} scales", "one a tensor")


def _require_zero_point(graph: ModelByName, node: NodeProto) -> None:
    given = len(node.input) > 2 and node.input[2] != ""
    if not given and node.op_type == "DequantizeLinear":
        return  # 0 of the input's own type
    zero = graph.constants.get(node.input[2]) if given else None
    if zero is None:
        raise broken(node, "its zero point is not a constant", "none" if not given else node.input[2], "int8 0")
    if zero.dtype != np.int8 or zero.any():
        raise broken(node, "its zero point is not int8 0", f"{zero.dtype} {zero.ravel()[:4]}", "symmetric int8")
    if zero.size != graph.constants[node.input[1]].size:
        raise broken(node, "its zero point and scale differ in size", zero.size, graph.constants[node.input[1]].size)


def _require_exponentials(graph: ModelByName, node: NodeProto) -> None:
    """Over 254 live bins with equal scores, probabilities in 127ths are all zero (numerics.md)."""
    source = graph.producer(graph.before_moves(node.input[0])[0])
    if source is not None and (source.op_type == "Softmax" or _normalises(graph, source)):
        raise broken(
            node, "it quantizes normalised probabilities", named(source), "quantized exponentials, divided afterwards"
        )


def _normalises(graph: ModelByName, node: NodeProto) -> bool:
    """Is this x / sum(x), or x over a sum that x's is a part of?"""
    if node.op_type != "Div":
        return False
    waiting = [node.input[1]]
    while waiting:
        source = graph.producer(graph.before_moves(waiting.pop())[0])
        if source is not None and source.op_type == "ReduceSum" and source.input[0] == node.input[0]:
            return True
        waiting += source.input if source is not None and source.op_type == "Add" else []
    return False


def _require_one_rounding(graph: ModelByName, node: NodeProto) -> None:
    scale = graph.constants[node.input[1]]
    for before in graph.dequantizers(node.input[0]):
        other = graph.constants.get(before.input[1])
        if other is None or not np.array_equal(other, scale):
            raise broken(node, f"it rounds what {named(before)} gave a second time", "another scale", "the same scale")


def _require_symmetric_output(graph: ModelByName, node: NodeProto) -> None:
    """QuantizeLinear saturates at -128; what leaves the graph, every other engine must be able to import."""
    if node.output[0] not in graph.outputs:
        return
    clip, scale = graph.producer(node.input[0]), graph.constants[node.input[1]]
    bounds = [] if clip is None or clip.op_type not in ("Clip", "Max") else clip.input[1:2]
    lowest = graph.constants.get(bounds[0]) if bounds else None
    if lowest is None or (lowest <= LOWEST * scale).any():
        raise broken(node, f"output '{node.output[0]}' can hold -128", "no bound", "a Clip to -127 scales before it")


def _require_quantized_product(graph: ModelByName, node: NodeProto) -> None:
    for operand in (0, 1):
        name, moves = graph.before_moves(node.input[operand])
        source = graph.producer(name)
        if source is None or source.op_type != "DequantizeLinear":
            raise broken(node, "an input of this product is not dequantized", name, "a DequantizeLinear before it")
        if graph.is_weight(source):
            _require_channels(graph, node, operand, source, moves)


def _require_channels(
    graph: ModelByName, node: NodeProto, operand: int, source: NodeProto, moves: list[NodeProto]
) -> None:
    """Weights have one scale for each output of their product, even where that is a single one."""
    last = 1 - operand if attribute(node, "transB" if operand else "transA", 0) else operand
    axis = last  # of a matrix (2-D): columns of the right operand, rows of the left one
    for move in moves:
        if move.op_type != "Transpose":
            raise broken(node, "its weights are moved after they are dequantized", named(move), "Transpose at most")
        axis = int(attribute(move, "perm", [1, 0])[axis])
    weight = graph.shape(source.input[0])
    if len(weight) != 2:
        raise broken(source, "weights must be a matrix", weight, "(in, out)")
    scale = graph.constants[source.input[1]]
    along = int(attribute(source, "axis", 1)) % 2
    if scale.size != weight[axis] or (scale.size > 1 and along != axis):
        got = f"{scale.size} scales along axis {along} of {weight}"
        raise broken(source, "weights are not scaled per output channel", got, f"{weight[axis]} along axis {axis}")


def _in_part(node: NodeProto, part: str) -> bool:
    return node.name.startswith(f"{part}/")
