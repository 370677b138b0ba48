"""The C engine from Python: a bundle's compiled library, checked before it is loaded, called through ctypes.

`CEngine` has the face of the other engines (a z-scored bin in, kinematics out) and that of a whole stream (frames
in, outputs out), since the front end is in the library too. Its results are those of the oracle, to the last bit.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.bundle import Bundle
from edgedistill.config import StudentShape
from edgedistill.errors import EngineError
from edgedistill.frontend import FrontEnd, FrontEndConfig
from edgedistill.runtime.build_record import (
    ABI_VERSION,
    BUILD_JSON,
    BuildRecord,
    build_folder,
    check_files,
    check_fits,
    read_record,
)
from edgedistill.runtime.c_abi import ALIGN, OUTPUT, load_library
from edgedistill.runtime.c_state import frontend_arrays, put_frontend, put_student, state_dtype, student_arrays
from edgedistill.runtime.stream import Flag, Floats, Output, State, part_of_state

HOST = "host"


class CEngine:
    """One decoder of a compiled library at a point in its stream. Not for use from two threads at once."""

    def __init__(self, library: ctypes.CDLL, model: str, shape: StudentShape, config: FrontEndConfig) -> None:
        """A library of `load_library` that holds `ed_model_<model>`. EngineError if that is another student."""
        self.shape, self.config, self._library, self.library_bytes = shape, config, library, 0
        symbol = ctypes.addressof(ctypes.c_char.in_dll(library, f"ed_model_{model}"))
        self.info = library.ed_model_info(symbol).contents
        self._dtype = state_dtype(shape, config)
        self._check_info()
        room = np.zeros(self.info.state_bytes + ALIGN, np.uint8)
        self._memory = room[-room.ctypes.data % ALIGN :]
        decoder = ctypes.c_void_p()
        self._done(library.ed_init(symbol, self._memory.ctypes.data, self.info.state_bytes, ctypes.byref(decoder)))
        self._decoder = decoder.value
        self._bin: Floats = np.zeros(shape.channels, np.float32)
        self._kinematics: Floats = np.zeros(shape.outputs, np.float32)
        self._step = (self._decoder, self._bin.ctypes.data, self._kinematics.ctypes.data)
        self._n_out = ctypes.c_size_t()
        self._fresh = self._export()
        self._frame, self._held = 0, _nothing()

    @classmethod
    def open(cls, bundle: Bundle, shape: StudentShape, config: FrontEndConfig) -> CEngine:
        """What `edgedistill compile` left in the bundle for this machine. EngineError names what is missing,
        changed or made for another bundle, interface or chip, and the command that mends it."""
        try:
            folder, record = _build_for_this_machine(bundle)
            check_files(folder, record)
            data = (folder / record.library).read_bytes()
            library = load_library(folder / record.library, data)
            engine = cls(library, record.model, shape, config)
            engine.library_bytes = len(data)
        except EngineError as error:
            raise _with_command(error, bundle) from error
        return engine

    @property
    def precision(self) -> str:
        """The type of keys and values."""
        return "int8"

    @property
    def latent(self) -> Floats:
        """The latent (d,) of the last step, before the gain of the last norm; zeros before the first."""
        found: Floats = np.empty(self.shape.d, np.float32)
        self._done(self._library.ed_latent(self._decoder, found.ctypes.data, self.shape.d))
        return found

    def step(self, bin: npt.NDArray[np.floating[Any]]) -> Floats:
        """Kinematics (K,) in physical units for one z-scored bin (C,), finite, 0 where masked."""
        if bin.shape != self._bin.shape:
            raise EngineError("a step takes one bin", got=bin.shape, expected=f"{self._bin.shape}: one per channel")
        self._bin[:] = bin
        self._done(self._library.ed_step(*self._step))
        return self._kinematics.copy()

    def push(self, frames_uv: Floats) -> list[Output]:
        """Frames (n, C) in uV, in C order, to the outputs of the bins they complete."""
        return self._advance("ed_push", frames_uv, len(frames_uv))

    def push_i16(
        self, frames: npt.NDArray[np.int16], gain: npt.NDArray[np.float64], offset: npt.NDArray[np.float64]
    ) -> list[Output]:
        """Integers (n, C), in C order; uV = frames * gain + offset, (C,) each, rounded once."""
        if self.config.decimation > 1:  # frames of an unfinished bin wait in microvolts
            with np.errstate(over="ignore"):
                return self.push((frames * gain + offset).astype(np.float32))
        self._done(self._library.ed_set_gain(self._decoder, gain.ctypes.data, offset.ctypes.data))
        return self._advance("ed_push_i16", frames, len(frames))

    def gap(self, n_frames: int) -> list[Output]:
        """Lost frames to the outputs of the bins they complete."""
        return self._advance("ed_gap_outputs", None, n_frames)

    def reset(self) -> None:
        """Back to a fresh stream; normalization stays."""
        self._library.ed_reset(self._decoder)
        self._frame, self._held = 0, _nothing()

    def set_normalization(self, mean: npt.NDArray[np.float64], std: npt.NDArray[np.float64]) -> None:
        """Statistics (C,) in uV from the next bin on, in float32."""
        rows = [np.ascontiguousarray(values, np.float32) for values in (mean, std)]
        self._done(self._library.ed_set_normalization(self._decoder, *(row.ctypes.data for row in rows)))

    def export_state(self) -> dict[str, npt.NDArray[Any]]:
        """The student's part of the state, named as every engine does (numerics.md, "State")."""
        return student_arrays(self.shape, self._export())

    def import_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from a student's state that any engine exported; the front end stays where it is."""
        record = self._export()
        put_student(self.shape, record, state)
        self._import(record)

    def export_stream(self) -> dict[str, npt.NDArray[Any]]:
        """`seen`, `fe_*` of the front end, `state_*` of the student."""
        record = self._export()
        front_end = frontend_arrays(self.config, record)
        if self._held:
            front_end["pending"] = np.concatenate([_microvolts(part, self.config) for part in self._held])
            front_end["pending_gap"] |= any(isinstance(part, int) for part in self._held)
            front_end["frame"] += len(front_end["pending"])
        state: dict[str, npt.NDArray[Any]] = {"seen": np.array(int(record["seen"]), np.int64)}
        state |= {f"fe_{name}": array for name, array in front_end.items()}
        return state | {f"state_{name}": array for name, array in student_arrays(self.shape, record).items()}

    def import_stream(self, state: State) -> None:
        """The inverse; a part that is left out starts fresh. EngineError, nothing changed, for another bundle's."""
        record, held = self._fresh.copy(), _nothing()
        front_end, student = FrontEnd(self.config), part_of_state(state, "state_")
        if given := part_of_state(state, "fe_"):
            front_end.import_state(given)
        known = front_end.export_state()
        put_frontend(self.config, record, known)
        if self.config.decimation > 1 and len(known["pending"]):
            held = [known["pending"].astype(np.float32)]
        if student:
            put_student(self.shape, record, student)
        record["seen"] = int(state["seen"]) if "seen" in state else 0
        self._import(record)
        self._frame, self._held = int(known["frame"]), held

    # ---------------------------------------------------------------- calls

    def _advance(self, function: str, frames: npt.NDArray[Any] | None, count: int) -> list[Output]:
        """Frames, or `count` lost ones, to C. With decimation, those of an unfinished bin wait here: see c_state."""
        if self.config.decimation == 1:
            return self._call(function, frames, count)
        start, self._frame = self._frame, self._frame + count
        now = max(0, self.config.edge(self.config.bin_of(self._frame)) - start)
        outputs: list[Output] = []
        if now:
            waiting, self._held = self._held, []
            for part in waiting:
                outputs += self._call(*_call_of(part))
            outputs += self._call(function, None if frames is None else frames[:now], now)
        if count > now:
            self._held.append(count - now if frames is None else frames[now:].copy())
        return outputs

    def _call(self, function: str, frames: npt.NDArray[Any] | None, count: int) -> list[Output]:
        if not count:
            return []
        outputs = np.empty(self._library.ed_outputs_for(self._decoder, count), OUTPUT)
        given = () if frames is None else (frames.ctypes.data,)
        rest = (count, outputs.ctypes.data, len(outputs), ctypes.byref(self._n_out))
        self._done(getattr(self._library, function)(self._decoder, *given, *rest))
        return [self._output(row) for row in outputs[: self._n_out.value]]

    def _output(self, row: npt.NDArray[np.void]) -> Output:
        kinematics = row["kinematics"][: self.shape.outputs].copy()
        return Output(
            int(row["bin"]), int(row["end_frame"]), Flag(int(row["flags"])), int(row["bad_channels"]), kinematics
        )

    def _export(self) -> npt.NDArray[np.void]:
        record = np.zeros((), self._dtype)
        self._done(self._library.ed_state_export(self._decoder, record.ctypes.data, record.nbytes))
        return record

    def _import(self, record: npt.NDArray[np.void]) -> None:
        self._done(self._library.ed_state_import(self._decoder, record.ctypes.data, record.nbytes))

    def _done(self, code: int) -> None:
        if code:
            raise EngineError(f"the C engine refuses this call: {self._library.ed_strerror(code).decode()}", got=code)

    def _check_info(self) -> None:
        info, shape = self.info, self.shape
        got = (info.abi_version, info.channels, info.outputs, info.latent, info.export_bytes)
        expected = (ABI_VERSION, shape.channels, shape.outputs, shape.d, self._dtype.itemsize)
        if got != expected:
            names = "(ABI, channels, outputs, latent, bytes of a state)"
            raise EngineError("the library holds another student", got=f"{got} {names}", expected=expected)


