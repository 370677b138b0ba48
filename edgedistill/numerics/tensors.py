"""Says what `student.int8.safetensors` holds and checks it before use: name, type and shape of every tensor.

Each activation has one scale (`NAME.scale`) and its reciprocal (`NAME.inv_scale`), by which engines multiply. Weights
have one scale for each output channel (`NAME.scale`), of which an engine reads only the product with the scale of their
input (`NAME.multiplier`). A part that a recipe keeps in float32 has float32 weights and neither of these
(docs/numerics.md, "Scales and multipliers"). Matrices of a four-bit part also have a factor for each group of inputs
(`four_bits`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.config import StudentShape
from edgedistill.errors import BundleError
from edgedistill.numerics.four_bits import FACTOR, count_groups, pack_tensors, require_form, unpack_tensors

Tensors = Mapping[str, npt.NDArray[Any]]

WEIGHTS = {  # part -> its matrices, and the activation that they read
    "qkv": (("wq", "wk", "wv"), "attn"),
    "out": (("wo",), "context"),
    "gate_up": (("wgate", "wup"), "mlp"),
    "down": (("wdown",), "hidden"),
}


def part_names(shape: StudentShape) -> tuple[str, ...]:
    """Returns the parts of a step that are quantized together, in the order of the step.

    All of them can be kept in float32, except `layers.i.attention`, whose keys and values live in the rings.
    """
    layer = ("qkv", "attention", "out", "gate_up", "down")
    return ("embed", *(f"layers.{i}.{part}" for i in range(shape.layers) for part in layer), "readout")


def part_of(weight: str) -> str:
    """Returns the part that a weight matrix belongs to: "layers.0.wq" gives "layers.0.qkv"."""
    if not weight.startswith("layers."):
        return weight.split(".")[0]
    layer, name = weight.rsplit(".", 1)
    return f"{layer}.{next(part for part, (names, _) in WEIGHTS.items() if name in names)}"


def weight_matrices(shape: StudentShape) -> dict[str, tuple[tuple[int, int], str]]:
    """Returns, for every weight matrix, its shape (out, n) and the activation that it reads."""
    d, ff, channels = shape.d, shape.ff, shape.channels
    sizes = dict.fromkeys(("wq", "wk", "wv", "wo"), (d, d)) | {"wgate": (ff, d), "wup": (ff, d), "wdown": (d, ff)}
    matrices = {"embed.weight": ((d, shape.taps * channels), "bin")}
    for i in range(shape.layers):
        for names, source in WEIGHTS.values():
            matrices |= {f"layers.{i}.{name}": (sizes[name], f"layers.{i}.{source}") for name in names}
    matrices["readout.latent"] = ((shape.outputs, d), "latent")
    matrices["readout.lags"] = ((shape.outputs, (shape.lags + 1) * channels), "bin")
    return matrices


def activations(shape: StudentShape) -> tuple[str, ...]:
    """Returns every activation that has a scale, in the order of the step."""
    layer = ("attn", "q", "k", "v", "context", "mlp", "hidden")
    return ("bin", *(f"layers.{i}.{name}" for i in range(shape.layers) for name in layer), "latent")


def four_bit_parts(shape: StudentShape) -> tuple[str, ...]:
    """Returns the parts whose matrices can have four bits: all but the read-out, nearly all bytes of a step."""
    return ("embed", *(f"layers.{i}.{part}" for i in range(shape.layers) for part in WEIGHTS))


def int8_tensors(
    shape: StudentShape, keep: Collection[str] = (), four: Collection[str] = ()
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Returns (dtype, shape) by name of every tensor of a student.

    Its parts `keep` stay in float32, and its parts `four` have four-bit weights.
    """
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name in activations(shape):
        found |= {f"{name}.scale": ("float32", (1,)), f"{name}.inv_scale": ("float32", (1,))}
    for name, (size, _) in weight_matrices(shape).items():
        if part_of(name) in keep:
            found[name] = ("float32", size)
        else:
            found[name] = ("int8", size)
            found |= {f"{name}.scale": ("float32", size[:1]), f"{name}.multiplier": ("float32", size[:1])}
            if part_of(name) in four:
                found[name + FACTOR] = ("uint8", (size[0], count_groups(size[1])))
    found |= {"embed.bias": ("float32", (shape.d,)), "readout.bias": ("float32", (shape.outputs,))}
    for i in range(shape.layers):
        found[f"layers.{i}.age_bias"] = ("float32", (shape.heads, shape.window))
        found[f"layers.{i}.score_scale"] = ("float32", (1,))
    return found


@dataclass(frozen=True, eq=False)
class Int8Model:
    """Holds a quantized student of one session. Making one raises BundleError, which names a tensor that is wrong."""

    shape: StudentShape
    tensors: Tensors

    def __post_init__(self) -> None:
        expected = int8_tensors(self.shape, self.keep, self.four)
        if missing := sorted(expected.keys() - self.tensors.keys()):
            raise BundleError("the INT8 student lacks tensors", got=f"no {', '.join(missing[:4])}")
        if extra := sorted(self.tensors.keys() - expected.keys()):
            raise BundleError("the INT8 student holds tensors of another shape", got=", ".join(extra[:4]))
        for name, (dtype, size) in expected.items():
            self._check(name, dtype, size)

    @classmethod
    def from_file(cls, shape: StudentShape, tensors: Tensors) -> Int8Model:
        """Makes a student of what `student.int8.safetensors` holds, where four-bit weights are packed."""
        return cls(shape, unpack_tensors(tensors, {name: size for name, (size, _) in weight_matrices(shape).items()}))

    def to_file(self) -> dict[str, npt.NDArray[Any]]:
        """Returns the tensors as `student.int8.safetensors` holds them."""
        return pack_tensors(self.tensors)

    @property
    def keep(self) -> tuple[str, ...]:
        """Returns the parts whose weights are float32."""
        names = [name for name in weight_matrices(self.shape) if name in self.tensors]
        kept = {part_of(name) for name in names if self.tensors[name].dtype != np.int8}
        return tuple(part for part in part_names(self.shape) if part in kept)

    @property
    def four(self) -> tuple[str, ...]:
        """Returns the parts whose weights have four bits."""
        found = {part_of(name) for name in weight_matrices(self.shape) if name + FACTOR in self.tensors}
        return tuple(part for part in four_bit_parts(self.shape) if part in found)

    @property
    def weight_bytes(self) -> int:
        """Returns the bytes of everything that a step reads: weights, multipliers, biases and scales.

        Four-bit weights count as they are packed, although some engines expand them.
        """
        unread = {f"{name}.scale" for name in weight_matrices(self.shape)}
        return sum(array.nbytes for name, array in self.to_file().items() if name not in unread)

    def _check(self, name: str, dtype: str, size: tuple[int, ...]) -> None:
        array = self.tensors[name]
        if array.dtype != dtype or array.shape != size:
            raise BundleError(
                f"'{name}' is not a tensor of this student",
                got=f"{array.dtype} {array.shape}",
                expected=f"{dtype} {size}",
            )
        if dtype == "uint8":
            matrix = name.removesuffix(FACTOR)
            require_form(matrix, self.tensors[matrix], array)
        elif dtype == "int8":
            if (array == -128).any():
                raise BundleError(f"'{name}' holds -128", expected="-127 to 127: the range is symmetric")
        elif not np.isfinite(array).all():
            raise BundleError(f"'{name}' is not finite", got=f"{np.count_nonzero(~np.isfinite(array))} values")
        elif name.endswith(("scale", "multiplier")) and (array <= 0).any():
            raise BundleError(f"'{name}' must be positive", got=float(array.min()))
