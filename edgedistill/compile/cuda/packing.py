"""Packs the numbers of an INT8 student in the order in which the CUDA step reads them.

A model and the number of threads of the block go in. Bytes of integers and a table of floats come out, and the shared
memory that a step needs. kernels/cuda/student_layout.h describes the order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.compile.c.model_source import bias_by_slot
from edgedistill.compile.c.packing import pad
from edgedistill.compile.cuda.row_layout import CHUNK, RowLayout
from edgedistill.config import StudentShape
from edgedistill.numerics import Int8Model

Int8 = npt.NDArray[np.int8]
Floats = npt.NDArray[np.float32]

WARP = 32

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


def shared_bytes(shape: StudentShape, threads: int | None = None) -> int:
    """Returns the bytes of shared memory that a step needs, which is `shared_memory` of student_step.cu, rounded up."""
    threads = threads or threads_of(shape)
    d, ff, heads, channels = shape.d, shape.ff, shape.heads, shape.channels
    vectors = [(d, shape.taps * channels), (d, d), (d, ff), *[(d, shape.window)] * heads]  # taps, context, hidden, p
    recent = (shape.lag_rows + 1) * channels + WARP * CHUNK
    qkv = 3 * heads * -(-shape.head_dim // CHUNK) * CHUNK
    small = 4 * heads + 8 * (heads + 2 * threads // WARP) + 4 * len(LAYER_SCALARS) * shape.layers
    return 4 * d + sum(RowLayout(rows, n, threads).padded for rows, n in vectors) + recent + qkv + small + 256


def _pack_readout(weights: Int8, lane_bytes: int) -> bytes:
    """Packs a read-out (outputs, n) in the order [output][round][lane][lane_bytes], which is row by row."""
    return pad(weights, columns=WARP * lane_bytes).tobytes()


def _stacks(layer: str) -> list[tuple[str, ...]]:
    """Returns the names of a layer's matrices in the order of the step. A tuple names those multiplied together."""
    names = (("wq", "wk", "wv"), ("wo",), ("wgate",), ("wup",), ("wdown",))
    return [tuple(layer + name for name in together) for together in names]


def packed_weights(model: Int8Model, threads: int | None = None) -> bytes:
    """Returns all integers of a student in the order in which the GPU reads them."""
    t, threads = model.tensors, threads or threads_of(model.shape)
    stacks: list[tuple[str, ...]] = [("embed.weight",)]
    for i in range(model.shape.layers):
        stacks += _stacks(f"layers.{i}.")
    matrices = [np.concatenate([t[name] for name in names]) for names in stacks]
    packed = [RowLayout(len(rows), rows.shape[1], threads).pack(rows) for rows in matrices]
    return b"".join([*packed, _pack_readout(t["readout.lags"], CHUNK), _pack_readout(t["readout.latent"], 4)])


def float_tables(model: Int8Model, threads: int | None = None) -> Floats:
    """Returns all floats of a student (n,): scales, multipliers, biases, in the order of student_layout.h."""
    threads = threads or threads_of(model.shape)
    t, layers = model.tensors, [f"layers.{i}." for i in range(model.shape.layers)]
    parts: list[npt.NDArray[Any]] = [_scalars(model, "", MODEL_SCALARS)]
    parts += [_scalars(model, layer, LAYER_SCALARS) for layer in layers]
    embedding = RowLayout(model.shape.d, model.shape.taps * model.shape.channels, threads)
    parts += [embedding.distribute(t[f"embed.{name}"]) for name in ("weight.multiplier", "bias")]
    parts += [t[f"readout.{name}"] for name in ("latent.multiplier", "lags.multiplier", "bias")]
    for layer in layers:
        for names in _stacks(layer):
            layout = RowLayout(sum(len(t[name]) for name in names), t[names[0]].shape[1], threads)
            parts += [layout.distribute(np.concatenate([t[f"{name}.multiplier"] for name in names]))]
        parts += [bias_by_slot(t[f"{layer}age_bias"])]
    parts += [np.zeros(threads)]  # read instead of a bias for slots that do not exist
    return np.concatenate([part.ravel() for part in parts]).astype(np.float32)


def _scalars(model: Int8Model, prefix: str, names: tuple[str | None, ...]) -> Floats:
    return np.array([0 if name is None else model.tensors[prefix + name][0] for name in names], np.float32)
