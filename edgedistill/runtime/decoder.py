"""The one Python face of a bundle at run time: raw frames in, kinematics out, 10 ms at a time.

    decoder = Decoder.open("NAME.edge")
    for output in decoder.push(frames_uv):      # (n, C) microvolts, any n
        output.kinematics                       # (K,), see decoder.info.output_names and output_units

Any chunking of the frames gives the same bits, and no output depends on a frame after `end_frame`.
The functions mirror the C ABI (`ed_push`, `ed_gap`, `ed_step`, ...).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntFlag
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from edgedistill.bundle import Bundle, open_bundle
from edgedistill.config import StudentShape
from edgedistill.errors import BundleError, EngineError, did_you_mean
from edgedistill.frontend import Bins, FrontEnd, FrontEndConfig, group_delay_ms, settling_bins, zscore
from edgedistill.numerics import Int8Model, Oracle
from edgedistill.runtime.onnx_engine import OnnxEngine

GRAPHS = {"onnxruntime": "student.onnx", "onnxruntime-int8": "student.int8.onnx"}
ENGINES = (*GRAPHS, "oracle")  # the oracle: INT8 in numpy, what every other INT8 engine is compared with

Floats = npt.NDArray[np.float32]
State = Mapping[str, npt.NDArray[Any]]


class Flag(IntFlag):
    """What to know about an output; bits as in `ed_output.flags`."""

    WARMUP = 1  # fewer bins seen than the receptive field and the filters' settling time
    MASKED = 2  # at least one channel was bad and masked
    GAP = 4  # frames of this bin were declared lost
    INVALID = 8  # no usable channel, or a result that is not finite: do not act on it


@dataclass(frozen=True, eq=False)
class Output:
    """One completed bin, as `ed_output`."""

    bin: int
    end_frame: int  # the raw frame that completed the bin
    flags: Flag
    bad_channels: int
    kinematics: Floats  # (K,) in the units of `DecoderInfo.output_units`


@dataclass(frozen=True)
class DecoderInfo:
    """What a caller needs to feed a decoder and to read its outputs."""

    name: str
    engine: str
    sha256: str  # of the bundle's manifest, and through it of every file
    rate: Fraction  # frames a second
    channel_ids: tuple[str, ...]  # order of the columns of a frame
    output_names: tuple[str, ...]
    output_units: tuple[str, ...]
    group_delay_ms: float  # of the front end
    warmup_bins: int


class Decoder:
    """A bundle's student at a point in a stream. One object a stream, one thread at a time."""

    def __init__(self, bundle: Bundle, engine: str = "onnxruntime") -> None:
        """BundleError for a manifest that contradicts itself, EngineError for an engine that cannot run."""
        if engine not in ENGINES:
            raise EngineError(f"unknown engine '{engine}'", expected=did_you_mean(engine, ENGINES))
        self.shape, self.frontend_config, self.info, mean, std = _described(bundle, engine)
        self.set_normalization(mean, std)
        self._front_end = FrontEnd(self.frontend_config)
        self._engine = _open_engine(bundle, self.shape, engine)
        self._seen = 0

    @classmethod
    def open(cls, path: str | Path, engine: str = "onnxruntime") -> Decoder:
        """Open and verify the bundle at `path` (folder or .zip)."""
        return cls(open_bundle(path), engine)

    def push(self, frames_uv: npt.NDArray[np.floating[Any]]) -> list[Output]:
        """Frames (n, C) in uV, any n, to the outputs of the bins they complete.

        Samples that are not finite are no error: their channel is masked and counted.
        """
        return self._decode(self._front_end.push(np.asarray(frames_uv)))

    def push_i16(
        self, frames: npt.NDArray[np.int16], gain_uv: npt.ArrayLike, offset_uv: npt.ArrayLike = 0.0
    ) -> list[Output]:
        """Integer samples (n, C) of an amplifier; uV = frames * gain + offset, a number or one a channel."""
        raw = np.asarray(frames)
        if raw.dtype != np.int16:
            raise EngineError("push_i16 takes int16 samples", got=raw.dtype, next_step="push() takes microvolts")
        gain, offset = np.asarray(gain_uv, np.float64), np.asarray(offset_uv, np.float64)
        for name, value in (("gain_uv", gain), ("offset_uv", offset)):
            if value.shape not in ((), (self.shape.channels,)):
                raise EngineError(f"{name} has the wrong shape", got=value.shape, expected="a number, or one a channel")
        return self.push((raw * gain + offset).astype(np.float32))

    def gap(self, n_frames: int) -> list[Output]:
        """`n_frames` lost frames: time goes on, zeros go in, every bin they touch is flagged."""
        return self._decode(self._front_end.gap(n_frames))

    def step(self, bin: npt.NDArray[np.floating[Any]]) -> Floats:
        """Kinematics (K,) of one z-scored bin (C,), the front end bypassed; masked channels are 0."""
        values = np.asarray(bin, np.float32)
        if not np.isfinite(values).all():  # a NaN would stay in the ring for the whole window
            raise EngineError(
                "a bin must be finite", got=f"{np.count_nonzero(~np.isfinite(values))} values that are not",
                expected="z-scored values, 0 for a channel without a signal",
            )  # fmt: skip
        self._seen += 1
        return self._engine.step(values)

    def reset(self) -> None:
        """A fresh stream: the next frame is frame 0. The normalization stays as set."""
        self._front_end.reset()
        self._engine.reset()
        self._seen = 0

    def set_normalization(self, mean: npt.ArrayLike, std: npt.ArrayLike) -> None:
        """Another day's statistics, both (C,) in uV, from the next bin on; std 0 silences a channel."""
        new_mean, new_std = np.array(mean, np.float64), np.array(std, np.float64)
        for name, values in (("mean", new_mean), ("std", new_std)):
            if values.shape != (self.shape.channels,) or not np.isfinite(values).all():
                raise EngineError(
                    f"the {name} of the normalization does not fit",
                    got=f"shape {values.shape}",
                    expected=f"({self.shape.channels},) finite values, one a channel",
                )
        if (new_std < 0).any():
            raise EngineError("a standard deviation cannot be negative", got=new_std.min())
        self._mean, self._std = new_mean, new_std

    @property
    def latent(self) -> Floats:
        """The student's latent (d,) of the last bin; in INT8 before the gain of the last norm."""
        return self._engine.latent

    def export_state(self) -> dict[str, npt.NDArray[Any]]:
        """Where this stream stands: `fe_*` of the front end, `state_*` of the student, and `seen` bins."""
        state: dict[str, npt.NDArray[Any]] = {"seen": np.array(self._seen, np.int64)}
        state |= {f"fe_{name}": array for name, array in self._front_end.export_state().items()}
        return state | {f"state_{name}": array for name, array in self._engine.export_state().items()}

    def import_state(self, state: State) -> None:
        """Go on from an exported state. A part that is left out (fe_*, state_*, seen) starts fresh.

        EngineError, with nothing changed, for a state of another bundle.
        """
        front_end, student = _part(state, "fe_"), _part(state, "state_")
        fresh = FrontEnd(self.frontend_config)
        if front_end:
            fresh.import_state(front_end)
        if student:
            self._engine.import_state(student)
        else:
            self._engine.reset()
        self._front_end = fresh
        self._seen = int(state["seen"]) if "seen" in state else 0

    def _decode(self, bins: Bins) -> list[Output]:
        with np.errstate(over="ignore"):  # a value beyond float32 becomes infinite, and is masked below
            values = zscore(bins.values, bins.bad, self._mean, self._std)
        wild = ~np.isfinite(values)
        values[wild] = 0
        bad = bins.bad | wild
        return [
            self._output(bins.first_bin + i, int(bins.end_frame[i]), values[i], bad[i], bool(bins.gap[i]))
            for i in range(len(values))
        ]

    def _output(self, bin: int, end_frame: int, values: Floats, bad: npt.NDArray[np.bool_], gap: bool) -> Output:
        kinematics = self._engine.step(values)
        self._seen += 1
        n_bad = int(np.count_nonzero(bad))
        flags = Flag.GAP if gap else Flag(0)
        if self._seen < self.info.warmup_bins:
            flags |= Flag.WARMUP
        if n_bad:
            flags |= Flag.MASKED
        if not (~bad & (self._std > 0)).any() or not np.isfinite(kinematics).all():
            flags |= Flag.INVALID
        return Output(bin, end_frame, flags, n_bad, kinematics)


