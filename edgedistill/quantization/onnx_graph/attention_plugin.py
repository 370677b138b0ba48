"""Writes the attention core of a layer as one custom node, and defines that node in standard operators.

TensorRT's parser looks for an unknown operator among plugins, by the operator's name alone, version "1" and no
namespace. It hands over the attributes that the plugin lists, and makes an initializer among the inputs a constant. It
fuses no QuantizeLinear and no DequantizeLinear with a plugin, so the node stands between them with integers on both
sides: `QuantizeLinear -> EdAttention -> DequantizeLinear`.

    input      q, k, v int8 (H, Dh) · ring_k, ring_v int8 (H, W-1, Dh) · age_bias float32 (H, W) by age · pos, live
               int32 (1,)
    attribute  score_scale = s_q s_k / sqrt(Dh) · v_scale · context_inv = 1 / s_context, all single floats
    output     context int8 (H, Dh)

Before version 10.7 the parser imports a function of that name in place of the plugin, so the graph in a bundle holds
none. `add_definition` adds the function for onnxruntime and changes nothing else. The function is docs/numerics.md,
"Attention core", operation by operation. It differs from the oracle only where onnxruntime's Exp does.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from edgedistill.config import StudentShape
from edgedistill.numerics.arithmetic import LEVELS
from edgedistill.quantization.graph_rules.attention_rules import ATTRIBUTES, DOMAIN, INPUTS, OPERATOR, is_attention
from edgedistill.quantization.onnx_graph.attention_core import Context, Core, Query
from edgedistill.quantization.onnx_graph.int8_writing import QuantizedWriter
from edgedistill.quantization.onnx_graph.writing import OPSET, NodeCollector

DEAD = -1e30  # score of a slot that is not live, whose exponential is 0


def make_plugin_cores(w: QuantizedWriter, shape: StudentShape, layers: Sequence[int]) -> dict[int, Core]:
    """Returns the cores of these layers, whose contexts are integers."""
    return {i: partial(_plugin_core, w, shape, i) for i in layers}


def _plugin_core(w: QuantizedWriter, shape: StudentShape, i: int, new: Query) -> Context:
    layer, size = f"layers.{i}.", (shape.heads, shape.head_dim)
    q = w.quantize(w("Reshape", new.q, w.ints(*size)), f"{layer}q", new.q_shrink)
    age_bias = w.constant(w.tensors[f"{layer}age_bias"])
    inputs = (q, new.k_new, new.v_new, f"ring_k_{i}", f"ring_v_{i}", age_bias, "pos", "live")
    names = zip(ATTRIBUTES, ("score_scale", "v.scale", "context.inv_scale"), strict=True)
    scales: dict[str, Any] = {attribute: float(w.tensors[layer + name][0]) for attribute, name in names}
    context = w(OPERATOR, *inputs, domain=DOMAIN, **scales)
    w.declare(context, TensorProto.INT8, size)  # onnx cannot infer it
    return Context(w.dequantize(context, f"{layer}context"), rounded=True)


# ---------------------------------------------------------------- the definition


def add_definition(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the model for onnxruntime: the definition of the node, in standard operators, is added as a function.

    A model without such a node is returned as it is.
    """
    if not any(is_attention(node) for node in model.graph.node):
        return model
    ring = next(value for value in model.graph.input if value.name == "ring_k_0").type.tensor_type.shape
    heads, slots, head_dim = (dim.dim_value for dim in ring.dim)
    defined = onnx.ModelProto()
    defined.CopyFrom(model)
    defined.functions.append(write_attention_definition(heads, slots + 1, head_dim))
    onnx.checker.check_model(defined, full_check=True)
    return defined


def write_attention_definition(heads: int, window: int, head_dim: int) -> onnx.FunctionProto:
    """Returns what an EdAttention node of this shape computes, as a function.

    Integers are multiplied as floats where no sum can leave the 24 bits of a float32 (Dh <= 1024), and as integers
    where one could (the context of a long window).
    """
    w = _FunctionWriter()
    age = _ages(w, window - 1)
    keys = w.cast(w("Concat", "ring_k", w.reshape("k", heads, 1, head_dim), axis=1), TensorProto.FLOAT)
    query = w.reshape(w.cast("q", TensorProto.FLOAT), heads, head_dim, 1)
    sums = w.reshape(w("MatMul", keys, query), heads, window)
    scores = w("Add", w("Mul", sums, w.attribute("score_scale")), w("Gather", "age_bias", age, axis=1))
    scores = w("Where", w("Greater", age, "live"), w.number(DEAD), scores)
    highest = w("ReduceMax", scores, w.ints(1), keepdims=1)
    p = w("Round", w("Mul", w("Exp", w("Sub", scores, highest)), w.number(LEVELS)))  # 0 … 127
    values = w("Concat", "ring_v", w.reshape("v", heads, 1, head_dim), axis=1)
    sums = w("MatMulInteger", w.reshape(w.cast(p, TensorProto.UINT8), heads, 1, window), values)
    sums = w.reshape(w.cast(sums, TensorProto.FLOAT), heads, head_dim)
    total = w("ReduceSum", p, w.ints(1), keepdims=1)
    context = w("Div", w("Mul", sums, w.attribute("v_scale")), total)
    rounded = w("Round", w("Mul", context, w.attribute("context_inv")))
    w.cast(w("Clip", rounded, w.number(-LEVELS), w.number(LEVELS)), TensorProto.INT8, to="context")
    opset = helper.make_opsetid("", OPSET)
    return helper.make_function(DOMAIN, OPERATOR, list(INPUTS), ["context"], w.nodes, [opset], ATTRIBUTES)


def _ages(w: _FunctionWriter, slots: int) -> str:
    """Returns how many bins ago (W,) each slot was, then 0 for the new bin. A slot is live up to age `live`."""
    back = w("Sub", "pos", w.constant(np.arange(1, slots + 1, dtype=np.int32)))
    age = w("Add", w("Mod", back, w.constant(np.array([slots], np.int32))), w.constant(np.array([1], np.int32)))
    return w("Concat", age, w.constant(np.array([0], np.int32)), axis=0)


class _FunctionWriter(NodeCollector):
    """Collects the body of a function, which has nodes for constants and reads its own attributes."""

    def constant(self, values: npt.NDArray[Any]) -> str:
        return self("Constant", value=onnx.numpy_helper.from_array(np.require(values, requirements="C")))

    def attribute(self, name: str) -> str:
        """Adds an attribute of the function as a scalar."""
        output = self("Constant")
        self.nodes[-1].attribute.add(name="value_float", ref_attr_name=name, type=onnx.AttributeProto.FLOAT)
        return output

    def reshape(self, x: str, *size: int) -> str:
        """Adds x in another shape."""
        return self("Reshape", x, self.ints(*size))
