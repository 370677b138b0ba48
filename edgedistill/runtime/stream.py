"""Runs a stream in numpy. Frames go in, and one `Output` for each bin comes out.

The front end in numpy, which is the definition of the front end, feeds an engine that takes one bin of the models'
input a step. `abi_engine.AbiEngine` does the same in C, and `Decoder` uses either.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from enum import IntFlag
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.errors import EngineError
from edgedistill.frontend import Bins, ChannelStatistics, FrontEnd, FrontEndConfig, SpatialModel, standardize
from edgedistill.frontend.stream import MOST_FRAMES
from edgedistill.numerics import Oracle
from edgedistill.numerics.deviation import DeviationModel
from edgedistill.numerics.smoothing import SmoothingModel, smoother_from_state
from edgedistill.runtime.onnx_engine import OnnxEngine
from edgedistill.runtime.shift import RunningAmplitude

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
State = Mapping[str, npt.NDArray[Any]]


class Flag(IntFlag):
    """Lists the warnings about an output. The bits are those of `ed_output.flags`."""

    WARMUP = 1  # the student has not seen its receptive field yet, or the filters have not settled since a start or gap
    MASKED = 2  # at least one channel was bad and filled in, apart from those that the settings leave out
    GAP = 4  # frames of this bin were declared lost
    INVALID = 8  # there is no usable channel, or the result is not finite: do not act on it
    SHIFTED = 16  # most channels have been outside 0.25 to 4 times the expected amplitude for 10 s


@dataclass(frozen=True, eq=False)
class Output:
    """Describes one completed bin, as the struct `ed_output` does."""

    bin: int
    end_frame: int  # the raw frame that completed the bin
    flags: Flag
    bad_channels: int
    kinematics: Floats  # (K,) in the units of `DecoderInfo.output_units`
    deviation: Floats  # (K,) standard deviation of each, in the same units


class NumpyStream:
    """Runs front end, fill-in, statistics and flags in numpy, and an engine for the step."""

    def __init__(
        self,
        config: FrontEndConfig,
        spatial: SpatialModel,
        deviation: DeviationModel,
        engine: OnnxEngine | Oracle,
        warmup_bins: int,
        smoothing: SmoothingModel | None = None,
    ) -> None:
        self._config, self._engine, self._warmup_bins = config, engine, warmup_bins
        self._spatial, self._deviation = spatial, deviation
        self._front_end = FrontEnd(config)
        self._statistics = ChannelStatistics(config.inputs, config.follow_rate)
        self._amplitude = RunningAmplitude(config.channels)
        self._smoothing, self._smoother = smoothing, smoother_from_state(smoothing, {})
        self._seen = 0

    @property
    def latent(self) -> Floats:
        """Returns the engine's latent (d,) of the last bin."""
        return self._engine.latent

    def push(self, frames_uv: Floats) -> list[Output]:
        """Takes frames (n, C) in uV and returns the outputs of the bins that they complete."""
        return self._decode(self._front_end.push(frames_uv))

    def push_i16(
        self, frames: npt.NDArray[np.int16], gain: npt.NDArray[np.float64], offset: npt.NDArray[np.float64]
    ) -> list[Output]:
        """Takes integer frames (n, C) and returns the outputs of the bins that they complete.

        uV = frames * gain + offset, where gain and offset are (C,). The result is rounded once.
        """
        with np.errstate(over="ignore"):  # a value beyond float32 becomes infinite, and its channel is masked
            return self.push((frames * gain + offset).astype(np.float32))

    def gap(self, n_frames: int) -> list[Output]:
        """Counts lost frames and returns the outputs of the bins that they complete."""
        return self._decode(self._front_end.gap(n_frames))

    def step(self, bin: Floats) -> Floats:
        """Returns the kinematics (K,) of one bin (I,) of the models' input."""
        self._count_bin()
        return self._step(bin)

    def reset(self) -> None:
        """Goes back to a fresh stream, with the normalization that was set."""
        self._front_end.reset()
        self._statistics.reset()
        self._engine.reset()
        self._amplitude.reset()
        if self._smoother is not None:
            self._smoother.reset()
        self._seen = 0

    def set_normalization(self, mean: npt.NDArray[np.float64], std: npt.NDArray[np.float64]) -> None:
        """Sets the statistics (I,) that hold from the next bin on. The running amplitude starts again."""
        self._statistics.set(mean, std)
        self._amplitude.reset()

    def export_stream(self) -> dict[str, npt.NDArray[Any]]:
        """Returns the state of the stream.

        `seen` counts bins. The front end's state is `fe_*`, that of statistics that follow the signal `statistics_*`,
        that of the running amplitude `shift_*`, that of the filter of the outputs `smoothing_state`, and that of the
        engine `state_*`.
        """
        state: dict[str, npt.NDArray[Any]] = {"seen": np.array(self._seen, np.int64)}
        state |= {f"fe_{name}": array for name, array in self._front_end.export_state().items()}
        state |= {f"statistics_{name}": array for name, array in self._statistics.export_state().items()}
        state |= {f"shift_{name}": array for name, array in self._amplitude.export_state().items()}
        if self._smoother is not None:
            state |= {f"smoothing_{name}": array for name, array in self._smoother.export_state().items()}
        return state | {f"state_{name}": array for name, array in self._engine.export_state().items()}

    def import_stream(self, state: State) -> None:
        """Continues from an exported stream. A part that is missing from it starts fresh.

        Raises EngineError, with nothing changed, for the state of another bundle.
        """
        seen, front_end, student = read_seen(state), take_part(state, "fe_"), take_part(state, "state_")
        fresh, amplitude = FrontEnd(self._config), RunningAmplitude(self._config.channels)
        statistics = copy(self._statistics)
        statistics.reset()
        if front_end:
            fresh.import_state(front_end)
        if shift := take_part(state, "shift_"):
            amplitude.import_state(shift)
        if followed := take_part(state, "statistics_"):
            statistics.import_state(followed)
        smoother = smoother_from_state(self._smoothing, take_part(state, "smoothing_"))
        if student:
            self._engine.import_state(student)
        else:
            self._engine.reset()
        self._front_end, self._amplitude, self._statistics = fresh, amplitude, statistics
        self._smoother = smoother
        self._seen = seen

    def _count_bin(self) -> None:
        self._seen = min(self._seen + 1, MOST_FRAMES)

    def _step(self, z: Floats) -> Floats:
        raw = self._engine.step(z)
        return raw if self._smoother is None else self._smoother.step(raw)

    def _decode(self, bins: Bins) -> list[Output]:
        return [self._decode_bin(bins, i) for i in range(len(bins.values))]

    def _decode_bin(self, bins: Bins, i: int) -> Output:
        statistics, values = self._statistics, bins.values[i]
        known = self._spatial.known
        row, moments = slice(i, i + 1), (statistics.mean, statistics.std)
        present, theirs, bads = standardize(bins.values[row], bins.bad[row], moments, known)
        z, there, bad = self._spatial.complete(present, theirs)[0], theirs[0], bads[0]
        kinematics = self._step(z)
        self._count_bin()
        flags = self._find_flags(bins, i, bad, there, kinematics)
        if not flags & (Flag.WARMUP | Flag.GAP):  # filters ring, or frames have no amplitude
            self._amplitude.update(z[: len(there)], there)
            statistics.update(values, np.tile(there, self._config.features))
        if self._amplitude.shifted:
            flags |= Flag.SHIFTED
        lost = np.array([np.count_nonzero(known & ~there)])
        deviation = self._deviation.deviations(kinematics[None], lost)[0]
        n_bad = int(np.count_nonzero(bad)) - len(self._config.left_out)
        return Output(bins.first_bin + i, int(bins.end_frame[i]), flags, n_bad, kinematics, deviation)

    def _find_flags(self, bins: Bins, i: int, bad: Mask, there: Mask, kinematics: Floats) -> Flag:
        """Returns the flags of bin i, without the one of the running amplitude."""
        flags = Flag.GAP if bins.gap[i] else Flag(0)
        if self._seen < self._warmup_bins or bins.unsettled[i]:
            flags |= Flag.WARMUP
        if np.count_nonzero(bad) > len(self._config.left_out):  # those are bad in every bin
            flags |= Flag.MASKED
        if not there.any() or not np.isfinite(kinematics).all():
            flags |= Flag.INVALID
        return flags


def read_seen(state: State) -> int:
    """Returns how many bins a stream has seen, 0 where its state does not say so.

    Raises EngineError for a number that no stream comes to.
    """
    found = state.get("seen", np.array(0))
    if found.shape != () or found.dtype.kind not in "iu" or not 0 <= int(found) <= MOST_FRAMES:
        got = f"{found.dtype} {found.shape}" if found.shape or found.dtype.kind not in "iu" else int(found)
        raise EngineError("state 'seen' is out of range", got=got, expected=f"one integer from 0 to {MOST_FRAMES}")
    return int(found)


def take_part(state: State, prefix: str) -> dict[str, npt.NDArray[Any]]:
    """Returns the arrays whose names begin with `prefix`, with that prefix removed from their names."""
    return {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}
