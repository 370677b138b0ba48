"""Runs a random student as a program of another processor, under an emulator: records go in, arrays come out.

The program is compiled with the flags of the target's file, and -Werror. `emulated.c` is its other half.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgedistill.compile.c.footprint import state_bytes
from edgedistill.compile.c.model_source import c_sources
from edgedistill.compile.c.toolchain import Toolchain, find_toolchain
from edgedistill.config import StudentShape
from edgedistill.frontend import FrontEndConfig
from edgedistill.numerics import Int8Model, Oracle
from edgedistill.numerics.smoothing import SmoothingModel
from edgedistill.runtime import Output
from edgedistill.runtime.c_abi import OUTPUT
from edgedistill.runtime.c_state import (
    read_shift,
    read_smoothing,
    read_student,
    state_dtype,
    write_shift,
    write_student,
)
from edgedistill.runtime.shift import SHIFTED_BINS
from edgedistill.runtime.stream import NumpyStream
from edgedistill.target import load_target

from .c_builds import KERNELS, facts_of

BARE = KERNELS.parent / "emulation" / "cortex-m"
MOST = 64  # most bins or frames of one record
NANO = StudentShape(32, 2, d=64, layers=2, heads=4, window=200, ff=256, taps=5, dilation=2, lags=10)
STEP, PUSH, RESET, IMPORT, EXPORT, COUNT = (ord(letter) for letter in "SPRIEC")

Arrays = dict[str, npt.NDArray[Any]]


# ---------------------------------------------------------------- records


def steps(bins: npt.NDArray[np.float32]) -> bytes:
    """Makes a record of bins (T, C), each for ed_step."""
    return b"".join(_record(STEP, len(part), part.tobytes()) for part in _parts(bins, [MOST]))


def pushes(frames: npt.NDArray[np.float32], chunks: Sequence[int]) -> bytes:
    """Makes records of frames (n, C) for ed_push, in chunks of these sizes, in turn."""
    return b"".join(_record(PUSH, len(part), part.tobytes()) for part in _parts(frames, chunks))


def reset() -> bytes:
    return _record(RESET, 0)


def export() -> bytes:
    return _record(EXPORT, 0)


def import_(state: npt.NDArray[np.void]) -> bytes:
    return _record(IMPORT, state.nbytes, state.tobytes())


def count(loops: int) -> bytes:
    """Makes a record of a loop of 2 n instructions, timed by the clock that times steps."""
    return _record(COUNT, loops)


def _record(what: int, count: int, data: bytes = b"") -> bytes:
    return struct.pack("<II", what, count) + data


def _parts(rows: npt.NDArray[np.float32], sizes: Sequence[int]) -> list[npt.NDArray[np.float32]]:
    parts, at = [], 0
    while at < len(rows):
        parts.append(np.ascontiguousarray(rows[at : at + sizes[len(parts) % len(sizes)]], np.float32))
        at += len(parts[-1])
    return parts


# ---------------------------------------------------------------- programs


@dataclass(frozen=True)
class Program:
    """Holds an executable of the target, and how this machine runs it."""

    file: Path
    command: tuple[str, ...]
    model: Int8Model
    config: FrontEndConfig
    toolchain: Toolchain
    said: str = ""  # as the linker counts them
    smoothing: SmoothingModel | None = None  # of the outputs

    def run(self, *records: bytes, timeout: float = 500) -> Arrays:
        """Returns name -> (calls, ...) of everything the program wrote, in its order, with the names of the oracle."""
        folder = self.file.parent
        (folder / "in.bin").write_bytes(b"".join(records) + bytes(8))
        done = subprocess.run(self.command, cwd=folder, capture_output=True, timeout=timeout, check=False)
        assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
        found = _read(np.frombuffer((folder / "out.bin").read_bytes(), np.uint8))
        assert found["error"].tolist() == [[0]]
        assert found["denormal"].tolist() == [[2.0**-127]]
        return found

    def oracle(self) -> Oracle:
        return Oracle(self.model)

    def stream(self) -> NumpyStream:
        """Returns the same stream in numpy: front end and step."""
        facts = facts_of(self.model, self.config, smoothing=self.smoothing)
        models = facts.spatial, facts.deviation, self.oracle()
        stream = NumpyStream(self.config, *models, facts.warmup_bins, facts.smoothing)
        stream.set_normalization(np.array(facts.mean), np.array(facts.std))
        return stream

    def decode(self, bins: npt.NDArray[np.float32]) -> Arrays:
        """Returns the kinematics of bins (T, C) from a fresh start, as the program gives them out."""
        raw = self.oracle().run(bins)
        return {"kinematics": raw if self.smoothing is None else self.smoothing.run(raw)}

    @property
    def dtype(self) -> np.dtype[np.void]:
        """Returns the type of an exported state."""
        states = 0 if self.smoothing is None else len(self.smoothing.keep)
        return state_dtype(self.model.shape, self.config, states)

    def state_of(self, fresh: npt.NDArray[np.uint8], student: Arrays) -> npt.NDArray[np.void]:
        """Returns the oracle's state as bytes to import; `fresh` is an exported one."""
        record = fresh.view(self.dtype).copy()[0]
        write_student(self.model.shape, record, student)
        return np.asarray(record)

    def shift_soon(self, fresh: npt.NDArray[np.uint8], stream: NumpyStream) -> npt.NDArray[np.void]:
        """Ends the warm-up of a fresh stream and raises its amplitude; returns the same state as bytes to import.

        Its filters count as settled. SHIFTED is set after three bins, and cleared some time later. `fresh` is an
        exported state.
        """
        power = np.linspace(16.05, 17, self.config.channels, dtype=np.float32)
        shift = {"power": power, "bins": np.array(SHIFTED_BINS - 3)}
        settled = {"fe_clean": np.full(len(power), float(self.config.settled_bins)), "fe_lost_bins": np.array(0)}
        state = stream.export_stream() | settled | {"seen": np.array(10**6)}
        stream.import_stream(state | {f"shift_{name}": array for name, array in shift.items()})
        record = fresh.view(self.dtype).copy()[0]
        record["seen"], record["clean"], record["lost_bins"] = 10**6, self.config.settled_bins, 0
        write_shift(record, shift)
        return np.asarray(record)

    def require_same_shift(self, state: npt.NDArray[np.uint8], stream: NumpyStream) -> None:
        """Checks the running amplitude of an exported state, and the filter of the outputs."""
        found, expected = read_shift(state.view(self.dtype)[0]), stream.export_stream()
        for name, array in found.items():
            assert same(array, expected[f"shift_{name}"]), name
        smooth = read_smoothing(state.view(self.dtype)[0])
        assert bool(smooth) == (self.smoothing is not None)
        assert all(same(array, expected[f"smoothing_{name}"]) for name, array in smooth.items())

    def student(self, state: npt.NDArray[np.uint8]) -> Arrays:
        """Returns an exported state, with the names of the oracle."""
        return read_student(self.model.shape, state.view(self.dtype)[0])


