"""A collector of nodes that knows a quantized student's scales: what both INT8 graphs are written with.

Activations have one scale by name, weights one an output channel. A value becomes int8 by `quantize` and a float
again by `dequantize`; `product` does both around a matrix of the student, or neither where it is kept in float32.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgedistill.config import StudentShape
from edgedistill.numerics.tensors import Tensors
from edgedistill.quantization.onnx_graph.writing import Floats, NodeCollector, rms_norm

LOWEST = -127  # the integers are symmetric
P_SCALE = np.float32(1 / 127)  # exponentials 0 … 1 become 0 … 127


class QuantizedWriter(NodeCollector):
    """A collector for the step of one quantized student, of whose `tensors` it reads scales and weights."""

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

    def is_float(self, weight: str) -> bool:
        """Is this matrix in a part that the student keeps in float32?"""
        return self.tensors[weight].dtype != np.int8

    def product(
        self,
        x: str,
        activation: str,
        names: list[str],
        shrink: npt.NDArray[np.float64] | None = None,
        rounded: bool = False,
    ) -> str:
        """x (1, n) by the rows of matrices (out, n), times `shrink` each: quantized as they are, or float32.

        `rounded` says that x holds integers at the activation's scale already: nothing rounds it again.
        """
        matrices, factors = [self.tensors[name] for name in names], np.ones(len(names)) if shrink is None else shrink
        if self.is_float(names[0]):
            scaled = [np.asarray(m * f, np.float32) for m, f in zip(matrices, factors, strict=True)]
            return self("MatMul", x, self.constant(np.concatenate(scaled).T))
        scales: list[Floats] = [self.tensors[f"{name}.scale"] * f for name, f in zip(names, factors, strict=True)]
        scale = np.concatenate(scales).astype(np.float32)
        weight = self.constant(np.concatenate(matrices).T)  # (n, out)
        zeros = self.constant(np.zeros(len(scale), np.int8))
        weight = self("DequantizeLinear", weight, self.constant(scale), zeros, axis=1)
        integers = x if rounded else self.dequantize(self.quantize(x, activation), activation)
        return self("MatMul", integers, weight)

    def norm(self, x: str, shape: StudentShape) -> str:
        """x over its root mean square. The gain is folded into weights; its node stays for onnxruntime to fuse."""
        return rms_norm(self, x, np.ones(shape.d, np.float32))

    def _scale(self, activation: str, shrink: float) -> np.float32:
        return np.float32(float(self.tensors[f"{activation}.scale"][0]) * shrink)
