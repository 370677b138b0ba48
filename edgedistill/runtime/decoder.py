"""Decodes a stream with a bundle: raw frames come in, kinematics go out, one output every 10 ms.

    decoder = Decoder.open("NAME.edge")
    for output in decoder.push(frames_uv):      # (n, C) microvolts, any n
        output.kinematics                       # (K,), see decoder.info.output_names and output_units

This is the one Python interface to a bundle at run time. However the frames are cut into calls, the outputs have the
same bits, and no output depends on a frame after `end_frame`. The methods mirror the C ABI (`ed_push`, `ed_gap`,
`ed_step`, ...).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.bundle import Bundle, open_bundle
from edgedistill.bundle import require_signature as check_signature
from edgedistill.bundle.contents import (
    DecoderSpec,
    read_decoder_spec,
    read_deviation_model,
    read_int8_model,
    read_smoothing_model,
    read_spatial_model,
    require_current_format,
)
from edgedistill.config import StudentShape
from edgedistill.errors import EngineError, did_you_mean
from edgedistill.numerics import Oracle
from edgedistill.numerics.smoothing import SmoothingModel
from edgedistill.runtime.abi_engine import AbiEngine
from edgedistill.runtime.compiled_engines import COMPILED, is_compiled
from edgedistill.runtime.exclusive import ExclusiveUse
from edgedistill.runtime.onnx_engine import OnnxEngine
from edgedistill.runtime.stream import Flag, Floats, NumpyStream, Output, State

GRAPHS = {"onnxruntime": "student.onnx", "onnxruntime-int8": "student.int8.onnx"}
# GRAPHS run on onnxruntime. `edgedistill compile` makes the COMPILED ones, in INT8. The oracle is the definition of
# INT8 in numpy, which all others are compared with.
ENGINES = (*GRAPHS, *COMPILED, "oracle")

__all__ = ["ENGINES", "GRAPHS", "Decoder", "DecoderInfo", "Flag", "Output"]


@dataclass(frozen=True)
class DecoderInfo:
    """Holds what a caller needs to know to feed a decoder and to read its outputs."""

    name: str
    engine: str
    sha256: str  # of the bundle's manifest, which holds the hash of every file
    rate: Fraction  # frames a second
    channel_ids: tuple[str, ...]  # order of the columns of a frame
    output_names: tuple[str, ...]
    output_units: tuple[str, ...]
    group_delay_ms: float  # of the front end
    smoothing_delay_ms: float  # of the filter that smooths the outputs; 0 without one
    warmup_bins: int


def describe_decoder(spec: DecoderSpec, engine: str, smoothing: SmoothingModel | None = None) -> DecoderInfo:
    """Returns what a caller needs to know about the bundle's decoder with that engine and that filter of outputs."""
    return DecoderInfo(
        name=spec.name,
        engine=engine,
        sha256=spec.sha256,
        rate=spec.front_end.rate,
        channel_ids=spec.channel_ids,
        output_names=spec.output_names,
        output_units=spec.output_units,
        group_delay_ms=spec.group_delay_ms,
        smoothing_delay_ms=0.0 if smoothing is None else smoothing.delay_ms(spec.front_end.bin_ms),
        warmup_bins=spec.warmup_bins,
    )


