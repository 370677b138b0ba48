"""The INT8 step of a student with explicit quantization: the tensors of `student.int8.safetensors` in, a graph out.

It computes what the oracle computes up to the order of sums (numerics.md, the near class). How the nodes are
placed follows what TensorRT 10.3 to 11 accepts of a strongly typed network:

- INT8 is no type to compute in but one that QuantizeLinear makes and DequantizeLinear ends: onnx-tensorrt lists
  Concat, Gather, Reshape, Split and Transpose for floats and int32 only. So an int8 tensor is an input, a weight
  or what a QuantizeLinear gave, and only a DequantizeLinear or the runtime reads it. Data move as floats, before
  they are quantized; quantizing a bin again at its own scale gives the same integer.
- Both inputs of a product come from DequantizeLinear, the rings and weights directly: keys (H, W-1, Dh) times
  the query (H, Dh, 1) needs no transposed copy.
- Activations have one scale, weights one an output channel (axis 1 of (in, out)); per-axis activations are not
  supported. Scales are float32 constants above 0 and zero points constant 0, as the parser demands. The residual
  stream is float32 (numerics.md), so no sum of it is quantized.
- q, k and v are one product, and so are gate and up: on Thor, TensorRT 10.13 corrupts what it merges itself.
- QuantizeLinear saturates at -128, the exact class at -127: the values are clipped first, as other engines import
  the rings. Exponentials lie in 0 … 1 and need no clip.
- Exponentials are quantized, never normalised probabilities, hence no Softmax.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from edgedistill.config import StudentShape
from edgedistill.numerics import Int8Model
from edgedistill.numerics.tensors import Tensors
from edgedistill.quantization.graph_rules import require_explicit_quantization
from edgedistill.quantization.onnx_graph.writing import Floats, NodeCollector, age_biases, rms_norm, step_model

LOWEST = -127  # the integers are symmetric
P_SCALE = np.float32(1 / 127)  # exponentials 0 … 1 become 0 … 127


def graph_from_integers(shape: StudentShape, tensors: Tensors) -> onnx.ModelProto:
    """The checked step graph of a quantized student.

    `tensors` are those of `student.int8.safetensors`; BundleError names one that does not fit. Parts with float32
    weights become plain products. Not simplified: onnxsim may fold dequantized weights back to float.
    """
    keep = Int8Model(shape, tensors).keep
    w = _QuantizedWriter(tensors)
    history, residual = _embed(w, shape)
    biases = age_biases(w, shape, [tensors[f"layers.{i}.age_bias"] for i in range(shape.layers)])
    for i in range(shape.layers):
        residual = _attention(w, shape, i, residual, biases[i])
        residual = _mlp(w, shape, i, residual)
    _readout(w, shape, residual, history)
    model = step_model(w, shape, ring=TensorProto.INT8, lags=TensorProto.INT8)
    require_explicit_quantization(model, keep)
    return model


# ---------------------------------------------------------------- the step, part by part


def _embed(w: _QuantizedWriter, shape: StudentShape) -> tuple[str, str]:
    """All kept bins (R+1, C) at their integers' values, newest first, and the token (1, d) of the taps."""
    with w.part("embed"):
        newest = w.dequantize(w.quantize("bin", "bin", to="bin_new"), "bin")
        history = w("Reshape", newest, w.ints(1, shape.channels))
        if shape.lag_rows:
            history = w("Concat", history, w.dequantize("lags", "bin"), axis=0)
        taps = w("Gather", history, w.ints(*range(0, shape.taps * shape.dilation, shape.dilation)), axis=0)
        taps = w("Reshape", taps, w.ints(1, shape.taps * shape.channels))
        token = w.product(taps, "bin", ["embed.weight"])
        return history, w("Add", token, w.constant(w.tensors["embed.bias"]))


def _attention(w: _QuantizedWriter, shape: StudentShape, i: int, residual: str, bias: str) -> str:
    """residual + wo @ attention over the ring and the new bin, whose integer k and v are also outputs."""
    heads, width, layer = shape.heads, shape.head_dim, f"layers.{i}."
    with w.part(f"{layer}qkv"):
        shrink = np.array([width**-0.5, 1, 1])  # of q, k, v: the scale of the scores, folded
        qkv = w.product(w.norm(residual, shape), f"{layer}attn", [f"{layer}w{part}" for part in "qkv"], shrink)
        q, k, v = w.split(qkv, 3, axis=1)
    with w.part(f"{layer}attention"):
        q = w("Reshape", q, w.ints(heads, width, 1))
        q = w.dequantize(w.quantize(q, f"{layer}q", shrink[0]), f"{layer}q", shrink[0])
        k_new = w.quantize(w("Reshape", k, w.ints(heads, width)), f"{layer}k", to=f"k_new_{i}")
        v_new = w.quantize(w("Reshape", v, w.ints(heads, width)), f"{layer}v", to=f"v_new_{i}")
        k, v = (w("Reshape", w.dequantize(x, name), w.ints(heads, 1, width))
                for x, name in ((k_new, f"{layer}k"), (v_new, f"{layer}v")))  # fmt: skip
        past = w("MatMul", w.dequantize(f"ring_k_{i}", f"{layer}k"), q)  # (H, W-1, 1)
        past = w("Add", w("Reshape", past, w.ints(heads, 1, shape.window - 1)), bias)
        new = w("MatMul", k, q)  # (H, 1, 1)
        highest = w("Max", w("ReduceMax", past, w.ints(2), keepdims=1), new)
        p_past, p_new = w.exponentials(past, highest), w.exponentials(new, highest)
        total = w("Add", w("ReduceSum", p_past, w.ints(2), keepdims=1), p_new)
        context = w("MatMul", p_past, w.dequantize(f"ring_v_{i}", f"{layer}v"))  # (H, 1, Dh)
        context = w("Div", w("Add", context, w("Mul", p_new, v)), total)
    with w.part(f"{layer}out"):
        context = w("Reshape", context, w.ints(1, shape.d))
        return w("Add", residual, w.product(context, f"{layer}context", [f"{layer}wo"]))


