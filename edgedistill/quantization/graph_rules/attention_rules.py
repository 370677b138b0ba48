"""Checks the contract of the custom node EdAttention, and what a graph around it must obey for TensorRT.

TensorRT fuses neither QuantizeLinear (Q) nor DequantizeLinear (DQ) with a plugin. Integers reach and leave a plugin as
`Q -> node -> DQ`, while `Q -> DQ -> node -> Q -> DQ` fails in the builder. The parser takes single floats, ints and
strings as attributes and silently skips one that the plugin does not list, so their names are checked here. What the
node computes with its attributes must be what the Q and DQ around it say. `onnx_graph.attention_plugin` describes the
node itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from onnx import AttributeProto, NodeProto, TensorProto

from edgedistill.quantization.graph_rules.model_reading import (
    ModelByName,
    name_node,
    name_type,
    read_attribute,
    rule_error,
)

OPERATOR, DOMAIN = "EdAttention", "edgedistill"
INPUTS = {
    **dict.fromkeys(("q", "k", "v", "ring_k", "ring_v"), TensorProto.INT8),
    "age_bias": TensorProto.FLOAT,
    **dict.fromkeys(("pos", "live"), TensorProto.INT32),
}
ATTRIBUTES = ("score_scale", "v_scale", "context_inv")
APART = 1e-6  # relative difference of products of scales that are rounded in another order


def is_attention(node: NodeProto) -> bool:
    """Returns whether a node is the custom node."""
    return bool(node.op_type == OPERATOR and node.domain == DOMAIN)


def require_attention_node(graph: ModelByName, node: NodeProto) -> None:
    """Raises EngineError unless the node keeps its contract and stands between Q and DQ."""
    if len(node.input) != len(INPUTS) or len(node.output) != 1:
        got = f"{len(node.input)} inputs, {len(node.output)} outputs"
        raise rule_error(node, "it has not the tensors of its plugin", got, f"{', '.join(INPUTS)}; one output")
    _require_types(graph, node)
    _require_shapes(graph, node)
    _require_sources(graph, node)
    _require_dequantized(graph, node)
    _require_attributes(node)
    _require_scales(graph, node)


def _require_types(graph: ModelByName, node: NodeProto) -> None:
    for (role, expected), name in zip(INPUTS.items(), node.input, strict=True):
        if graph.find_type(name) != expected:
            raise rule_error(
                node, f"its input {role} is of another type", name_type(graph.find_type(name)), name_type(expected)
            )
    if graph.find_type(node.output[0]) != TensorProto.INT8:
        raise rule_error(node, "its output is of another type", name_type(graph.find_type(node.output[0])), "int8")


def _require_shapes(graph: ModelByName, node: NodeProto) -> None:
    ring = graph.find_shape(node.input[4])
    heads, slots, width = ring if len(ring) == 3 else (0, 0, 0)
    new, window = (heads, width), slots + 1
    sizes = [new, new, new, ring, ring, (heads, window), (1,), (1,), new]
    for role, name, size in zip((*INPUTS, "context"), (*node.input, node.output[0]), sizes, strict=True):
        if graph.find_shape(name) != size:
            raise rule_error(node, f"its {role} is of another shape", graph.find_shape(name), size)


def _require_sources(graph: ModelByName, node: NodeProto) -> None:
    """Requires that new integers come from a QuantizeLinear, state from inputs, and biases from a constant."""
    for role, name in zip(INPUTS, node.input, strict=True):
        source = graph.find_producer(name)
        if role in ("q", "k", "v"):
            if source is None or source.op_type != "QuantizeLinear":
                raise rule_error(node, f"its input {role} is not quantized right before it", name, "a QuantizeLinear")
            for before in graph.find_dequantizers(source.input[0]):
                got = f"{name_node(before)} and {name_node(source)}"
                raise rule_error(node, f"a pair of DQ and Q precedes its input {role}", got, "one QuantizeLinear")
        elif role == "age_bias":
            if name not in graph.constants:
                raise rule_error(node, "its age_bias is not a constant", name, "an initializer")
        elif name not in graph.inputs:
            raise rule_error(node, f"its input {role} is not an input of the graph", name, "state the runtime keeps")


def _require_dequantized(graph: ModelByName, node: NodeProto) -> None:
    """Requires that the context goes into DequantizeLinear alone, and is not rounded a second time."""
    context = node.output[0]
    readers = graph.find_readers(context)
    others = [name_node(reader) for reader in readers if reader.op_type != "DequantizeLinear"]
    if others or not readers or context in graph.outputs:
        got = ", ".join(others) or ("an output of the graph" if context in graph.outputs else "nothing")
        raise rule_error(node, "its output goes elsewhere than into a DequantizeLinear", got, "DequantizeLinear alone")
    for quantizer in _find_quantizers(graph):
        for before in graph.find_dequantizers(quantizer.input[0]):
            if before.input[0] == context:
                raise rule_error(
                    node, "a pair of DQ and Q follows it", name_node(quantizer), "a DequantizeLinear alone"
                )


def _require_attributes(node: NodeProto) -> None:
    found = {entry.name: entry.type for entry in node.attribute}
    if set(found) != set(ATTRIBUTES):
        raise rule_error(node, "it has other attributes than its plugin reads", sorted(found), sorted(ATTRIBUTES))
    for name, kind in found.items():
        if kind != AttributeProto.FLOAT:
            got = AttributeProto.AttributeType.Name(kind).lower()
            raise rule_error(node, f"its attribute {name} is not a single float", got, "float")
        value = read_attribute(node, name, 0.0)
        if not (math.isfinite(value) and value > 0):
            raise rule_error(node, f"its attribute {name} is not positive and finite", value, "a scale")


def _require_scales(graph: ModelByName, node: NodeProto) -> None:
    """Requires the scales of Q and DQ. The integers of q are at q's scale over sqrt(Dh)."""
    q, k, v = (_read_scale(graph, graph.producers[name]) for name in node.input[:3])
    score_scale, v_scale, context_inv = (read_attribute(node, name, 0.0) for name in ATTRIBUTES)
    said = [("score_scale", score_scale, q * k), ("v_scale", v_scale, v)]
    said += [
        ("context_inv", context_inv, 1 / _read_scale(graph, reader)) for reader in graph.find_readers(node.output[0])
    ]
    for name, found, expected in said:
        if not math.isclose(found, expected, rel_tol=APART):
            raise rule_error(node, f"its {name} is not what Q and DQ say", found, f"{expected:.9g}")


def _read_scale(graph: ModelByName, quantizer: NodeProto) -> float:
    """Returns the scale of a QuantizeLinear or DequantizeLinear next to the node."""
    scale = graph.constants.get(quantizer.input[1])
    if scale is None or scale.size != 1 or not scale.ravel()[0] > 0:
        raise rule_error(
            quantizer, "its scale is not one positive constant", quantizer.input[1], "one, beside a plugin"
        )
    return float(scale.ravel()[0])


def _find_quantizers(graph: ModelByName) -> Iterator[NodeProto]:
    return (node for node in graph.nodes if node.op_type == "QuantizeLinear")
