"""The one Python face of a bundle at run time: raw frames in, kinematics out, 10 ms at a time.

    decoder = Decoder.open("NAME.edge")
    for output in decoder.push(frames_uv):      # (n, C) microvolts, any n
        output.kinematics                       # (K,), see decoder.info.output_names and output_units

Any chunking of the frames gives the same bits, and no output depends on a frame after `end_frame`.
The functions mirror the C ABI (`ed_push`, `ed_gap`, `ed_step`, ...).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from edgedistill.bundle import Bundle, open_bundle, why_left_out
from edgedistill.config import StudentShape
from edgedistill.errors import BundleError, EngineError, did_you_mean
from edgedistill.frontend import FrontEndConfig, group_delay_ms, settling_bins
from edgedistill.numerics import Int8Model, Oracle
from edgedistill.runtime.abi_engine import AbiEngine
from edgedistill.runtime.compiled import COMPILED, is_compiled
from edgedistill.runtime.onnx_engine import OnnxEngine
from edgedistill.runtime.stream import Flag, Floats, NumpyStream, Output, State

GRAPHS = {"onnxruntime": "student.onnx", "onnxruntime-int8": "student.int8.onnx"}
# COMPILED: INT8, compiled for this machine by `edgedistill compile`; oracle: INT8 in numpy, which all are held against
ENGINES = (*GRAPHS, *COMPILED, "oracle")

__all__ = ["ENGINES", "GRAPHS", "Decoder", "DecoderInfo", "Flag", "Output"]


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

    def __init__(self, bundle: Bundle, engine: str | None = None) -> None:
        """`engine` is one of ENGINES; without it the one that the bundle was built for, and never another instead.

        BundleError for a manifest that contradicts itself, EngineError for an engine that cannot run.
        """
        engine = str(bundle.manifest.get("engine", ENGINES[0])) if engine is None else engine
        if engine not in ENGINES:
            raise EngineError(f"unknown engine '{engine}'", expected=did_you_mean(engine, ENGINES))
        self.shape, self.frontend_config, self.info, mean, std = described(bundle, engine)
        self._stream: NumpyStream | AbiEngine
        if engine in COMPILED:
            self._stream = COMPILED[engine].open(bundle, self.shape, self.frontend_config)
            return
        student = _open_engine(bundle, self.shape, engine)
        self._stream = NumpyStream(self.frontend_config, student, self.info.warmup_bins)
        self._stream.set_normalization(*self._checked_normalization(mean, std))

    @classmethod
    def open(cls, path: str | Path, engine: str | None = None) -> Decoder:
        """Open and verify the bundle at `path` (folder or .zip)."""
        return cls(open_bundle(path), engine)

    def push(self, frames_uv: npt.NDArray[np.floating[Any]]) -> list[Output]:
        """Frames (n, C) in uV, any n, to the outputs of the bins they complete.

        Samples that are not finite are no error: their channel is masked and counted.
        """
        frames: npt.NDArray[np.floating[Any]] = np.asarray(frames_uv)
        if frames.ndim != 2 or frames.shape[1] != self.shape.channels or frames.dtype.kind != "f":
            raise EngineError(
                "the decoder cannot take these frames",
                got=f"shape {frames.shape}, {frames.dtype}",
                expected=f"(n, {self.shape.channels}) microvolts as floats, time first",
                causes=(
                    "the recording has other channels than the bundle",
                    "channels and time are swapped",
                    "raw integers without their gain: push_i16()",
                ),
            )
        with np.errstate(over="ignore"):  # beyond float32: infinite, and so masked
            return self._stream.push(np.ascontiguousarray(frames, np.float32))

    def push_i16(
        self, frames: npt.NDArray[np.int16], gain_uv: npt.ArrayLike, offset_uv: npt.ArrayLike = 0.0
    ) -> list[Output]:
        """Integer samples (n, C) of an amplifier; uV = frames * gain + offset, a number or one a channel."""
        raw = np.asarray(frames)
        if raw.dtype != np.int16:
            raise EngineError("push_i16 takes int16 samples", got=raw.dtype, next_step="push() takes microvolts")
        if raw.ndim != 2 or raw.shape[1] != self.shape.channels:
            raise EngineError("frames have the wrong shape", got=raw.shape, expected=f"(n, {self.shape.channels})")
        gain, offset = self._one_a_channel("gain_uv", gain_uv), self._one_a_channel("offset_uv", offset_uv)
        return self._stream.push_i16(np.ascontiguousarray(raw), gain, offset)

    def gap(self, n_frames: int) -> list[Output]:
        """`n_frames` lost frames: time goes on, zeros go in, every bin they touch is flagged."""
        if n_frames < 0:
            raise EngineError("a gap cannot be negative", got=f"{n_frames} frames", expected="0 or more")
        return self._stream.gap(n_frames)

    def step(self, bin: npt.NDArray[np.floating[Any]]) -> Floats:
        """Kinematics (K,) of one z-scored bin (C,), the front end bypassed; masked channels are 0."""
        values = np.asarray(bin, np.float32)
        if values.shape != (self.shape.channels,):
            raise EngineError("a step takes one bin", got=values.shape, expected=f"({self.shape.channels},)")
        if not np.isfinite(values).all():  # a NaN would stay in the ring for the whole window
            raise EngineError(
                "a bin must be finite", got=f"{np.count_nonzero(~np.isfinite(values))} values that are not",
                expected="z-scored values, 0 for a channel without a signal",
            )  # fmt: skip
        return self._stream.step(values)

    def reset(self) -> None:
        """A fresh stream: the next frame is frame 0. The normalization stays as set."""
        self._stream.reset()

    def set_normalization(self, mean: npt.ArrayLike, std: npt.ArrayLike) -> None:
        """Another day's statistics, both (C,) in uV, from the next bin on; std 0 silences a channel.

        Rounded to float32, as `ed_set_normalization` takes them, whatever the engine.
        """
        with np.errstate(over="ignore"):
            rounded = [np.array(values, np.float32).astype(np.float64) for values in (mean, std)]
        self._stream.set_normalization(*self._checked_normalization(*rounded))

    @property
    def latent(self) -> Floats:
        """The student's latent (d,) of the last bin; in INT8 before the gain of the last norm."""
        return self._stream.latent

    def export_state(self) -> dict[str, npt.NDArray[Any]]:
        """Where this stream stands: `fe_*` of the front end, `state_*` of the student, and `seen` bins."""
        return self._stream.export_stream()

    def import_state(self, state: State) -> None:
        """Go on from an exported state. A part that is left out (fe_*, state_*, seen) starts fresh.

        EngineError, with nothing changed, for a state of another bundle.
        """
        self._stream.import_stream(state)

    def _checked_normalization(
        self, mean: npt.ArrayLike, std: npt.ArrayLike
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
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
        return new_mean, new_std

    def _one_a_channel(self, name: str, value: npt.ArrayLike) -> npt.NDArray[np.float64]:
        found = np.asarray(value, np.float64)
        if found.shape not in ((), (self.shape.channels,)) or not np.isfinite(found).all():
            expected = "a finite number, or one a channel"
            raise EngineError(f"{name} does not fit", got=f"shape {found.shape}", expected=expected)
        return np.array(np.broadcast_to(found, self.shape.channels))


def _open_engine(bundle: Bundle, shape: StudentShape, engine: str) -> OnnxEngine | Oracle:
    if engine in GRAPHS:
        require_usable(bundle, engine)
        return OnnxEngine(bundle.read(GRAPHS[engine]), shape)
    return Oracle(int8_model(bundle, shape))


def require_usable(bundle: Bundle, engine: str) -> None:
    """EngineError where the build left the graph of this engine out of use; it says why, and what may be used."""
    reason = why_left_out(bundle, GRAPHS[engine])
    if reason is None:
        return
    graphs = (name for name, file in GRAPHS.items() if why_left_out(bundle, file) is None)
    usable = [*(name for name in COMPILED if is_compiled(bundle, name)), *graphs, "oracle"]
    raise EngineError(
        f"the engine '{engine}' may not be used: the build left {GRAPHS[engine]} out of this bundle",
        got=reason,
        expected=f"an engine that decodes what the student does: {', '.join(usable)}",
        next_step=f"edgedistill run {bundle.path} RECORDING --engine {usable[0]}",
    )


def int8_model(bundle: Bundle, shape: StudentShape) -> Int8Model:
    """The bundle's INT8 student. BundleError if there is none, or it is not one of that shape."""
    try:
        tensors = load_safetensors(bundle.read("student.int8.safetensors"))
    except SafetensorError as error:
        raise BundleError(f"{bundle.path}: 'student.int8.safetensors' is not a safetensors file", got=error) from error
    return Int8Model(shape, tensors)


def described(
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
