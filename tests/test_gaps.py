"""What lost frames leave behind is flagged: elsewhere the models' input is that of a stream in which nothing was lost.

The electrodes have offsets of up to 2 mV, as an amplifier coupled to DC records them. Source: catalystneuro/neuroconv
#1791, fieldtrip/fieldtrip #1128, open-ephys/plugin-GUI #465.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgedistill.data.session import compute_moments
from edgedistill.data.simulation.sessions import SimulationConfig, simulate_sessions
from edgedistill.data.spatial_fit import fit_spatial_model
from edgedistill.frontend import FrontEnd, FrontEndConfig, Standardization, settling_bins
from edgedistill.numerics.deviation import DeviationModel
from edgedistill.runtime.stream import Flag, NumpyStream, Output

RATE, SECONDS, AFTER_S = 1000, 108, 17
OFF = 0.3  # deviations of the models' input
UNSURE = Flag.WARMUP | Flag.GAP | Flag.MASKED
BANDS = ((12.0, 30.0), (30.0, 60.0), (70.0, 150.0), (150.0, 300.0))
WITH_BANDS = ", with bands"
SIGNALS = ("random walk", "field with mains", f"field with mains{WITH_BANDS}")
FIRST = tuple((SIGNALS[1], lost_ms) for lost_ms in (1, 50, 2000))  # signals and gaps of every run of the tests
PLACES = (61_003, 70_010)  # frames, of which one is the first of a bin

Floats = npt.NDArray[np.float32]


class Recorder:
    """Stands in for a student, and keeps what it is given."""

    def __init__(self) -> None:
        self.seen: list[Floats] = []

    def step(self, bin: Floats) -> Floats:
        self.seen.append(bin.copy())
        return np.zeros(2, np.float32)

    def reset(self) -> None:
        self.seen.clear()

    def export_state(self) -> dict[str, Any]:
        return {}

    def import_state(self, state: Any) -> None:
        pass


@dataclass(frozen=True, eq=False)
class Twin:
    """Holds a recording in which nothing is lost, how it is standardized, and what a stream makes of it."""

    frames: Floats  # (n, C) uV
    standardization: Standardization
    config: FrontEndConfig
    inputs: Floats  # (T, C) of the models
    states: dict[int, dict[str, Any]]  # place -> state of the stream before that frame


def make_frames(signal: str) -> Floats:
    """Returns frames (n, C) in uV.

    A random walk drifts without end. A simulated field is mostly what the channels share, so the common average leaves
    little of it and errors show. Its mains are strong, and a gap changes their phase.
    """
    rng = np.random.default_rng(1)
    if signal == "random walk":
        walk = np.cumsum(rng.standard_normal((SECONDS * RATE, 8)), axis=0) * 0.5
        frames = walk + 30 * rng.standard_normal(walk.shape)
    else:
        config = SimulationConfig(sessions=1, minutes=SECONDS / 60, channels=8, units=4, population=200, seed=3)
        (session,) = simulate_sessions(config)
        frames = np.delete(session.lfp_uv.astype(np.float64), session.dead, axis=1)
        t = np.arange(len(frames))[:, None] / RATE
        uv, phase = rng.uniform(50, 150, frames.shape[1]), 0.5 * rng.standard_normal(frames.shape[1])
        frames += uv * np.sin(2 * np.pi * config.line_hz * t + phase)
    return (frames + np.linspace(-2000, 2000, frames.shape[1])).astype(np.float32)


def stream_of(config: FrontEndConfig, standardization: Standardization) -> tuple[NumpyStream, Recorder]:
    recorder, zeros = Recorder(), np.zeros((config.channels + 1, 2), np.float32)
    deviation = DeviationModel(zeros, zeros, zeros[0], zeros[0])
    stream = NumpyStream(config, standardization.spatial, deviation, recorder, 0)  # type: ignore[arg-type]
    stream.set_normalization(standardization.mean, standardization.std)
    return stream, recorder


@cache
def twin_of(signal: str) -> Twin:
    frames = make_frames(signal)
    bands = BANDS if signal.endswith(WITH_BANDS) else ()
    config = FrontEndConfig(rate=Fraction(RATE), channels=frames.shape[1], bands=bands)
    bins = FrontEnd(config).push(frames)
    settled = slice(settling_bins(config), None)
    values, bad = bins.values[settled], np.tile(bins.bad[settled], config.features)
    mean, std = compute_moments(values, ~bad)
    standardization = Standardization(mean, std, fit_spatial_model(config, values, bad, mean, std))
    stream, recorder = stream_of(config, standardization)
    states, done = {}, 0
    for place in PLACES:
        stream.push(frames[done:place])
        states[place], done = stream.export_stream(), place
    stream.push(frames[done:])
    return Twin(frames, standardization, config, np.array(recorder.seen), states)


def run(twin: Twin, place: int, lost: int, nan: bool = False) -> tuple[list[Output], Floats]:
    """Returns outputs and the models' inputs (B, C) from the first lost frame on."""
    stream, recorder = stream_of(twin.config, twin.standardization)
    stream.import_stream(twin.states[place])
    stop = place + lost + AFTER_S * RATE
    rest = twin.frames[place:stop].copy()
    if nan:
        rest[:lost] = np.nan
        outputs = stream.push(rest)
    else:
        outputs = [*stream.gap(lost), *stream.push(rest[lost:])]
    return outputs, np.array(recorder.seen)


