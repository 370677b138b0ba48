"""A model by name, for those who check it: who makes and who reads each tensor, what is constant, types and shapes."""

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
    """The nodes of a model in order, and its tensors by their names."""

    nodes: list[NodeProto]
    producers: dict[str, NodeProto]
    constants: dict[str, npt.NDArray[Any]]
    values: dict[str, onnx.ValueInfoProto]  # everything but constants
    inputs: set[str]
    outputs: set[str]

    @classmethod
    def of(cls, model: onnx.ModelProto) -> ModelByName:
        """Types and shapes inferred as far as onnx can."""
        graph = onnx.shape_inference.infer_shapes(model).graph
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and (value := attribute(node, "value", None)) is not None:
                constants[node.output[0]] = numpy_helper.to_array(value)
        listed = [*graph.input, *graph.value_info, *graph.output]
        values = {value.name: value for value in listed if value.name not in constants}
        producers = {name: node for node in graph.node for name in node.output}
        for name in producers.keys() - values.keys() - constants.keys():
            values[name] = onnx.ValueInfoProto(name=name)  # inference gave up on it
        inputs = {value.name for value in graph.input} - constants.keys()
        return cls(list(graph.node), producers, constants, values, inputs, {value.name for value in graph.output})

    def producer(self, name: str) -> NodeProto | None:
        """The node that makes a tensor; None of an input or a constant."""
        return self.producers.get(name)

    def readers(self, name: str) -> list[NodeProto]:
        """The nodes that a tensor goes into."""
        return [node for node in self.nodes if name in node.input]

    def type(self, name: str) -> int | None:
        """TensorProto type, None where unknown."""
        if name in self.constants:
            return helper.np_dtype_to_tensor_dtype(self.constants[name].dtype)
        value = self.values.get(name)
        return (value.type.tensor_type.elem_type or None) if value is not None else None

    def shape(self, name: str) -> tuple[int, ...]:
        """0 where a dimension is unknown."""
        if name in self.constants:
            return self.constants[name].shape
        return tuple(dim.dim_value for dim in self.values[name].type.tensor_type.shape.dim)

    def before_moves(self, name: str) -> tuple[str, list[NodeProto]]:
        """The tensor that `name` is a rearrangement of, and the nodes that rearrange it, last one first."""
        moves: list[NodeProto] = []
        while (node := self.producers.get(name)) is not None and node.op_type in MOVES:
            moves.append(node)
            name = node.input[0]
        return name, moves

    def is_weight(self, node: NodeProto) -> bool:
        """Does this Quantize- or DequantizeLinear read a constant, quantized in the graph or before?"""
        source = self.producers.get(node.input[0])
        if source is not None and source.op_type == "QuantizeLinear":
            return source.input[0] in self.constants
        return node.input[0] in self.constants

    def dequantizers(self, name: str) -> Iterator[NodeProto]:
        """The DequantizeLinear nodes whose values `name` holds, moved, joined or clipped."""
        node = self.producers.get(self.before_moves(name)[0])
        if node is not None and node.op_type == "DequantizeLinear":
            yield node
        elif node is not None and node.op_type in ("Concat", "Clip"):
            for source in node.input if node.op_type == "Concat" else node.input[:1]:
                yield from self.dequantizers(source)


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """The value of a node's attribute, or what the operator takes without it."""
    return next((helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name), default)


# ---------------------------------------------------------------- saying what is wrong


def named(node: NodeProto) -> str:
    """A node as errors call it."""
    return f"{node.op_type} '{node.name or node.output[0]}'"


def type_name(element: int | None) -> str:
    """A TensorProto type in words."""
    return TensorProto.DataType.Name(element).lower() if element else "an unknown type"


def broken(node: NodeProto, rule: str, got: object, expected: object) -> EngineError:
    """The error of a node that breaks a rule."""
    return EngineError(f"{named(node)}: {rule}", got=got, expected=expected)
