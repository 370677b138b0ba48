"""Collects nodes with the scales of a quantized student. Both INT8 graphs are written with it.

Activations have one scale by name, and weights one for each output channel. `quantize` turns a value into int8 and
`dequantize` back into a float. `product` does both around a matrix of the student, or neither where the matrix is kept
in float32.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgedistill.config import StudentShape
from edgedistill.numerics.tensors import Tensors
from edgedistill.quantization.onnx_graph.writing import Floats, NodeCollector, add_rms_norm

LOWEST = -127  # the integers are symmetric
P_SCALE = np.float32(1 / 127)  # turns exponentials 0 … 1 into 0 … 127


class QuantizedWriter(NodeCollector):
    """Collects the step of one quantized student, whose scales and weights it reads from `tensors`."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        self.tensors = tensors
        self._zero = self.constant(np.array(0, np.int8))

    def quantize(self, x: str, activation: str, shrink: float = 1, to: str | None = None) -> str:
        """Adds x as int8, -127 … 127, at the activation's scale times `shrink`."""
        scale = self._scale(activation, shrink)
        clipped = self("Clip", x, self.number(LOWEST * scale))  # QuantizeLinear itself saturates at 127
        return self("QuantizeLinear", clipped, self.number(scale), self._zero, to=to)

    def dequantize(self, x: str, activation: str, shrink: float = 1) -> str:
        """Adds int8 x in float32."""
        return self("DequantizeLinear", x, self.number(self._scale(activation, shrink)), self._zero)

    def exponentials(self, scores: str, highest: str) -> str:
        """Adds exp(scores - highest), rounded to 127ths, in float32."""
        p = self("Exp", self("Sub", scores, highest))
        p = self("QuantizeLinear", p, self.number(P_SCALE), self._zero)
        return self("DequantizeLinear", p, self.number(P_SCALE), self._zero)

    def is_float(self, weight: str) -> bool:
        """Returns whether a matrix is in a part that the student keeps in float32."""
        return self.tensors[weight].dtype != np.int8

    def product(
        self,
        x: str,
        activation: str,
        names: list[str],
        shrink: npt.NDArray[np.float64] | None = None,
        rounded: bool = False,
    ) -> str:
        """Adds x (1, n) times the rows of matrices (out, n), each times its `shrink`, quantized or in float32.

        `rounded` says that x already holds integers at the activation's scale and is not rounded again.
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
        """Adds x over its root mean square. The gain is in the weights, but its node stays for onnxruntime to fuse."""
        return add_rms_norm(self, x, np.ones(shape.d, np.float32))

    def _scale(self, activation: str, shrink: float) -> np.float32:
        return np.float32(float(self.tensors[f"{activation}.scale"][0]) * shrink)
