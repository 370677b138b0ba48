"""Writes the spike teacher as a closed loop would run it: a window of counts in, kinematics of its last bin out.

A bidirectional model has no step, so its whole window is computed again for each new bin. The graph computes what
`PatchAutoencoder.latents` computes for the last bin of the window, with a linear read-out, for one session, in float32
and static shapes. Rotary pairs are laid out as two halves, so that rotation needs no gather. The same order for queries
and keys leaves their products as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from edgedistill.config import TeacherSize
from edgedistill.errors import EngineError
from edgedistill.models.teacher import PatchAutoencoder
from edgedistill.models.tokenizer import name_parameter
from edgedistill.models.transformer import RotaryBlock, compute_reach_bins, compute_rotary_angles
from edgedistill.quantization.onnx_graph.writing import Floats, NodeCollector, add_rms_norm

ALIKE, ALIKE_FROM = 0.02, 4096


def graph_from_teacher(
    teacher: PatchAutoencoder, session: str, window: int, weight: Floats, bias: Floats
) -> onnx.ModelProto:
    """Returns the checked graph: "counts" (window, units), z-scored -> "kinematics" (K,).

    `weight` (K, d) and `bias` (K,) read the latent of the last bin. Raises EngineError for a window that is not whole
    tokens.
    """
    return _write_graph(NodeCollector(), teacher, session, window, weight, bias)


def make_timing_graph(size: TeacherSize, units: int, window: int, outputs: int) -> onnx.ModelProto:
    """Returns a graph for timing only: it has that shape, and equal weights that are made when it is loaded."""
    with torch.random.fork_rng(devices=[]):  # small weights stay as they are drawn, and must be the same every time
        torch.manual_seed(0)
        teacher = PatchAutoencoder(size, {"any": units})
    weight, bias = np.zeros((outputs, size.d), np.float32), np.zeros(outputs, np.float32)
    return _write_graph(_AlikeWeights(), teacher, "any", window, weight, bias)


def count_parameters(graph: onnx.ModelProto) -> int:
    """Returns how many numbers the constants of a graph hold, with those that are made when it is loaded."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    made = [int(np.prod(constants[n.input[0]])) for n in graph.graph.node if n.op_type == "ConstantOfShape"]
    return sum(array.size for array in constants.values() if array.dtype == np.float32) + sum(made)


def _write_graph(
    w: NodeCollector, teacher: PatchAutoencoder, session: str, window: int, weight: Floats, bias: Floats
) -> onnx.ModelProto:
    size, units = teacher.size, teacher.channels[session]
    if window < size.span or window % size.span:
        raise EngineError("the teacher's window is not whole tokens", got=window, expected=f"a multiple of {size.span}")
    steps, patches = window // size.span, teacher.tokenizer.patches[session]
    tokens = _tokens(w, teacher, session, window)
    times = torch.arange(steps).repeat_interleave(patches).float()
    turn = _Turn(w, size, times)
    for i, block in enumerate(teacher.encoder):
        assert isinstance(block, RotaryBlock)
        with w.part(f"layers.{i}"):
            tokens = _block(w, block, size, tokens, turn)
    last = w("Slice", tokens, w.ints((steps - 1) * patches), w.ints(steps * patches), w.ints(0))
    latent = w("ReduceMean", add_rms_norm(w, last, _array(teacher.norm_out)), w.ints(0), keepdims=1)  # (1, d)
    kinematics = w("Add", w("MatMul", latent, w.constant(weight.astype(np.float32).T)), w.constant(bias.astype("f4")))
    w("Reshape", kinematics, w.ints(len(bias)), to="kinematics")
    value = helper.make_tensor_value_info
    inputs = [value("counts", TensorProto.FLOAT, (window, units))]
    return w.model(inputs, [value("kinematics", TensorProto.FLOAT, (len(bias),))])


