"""Writes the float32 and the float16 step of a student as graphs, from the tensors of `student.safetensors`.

In the float16 graph the matrix products, the rings and what is appended to them are float16. The residual stream,
norms, softmax, SiLU, biases, bins, latent and kinematics stay float32, so every product is cast in and cast out.
onnxruntime has few float16 kernels on a CPU and casts back. The graph is meant for TensorRT, where half the bytes are
half the time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnxsim
from onnx import TensorProto

from edgedistill.config import StudentShape
from edgedistill.errors import EngineError
from edgedistill.quantization.float_tensors import list_weight_shapes
from edgedistill.quantization.graph_rules.typing_rules import require_strong_typing
from edgedistill.quantization.onnx_graph.writing import (
    IR_VERSION,
    NodeCollector,
    add_age_biases,
    add_rms_norm,
    finish_step_model,
)

Weights = Mapping[str, npt.NDArray[np.float32]]


def graph_from_student(
    shape: StudentShape, weights: Weights, precision: Literal["float32", "float16"] = "float32"
) -> onnx.ModelProto:
    """Returns the checked step graph of a student.

    `weights` are float32, named and shaped as `list_weight_shapes(shape)` says. Raises EngineError otherwise, and for a
    weight that float16 cannot hold. Only the float32 graph is simplified, because casts are there on purpose. The
    float16 graph obeys TensorRT's rules of strong typing.
    """
    _check(shape, weights)
    half = precision == "float16"
    if half:
        _check_half(weights)
    w = _FloatWriter(half)
    history, residual = _embed(w, shape, weights)
    biases = add_age_biases(w, shape, [weights[f"layers.{i}.age_bias"] for i in range(shape.layers)])
    for i in range(shape.layers):
        residual = _attention(w, shape, weights, i, residual, biases[i])
        residual = _mlp(w, weights, i, residual)
    _readout(w, shape, weights, residual, history)
    ring = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    model = finish_step_model(w, shape, ring=ring, lags=TensorProto.FLOAT)
    if not half:
        return _simplified(model)
    require_strong_typing(model)
    return model


# ---------------------------------------------------------------- the step, part by part


def _embed(w: _FloatWriter, shape: StudentShape, weights: Weights) -> tuple[str, str]:
    """Adds all kept bins (R+1, C), newest first, and the token (1, d) of the taps among them."""
    history = w("Reshape", "bin", w.ints(1, shape.channels))
    if shape.lag_rows:
        history = w("Concat", history, "lags", axis=0)
    taps = w("Gather", history, w.ints(*range(0, shape.taps * shape.dilation, shape.dilation)), axis=0)
    taps = w("Reshape", taps, w.ints(1, shape.taps * shape.channels))
    return history, w.product(taps, weights["embed.weight"], plus=w.constant(weights["embed.bias"]))


def _attention(w: _FloatWriter, shape: StudentShape, weights: Weights, i: int, residual: str, bias: str) -> str:
    """Adds residual + wo @ attention over the ring and the new bin, whose k and v are also outputs."""
    heads, width, layer = shape.heads, shape.head_dim, f"layers.{i}."
    wq = weights[layer + "wq"] / np.sqrt(np.float32(width))  # the scale of the scores, folded
    wqkv = np.concatenate([wq, weights[layer + "wk"], weights[layer + "wv"]])
    qkv = w.matmul(add_rms_norm(w, residual, weights[layer + "norm_attn"]), wqkv)
    q, k, v = w.split(w("Reshape", qkv, w.ints(3 * heads, 1, width)), 3, axis=0)  # (H, 1, Dh) each
    w("Reshape", k, w.ints(heads, width), to=f"k_new_{i}")
    w("Reshape", v, w.ints(heads, width), to=f"v_new_{i}")
    # The new bin is scored beside the ring and not appended to a copy of it, which saves 25 % of the time at W = 1600.
    past = w.single(w("MatMul", q, w("Transpose", f"ring_k_{i}", perm=[0, 2, 1])))
    new = w.single(w("MatMul", q, w("Transpose", k, perm=[0, 2, 1])))
    p = w("Softmax", w("Concat", w("Add", past, bias), new, axis=2), axis=-1)  # (H, 1, W)
    p_past, p_new = w.split(p, 2, axis=2, sizes=(shape.window - 1, 1))
    context = w.single(w("MatMul", w.half(p_past), f"ring_v_{i}"))
    context = w("Add", context, w("Mul", p_new, w.single(v)))
    context = w("Reshape", context, w.ints(1, shape.d))
    return w.product(context, weights[layer + "wo"], plus=residual)


def _mlp(w: _FloatWriter, weights: Weights, i: int, residual: str) -> str:
    """Adds residual + wdown @ (silu(wgate n) * (wup n)), with gate and up in one product."""
    layer = f"layers.{i}."
    normed = add_rms_norm(w, residual, weights[layer + "norm_mlp"])
    both = np.concatenate([weights[layer + "wgate"], weights[layer + "wup"]])
    gate, up = w.split(w.single(w.matmul(normed, both)), 2, axis=1)
    hidden = w("Mul", w("Mul", gate, w("Sigmoid", gate)), up)
    return w.product(hidden, weights[layer + "wdown"], plus=residual)


def _readout(w: _FloatWriter, shape: StudentShape, weights: Weights, residual: str, history: str) -> None:
    """Adds kinematics (K,) from latent and lagged bins in one product."""
    kept = (shape.lag_rows + 1) * shape.channels
    lags = weights["readout.lags"]
    padded = np.pad(lags, ((0, 0), (0, kept - lags.shape[1])))  # bins that only the taps need have weight 0
    latent = add_rms_norm(w, residual, weights["norm_out"])
    w("Reshape", latent, w.ints(shape.d), to="latent")
    features = w("Concat", latent, w("Reshape", history, w.ints(1, kept)), axis=1)
    weight = np.concatenate([weights["readout.latent"], padded], axis=1)
    kinematics = w.product(features, weight, plus=w.constant(weights["readout.bias"]))
    w("Reshape", kinematics, w.ints(shape.outputs), to="kinematics")


# ---------------------------------------------------------------- writing and checking


class _FloatWriter(NodeCollector):
    """Collects nodes whose products run in float16 where `in_half`, and in float32 otherwise."""

    def __init__(self, in_half: bool) -> None:
        super().__init__()
        self._in_half = in_half

    def half(self, x: str) -> str:
        """Adds x in the type of products."""
        return self.cast(x, TensorProto.FLOAT16) if self._in_half else x

    def single(self, x: str) -> str:
        """Adds the result of a product in float32."""
        return self.cast(x, TensorProto.FLOAT) if self._in_half else x

    def matmul(self, x: str, weight: npt.NDArray[np.float32]) -> str:
        """Adds x (1, n) times rows (out, n), in the type of products."""
        dtype = np.float16 if self._in_half else np.float32
        return self("MatMul", self.half(x), self.constant(weight.T.astype(dtype)))

    def product(self, x: str, weight: npt.NDArray[np.float32], plus: str) -> str:
        """Adds x (1, n) times rows (out, n) in float32, and `plus` in float32."""
        if self._in_half:
            return self("Add", self.single(self.matmul(x, weight)), plus)
        return self("Gemm", x, self.constant(weight.T), plus)


def _simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    simple: onnx.ModelProto
    simple, same = onnxsim.simplify(model)
    if not same:
        raise EngineError("onnxsim changed what the step graph computes", causes=("a defect of this onnxsim",))
    simple.ir_version = IR_VERSION
    return simple


def _check(shape: StudentShape, weights: Weights) -> None:
    expected = list_weight_shapes(shape)
    if set(weights) != set(expected):
        missing, extra = sorted(set(expected) - set(weights)), sorted(set(weights) - set(expected))
        raise EngineError("the student's tensors do not fit its shape", got=f"missing {missing}, extra {extra}")
    for name, size in expected.items():
        array = weights[name]
        if array.shape != size or array.dtype != np.float32 or not np.isfinite(array).all():
            got = f"{array.dtype} {array.shape}" + ("" if np.isfinite(array).all() else ", not all finite")
            raise EngineError(f"{name}: not the tensor of this shape", got=got, expected=f"float32 {size}")


def _check_half(weights: Weights) -> None:
    """Refuses weights beyond float16 in products. Biases and gains, which stay float32, may be of any size."""
    largest = float(np.finfo(np.float16).max)
    for name, array in weights.items():
        if array.ndim == 2 and not name.endswith("age_bias") and np.abs(array).max() > largest:
            raise EngineError(
                f"{name}: float16 cannot hold this weight",
                got=float(np.abs(array).max()),
                expected=f"at most {largest:g}",
                next_step="use the float32 or the INT8 graph",
            )
