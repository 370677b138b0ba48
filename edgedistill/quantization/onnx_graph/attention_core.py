"""Writes the attention core of a layer in standard operators, that is, the nodes between its projections.

A core reads the query as floats and the new key and value as integers, which are also outputs of the graph, and returns
the context. The plain INT8 graph uses this core. `attention_plugin` is the other core, a single node that TensorRT
takes from a plugin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from edgedistill.config import StudentShape
from edgedistill.quantization.onnx_graph.int8_writing import QuantizedWriter
from edgedistill.quantization.onnx_graph.writing import add_age_biases


class Query(NamedTuple):
    """Holds what the q, k, v product of a layer hands to its core."""

    q: str  # (1, d) float32, divided by sqrt(Dh)
    q_shrink: float  # 1 / sqrt(Dh); the integers of q are at q's scale times this
    k_new: str  # (H, Dh) int8
    v_new: str  # (H, Dh) int8


class Context(NamedTuple):
    """Holds what a core returns: d values in the order of heads."""

    values: str  # float32
    rounded: bool  # whether they are integers at the context's scale


Core = Callable[[Query], Context]


def make_standard_cores(w: QuantizedWriter, shape: StudentShape, layers: Sequence[int]) -> dict[int, Core]:
    """Returns the cores of these layers. Their biases are gathered together, because all have the same ages."""
    if not layers:
        return {}
    biases = add_age_biases(w, shape, [w.tensors[f"layers.{i}.age_bias"] for i in layers])
    return {i: partial(_standard_core, w, shape, i, bias) for i, bias in zip(layers, biases, strict=True)}


def _standard_core(w: QuantizedWriter, shape: StudentShape, i: int, bias: str, new: Query) -> Context:
    """Scores the new bin beside the ring. Exponentials are quantized, and divided by their sum at the end."""
    heads, width, layer = shape.heads, shape.head_dim, f"layers.{i}."
    q = w("Reshape", new.q, w.ints(heads, width, 1))
    q = w.dequantize(w.quantize(q, f"{layer}q", new.q_shrink), f"{layer}q", new.q_shrink)
    k, v = (w("Reshape", w.dequantize(x, name), w.ints(heads, 1, width))
            for x, name in ((new.k_new, f"{layer}k"), (new.v_new, f"{layer}v")))  # fmt: skip
    past = w("MatMul", w.dequantize(f"ring_k_{i}", f"{layer}k"), q)  # (H, W-1, 1)
    past = w("Add", w("Reshape", past, w.ints(heads, 1, shape.window - 1)), bias)
    fresh = w("MatMul", k, q)  # (H, 1, 1)
    highest = w("Max", w("ReduceMax", past, w.ints(2), keepdims=1), fresh)
    p_past, p_new = w.exponentials(past, highest), w.exponentials(fresh, highest)
    total = w("Add", w("ReduceSum", p_past, w.ints(2), keepdims=1), p_new)
    context = w("MatMul", p_past, w.dequantize(f"ring_v_{i}", f"{layer}v"))  # (H, 1, Dh)
    return Context(w("Div", w("Add", context, w("Mul", p_new, v)), total), rounded=False)
