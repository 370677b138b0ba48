"""Packs the numbers of an INT8 student in the order in which the CUDA step reads them.

A model and the form of its step go in. Bytes of integers and a table of floats come out, and the shared memory that a
step needs. kernels/cuda/student_layout.h describes the order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.compile.c.model_source import bias_by_slot
from edgedistill.compile.c.packing import pad
from edgedistill.compile.cuda.row_layout import CHUNK, RowLayout
from edgedistill.config import StudentShape
from edgedistill.numerics import Int8Model
from edgedistill.numerics.four_bits import FACTOR
from edgedistill.numerics.tensors import WEIGHTS

Int8 = npt.NDArray[np.int8]
Floats = npt.NDArray[np.float32]

WARP = 32
MOST_FOURS = 8192  # inputs of a row with four bits: a step sums it 16 times too large, 16 * 105 * 127 * 8192 < 2^31

MODEL_SCALARS = ("bin.inv_scale", "latent.inv_scale", None, None)
LAYER_SCALARS = (
    *(f"{name}.inv_scale" for name in ("attn", "q", "k", "v", "context", "mlp", "hidden")),
    *("score_scale", "v.scale", None, None, None),
)


def threads_of(shape: StudentShape) -> int:
    """Returns the threads of the block (ED_THREADS): 256, or 512 where matrices are large.

    The time of a step depends less on loads than on instructions, and every warp executes those of the norms. For
    `edge`, the schedulers issue 27 % fewer instructions with 256 threads than with 512. A larger student would not find
    place in the registers of so few threads.
    """
    return 256 if shape.d * shape.ff <= 128 * 512 and shape.outputs <= 256 // WARP else 512


def find_packable_parts(model: Int8Model) -> tuple[str, ...]:
    """Returns the parts whose weights a step can read with four bits, such as "embed" and "qkv".

    The step runs all layers with the same machine code, so a part must have four bits in every layer. A row with too
    many inputs is read as the int8 weights that it is as well.
    """
    shape, layers = model.shape, range(model.shape.layers)
    kinds = {"embed": ["embed"]} | {part: [f"layers.{i}.{part}" for i in layers] for part in WEIGHTS}
    inputs = {"embed": shape.taps * shape.channels, "down": shape.ff}
    return tuple(
        kind
        for kind, parts in kinds.items()
        if set(parts) <= set(model.four) and inputs.get(kind, shape.d) <= MOST_FOURS
    )


@dataclass(frozen=True)
class StepForm:
    """Says how the matrices of a step lie on the threads of its block, for which its kernel is compiled."""

    shape: StudentShape
    threads: int  # of the block
    packed: tuple[str, ...] = ()  # the parts, such as "qkv", whose weights are read with four bits

    @classmethod
    def of(cls, model: Int8Model, threads: int | None = None, pack: bool = False) -> StepForm:
        """Returns the form of a model's step. With `pack`, it reads four-bit weights as such and not as int8."""
        return cls(model.shape, threads or threads_of(model.shape), find_packable_parts(model) if pack else ())

    @property
    def embedding(self) -> RowLayout:
        """Returns the layout of the embedding."""
        return self._layout("embed", self.shape.d, self.shape.taps * self.shape.channels)

    @property
    def layer(self) -> dict[tuple[str, ...], RowLayout]:
        """Returns the layouts of a layer's matrices in the order of the step, by the names that are stacked."""
        d, ff = self.shape.d, self.shape.ff
        gate = self._layout("gate_up", ff, d, by_lanes=True)
        return {
            ("wq", "wk", "wv"): self._layout("qkv", 3 * d, d, by_lanes=True),
            ("wo",): self._layout("out", d, d),
            ("wgate",): gate,
            ("wup",): gate,
            ("wdown",): self._layout("down", d, ff),
        }

    @property
    def shared_bytes(self) -> int:
        """Returns the shared memory that a step needs, which is `shared_memory` of student_step.cu, rounded up."""
        shape, d = self.shape, self.shape.d
        vectors = [self.embedding, self.layer["wo",], self.layer["wdown",]]  # taps, context, hidden
        vectors += [RowLayout(d, shape.window, self.threads)] * shape.heads  # p
        recent = (shape.lag_rows + 1) * shape.channels + WARP * CHUNK
        qkv = 3 * shape.heads * -(-shape.head_dim // CHUNK) * CHUNK
        small = 4 * shape.heads + 8 * (shape.heads + 2 * self.threads // WARP) + 4 * len(LAYER_SCALARS) * shape.layers
        return 4 * d + sum(layout.padded for layout in vectors) + recent + qkv + small + 256

    def _layout(self, part: str, rows: int, n: int, by_lanes: bool = False) -> RowLayout:
        """`by_lanes` says that the lanes of a warp hold the vector, and hand out 128 integers of it at once."""
        four = part in self.packed
        return RowLayout(rows, n, self.threads, four, most=4 if four and by_lanes else 8)


def _pack_readout(weights: Int8, lane_bytes: int) -> bytes:
    """Packs a read-out (outputs, n) in the order [output][round][lane][lane_bytes], which is row by row."""
    return pad(weights, columns=WARP * lane_bytes).tobytes()


def packed_weights(model: Int8Model, form: StepForm) -> bytes:
    """Returns all integers of a student in the order in which the GPU reads them."""
    packed = [_pack(model, ("embed.weight",), form.embedding)]
    for i in range(model.shape.layers):
        packed += [_pack(model, _of_layer(i, names), layout) for names, layout in form.layer.items()]
    t = model.tensors
    return b"".join([*packed, _pack_readout(t["readout.lags"], CHUNK), _pack_readout(t["readout.latent"], 4)])


def _pack(model: Int8Model, names: tuple[str, ...], layout: RowLayout) -> bytes:
    t = model.tensors
    weights = np.concatenate([t[name] for name in names])
    if not layout.four:
        return layout.pack(weights)
    return layout.pack_four_bits(weights, np.concatenate([t[name + FACTOR] for name in names]))


def _of_layer(layer: int, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"layers.{layer}.{name}" for name in names)


def float_tables(model: Int8Model, form: StepForm) -> Floats:
    """Returns all floats of a student (n,): scales, multipliers, biases, in the order of student_layout.h."""
    t, layers = model.tensors, range(model.shape.layers)
    parts: list[npt.NDArray[Any]] = [_scalars(model, "", MODEL_SCALARS)]
    parts += [_scalars(model, f"layers.{i}.", LAYER_SCALARS) for i in layers]
    parts += [form.embedding.distribute(t[f"embed.{name}"]) for name in ("weight.multiplier", "bias")]
    parts += [t[f"readout.{name}"] for name in ("latent.multiplier", "lags.multiplier", "bias")]
    for i in layers:
        for names, layout in form.layer.items():
            parts += [layout.distribute(np.concatenate([t[f"{name}.multiplier"] for name in _of_layer(i, names)]))]
        parts += [bias_by_slot(t[f"layers.{i}.age_bias"])]
    parts += [np.zeros(form.threads)]  # read instead of a bias for slots that do not exist
    return np.concatenate([part.ravel() for part in parts]).astype(np.float32)


def _scalars(model: Int8Model, prefix: str, names: tuple[str | None, ...]) -> Floats:
    return np.array([0 if name is None else model.tensors[prefix + name][0] for name in names], np.float32)