# ---------------------------------------------------------------- frames that wait


def _nothing() -> list[Floats | int]:
    return []


def _call_of(part: Floats | int) -> tuple[str, Floats | None, int]:
    return ("ed_gap_outputs", None, part) if isinstance(part, int) else ("ed_push", part, len(part))


def _microvolts(part: Floats | int, config: FrontEndConfig) -> npt.NDArray[np.float64]:
    return np.zeros((part, config.channels)) if isinstance(part, int) else part.astype(np.float64)


# ---------------------------------------------------------------- what is compiled


def is_compiled(bundle: Bundle) -> bool:
    """Whether a build of the bundle is here for `host`, whole or not, or one for another target that fits."""
    if not bundle.path.is_dir():
        return False
    own = build_folder(bundle, HOST)
    return own.is_dir() or any(fits_here(bundle, folder.name) for folder in own.parent.glob("[!.]*"))


def fits_here(bundle: Bundle, target: str) -> bool:
    """Whether this machine can run what was compiled for `target`."""
    return isinstance(_fitting(build_folder(bundle, target), bundle), BuildRecord)


def _build_for_this_machine(bundle: Bundle) -> tuple[Path, BuildRecord]:
    """The build for `host`, or else one for another target that this machine can run, as on a board."""
    own = build_folder(bundle, HOST)
    others = sorted(path.parent for path in own.parent.glob(f"[!.]*/{BUILD_JSON}") if path.parent != own)
    found = [(folder, _fitting(folder, bundle)) for folder in (own, *others)]
    for folder, record in found:
        if isinstance(record, BuildRecord):
            return folder, record
    refused = [record for _, record in found if isinstance(record, EngineError)]
    raise next((error for error in refused if "nothing is compiled" not in error.what), refused[0])


def _fitting(folder: Path, bundle: Bundle) -> BuildRecord | EngineError:
    """What is compiled in a folder, or why this machine cannot use it."""
    try:
        record = read_record(folder)
        check_fits(folder, record, bundle)
    except EngineError as error:
        return error
    return record


def _with_command(error: EngineError, bundle: Bundle) -> EngineError:
    step = error.next_step or f"edgedistill compile {bundle.path} --target {HOST}"
    return EngineError(error.what, got=error.got, expected=error.expected, causes=error.causes, next_step=step)
