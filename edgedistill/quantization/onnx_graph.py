"""The float32 step of a student as a static ONNX graph.

In come a shape and the tensors of `student.safetensors`; out goes a graph that maps one z-scored bin
and the state to kinematics, latent and the new keys and values. We write the nodes ourselves, because
exporters of a traced step decompose what onnxruntime and TensorRT know how to fuse, and because the
contract (numerics.md, "State") wants rings that a step only reads: the runtime appends.

    inputs   bin (C,) · ring_k_i, ring_v_i (H, W-1, Dh) · pos, live int32 (1,) · lags (R, C), none where R = 0
    outputs  kinematics (K,) · latent (d,) · k_new_i, v_new_i (H, Dh)

H heads of width Dh, W the window, i the layer, R = shape.lag_rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxsim
from onnx import TensorProto, helper, numpy_helper

from edgedistill.config import StudentShape
from edgedistill.errors import EngineError

OPSET = 19
IR_VERSION = 9  # the IR of opset 19: onnxruntime and TensorRT of JetPack 6 refuse newer ones
RMS_EPSILON = 1e-6  # as in numerics.md
MASKED = -3e4  # exp underflows to 0 in float32, and the figure still fits float16

Weights = Mapping[str, npt.NDArray[np.float32]]


def weight_shapes(shape: StudentShape) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a student, in file order."""
    d, ff = shape.d, shape.ff
    layer = dict.fromkeys(("wq", "wk", "wv", "wo"), (d, d))
    layer |= {"wgate": (ff, d), "wup": (ff, d), "wdown": (d, ff)}
    shapes: dict[str, tuple[int, ...]] = {
        "embed.weight": (d, shape.taps * shape.channels),
        "embed.bias": (d,),
        "norm_out": (d,),
        "readout.latent": (shape.outputs, d),
        "readout.lags": (shape.outputs, (shape.lags + 1) * shape.channels),
        "readout.bias": (shape.outputs,),
    }
    for i in range(shape.layers):
        shapes |= {f"layers.{i}.{name}": size for name, size in layer.items()}
        shapes |= {f"layers.{i}.norm_attn": (d,), f"layers.{i}.norm_mlp": (d,)}
        shapes[f"layers.{i}.age_bias"] = (shape.heads, shape.window)
    return shapes


def graph_from_student(shape: StudentShape, weights: Weights) -> onnx.ModelProto:
    """The checked and simplified step graph of a student.

    `weights` are named and shaped as `weight_shapes(shape)` says, float32; EngineError otherwise.
    """
    _check(shape, weights)
    w = _Writer()
    history, embedded = _embed(w, shape, weights)
    biases = _age_biases(w, shape, weights)
    residual = embedded
    for i in range(shape.layers):
        residual = _attention(w, shape, weights, i, residual, biases[i])
        residual = _mlp(w, weights, i, residual)
    _readout(w, shape, weights, residual, history)
    return _simplified(w.model(shape))


# ---------------------------------------------------------------- the step, part by part


def _embed(w: _Writer, shape: StudentShape, weights: Weights) -> tuple[str, str]:
    """All kept bins (R+1, C), newest first, and the token (1, d) of the taps among them."""
    history = w("Reshape", "bin", w.ints(1, shape.channels))
    if shape.lag_rows:
        history = w("Concat", history, "lags", axis=0)
    taps = w("Gather", history, w.ints(*range(0, shape.taps * shape.dilation, shape.dilation)), axis=0)
    taps = w("Reshape", taps, w.ints(1, shape.taps * shape.channels))
    weight, bias = weights["embed.weight"].T, weights["embed.bias"]
    return history, w("Gemm", taps, w.constant(weight), w.constant(bias))