_TYPES: dict[str, Any] = {"error": np.int32, "state": np.uint8, "output": OUTPUT}  # everything else is int8
_TYPES |= dict.fromkeys(("kinematics", "latents", "denormal"), np.float32)
_TYPES |= dict.fromkeys(("ticks", "push", "loop", "sizes"), np.uint32)


def _read(told: npt.NDArray[np.uint8]) -> Arrays:
    found: dict[str, list[npt.NDArray[Any]]] = {}
    at = 0
    while at < len(told):
        name = told[at : at + 16].tobytes().rstrip(b"\0").decode()
        layer, size = told[at + 16 : at + 24].view("<i4").tolist()
        data = told[at + 24 : at + 24 + size].view(_TYPES.get(name, np.int8))
        found.setdefault(name if layer < 0 else f"layers.{layer}.{name}", []).append(data)
        at += 24 + size
    return {name: np.stack(rows) for name, rows in found.items()}


def require(command: str, package: str) -> None:
    """Skips the test where a program is missing."""
    if shutil.which(command) is None:
        pytest.skip(f"{command} is not installed: apt install {package}")


def toolchain_of(name: str) -> Toolchain:
    target = load_target(name)
    assert target.compiler is not None
    require(target.compiler.command, target.compiler.debian_package)
    return find_toolchain(target)


def build(
    folder: Path,
    toolchain: Toolchain,
    model: Int8Model,
    config: FrontEndConfig,
    sources: Sequence[Path] = (),
    compile_options: Sequence[str] = ("-DED_TRACE",),
    link_options: Sequence[str] = (),
    smoothing: SmoothingModel | None = None,
) -> tuple[Path, str]:
    """Compiles `emulated.c` with the engine of `model`; returns the program, and what the linker wrote."""
    facts = facts_of(model, config, smoothing=smoothing)
    for file, text in c_sources(model, config, facts, toolchain.ops).items():
        (folder / file).write_text(text)
    folders = (KERNELS / "include", KERNELS / "c", BARE, ".")
    options = ("-Werror", *(f"-I{one}" for one in folders), '-DED_MODEL_HEADER="model_test.h"')
    size = state_bytes(folder, toolchain, (*options, "-DED_TRACE"))
    options = (*options, f"-DED_TEST_STATE_BYTES={size}", *compile_options)
    files = [KERNELS / "c/ed_api.c", KERNELS / "c/ed_engine.c", Path(__file__).with_name("emulated.c"), *sources]
    objects = [f"{file.stem}.o" for file in files]
    for file, output in zip(files, objects, strict=True):
        toolchain.compile(folder, str(file), output, options)
    flags = [flag for flag in toolchain.flags if flag != "-fPIC"]
    said = toolchain.run(folder, toolchain.compiler.command, *flags, *objects, *link_options, "-o", "program")
    return folder / "program", said


# ---------------------------------------------------------------- comparisons


def same(got: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> bool:
    """Tells whether all bits are equal, so that the sign of a zero counts."""
    return got.tobytes() == np.ascontiguousarray(wanted).tobytes()


def require_same_bits(found: Arrays, expected: Arrays, start: int = 0) -> None:
    """Checks every tensor of Oracle.trace against what a program wrote, from its step `start` on."""
    for name, value in expected.items():
        got = found[name][start : start + len(value)]
        assert got.dtype == value.dtype, name
        wrong = [i for i in range(len(value)) if not same(got[i], value[i])]
        assert not wrong, f"{name} of bin {start + wrong[0]}"


def require_same_outputs(found: npt.NDArray[np.void], expected: Sequence[Output]) -> None:
    assert len(found) == len(expected)
    for row, output in zip(found.ravel(), expected, strict=True):
        facts = (output.bin, output.end_frame, output.flags, output.bad_channels)
        assert tuple(row[name] for name in ("bin", "end_frame", "flags", "bad_channels")) == facts
        for name in ("kinematics", "deviation"):
            expected_values = np.zeros(16, np.float32)
            expected_values[: len(output.kinematics)] = getattr(output, name)
            assert same(row[name], expected_values), f"{name} of bin {output.bin}"