def errors(twin: Twin, outputs: list[Output], inputs: Floats) -> tuple[npt.NDArray[np.bool_], Floats]:
    """Returns which outputs say that they are unsure (B,), and by how much their input is off (B,), in deviations."""
    unsure = np.array([bool(output.flags & UNSURE) for output in outputs])
    first = outputs[0].bin
    return unsure, np.abs(inputs - twin.inputs[first : first + len(inputs)]).max(axis=1)


@pytest.mark.parametrize(
    ("signal", "lost_ms"),
    [
        pytest.param(signal, lost_ms, marks=[] if (signal, lost_ms) in FIRST else pytest.mark.variant)
        for signal in SIGNALS
        for lost_ms in (1, 50, 500, 2000, 20_000)
    ],
)
def test_the_input_of_an_unflagged_bin_is_that_of_the_whole_recording(signal: str, lost_ms: int) -> None:
    twin, largest, flagged = twin_of(signal), [], []
    for place in PLACES:
        outputs, inputs = run(twin, place, lost_ms)
        unsure, off = errors(twin, outputs, inputs)
        largest.append(float(off[~unsure].max()))
        flagged.append(float(off[unsure].max()))
        assert not unsure[-200:].any()
    assert max(largest) < OFF, f"largest in unflagged bins: {largest}, in flagged ones {flagged}"
    assert max(flagged) > 2 * max(largest)


@pytest.mark.parametrize("signal", [SIGNALS[1], pytest.param(SIGNALS[2], marks=pytest.mark.variant)])
@pytest.mark.parametrize("lost_ms", [1, 2000, *(pytest.param(ms, marks=pytest.mark.variant) for ms in (50, 500))])
def test_flags_last_as_long_as_the_definition_says(signal: str, lost_ms: int) -> None:
    twin = twin_of(signal)
    for place in PLACES:
        outputs, _ = run(twin, place, lost_ms)
        touched = (place + lost_ms - 1) // 10 - place // 10 + 1
        gap = [bool(output.flags & Flag.GAP) for output in outputs]
        assert gap == [index < touched for index in range(len(outputs))]
        settles = twin.config.settled_bins - twin.config.clean_after_loss(touched) - 1
        warming = [bool(output.flags & Flag.WARMUP) for output in outputs[touched:]]
        assert warming == [index < settles for index in range(len(warming))]
        assert not any(output.flags & Flag.MASKED for output in outputs[touched:])


@pytest.mark.parametrize("lost_ms", [7, 2000, pytest.param(5000, marks=pytest.mark.variant)])
def test_frames_of_nan_are_lost_as_declared_ones_are(lost_ms: int) -> None:
    twin = twin_of(SIGNALS[1])
    for place in PLACES:
        (declared, its), (found, mine) = run(twin, place, lost_ms), run(twin, place, lost_ms, nan=True)
        assert [(o.bin, o.flags, o.bad_channels) for o in found] == [(o.bin, o.flags, o.bad_channels) for o in declared]
        assert mine.tobytes() == its.tobytes()


@pytest.mark.parametrize(
    "signal", [SIGNALS[1], *(pytest.param(one, marks=pytest.mark.variant) for one in (SIGNALS[0], SIGNALS[2]))]
)
def test_a_channel_that_comes_back_is_used_when_its_filters_have_settled(signal: str) -> None:
    twin = twin_of(signal)
    for place in PLACES:
        frames = twin.frames[place : place + AFTER_S * RATE].copy()
        frames[:200, 1] = np.nan
        stream, recorder = stream_of(twin.config, twin.standardization)
        stream.import_stream(twin.states[place])
        outputs = stream.push(frames)
        unsure, off = errors(twin, outputs, np.array(recorder.seen))
        masked = [bool(output.flags & Flag.MASKED) for output in outputs]
        touched = (place + 199) // 10 - place // 10 + 1
        assert masked == [index < touched + twin.config.settled_bins - 1 for index in range(len(masked))]
        assert off[~unsure].max() < OFF
        assert off[unsure].max() > off[~unsure].max()


def test_a_rate_that_is_decimated_resumes_as_well() -> None:
    twin = twin_of(SIGNALS[1])
    frames, first, lost = np.repeat(twin.frames[:75_000], 2, axis=0), 123_457, 600
    config = replace(twin.config, rate=Fraction(2 * RATE))
    intact, front_end = FrontEnd(config).push(frames), FrontEnd(config)
    parts = [front_end.push(frames[:first]), front_end.gap(lost), front_end.push(frames[first + lost :])]
    values = np.concatenate([part.values for part in parts])
    unsure = np.concatenate([part.gap | part.unsettled for part in parts])
    off = (np.abs(values - intact.values) / twin.standardization.std).max(axis=1)
    assert off[~unsure].max() < OFF
    assert off[unsure].max() > OFF
    assert unsure[settling_bins(config) :].sum() > lost // 20