def _age_biases(w: _Writer, shape: StudentShape, weights: Weights) -> list[str]:
    """Per layer the bias (H, 1, W-1) of every ring slot by its age, MASKED where the slot is not live.

    The softmax is blind to a shift, so each bias is taken relative to the new bin's, which needs none.
    Rows are gathered first and turned afterwards: that copies rows, not single floats (8 to 15 us less).
    """
    slots = shape.window - 1
    table = np.concatenate([weights[f"layers.{i}.age_bias"] for i in range(shape.layers)])  # (L*H, W)
    masked = np.full((len(table), 1), MASKED, np.float32)
    table = np.concatenate([table[:, 1:] - table[:, :1], masked], axis=1)  # ages 1 .. W-1, masked
    back = w("Sub", "pos", w.constant(np.arange(1, slots + 1, dtype=np.int32)))
    age = w("Mod", back, w.constant(np.array([slots], np.int32)))  # age - 1
    row = w("Where", w("LessOrEqual", "live", age), w.constant(np.array([slots], np.int32)), age)
    gathered = w("Gather", w.constant(table.T[:, :, None]), row, axis=0)  # (W-1, L*H, 1)
    biases = w("Transpose", gathered, perm=[1, 2, 0])
    return w.split(biases, shape.layers, axis=0) if shape.layers > 1 else [biases]


def _attention(w: _Writer, shape: StudentShape, weights: Weights, i: int, residual: str, bias: str) -> str:
    """residual + wo @ attention over the ring and the new bin, whose k and v are also outputs."""
    heads, width, layer = shape.heads, shape.head_dim, f"layers.{i}."
    wq = weights[layer + "wq"] / np.sqrt(np.float32(width))  # the scale of the scores, folded
    wqkv = np.concatenate([wq, weights[layer + "wk"], weights[layer + "wv"]]).T
    qkv = w("MatMul", _norm(w, residual, weights[layer + "norm_attn"]), w.constant(wqkv))
    q, k, v = w.split(w("Reshape", qkv, w.ints(3 * heads, 1, width)), 3, axis=0)  # (H, 1, Dh) each
    w("Reshape", k, w.ints(heads, width), to=f"k_new_{i}")
    w("Reshape", v, w.ints(heads, width), to=f"v_new_{i}")
    # The new bin is scored beside the ring, not appended to a copy of it: 25 % less time at W = 1600.
    past = w("MatMul", q, w("Transpose", f"ring_k_{i}", perm=[0, 2, 1]))
    new = w("MatMul", q, w("Transpose", k, perm=[0, 2, 1]))
    p = w("Softmax", w("Concat", w("Add", past, bias), new, axis=2), axis=-1)  # (H, 1, W)
    p_past, p_new = w.split(p, 2, axis=2, sizes=(shape.window - 1, 1))
    context = w("Add", w("MatMul", p_past, f"ring_v_{i}"), w("Mul", p_new, v))
    context = w("Reshape", context, w.ints(1, shape.d))
    return w("Gemm", context, w.constant(weights[layer + "wo"].T), residual)


def _mlp(w: _Writer, weights: Weights, i: int, residual: str) -> str:
    """residual + wdown @ (silu(wgate n) * (wup n)), gate and up in one product."""
    layer = f"layers.{i}."
    normed = _norm(w, residual, weights[layer + "norm_mlp"])
    both = np.concatenate([weights[layer + "wgate"], weights[layer + "wup"]]).T
    gate, up = w.split(w("MatMul", normed, w.constant(both)), 2, axis=1)
    hidden = w("Mul", w("Mul", gate, w("Sigmoid", gate)), up)
    return w("Gemm", hidden, w.constant(weights[layer + "wdown"].T), residual)


def _readout(w: _Writer, shape: StudentShape, weights: Weights, residual: str, history: str) -> None:
    """kinematics (K,) from latent and lagged bins in one product."""
    kept = (shape.lag_rows + 1) * shape.channels
    lags = weights["readout.lags"]
    padded = np.pad(lags, ((0, 0), (0, kept - lags.shape[1])))  # bins kept for the taps alone weigh 0
    latent = _norm(w, residual, weights["norm_out"])
    w("Reshape", latent, w.ints(shape.d), to="latent")
    features = w("Concat", latent, w("Reshape", history, w.ints(1, kept)), axis=1)
    weight = np.concatenate([weights["readout.latent"], padded], axis=1).T
    kinematics = w("Gemm", features, w.constant(weight), w.constant(weights["readout.bias"]))
    w("Reshape", kinematics, w.ints(shape.outputs), to="kinematics")