def _open_engine(bundle: Bundle, shape: StudentShape, engine: str) -> OnnxEngine | Oracle:
    if engine in GRAPHS:
        return OnnxEngine(bundle.read(GRAPHS[engine]), shape)
    try:
        tensors = load_safetensors(bundle.read("student.int8.safetensors"))
    except SafetensorError as error:
        raise BundleError(f"{bundle.path}: 'student.int8.safetensors' is not a safetensors file", got=error) from error
    return Oracle(Int8Model(shape, tensors))


def _part(state: State, prefix: str) -> dict[str, npt.NDArray[Any]]:
    return {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}


def _described(
    bundle: Bundle, engine: str
) -> tuple[StudentShape, FrontEndConfig, DecoderInfo, list[float], list[float]]:
    """What the manifest says of the decoder: shape, front end, info, mean and std (C,)."""
    manifest = bundle.manifest
    try:
        shape = StudentShape.from_json(manifest["model"], f"{bundle.path}: 'manifest.json', model")
        front_end = FrontEndConfig.from_json(manifest["frontend"])
        mean, std = manifest["normalization"]["mean"], manifest["normalization"]["std"]
        info = DecoderInfo(
            name=str(manifest["name"]),
            engine=engine,
            sha256=bundle.sha256,
            rate=front_end.rate,
            channel_ids=tuple(map(str, manifest["channel_ids"])),
            output_names=tuple(str(output["name"]) for output in manifest["outputs"]),
            output_units=tuple(str(output["unit"]) for output in manifest["outputs"]),
            group_delay_ms=group_delay_ms(front_end),
            warmup_bins=shape.receptive_field + settling_bins(front_end),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BundleError(f"{bundle.path}: 'manifest.json' does not describe a decoder", got=repr(error)) from error
    counts = {front_end.channels, len(info.channel_ids), len(mean), len(std)}
    if counts != {shape.channels} or len(info.output_names) != shape.outputs:
        raise BundleError(
            f"{bundle.path}: 'manifest.json' contradicts itself",
            got=f"{sorted(counts)} channels, {len(info.output_names)} outputs",
            expected=f"{shape.channels} channels, {shape.outputs} outputs, as its model has",
        )
    return shape, front_end, info, mean, std