def _mlp(w: _QuantizedWriter, shape: StudentShape, i: int, residual: str) -> str:
    """residual + wdown @ (silu(wgate n) * (wup n)), gate and up in one product."""
    layer = f"layers.{i}."
    with w.part(f"{layer}gate_up"):
        both = w.product(w.norm(residual, shape), f"{layer}mlp", [f"{layer}wgate", f"{layer}wup"])
        gate, up = w.split(both, 2, axis=1)
        hidden = w("Mul", w("Mul", gate, w("Sigmoid", gate)), up)
    with w.part(f"{layer}down"):
        return w("Add", residual, w.product(hidden, f"{layer}hidden", [f"{layer}wdown"]))


def _readout(w: _QuantizedWriter, shape: StudentShape, residual: str, history: str) -> None:
    """kinematics (K,) from latent and lagged bins, which have a scale each."""
    with w.part("readout"):
        latent = w.norm(residual, shape)
        w("Reshape", latent, w.ints(shape.d), to="latent")
        if shape.lags < shape.lag_rows:
            history = w("Slice", history, w.ints(0), w.ints(shape.lags + 1), w.ints(0))
        lagged = w("Reshape", history, w.ints(1, (shape.lags + 1) * shape.channels))
        products = w.product(latent, "latent", ["readout.latent"]), w.product(lagged, "bin", ["readout.lags"])
        kinematics = w("Add", w("Add", *products), w.constant(w.tensors["readout.bias"]))
        w("Reshape", kinematics, w.ints(shape.outputs), to="kinematics")


# ---------------------------------------------------------------- quantizing


class _QuantizedWriter(NodeCollector):
    """A collector that knows the scales: activations by name, weights by channel."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        self.tensors = tensors
        self._zero = self.constant(np.array(0, np.int8))

    def quantize(self, x: str, activation: str, shrink: float = 1, to: str | None = None) -> str:
        """x as int8, -127 … 127, at the activation's scale times `shrink`."""
        scale = self._scale(activation, shrink)
        clipped = self("Clip", x, self.number(LOWEST * scale))  # 127 saturates by itself
        return self("QuantizeLinear", clipped, self.number(scale), self._zero, to=to)

    def dequantize(self, x: str, activation: str, shrink: float = 1) -> str:
        """int8 x in float32."""
        return self("DequantizeLinear", x, self.number(self._scale(activation, shrink)), self._zero)

    def exponentials(self, scores: str, highest: str) -> str:
        """exp(scores - highest) rounded to 127ths, in float32."""
        p = self("Exp", self("Sub", scores, highest))
        p = self("QuantizeLinear", p, self.number(P_SCALE), self._zero)
        return self("DequantizeLinear", p, self.number(P_SCALE), self._zero)

    def product(self, x: str, activation: str, names: list[str], shrink: npt.NDArray[np.float64] | None = None) -> str:
        """x (1, n) by the rows of matrices (out, n), times `shrink` each: quantized as they are, or float32."""
        matrices, factors = [self.tensors[name] for name in names], np.ones(len(names)) if shrink is None else shrink
        if matrices[0].dtype != np.int8:
            scaled = [np.asarray(m * f, np.float32) for m, f in zip(matrices, factors, strict=True)]
            return self("MatMul", x, self.constant(np.concatenate(scaled).T))
        scales: list[Floats] = [self.tensors[f"{name}.scale"] * f for name, f in zip(names, factors, strict=True)]
        scale = np.concatenate(scales).astype(np.float32)
        weight = self.constant(np.concatenate(matrices).T)  # (n, out)
        zeros = self.constant(np.zeros(len(scale), np.int8))
        weight = self("DequantizeLinear", weight, self.constant(scale), zeros, axis=1)
        return self("MatMul", self.dequantize(self.quantize(x, activation), activation), weight)

    def norm(self, x: str, shape: StudentShape) -> str:
        """x over its root mean square. The gain is folded into weights; its node stays for onnxruntime to fuse."""
        return rms_norm(self, x, np.ones(shape.d, np.float32))

    def _scale(self, activation: str, shrink: float) -> np.float32:
        return np.float32(float(self.tensors[f"{activation}.scale"][0]) * shrink)
