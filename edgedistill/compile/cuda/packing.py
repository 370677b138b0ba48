"""A bundle's INT8 student for the CUDA step: its shape, its facts, and its numbers in the order the GPU reads them.

Comes in: the integers, the front end, what the manifest says of channels and outputs. Goes out: three texts that the
library is compiled with. kernels/cuda/student_layout.h describes the order; the formulas here are its mirror.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.compile.c.frontend_source import frontend_constants, normalization_tables
from edgedistill.compile.c.model_source import (
    bias_by_slot,
    c_float,
    c_lines,
    c_word,
    comment,
    facts_text,
    require_fits,
    shape_header,
)
from edgedistill.compile.c.packing import pad
from edgedistill.compile.model_facts import ModelFacts, c_identifier
from edgedistill.config import StudentShape
from edgedistill.errors import EngineError
from edgedistill.frontend import FrontEndConfig
from edgedistill.numerics import Int8Model

Int8 = npt.NDArray[np.int8]
Floats = npt.NDArray[np.float32]

CHUNK = 16  # integers a thread takes at once
WARP = 32
SHARED_BYTES = 48 * 1024  # static shared memory that every GPU has

MODEL_SCALARS = ("bin.inv_scale", "latent.inv_scale", None, None)
LAYER_SCALARS = (
    *(f"{name}.inv_scale" for name in ("attn", "q", "k", "v", "context", "mlp", "hidden")),
    *("score_scale", "v.scale", None, None, None),
)


def cuda_sources(
    model: Int8Model, front_end: FrontEndConfig, facts: ModelFacts, threads: int | None = None
) -> dict[str, str]:
    """File name -> text: model_NAME.h (shape), _data.h (facts of the front end), _weights.h (for the GPU's memory).

    `threads` of the block, a power of two from 32 times the outputs to 1024; by default `threads_of` the shape.
    EngineError for a student that the CUDA engine cannot hold.
    """
    threads = threads or threads_of(model.shape)
    require_fits(model, front_end, facts)
    _require_device_fits(model, threads)
    name = c_identifier(facts.name)
    data, weights = f"model_{name}_data.h", f"model_{name}_weights.h"
    header = shape_header(model, front_end, facts, name, "cuda", group=0)
    includes = f"#define ED_THREADS {threads}\n"
    includes += f'#define ED_MODEL_DATA "{data}"\n#define ED_MODEL_WEIGHTS "{weights}"\n'
    return {
        f"model_{name}.h": f"{header}{includes}\n{frontend_constants(front_end)}",
        data: facts_text(facts) + "\n" + normalization_tables(front_end, facts.mean, facts.std),
        weights: _weights_text(model, facts.name, threads),
    }


def _require_device_fits(model: Int8Model, threads: int) -> None:
    if model.keep:
        raise EngineError(
            "the CUDA engine computes every part in INT8",
            got=f"{', '.join(model.keep)} in float32",
            expected="a bundle of a recipe that keeps nothing, or a target whose engine is c or onnxruntime",
        )
    if (shared := shared_bytes(model.shape, threads)) > SHARED_BYTES:
        raise EngineError(
            "the student does not fit the shared memory of one multiprocessor",
            got=f"{shared} bytes",
            expected=f"at most {SHARED_BYTES}",
        )


def threads_of(shape: StudentShape) -> int:
    """Threads of the block (ED_THREADS): half of them where matrices are small.

    There a step is bound by instructions that every warp executes, the norms above all, not by loads: `nano` needs 40 %
    fewer clocks of the schedulers with 256 threads than with 512.
    """
    return 256 if shape.d * shape.ff <= 64 * 256 and shape.outputs <= 256 // WARP else 512


def shared_bytes(shape: StudentShape, threads: int | None = None) -> int:
    """Shared memory of the step: `shared_memory` of student_step.cu, rounded up."""
    threads = threads or threads_of(shape)
    d, ff, heads, channels = shape.d, shape.ff, shape.heads, shape.channels
    vectors = [(d, shape.taps * channels), (d, d), (d, ff), *[(d, shape.window)] * heads]  # taps, context, hidden, p
    recent = (shape.lag_rows + 1) * channels + WARP * CHUNK
    qkv = 3 * heads * -(-shape.head_dim // CHUNK) * CHUNK
    small = 4 * heads + 8 * (heads + 2 * threads // WARP) + 4 * len(LAYER_SCALARS) * shape.layers
    return 4 * d + sum(Spread(rows, n, threads).padded for rows, n in vectors) + recent + qkv + small + 256


# ---------------------------------------------------------------- the order of weights


@dataclass(frozen=True)
class Spread:
    """How a matrix (rows, n) is spread over the threads: `ed_spread` of student_layout.h."""

    rows: int
    n: int
    block: int  # threads of the block

    @property
    def chunks(self) -> int:
        """Of a row."""
        return -(-self.n // CHUNK)

    @property
    def threads(self) -> int:
        """That share a row; of equals the most."""
        return min((8, 4, 2, 1), key=self._cost)

    @property
    def groups(self) -> int:
        """Rows a thread takes part in."""
        return self._groups_of(self.threads)

    @property
    def padded(self) -> int:
        """Integers that are read of a vector (n,)."""
        return -(-self.chunks // self.threads) * self.threads * CHUNK

    @property
    def left(self) -> tuple[int, int]:
        """Groups, and threads of a row, when exchanging ends."""
        groups, threads = self.groups, self.threads
        while threads > 1 and groups % 2 == 0:
            groups, threads = groups // 2, threads // 2
        return groups, threads

    def turned(self, thread: int) -> list[int]:
        """For each group the place that it has among those of the thread (of a row), and the other way round."""
        place = np.arange(self.groups)
        bit, half = self.threads // 2, self.groups // 2
        while bit >= self.left[1]:
            if thread & bit:
                place += np.where(place // half % 2, -half, half)
            bit, half = bit // 2, half // 2
        return [int(group) for group in place]

    def packed(self, weights: Int8) -> bytes:
        """(rows, n) -> [round][place of the group][thread][16]."""
        t, groups, rounds = self.threads, self.groups, -(-self.chunks // self.threads)
        slots = -(-self.rows // groups)
        padded = np.zeros((slots * groups, rounds * t * CHUNK), np.int8)
        padded[: self.rows, : self.n] = weights
        chunks = padded.reshape(slots, groups, rounds, t, CHUNK).transpose(2, 1, 0, 3, 4)
        turned = [chunks[:, :, :, thread][:, self.turned(thread)] for thread in range(t)]
        return np.stack(turned, axis=3).tobytes()

    def by_thread(self, values: Floats) -> Floats:
        """(rows,) -> (own, threads of the block): of the rows that a thread ends with, 0 where it has none."""
        left, threads_left = self.left
        found = np.zeros((-(-left // threads_left), self.block), np.float32)
        for i, thread in np.ndindex(found.shape):
            t = thread % self.threads
            rest = t % threads_left + i * threads_left
            row = thread // self.threads * self.groups + self.turned(t)[0] + rest
            if rest < left and row < self.rows:
                found[i, thread] = values[row]
        return found

    def _groups_of(self, threads: int) -> int:
        return -(-self.rows * threads // self.block)

    def _cost(self, threads: int) -> int:
        groups = self._groups_of(threads)
        active = -(-self.rows // groups) * threads
        return groups * -(-self.chunks // threads) * (active + 128)


def _few_rows(weights: Int8, lane_bytes: int) -> bytes:
    """A read-out (outputs, n) -> [output][round][lane][lane_bytes], which is row by row."""
    return pad(weights, columns=WARP * lane_bytes).tobytes()


def _stacks(layer: str) -> list[tuple[str, ...]]:
    """The matrices of a layer ("layers.i."), those that are multiplied together as one, in the order of the step."""
    names = (("wq", "wk", "wv"), ("wo",), ("wgate",), ("wup",), ("wdown",))
    return [tuple(layer + name for name in together) for together in names]


def packed_weights(model: Int8Model, threads: int | None = None) -> bytes:
    """All integers of a student."""
    t, threads = model.tensors, threads or threads_of(model.shape)
    stacks: list[tuple[str, ...]] = [("embed.weight",)]
    for i in range(model.shape.layers):
        stacks += _stacks(f"layers.{i}.")
    matrices = [np.concatenate([t[name] for name in names]) for names in stacks]
    packed = [Spread(len(rows), rows.shape[1], threads).packed(rows) for rows in matrices]
    return b"".join([*packed, _few_rows(t["readout.lags"], CHUNK), _few_rows(t["readout.latent"], 4)])


def float_tables(model: Int8Model, threads: int | None = None) -> Floats:
    """All floats of a student, (n,)."""
    threads = threads or threads_of(model.shape)
    t, layers = model.tensors, [f"layers.{i}." for i in range(model.shape.layers)]
    parts: list[npt.NDArray[Any]] = [_scalars(model, "", MODEL_SCALARS)]
    parts += [_scalars(model, layer, LAYER_SCALARS) for layer in layers]
    embedding = Spread(model.shape.d, model.shape.taps * model.shape.channels, threads)
    parts += [embedding.by_thread(t[f"embed.{name}"]) for name in ("weight.multiplier", "bias")]
    parts += [t[f"readout.{name}"] for name in ("latent.multiplier", "lags.multiplier", "bias")]
    for layer in layers:
        for names in _stacks(layer):
            spread = Spread(sum(len(t[name]) for name in names), t[names[0]].shape[1], threads)
            parts += [spread.by_thread(np.concatenate([t[f"{name}.multiplier"] for name in names]))]
        parts += [bias_by_slot(t[f"{layer}age_bias"])]
    parts += [np.zeros(threads)]  # read with the bias of slots that do not exist
    return np.concatenate([part.ravel() for part in parts]).astype(np.float32)


def _scalars(model: Int8Model, prefix: str, names: tuple[str | None, ...]) -> Floats:
    return np.array([0 if name is None else model.tensors[prefix + name][0] for name in names], np.float32)


def _weights_text(model: Int8Model, name: str, threads: int) -> str:
    packed = packed_weights(model, threads)
    words = np.frombuffer(pad(np.frombuffer(packed, np.uint8)[None], columns=8).tobytes(), "<u8")
    floats = float_tables(model, threads)
    return "\n".join(
        [
            f"/* Generated by edgedistill: the numbers of {comment(name)}, as student_layout.h orders them. */",
            f"alignas(16) static const uint64_t ed_weights[{len(words)}] = {{\n{c_lines(map(c_word, words))}}};",
            f"static const float ed_tables[{len(floats)}] = {{\n{c_lines(map(c_float, floats))}}};",
            "",
        ]
    )
