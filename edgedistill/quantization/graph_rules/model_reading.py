"""Reads a model by names, for its checks: who makes and who reads each tensor, constants, types and shapes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgedistill.errors import EngineError

MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice", "Gather", "Split")


@dataclass(frozen=True, eq=False)
class ModelByName:
    """Holds the nodes of a model in order, and its tensors by their names."""

    nodes: list[NodeProto]
    producers: dict[str, NodeProto]
    constants: dict[str, npt.NDArray[Any]]
    values: dict[str, onnx.ValueInfoProto]  # everything but constants
    inputs: set[str]
    outputs: set[str]

    @classmethod
    def from_model(cls, model: onnx.ModelProto) -> ModelByName:
        """Reads a model. Types and shapes are inferred as far as onnx can."""
        graph = onnx.shape_inference.infer_shapes(model).graph
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and (value := read_attribute(node, "value", None)) is not None:
                constants[node.output[0]] = numpy_helper.to_array(value)
        listed = [*graph.input, *graph.value_info, *graph.output]
        values = {value.name: value for value in listed if value.name not in constants}
        producers = {name: node for node in graph.node for name in node.output}
        for name in producers.keys() - values.keys() - constants.keys():
            values[name] = onnx.ValueInfoProto(name=name)  # onnx could not infer it
        inputs = {value.name for value in graph.input} - constants.keys()
        return cls(list(graph.node), producers, constants, values, inputs, {value.name for value in graph.output})

    def find_producer(self, name: str) -> NodeProto | None:
        """Returns the node that makes a tensor, or None for an input or a constant."""
        return self.producers.get(name)

    def find_readers(self, name: str) -> list[NodeProto]:
        """Returns the nodes that read a tensor."""
        return [node for node in self.nodes if name in node.input]

    def find_type(self, name: str) -> int | None:
        """Returns the TensorProto type, or None where it is unknown."""
        if name in self.constants:
            return helper.np_dtype_to_tensor_dtype(self.constants[name].dtype)
        value = self.values.get(name)
        return (value.type.tensor_type.elem_type or None) if value is not None else None

    def find_shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape, with 0 for a dimension that is unknown."""
        if name in self.constants:
            return self.constants[name].shape
        return tuple(dim.dim_value for dim in self.values[name].type.tensor_type.shape.dim)

    def trace_moves(self, name: str) -> tuple[str, list[NodeProto]]:
        """Returns the tensor that `name` is a rearrangement of, and the nodes that rearrange it, last one first."""
        moves: list[NodeProto] = []
        while (node := self.producers.get(name)) is not None and node.op_type in MOVES:
            moves.append(node)
            name = node.input[0]
        return name, moves

    def is_weight(self, node: NodeProto) -> bool:
        """Returns whether a Quantize- or DequantizeLinear reads a constant, quantized in the graph or before."""
        source = self.producers.get(node.input[0])
        if source is not None and source.op_type == "QuantizeLinear":
            return source.input[0] in self.constants
        return node.input[0] in self.constants

    def find_dequantizers(self, name: str) -> Iterator[NodeProto]:
        """Yields the DequantizeLinear nodes whose values `name` holds after moving, joining or clipping."""
        node = self.producers.get(self.trace_moves(name)[0])
        if node is not None and node.op_type == "DequantizeLinear":
            yield node
        elif node is not None and node.op_type in ("Concat", "Clip"):
            for source in node.input if node.op_type == "Concat" else node.input[:1]:
                yield from self.find_dequantizers(source)


def read_attribute(node: NodeProto, name: str, default: Any) -> Any:
    """Returns the value of a node's attribute, or the `default` that the operator uses without it."""
    return next((helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name), default)


# ---------------------------------------------------------------- errors


def name_node(node: NodeProto) -> str:
    """Returns the name of a node in errors."""
    return f"{node.op_type} '{node.name or node.output[0]}'"


def name_type(element: int | None) -> str:
    """Returns the name of a TensorProto type in errors."""
    return TensorProto.DataType.Name(element).lower() if element else "an unknown type"


def rule_error(node: NodeProto, rule: str, got: object, expected: object) -> EngineError:
    """Returns the error for a node that breaks a rule."""
    return EngineError(f"{name_node(node)}: {rule}", got=got, expected=expected)