class Decoder:
    """Decodes one stream with a bundle's student. Each stream needs its own object, used by one thread at a time.

    A call while another thread uses the object raises EngineError, and so does every call after `close`. It is a
    context manager that closes itself.
    """

    def __init__(self, bundle: Bundle, engine: str | None = None) -> None:
        """Opens one of ENGINES, or without `engine` the one that the bundle was built for.

        It is never replaced by another engine. Raises BundleError for a bundle of an older format or a manifest that
        contradicts itself, and EngineError for an engine that cannot run.
        """
        require_current_format(bundle)
        engine = (bundle.manifest.engine or ENGINES[0]) if engine is None else engine
        if engine not in ENGINES:
            raise EngineError(f"unknown engine '{engine}'", expected=did_you_mean(engine, ENGINES))
        spec = read_decoder_spec(bundle)
        self.bundle = bundle
        smoothing = read_smoothing_model(bundle, spec.shape)
        self.shape, self.frontend_config = spec.shape, spec.front_end
        self.info = describe_decoder(spec, engine, smoothing)
        self._use = ExclusiveUse()
        self._stream: NumpyStream | AbiEngine
        if engine in COMPILED:
            self._stream = COMPILED[engine].open(bundle, self.shape, self.frontend_config)
            return
        student = _open_engine(bundle, self.shape, engine)
        spatial = read_spatial_model(bundle, self.frontend_config)
        deviation = read_deviation_model(bundle, self.frontend_config.channels, self.shape.outputs)
        self._stream = NumpyStream(self.frontend_config, spatial, deviation, student, self.info.warmup_bins, smoothing)
        self._stream.set_normalization(*self._checked_normalization(spec.normalization.mean, spec.normalization.std))

    @classmethod
    def open(
        cls, path: str | Path, engine: str | None = None, *, require_signature: str | Path | None = None
    ) -> Decoder:
        """Opens and verifies the bundle at `path`, a folder or a .zip.

        With `require_signature`, the path of a public key, SignatureError is raised unless its owner signed the bundle.
        """
        bundle = open_bundle(path)
        if require_signature is not None:
            check_signature(bundle, require_signature)
        return cls(bundle, engine)

    def close(self) -> None:
        """Gives back the engine's memory, on a GPU that of the device too. A second call does nothing.

        Without it this happens when Python finds that nobody holds the object any more.
        """
        if self._use.closed:
            return
        with self._use:
            self._use.closed = True
            if isinstance(self._stream, AbiEngine):
                self._stream.close()
            del self._stream

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def push(self, frames_uv: npt.NDArray[np.floating[Any]]) -> list[Output]:
        """Takes frames (n, C) in uV, any n, and returns the outputs of the bins that they complete.

        A sample that is not finite is no error. Its channel is masked and counted.
        """
        frames: npt.NDArray[np.floating[Any]] = np.asarray(frames_uv)
        if frames.ndim != 2 or frames.shape[1] != self.frontend_config.channels or frames.dtype.kind != "f":
            raise EngineError(
                "the decoder cannot take these frames",
                got=f"shape {frames.shape}, {frames.dtype}",
                expected=f"(n, {self.frontend_config.channels}) microvolts as floats, time first",
                causes=(
                    "the recording has other channels than the bundle",
                    "channels and time are swapped",
                    "raw integers without their gain: push_i16()",
                ),
            )
        with self._use, np.errstate(over="ignore"):  # a value beyond float32 becomes infinite, its channel masked
            return self._stream.push(np.ascontiguousarray(frames, np.float32))

    def push_i16(
        self, frames: npt.NDArray[np.int16], gain_uv: npt.ArrayLike, offset_uv: npt.ArrayLike = 0.0
    ) -> list[Output]:
        """Takes integer samples (n, C) of an amplifier and returns the outputs of the bins that they complete.

        uV = frames * gain + offset. Gain and offset are one number, or one for each channel.
        """
        raw = np.asarray(frames)
        if raw.dtype != np.int16:
            raise EngineError("push_i16 takes int16 samples", got=raw.dtype, next_step="push() takes microvolts")
        if raw.ndim != 2 or raw.shape[1] != self.frontend_config.channels:
            raise EngineError(
                "frames have the wrong shape", got=raw.shape, expected=f"(n, {self.frontend_config.channels})"
            )
        gain, offset = self._one_a_channel("gain_uv", gain_uv), self._one_a_channel("offset_uv", offset_uv)
        with self._use:
            return self._stream.push_i16(np.ascontiguousarray(raw), gain, offset)

    def take_frames_at_once(self) -> None:
        """Lets a compiled engine filter the frames of an unfinished bin as they come, until `reset`.

        It makes the output earlier where the front end decimates, and `export_state` is refused within a bin. Bits are
        the same.
        """
        with self._use:
            if isinstance(self._stream, AbiEngine):
                self._stream.take_frames_at_once()

    def gap(self, n_frames: int) -> list[Output]:
        """Counts `n_frames` lost frames, flags every bin that they touch, and returns the finished bins."""
        if n_frames < 0:
            raise EngineError("a gap cannot be negative", got=f"{n_frames} frames", expected="0 or more")
        with self._use:
            return self._stream.gap(n_frames)

    def step(self, bin: npt.NDArray[np.floating[Any]]) -> Floats:
        """Returns kinematics (K,) of one bin (I,) of the models' input, without the front end."""
        values = np.asarray(bin, np.float32)
        if values.shape != (self.shape.channels,):
            raise EngineError("a step takes one bin", got=values.shape, expected=f"({self.shape.channels},)")
        if not np.isfinite(values).all():  # a NaN would stay in the rings for the whole window
            raise EngineError(
                "a bin must be finite", got=f"{np.count_nonzero(~np.isfinite(values))} values that are not",
                expected="finite values, in deviations",
            )  # fmt: skip
        with self._use:
            return self._stream.step(values)

    def reset(self) -> None:
        """Goes back to a fresh stream, whose next frame is frame 0, with the normalization that was set last."""
        with self._use:
            self._stream.reset()

    def set_normalization(self, mean: npt.ArrayLike, std: npt.ArrayLike) -> None:
        """Sets another day's statistics, both (I,), from the next bin on.

        They are those of the filtered channels in uV before the common average, then of the log power of each band. A
        std of 0 of its slow LFP silences a channel, and that of a band makes this number 0. Where statistics follow the
        signal, they follow from these on.
        They are rounded to float32 for every engine, as `ed_set_normalization` takes them. `Flag.SHIFTED` is cleared,
        and comes back only if the amplitude does not fit the new statistics either.
        """
        with np.errstate(over="ignore"):
            rounded = [np.array(values, np.float32).astype(np.float64) for values in (mean, std)]
        checked = self._checked_normalization(*rounded)
        with self._use:
            self._stream.set_normalization(*checked)

    @property
    def latent(self) -> Floats:
        """Returns the student's latent (d,) of the last bin, in INT8 before the gain of the last norm."""
        with self._use:
            return self._stream.latent

    def export_state(self) -> dict[str, npt.NDArray[Any]]:
        """Returns the state of this stream.

        The front end is `fe_*`, statistics that follow `statistics_*`, the running amplitude `shift_*`, the filter of
        the outputs `smoothing_state`, the student `state_*`; `seen` counts bins.
        """
        with self._use:
            return self._stream.export_stream()

    def import_state(self, state: State) -> None:
        """Continues from an exported state. A part that is missing from it starts fresh.

        The parts are fe_*, statistics_*, shift_*, smoothing_state, state_* and seen.

        Raises EngineError, with nothing changed, for a state of another bundle, and for one that no stream comes to.
        """
        arrays = {name: np.asarray(array) for name, array in state.items()}
        with self._use:
            self._stream.import_stream(arrays)

    def _checked_normalization(
        self, mean: npt.ArrayLike, std: npt.ArrayLike
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        new_mean, new_std = np.array(mean, np.float64), np.array(std, np.float64)
        for name, values in (("mean", new_mean), ("std", new_std)):
            if values.shape != (self.shape.channels,) or not np.isfinite(values).all():
                raise EngineError(
                    f"the {name} of the normalization does not fit",
                    got=f"shape {values.shape}",
                    expected=f"({self.shape.channels},) finite values, one for each number of a bin",
                )
        if (new_std < 0).any():
            raise EngineError("a standard deviation cannot be negative", got=new_std.min())
        return new_mean, new_std

    def _one_a_channel(self, name: str, value: npt.ArrayLike) -> npt.NDArray[np.float64]:
        found = np.asarray(value, np.float64)
        if found.shape not in ((), (self.frontend_config.channels,)) or not np.isfinite(found).all():
            expected = "a finite number, or one a channel"
            raise EngineError(f"{name} does not fit", got=f"shape {found.shape}", expected=expected)
        return np.array(np.broadcast_to(found, self.frontend_config.channels))


def _open_engine(bundle: Bundle, shape: StudentShape, engine: str) -> OnnxEngine | Oracle:
    if engine in GRAPHS:
        require_usable(bundle, engine)
        return OnnxEngine(bundle.read(GRAPHS[engine]), shape)
    return Oracle(read_int8_model(bundle, shape))


def require_usable(bundle: Bundle, engine: str) -> None:
    """Raises EngineError where the build marked the graph of this engine as unusable.

    The error gives the reason, and names the engines that may be used.
    """
    reason = bundle.manifest.why_left_out(GRAPHS[engine])
    if reason is None:
        return
    graphs = (name for name, file in GRAPHS.items() if bundle.manifest.why_left_out(file) is None)
    usable = [*(name for name in COMPILED if is_compiled(bundle, name)), *graphs, "oracle"]
    raise EngineError(
        f"the engine '{engine}' may not be used: the build marked {GRAPHS[engine]} as unusable",
        got=reason,
        expected=f"an engine whose output equals or comes near that of the student: {', '.join(usable)}",
        next_step=f"edgedistill run {bundle.path} RECORDING --engine {usable[0]}",
    )
