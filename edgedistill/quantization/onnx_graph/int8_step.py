"""Writes the INT8 step of a student as a graph with explicit quantization.

The graph is made from the tensors of `student.int8.safetensors`. It computes what the oracle computes up to the order
of sums (docs/numerics.md, "The near class"), in two forms that differ only in the attention core of a layer: in
standard operators (`graph_from_integers`), or as a single custom node that TensorRT takes from a plugin
(`graph_for_plugin`). The nodes are placed as TensorRT 10.3 to 11 accepts them in a strongly typed network:

- INT8 is not a type to compute in but one that QuantizeLinear begins and DequantizeLinear ends: onnx-tensorrt lists
  Concat, Gather, Reshape, Split and Transpose for floats and int32 only. An int8 tensor is therefore an input, a
  weight, or the output of a QuantizeLinear or the custom node, and only a DequantizeLinear, that node or the runtime
  reads it. Data move as floats, before they are quantized. Quantizing a bin again at its own scale gives the same
  integer.
- Both inputs of a product come from DequantizeLinear, the rings and weights directly: keys (H, W-1, Dh) times the query
  (H, Dh, 1) need no transposed copy.
- Activations have one scale, and weights one for each output channel (axis 1 of (in, out)), because per-axis
  activations are not supported. Scales are float32 constants above 0 and zero points constant 0, as the parser demands.
  The residual stream is float32 (docs/numerics.md, "The step"), so no sum of it is quantized.
- q, k and v are one product, and so are gate and up, because on Thor TensorRT 10.13 corrupts what it merges itself.
- QuantizeLinear saturates at -128 and the exact class at -127. Values are clipped first, because other engines import
  the rings. Exponentials lie in 0 … 1 and need no clip.
- Exponentials are quantized, and normalized probabilities never are, hence there is no Softmax.
- TensorRT fuses nothing with a plugin, so the output of the node is dequantized at once and not rounded again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto

from edgedistill.config import StudentShape
from edgedistill.numerics import Int8Model
from edgedistill.numerics.tensors import Tensors
from edgedistill.quantization.graph_rules.quantization_rules import require_explicit_quantization
from edgedistill.quantization.onnx_graph.attention_core import Core, Query, make_standard_cores
from edgedistill.quantization.onnx_graph.attention_plugin import make_plugin_cores
from edgedistill.quantization.onnx_graph.int8_writing import QuantizedWriter
from edgedistill.quantization.onnx_graph.writing import finish_step_model


def graph_from_integers(shape: StudentShape, tensors: Tensors) -> onnx.ModelProto:
    """Returns the checked step graph of a quantized student, in standard operators.

    `tensors` are those of `student.int8.safetensors`. BundleError names one that does not fit. Parts with float32
    weights become plain products. The graph is not simplified, because onnxsim may fold dequantized weights to float.
    """
    return _graph(Int8Model(shape, tensors), plugged=())


def graph_for_plugin(shape: StudentShape, tensors: Tensors) -> onnx.ModelProto:
    """Returns the same step with one EdAttention node a layer, for TensorRT. For onnxruntime, use `add_definition`.

    The node gives integers, so a layer whose output projection is kept in float32 keeps its core in standard operators.
    """
    model = Int8Model(shape, tensors)
    return _graph(model, plugged=[i for i in range(shape.layers) if f"layers.{i}.out" not in model.keep])


def _graph(model: Int8Model, plugged: Sequence[int]) -> onnx.ModelProto:
    """Returns the graph with a custom node in the layers `plugged`."""
    shape, w = model.shape, QuantizedWriter(model.tensors)
    history, residual = _embed(w, shape)
    standard = [i for i in range(shape.layers) if i not in plugged]
    cores = make_standard_cores(w, shape, standard) | make_plugin_cores(w, shape, plugged)
    for i in range(shape.layers):
        residual = _attention(w, shape, i, residual, cores[i])
        residual = _mlp(w, shape, i, residual)
    _readout(w, shape, residual, history)
    graph = finish_step_model(w, shape, ring=TensorProto.INT8, lags=TensorProto.INT8)
    require_explicit_quantization(graph, model.keep)
    return graph


# ---------------------------------------------------------------- the step, part by part


def _embed(w: QuantizedWriter, shape: StudentShape) -> tuple[str, str]:
    """Adds all kept bins (R+1, C) at the values of their integers, newest first, and the token (1, d) of the taps."""
    with w.part("embed"):
        newest = w.dequantize(w.quantize("bin", "bin", to="bin_new"), "bin")
        history = w("Reshape", newest, w.ints(1, shape.channels))
        if shape.lag_rows:
            history = w("Concat", history, w.dequantize("lags", "bin"), axis=0)
        taps = w("Gather", history, w.ints(*range(0, shape.taps * shape.dilation, shape.dilation)), axis=0)
        taps = w("Reshape", taps, w.ints(1, shape.taps * shape.channels))
        token = w.product(taps, "bin", ["embed.weight"])
        return history, w("Add", token, w.constant(w.tensors["embed.bias"]))


def _attention(w: QuantizedWriter, shape: StudentShape, i: int, residual: str, core: Core) -> str:
    """Adds residual + wo @ attention over the ring and the new bin, whose integer k and v are also outputs."""
    heads, width, layer = shape.heads, shape.head_dim, f"layers.{i}."
    with w.part(f"{layer}qkv"):
        shrink = np.array([width**-0.5, 1, 1])  # for q, k, v: the scale of the scores, folded
        qkv = w.product(w.norm(residual, shape), f"{layer}attn", [f"{layer}w{part}" for part in "qkv"], shrink)
        q, k, v = w.split(qkv, 3, axis=1)
    with w.part(f"{layer}attention"):
        k_new = w.quantize(w("Reshape", k, w.ints(heads, width)), f"{layer}k", to=f"k_new_{i}")
        v_new = w.quantize(w("Reshape", v, w.ints(heads, width)), f"{layer}v", to=f"v_new_{i}")
        context = core(Query(q, float(shrink[0]), k_new, v_new))
    with w.part(f"{layer}out"):
        values = w("Reshape", context.values, w.ints(1, shape.d))
        return w("Add", residual, w.product(values, f"{layer}context", [f"{layer}wo"], rounded=context.rounded))


def _mlp(w: QuantizedWriter, shape: StudentShape, i: int, residual: str) -> str:
    """Adds residual + wdown @ (silu(wgate n) * (wup n)), with gate and up in one product."""
    layer = f"layers.{i}."
    with w.part(f"{layer}gate_up"):
        both = w.product(w.norm(residual, shape), f"{layer}mlp", [f"{layer}wgate", f"{layer}wup"])
        gate, up = w.split(both, 2, axis=1)
        hidden = w("Mul", w("Mul", gate, w("Sigmoid", gate)), up)
    with w.part(f"{layer}down"):
        return w("Add", residual, w.product(hidden, f"{layer}hidden", [f"{layer}wdown"]))


def _readout(w: QuantizedWriter, shape: StudentShape, residual: str, history: str) -> None:
    """Adds kinematics (K,) from latent and lagged bins, which have a scale each."""
    with w.part("readout"):
        latent = w.norm(residual, shape)
        w("Reshape", latent, w.ints(shape.d), to="latent")
        if shape.lags < shape.lag_rows:
            history = w("Slice", history, w.ints(0), w.ints(shape.lags + 1), w.ints(0))
        lagged = w("Reshape", history, w.ints(1, (shape.lags + 1) * shape.channels))
        products = w.product(latent, "latent", ["readout.latent"]), w.product(lagged, "bin", ["readout.lags"])
        kinematics = w("Add", w("Add", *products), w.constant(w.tensors["readout.bias"]))
        w("Reshape", kinematics, w.ints(shape.outputs), to="kinematics")
