"""Compiles the CUDA step of random students for the emulated GPU, and drives it through ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.compile.cuda.model_source import cuda_sources
from edgedistill.numerics import Int8Model

from .c_builds import facts_of, front_end_of, read_trace
from .cuda_emulation import KERNELS, compile_emulated, failure, load, pointer

DEFINES = ('-DED_MODEL_HEADER="model_test.h"', "-Wno-unused-const-variable")
SOURCES = (KERNELS / "cuda/student_step.cu", Path(__file__).parent / "cuda_step.cpp")


def write_sources(folder: Path, model: Int8Model, threads: int | None = None, pack: bool = False) -> None:
    front_end = front_end_of(model)
    for file, text in cuda_sources(model, front_end, facts_of(model, front_end), threads, pack).items():
        (folder / file).write_text(text)


def build(
    folder: Path,
    model: Int8Model,
    sanitize: bool = False,
    compiler: str = "g++",
    threads: int | None = None,
    pack: bool = False,
) -> EmulatedStep:
    """Compiles the step of `model` to a shared library in `folder`."""
    write_sources(folder, model, threads, pack)
    options = ("-O2", *DEFINES, "-DED_TRACE")
    library = compile_emulated(folder / "step.so", SOURCES, options, [folder], compiler, sanitize)
    return EmulatedStep(library, model)


class EmulatedStep:
    """Runs a stream through a student on the emulated GPU."""

    def __init__(self, library: Path, model: Int8Model) -> None:
        self.c, self.shape = load(library), model.shape
        self.c.exchanged_bytes.restype = ctypes.c_size_t
        self.c.trace_to.restype = self.c.reset.restype = None
        self.bytes = int(self.c.exchanged_bytes())
        self.c.reset()

    def reset(self) -> None:
        self.c.reset()

    def run(self, bins: npt.NDArray[np.float32], traced: bool = False, states: bool = False) -> dict[str, Any]:
        """Returns kinematics and latents; on request also integer tensors and states, named as in the oracle."""
        shape, n = self.shape, len(bins)
        bins = np.ascontiguousarray(bins, np.float32)
        outs = np.full((n, shape.outputs + shape.d), np.nan, np.float32)
        students, where = np.zeros((n, self.bytes), np.int8), np.zeros((n, 2), np.int32)
        most = n * (shape.channels + shape.d + shape.layers * (6 * shape.d + shape.ff) + 32 * (2 + 7 * shape.layers))
        log = np.zeros(most if traced else 0, np.uint8)
        self.c.trace_to(pointer(log) if traced else None, ctypes.c_size_t(len(log)))
        kept = (pointer(students), pointer(where)) if states else (None, None)
        assert self.c.run(pointer(bins), ctypes.c_size_t(n), pointer(outs), *kept) == 0, failure(self.c)
        self.c.trace_to(None, ctypes.c_size_t(0))
        found = {"kinematics": outs[:, : shape.outputs].copy(), "latents": outs[:, shape.outputs :].copy()}
        found |= {"states": [self._unpacked(*pair) for pair in zip(students, where, strict=True)]} if states else {}
        return found | (read_trace(log) if traced else {})

    def export(self) -> dict[str, npt.NDArray[Any]]:
        student, where = np.zeros(self.bytes, np.int8), np.zeros(2, np.int32)
        self.c.export_state(pointer(student), pointer(where))
        return self._unpacked(student, where)

    def import_(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        rings = [state[f"ring_{kind}_{i}"] for i in range(self.shape.layers) for kind in "kv"]
        parts = (*rings, *([state["lags"]] if "lags" in state else []))
        student = np.ascontiguousarray(np.concatenate([array.ravel() for array in parts]))
        self.c.import_state(pointer(student), pointer(np.concatenate([state["pos"], state["live"]])))

    def _unpacked(self, student: npt.NDArray[np.int8], where: npt.NDArray[np.int32]) -> dict[str, npt.NDArray[Any]]:
        shape, at, found = self.shape, 0, {}
        ring = (shape.heads, shape.window - 1, shape.head_dim)
        for i in range(shape.layers):
            for kind in "kv":
                found[f"ring_{kind}_{i}"] = student[at : at + int(np.prod(ring))].reshape(ring)
                at += int(np.prod(ring))
        if shape.lag_rows:
            found["lags"] = student[at:].reshape(shape.lag_rows, shape.channels)
        return found | {"pos": where[:1], "live": where[1:]}