def _tokens(w: NodeCollector, teacher: PatchAutoencoder, session: str, window: int) -> str:
    """Adds tokens (steps * patches, d). The patches of a step lie together."""
    size, name = teacher.size, name_parameter(session)
    steps, patches = window // size.span, teacher.tokenizer.patches[session]
    fill = patches * size.patch - teacher.channels[session]
    x = w("Pad", "counts", w.ints(0, 0, 0, fill), w.number(0)) if fill else "counts"
    x = w("Reshape", x, w.ints(steps, size.span, patches, size.patch))
    if teacher.counts:  # summed over the span, to unit variance
        x = w("Mul", w("ReduceSum", x, w.ints(1), keepdims=0), w.number(size.span**-0.5))
        x = w("Transpose", x, perm=[1, 0, 2])
    else:
        x = w("Reshape", w("Transpose", x, perm=[2, 0, 1, 3]), w.ints(patches, steps, size.span * size.patch))
    maps = _array(teacher.tokenizer.maps[name]).transpose(0, 2, 1)  # (patches, width, d)
    tokens = w("Transpose", w("MatMul", x, w.constant(maps)), perm=[1, 0, 2])
    tokens = w("Add", tokens, w.constant(_array(teacher.tokenizer.position[name])))
    return w("Reshape", tokens, w.ints(steps * patches, size.d))


class _AlikeWeights(NodeCollector):
    """Replaces large constants by their shape and one value, so that the file is small but costs as much to run."""

    def constant(self, values: npt.NDArray[Any]) -> str:
        if values.size < ALIKE_FROM or values.dtype != np.float32:
            return super().constant(values)
        value = numpy_helper.from_array(np.array([ALIKE], np.float32))
        return self("ConstantOfShape", self.ints(*values.shape), value=value)


class _Turn:
    """Holds rotary angles and the distance between tokens, as constants that every layer reads."""

    def __init__(self, w: NodeCollector, size: TeacherSize, times: torch.Tensor) -> None:
        angles = compute_rotary_angles(times, size.d // size.heads)  # (n, Dh / 2)
        self.cos, self.sin = (w.constant(_array(f(angles))) for f in (torch.cos, torch.sin))
        self.distance = w.constant(-_array((angles[:, None, 0] - angles[None, :, 0]).abs()))
        self.fade = w.constant(_array(1 / compute_reach_bins(size.heads)[:, None, None].float()))

    def __call__(self, w: NodeCollector, x: str) -> str:
        """Adds x (H, n, Dh), whose pairs lie in halves, rotated."""
        even, odd = w.split(x, 2, axis=2)
        a = w("Sub", w("Mul", even, self.cos), w("Mul", odd, self.sin))
        b = w("Add", w("Mul", even, self.sin), w("Mul", odd, self.cos))
        return w("Concat", a, b, axis=2)


def _block(w: NodeCollector, block: RotaryBlock, size: TeacherSize, x: str, turn: _Turn) -> str:
    """Adds x (n, d) after one block."""
    d, heads, width = size.d, size.heads, size.d // size.heads
    normed = add_rms_norm(w, x, _array(block.norm_attn))
    q, k, v = w.split(w("MatMul", normed, w.constant(_halves(_array(block.wqkv), heads).T)), 3, axis=1)
    q, k, v = (w("Transpose", w("Reshape", y, w.ints(-1, heads, width)), perm=[1, 0, 2]) for y in (q, k, v))
    q = w("Mul", turn(w, q), w.number(width**-0.5))
    scores = w("MatMul", q, w("Transpose", turn(w, k), perm=[0, 2, 1]))  # (H, n, n)
    scores = w("Add", scores, w("Mul", turn.distance, turn.fade))
    context = w("Transpose", w("MatMul", w("Softmax", scores, axis=2), v), perm=[1, 0, 2])
    x = w("Add", x, w("MatMul", w("Reshape", context, w.ints(-1, d)), w.constant(_array(block.wo).T)))
    normed = add_rms_norm(w, x, _array(block.norm_mlp))
    mlp = block.mlp
    gate = w("MatMul", normed, w.constant(_array(mlp.wgate).T))
    hidden = w("Mul", w("Mul", gate, w("Sigmoid", gate)), w("MatMul", normed, w.constant(_array(mlp.wup).T)))
    return w("Add", x, w("MatMul", hidden, w.constant(_array(mlp.wdown).T)))


def _halves(wqkv: Floats, heads: int) -> Floats:
    """Returns (3d, d) where the rows of q and k of each head are all even features, then all odd ones."""
    rows = wqkv.reshape(3, heads, -1, wqkv.shape[1]).copy()
    rows[:2] = np.concatenate([rows[:2, :, 0::2], rows[:2, :, 1::2]], axis=2)
    return np.asarray(rows.reshape(wqkv.shape))


def _array(tensor: torch.Tensor) -> Floats:
    return np.ascontiguousarray(tensor.detach().float().cpu().numpy())
