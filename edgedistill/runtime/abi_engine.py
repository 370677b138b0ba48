"""Runs a decoder behind the C ABI from Python. An opened library goes in, and an engine like all others comes out.

`AbiEngine` has the methods of the other engines, which take a bin of the models' input and return kinematics. It also
has those of a whole stream, which take frames and return outputs, because the library contains the front end. It works
in the same way whether the library holds plain C, a CUDA kernel or a TensorRT plan. `c_engine`, `cuda_engine` and
`tensorrt_engine` find, check and open such a library.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.bundle.build_record import ABI_VERSION, LABELS
from edgedistill.config import StudentShape
from edgedistill.errors import EngineError
from edgedistill.frontend import FrontEnd, FrontEndConfig
from edgedistill.frontend.rules import find_lost_frames
from edgedistill.frontend.stream import require_room
from edgedistill.runtime.c_abi import OUTPUT
from edgedistill.runtime.c_state import (
    read_frontend,
    read_shift,
    read_smoothing,
    read_statistics,
    read_student,
    state_dtype,
    write_frontend,
    write_shift,
    write_smoothing,
    write_statistics,
    write_student,
)
from edgedistill.runtime.stream import Flag, Floats, Output, State, read_seen, take_part


@dataclass(frozen=True, eq=False)
class OpenedLibrary:
    """Holds a library and one decoder that was started in it."""

    library: ctypes.CDLL  # from `load_library`
    decoder: int  # address that `ed_init` or `ed_open` returned
    engine: str = "c"  # the engine in the library: "c", "cuda" or "tensorrt"
    precision: str = "int8"  # the type of keys and values
    size: int = 0  # bytes of the compiled files
    memory: object = None  # an object that must live as long as the decoder


class AbiEngine:
    """Runs one decoder of a library, which keeps the state of its stream. Two threads must not use it at once."""

    def __init__(self, opened: OpenedLibrary, shape: StudentShape, config: FrontEndConfig) -> None:
        """Raises EngineError if the library holds a student of another shape or array."""
        self.shape, self.config, self.engine, self.library_bytes = shape, config, opened.engine, opened.size
        self._opened, self._library = opened, opened.library
        self._decoder: int | None = opened.decoder
        # Not at exit: then the system frees the GPU's memory, and the driver may be unloaded before this runs.
        self._close = weakref.finalize(self, opened.library.ed_close, opened.decoder)
        self._close.atexit = False
        self.info = self._library.ed_info_get(self._decoder).contents
        self._dtype = state_dtype(shape, config, self.info.smoothing_states)
        self._check_info()
        self._bin: Floats = np.zeros(shape.channels, np.float32)
        self._kinematics: Floats = np.zeros(shape.outputs, np.float32)
        self._step: tuple[int | None, int, int] = (self._decoder, self._bin.ctypes.data, self._kinematics.ctypes.data)
        self._n_out = ctypes.c_size_t()
        self._fresh = self._export() if self.precision == "int8" else None
        self._frame, self._held, self._at_once = 0, _nothing(), False

    def close(self) -> None:
        """Gives back what the engine holds. Afterwards every call is refused."""
        self._close()
        self._decoder, self._step = None, (None, *self._step[1:])
        self._opened = replace(self._opened, decoder=0, memory=None)

    @property
    def precision(self) -> str:
        """Returns the type of keys and values: "int8" or "float16"."""
        return self._opened.precision

    @property
    def state_bytes(self) -> int:
        """Returns the bytes of rings, lagged bins and their counters, wherever the engine keeps them."""
        shape, (value, lag) = self.shape, (1, 1) if self.precision == "int8" else (2, 4)
        rings = 2 * shape.layers * shape.heads * (shape.window - 1) * shape.head_dim
        return value * rings + lag * shape.lag_rows * shape.channels + 8

    @property
    def latent(self) -> Floats:
        """Returns the latent (d,) of the last step, before the gain of the last norm.

        It is zero before the first step.
        """
        found: Floats = np.empty(self.shape.d, np.float32)
        self._check_code(self._library.ed_latent(self._decoder, found.ctypes.data, self.shape.d))
        return found

    @property
    def raw_kinematics(self) -> Floats:
        """Returns the kinematics (K,) of the last step before they were smoothed. They are zero before the first."""
        found: Floats = np.empty(self.shape.outputs, np.float32)
        self._check_code(self._library.ed_raw_kinematics(self._decoder, found.ctypes.data, self.shape.outputs))
        return found

    def step(self, bin: npt.NDArray[np.floating[Any]]) -> Floats:
        """Returns kinematics (K,) in physical units for one bin (I,) of the models' input, which is finite."""
        if bin.shape != self._bin.shape:
            raise EngineError("a step takes one bin", got=bin.shape, expected=self._bin.shape)
        self._bin[:] = bin
        self._check_code(self._library.ed_step(*self._step))
        return self._kinematics.copy()

    def push(self, frames_uv: Floats) -> list[Output]:
        """Takes frames (n, C) in uV, in C order, and returns the outputs of the bins that they complete."""
        return self._advance("ed_push", frames_uv, len(frames_uv))

    def push_i16(
        self, frames: npt.NDArray[np.int16], gain: npt.NDArray[np.float64], offset: npt.NDArray[np.float64]
    ) -> list[Output]:
        """Takes integer frames (n, C) in C order and returns the outputs of the bins that they complete.

        uV = frames * gain + offset, where gain and offset are (C,). The result is rounded once.
        """
        if self.config.decimation > 1:  # frames of an unfinished bin wait in microvolts
            with np.errstate(over="ignore"):
                return self.push((frames * gain + offset).astype(np.float32))
        self._check_code(self._library.ed_set_gain(self._decoder, gain.ctypes.data, offset.ctypes.data))
        return self._advance("ed_push_i16", frames, len(frames))

    def gap(self, n_frames: int) -> list[Output]:
        """Counts lost frames and returns the outputs of the bins that they complete."""
        return self._advance("ed_gap_outputs", None, n_frames)

    def reset(self) -> None:
        """Goes back to a fresh stream. The normalization stays."""
        self._library.ed_reset(self._decoder)
        self._frame, self._held, self._at_once = 0, _nothing(), False

    def take_frames_at_once(self) -> None:
        """Gives C the frames of an unfinished bin as they come, until `reset`. It leaves less to do at the bin's end.

        A state can then be exported between two bins only.
        """
        self._at_once = True
        self._pass_held()

    def set_normalization(self, mean: npt.NDArray[np.float64], std: npt.NDArray[np.float64]) -> None:
        """Sets the statistics (I,), rounded to float32, that hold from the next bin on.

        The running amplitude starts again.
        """
        rows = [np.ascontiguousarray(values, np.float32) for values in (mean, std)]
        self._check_code(self._library.ed_set_normalization(self._decoder, *(row.ctypes.data for row in rows)))
        if self._fresh is not None and self.config.follow_rate:
            self._fresh["mean"], self._fresh["std"] = rows

    def export_state(self) -> dict[str, npt.NDArray[Any]]:
        """Returns the student's part of the state, with the names that all engines use (docs/numerics.md, "State")."""
        return read_student(self.shape, self._export())

    def import_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Continues from a student's state that any engine exported. All else of the stream stays where it is."""
        record = self._export()
        write_student(self.shape, record, state)
        self._import(record)

    def export_stream(self) -> dict[str, npt.NDArray[Any]]:
        """Returns the state of the stream, with the names that all engines use.

        `seen` counts bins. The front end's state is `fe_*`, that of statistics that follow the signal `statistics_*`,
        that of the running amplitude `shift_*`, that of the filter of the outputs `smoothing_state`, and that of the
        student `state_*`.
        """
        if self._at_once and self.config.decimation > 1 and self._frame != self._bin_start():
            raise EngineError(
                "a state cannot be exported within a bin while frames are taken at once",
                got=f"frame {self._frame}",
                expected=f"the first frame of a bin, such as {self._bin_start()}",
            )
        record = self._export()
        front_end = read_frontend(self.config, record)
        if self._held:
            front_end["pending"] = np.concatenate([_microvolts(part, self.config) for part in self._held])
            front_end["pending_gap"] |= any(_is_lost(part, self.config) for part in self._held)
            front_end["frame"] += len(front_end["pending"])
        state: dict[str, npt.NDArray[Any]] = {"seen": np.array(int(record["seen"]), np.int64)}
        state |= {f"fe_{name}": array for name, array in front_end.items()}
        state |= {f"statistics_{name}": array for name, array in read_statistics(record).items()}
        state |= {f"shift_{name}": array for name, array in read_shift(record).items()}
        state |= {f"smoothing_{name}": array for name, array in read_smoothing(record).items()}
        return state | {f"state_{name}": array for name, array in read_student(self.shape, record).items()}

    def import_stream(self, state: State) -> None:
        """Continues from an exported stream. A part that is missing from it starts fresh.

        Raises EngineError, with nothing changed, for the state of another bundle.
        """
        if self._fresh is None:
            raise EngineError(f"a state is exchanged in int8 only, and this engine computes in {self.precision}")
        record, held = self._fresh.copy(), _nothing()
        front_end, student = FrontEnd(self.config), take_part(state, "state_")
        if given := take_part(state, "fe_"):
            front_end.import_state(given)
        known = front_end.export_state()
        write_frontend(self.config, record, known)
        if self.config.decimation > 1 and len(known["pending"]):
            held = [known["pending"].astype(np.float32)]
        if followed := take_part(state, "statistics_"):
            write_statistics(record, followed)
        if shift := take_part(state, "shift_"):
            write_shift(record, shift)
        if smooth := take_part(state, "smoothing_"):
            write_smoothing(record, smooth)
        if student:
            write_student(self.shape, record, student)
        record["seen"] = read_seen(state)
        self._import(record)
        self._frame, self._held = int(known["frame"]), held
        if self._at_once:
            self._pass_held()

    # ---------------------------------------------------------------- calls

    def _advance(self, function: str, frames: npt.NDArray[Any] | None, count: int) -> list[Output]:
        """Passes the frames to C, or the number of lost frames.

        With decimation, the frames of an unfinished bin wait here unless they are to be taken at once. The docstring of
        `c_state` gives the reason.
        """
        if self.config.decimation == 1:
            return self._call(function, frames, count)
        require_room(self._frame, count)
        start, self._frame = self._frame, self._frame + count
        now = count if self._at_once else max(0, self._bin_start() - start)
        outputs: list[Output] = []
        if now:
            outputs += self._pass_held()
            outputs += self._call(function, None if frames is None else frames[:now], now)
        if count > now:
            self._held.append(count - now if frames is None else frames[now:].copy())
        return outputs

    def _bin_start(self) -> int:
        """Returns the first frame of the bin in progress."""
        return self.config.edge(self.config.bin_of(self._frame))

    def _pass_held(self) -> list[Output]:
        waiting, self._held = self._held, []
        return [output for part in waiting for output in self._call(*_call_of(part))]

    def _call(self, function: str, frames: npt.NDArray[Any] | None, count: int) -> list[Output]:
        if not count:
            return []
        outputs = np.empty(self._library.ed_outputs_for(self._decoder, count), OUTPUT)
        given = () if frames is None else (frames.ctypes.data,)
        rest = (count, outputs.ctypes.data, len(outputs), ctypes.byref(self._n_out))
        self._check_code(getattr(self._library, function)(self._decoder, *given, *rest))
        return [self._output(row) for row in outputs[: self._n_out.value]]

    def _output(self, row: npt.NDArray[np.void]) -> Output:
        kinematics, deviation = (row[name][: self.shape.outputs].copy() for name in ("kinematics", "deviation"))
        counts = int(row["bin"]), int(row["end_frame"]), Flag(int(row["flags"])), int(row["bad_channels"])
        return Output(*counts, kinematics, deviation)

    def _export(self) -> npt.NDArray[np.void]:
        record = np.zeros((), self._dtype)
        self._check_code(self._library.ed_state_export(self._decoder, record.ctypes.data, record.nbytes))
        return record

    def _import(self, record: npt.NDArray[np.void]) -> None:
        self._check_code(self._library.ed_state_import(self._decoder, record.ctypes.data, record.nbytes))

    def _check_code(self, code: int) -> None:
        if code:
            message = self._library.ed_strerror(code).decode()
            raise EngineError(f"the {LABELS[self.engine]} engine refuses this call: {message}", got=code)

    def _check_info(self) -> None:
        info, shape = self.info, self.shape
        got = (info.abi_version, info.channels, info.inputs, info.outputs, info.latent, info.export_bytes)
        expected = (
            *(ABI_VERSION, self.config.channels, shape.channels),
            *(shape.outputs, shape.d, self._dtype.itemsize),
        )
        if got != expected:
            names = "(ABI, channels, inputs, outputs, latent, bytes of a state)"
            raise EngineError("the library holds another student", got=f"{got} {names}", expected=expected)


# ---------------------------------------------------------------- frames that wait


def _nothing() -> list[Floats | int]:
    return []


def _call_of(part: Floats | int) -> tuple[str, Floats | None, int]:
    return ("ed_gap_outputs", None, part) if isinstance(part, int) else ("ed_push", part, len(part))


def _is_lost(part: Floats | int, config: FrontEndConfig) -> bool:
    return isinstance(part, int) or bool(find_lost_frames(config, part.T).any())


def _microvolts(part: Floats | int, config: FrontEndConfig) -> npt.NDArray[np.float64]:
    return np.zeros((part, config.channels)) if isinstance(part, int) else part.astype(np.float64)
