"""A bundle's INT8 student for the CUDA step: its shape, its facts, and its numbers in the order the GPU reads them.

Comes in: the integers, the front end, what the manifest says of channels and outputs. Goes out: three texts that the
library is compiled with. kernels/cuda/student_layout.h describes the order; the formulas here are its mirror.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.compile.c_frontend import frontend_constants, normalization_tables
from edgedistill.compile.c_model import (
    ModelFacts,
    bias_by_slot,
    c_float,
    c_identifier,
    c_lines,
    c_word,
    comment,
    facts_text,
    require_fits,
    shape_header,
)
from edgedistill.compile.c_packing import pad
from edgedistill.config import StudentShape
from edgedistill.errors import EngineError
from edgedistill.frontend import FrontEndConfig
from edgedistill.numerics import Int8Model

Int8 = npt.NDArray[np.int8]
Floats = npt.NDArray[np.float32]

THREADS = 512  # of the block that does a step: ED_THREADS
CHUNK = 16  # integers a thread takes at once
WARP = 32
SHARED_BYTES = 48 * 1024  # static shared memory that every GPU has

MODEL_SCALARS = ("bin.inv_scale", "latent.inv_scale", None, None)
LAYER_SCALARS = (
    *(f"{name}.inv_scale" for name in ("attn", "q", "k", "v", "context", "mlp", "hidden")),
    *("score_scale", "v.scale", None, None, None),
)


def cuda_sources(model: Int8Model, front_end: FrontEndConfig, facts: ModelFacts) -> dict[str, str]:
    """File name -> text: model_NAME.h (shape), _data.h (facts of the front end), _weights.h (for the GPU's memory).

    EngineError for a student that the CUDA engine cannot hold.
    """
    require_fits(model, front_end, facts)
    _require_device_fits(model)
    name = c_identifier(facts.name)
    data, weights = f"model_{name}_data.h", f"model_{name}_weights.h"
    header = shape_header(model, front_end, facts, name, "cuda", group=0)
    includes = f'#define ED_MODEL_DATA "{data}"\n#define ED_MODEL_WEIGHTS "{weights}"\n'
    return {
        f"model_{name}.h": f"{header}{includes}\n{frontend_constants(front_end)}",
        data: facts_text(facts) + "\n" + normalization_tables(front_end, facts.mean, facts.std),
        weights: _weights_text(model, facts.name),
    }


def _require_device_fits(model: Int8Model) -> None:
    if model.keep:
        raise EngineError(
            "the CUDA engine computes every part in INT8",
            got=f"{', '.join(model.keep)} in float32",
            expected="a bundle of a recipe that keeps nothing, or a target whose engine is c or onnxruntime",
        )
    if (shared := shared_bytes(model.shape)) > SHARED_BYTES:
        raise EngineError(
            "the student does not fit the shared memory of one multiprocessor",
            got=f"{shared} bytes",
            expected=f"at most {SHARED_BYTES}",
        )


def shared_bytes(shape: StudentShape) -> int:
    """Shared memory of the step at most: all vectors it works on, the attention weights of every head."""
    window = -(-shape.window // (8 * CHUNK)) * 8 * CHUNK
    return 16 * shape.d + 2 * shape.ff + 4 * shape.channels * (shape.lag_rows + 1) + shape.heads * window + 4096


# ---------------------------------------------------------------- the order of weights


@dataclass(frozen=True)
class Spread:
    """How a matrix (rows, n) is spread over the threads: `ed_spread` of student_layout.h."""

    rows: int
    n: int

    @property
    def chunks(self) -> int:
        """Of a row."""
        return -(-self.n // CHUNK)

    @property
    def threads(self) -> int:
        """That share a row; of equals the most."""
        return min((8, 4, 2, 1), key=self._cost)

    def groups(self, threads: int) -> int:
        """Rows a thread takes part in."""
        return -(-self.rows * threads // THREADS)

    def rounds(self, threads: int) -> int:
        """Chunks of a row that a thread takes."""
        return -(-self.chunks // threads)

    def active(self, threads: int) -> int:
        """Threads that have rows."""
        return -(-self.rows // self.groups(threads)) * threads

    def _cost(self, threads: int) -> int:
        return self.groups(threads) * self.rounds(threads) * (self.active(threads) + 128)

    def packed(self, weights: Int8) -> bytes:
        """(rows, n) -> [round][group][thread][16]."""
        t = self.threads
        groups, rounds, slots = self.groups(t), self.rounds(t), self.active(t) // t
        padded = np.zeros((slots * groups, rounds * t * CHUNK), np.int8)
        padded[: self.rows, : self.n] = weights
        return padded.reshape(slots, groups, rounds, t, CHUNK).transpose(2, 1, 0, 3, 4).tobytes()


def _few_rows(weights: Int8, lane_bytes: int) -> bytes:
    """A read-out (outputs, n) -> [output][round][lane][lane_bytes], which is row by row."""
    return pad(weights, columns=WARP * lane_bytes).tobytes()


def packed_weights(model: Int8Model) -> bytes:
    """All integers of a student."""
    t = model.tensors

    def matrix(*names: str) -> bytes:
        rows = np.concatenate([t[name] for name in names])
        return Spread(*rows.shape).packed(rows)

    parts = [matrix("embed.weight")]
    for i in range(model.shape.layers):
        layer = f"layers.{i}."
        parts += [matrix(*(f"{layer}w{part}" for part in "qkv"))]
        parts += [matrix(layer + name) for name in ("wo", "wgate", "wup", "wdown")]
    return b"".join([*parts, _few_rows(t["readout.lags"], CHUNK), _few_rows(t["readout.latent"], 4)])


def float_tables(model: Int8Model) -> Floats:
    """All floats of a student, (n,)."""
    t, layers = model.tensors, [f"layers.{i}." for i in range(model.shape.layers)]
    parts: list[npt.NDArray[Any]] = [_scalars(model, "", MODEL_SCALARS)]
    parts += [_scalars(model, layer, LAYER_SCALARS) for layer in layers]
    parts += [t["embed.weight.multiplier"], t["embed.bias"]]
    parts += [t[f"readout.{name}"] for name in ("latent.multiplier", "lags.multiplier", "bias")]
    for layer in layers:
        parts += [t[f"{layer}w{name}.multiplier"] for name in ("q", "k", "v", "o", "gate", "up", "down")]
        parts += [bias_by_slot(t[f"{layer}age_bias"]).ravel()]
    return np.concatenate(parts).astype(np.float32)


def _scalars(model: Int8Model, prefix: str, names: tuple[str | None, ...]) -> Floats:
    return np.array([0 if name is None else model.tensors[prefix + name][0] for name in names], np.float32)


def _weights_text(model: Int8Model, name: str) -> str:
    words = np.frombuffer(pad(np.frombuffer(packed_weights(model), np.uint8)[None], columns=8).tobytes(), "<u8")
    floats = float_tables(model)
    return "\n".join(
        [
            f"/* Generated by edgedistill: the numbers of {comment(name)}, as student_layout.h orders them. */",
            f"static const uint64_t ed_weights[{len(words)}] = {{\n{c_lines(map(c_word, words))}}};",
            f"static const float ed_tables[{len(floats)}] = {{\n{c_lines(map(c_float, floats))}}};",
            "",
        ]
    )