def _norm(w: _Writer, x: str, gain: npt.NDArray[np.float32]) -> str:
    """RMS norm in exactly the nodes that onnxruntime fuses into one SimplifiedLayerNormalization."""
    mean = w("ReduceMean", w("Pow", x, w.constant(np.array(2, np.float32))), w.ints(-1), keepdims=1)
    rms = w("Sqrt", w("Add", mean, w.constant(np.array(RMS_EPSILON, np.float32))))
    return w("Mul", w("Div", x, rms), w.constant(gain))


# ---------------------------------------------------------------- writing


class _Writer:
    """Collects nodes and constants; calling it adds a node and returns the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []

    def __call__(self, operator: str, *inputs: str, to: str | None = None, **attributes: Any) -> str:
        output = to or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def split(self, x: str, parts: int, axis: int, sizes: tuple[int, ...] = ()) -> list[str]:
        """`parts` pieces of x along `axis`, equal ones unless `sizes` are given."""
        name = f"split_{len(self.nodes)}"
        outputs = [f"{name}_{part}" for part in range(parts)]
        inputs = [x, self.ints(*sizes)] if sizes else [x]
        attributes: dict[str, Any] = {"axis": axis} if sizes else {"axis": axis, "num_outputs": parts}
        self.nodes.append(helper.make_node("Split", inputs, outputs, name=name, **attributes))
        return outputs

    def constant(self, values: npt.NDArray[Any]) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def model(self, shape: StudentShape) -> onnx.ModelProto:
        inputs, outputs = _signature(shape)
        graph = helper.make_graph(self.nodes, "student_step", inputs, outputs, self.constants)
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="edgedistill")
        model.ir_version = IR_VERSION
        onnx.checker.check_model(model, full_check=True)
        return model


def _signature(shape: StudentShape) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    token = (shape.heads, shape.head_dim)
    ring = (shape.heads, shape.window - 1, shape.head_dim)
    layers = [(kind, i) for i in range(shape.layers) for kind in "kv"]
    inputs = [_float("bin", shape.channels)]
    inputs += [_float(f"ring_{kind}_{i}", *ring) for kind, i in layers]
    inputs += [helper.make_tensor_value_info(name, TensorProto.INT32, (1,)) for name in ("pos", "live")]
    if shape.lag_rows:
        inputs.append(_float("lags", shape.lag_rows, shape.channels))
    outputs = [_float("kinematics", shape.outputs), _float("latent", shape.d)]
    return inputs, outputs + [_float(f"{kind}_new_{i}", *token) for kind, i in layers]


def _float(name: str, *size: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, size)


def _simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    simple: onnx.ModelProto
    simple, same = onnxsim.simplify(model)
    if not same:
        raise EngineError("onnxsim changed what the step graph computes", causes=("a defect of this onnxsim",))
    simple.ir_version = IR_VERSION
    return simple


def _check(shape: StudentShape, weights: Weights) -> None:
    expected = weight_shapes(shape)
    if set(weights) != set(expected):
        missing, extra = sorted(set(expected) - set(weights)), sorted(set(weights) - set(expected))
        raise EngineError("the student's tensors do not fit its shape", got=f"missing {missing}, extra {extra}")
    for name, size in expected.items():
        array = weights[name]
        if array.shape != size or array.dtype != np.float32 or not np.isfinite(array).all():
            got = f"{array.dtype} {array.shape}" + ("" if np.isfinite(array).all() else ", not all finite")
            raise EngineError(f"{name}: not the tensor of this shape", got=got, expected=f"float32 {size}")
