"""Tests the running amplitude: numpy against its definition in scalars, and what raises `Flag.SHIFTED` and what not."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedistill.compile.c.model_source import c_sources
from edgedistill.config import StudentShape
from edgedistill.data.simulation.sessions import SimulationConfig, simulate_sessions
from edgedistill.data.spatial_fit import fit_spatial_model
from edgedistill.errors import EngineError
from edgedistill.frontend import FrontEnd, FrontEndConfig, settling_bins
from edgedistill.numerics import Oracle
from edgedistill.runtime import Flag, Output
from edgedistill.runtime.abi_engine import AbiEngine
from edgedistill.runtime.c_abi import load_library
from edgedistill.runtime.c_engine import start_decoder
from edgedistill.runtime.shift import SHIFTED_BINS, RunningAmplitude
from edgedistill.runtime.stream import NumpyStream

from ..kernels.c_builds import KERNELS, compile_c, compilers, facts_of
from ..numerics.students import random_model

f32 = np.float32


class LiteralAmplitude:
    """Follows "Running amplitude" of docs/numerics.md in scalars, written without reading `shift.py`."""

    def __init__(self, channels: int) -> None:
        self.power, self.outside_bins = [f32(1)] * channels, 0

    def update(self, z: npt.NDArray[np.float32], usable: npt.NDArray[np.bool_]) -> None:
        n = m = 0
        for c, value in enumerate(z):
            if not usable[c]:
                continue
            with np.errstate(over="ignore", under="ignore"):
                square = min(max(f32(value) * f32(value), f32(2.0**-60)), f32(256))
            difference = f32(square - self.power[c])
            self.power[c] = f32(self.power[c] + f32(difference * f32(2.0**-9)))
            n += 1
            m += bool(self.power[c] < 0.0625 or self.power[c] > 16)
        if n > 0:
            self.outside_bins = min(self.outside_bins + 1, 1000) if 2 * m > n else 0


SIZES = st.sampled_from([0.0, 1e-45, 1e-30, 1e-9, 0.1, 0.3, 1.0, 3.9, 4.1, 16.0, 17.0, 1e10, 3e38])


@settings(max_examples=60, deadline=None)
@given(
    stretches=st.lists(st.tuples(st.lists(SIZES, min_size=4, max_size=4), st.integers(1, 700)), max_size=6),
    masks=st.lists(st.integers(0, 15), min_size=1, max_size=5),
    powers=st.lists(st.floats(2.0**-60, 256, width=32), min_size=4, max_size=4),
    bins=st.sampled_from([0, 1, 400, 999, 1000]),
)
def test_numpy_has_the_bits_of_the_definition(
    stretches: list[tuple[list[float], int]], masks: list[int], powers: list[float], bins: int
) -> None:
    found, literal, rng = RunningAmplitude(4), LiteralAmplitude(4), np.random.default_rng(0)
    found.import_state({"power": np.array(powers, f32), "bins": np.array(bins)})
    literal.power, literal.outside_bins = [f32(power) for power in powers], bins
    for sizes, count in stretches:
        for i in range(count):
            z = (np.array(sizes) * rng.uniform(-1, 1, 4)).astype(f32)
            usable = (masks[i % len(masks)] >> np.arange(4) & 1).astype(bool)
            found.update(z, usable)
            literal.update(z, usable)
            assert found.outside_bins == literal.outside_bins
        assert found.power.tobytes() == np.array(literal.power, f32).tobytes()
    assert found.shifted == (literal.outside_bins == 1000)


def test_silence_never_ends_in_denormal_numbers() -> None:
    amplitude = RunningAmplitude(1)
    for _ in range(60_000):
        amplitude.update(np.zeros(1, f32), np.ones(1, bool))
    assert 0 < 2.0**-60 <= amplitude.power[0] < 2.0**-50


def test_exactly_half_of_the_channels_is_not_most() -> None:
    amplitude, z = RunningAmplitude(5), np.array([50, 50, 1, 1, 50], f32)
    for _ in range(1500):
        amplitude.update(z, np.array([1, 1, 1, 1, 0], bool))
    assert not amplitude.shifted
    for _ in range(1500):
        amplitude.update(z, np.array([1, 1, 1, 0, 0], bool))
    assert amplitude.shifted
    for _ in range(10):  # nothing is known without a channel
        amplitude.update(z, np.zeros(5, bool))
    assert amplitude.shifted


@pytest.mark.parametrize(
    "wrong",
    [
        {"power": np.array([1, np.nan], f32)},
        {"power": np.array([1, np.inf], f32)},
        {"power": np.array([-1e-30, 1], f32)},
        {"power": np.array([0, 1], f32)},
        {"power": np.array([1, np.nextafter(f32(256), f32(300))], f32)},
        {"power": np.ones(3, f32)},
        {"power": np.ones(2)},
        {"bins": np.array(SHIFTED_BINS + 1)},
        {"bins": np.array(-1)},
        {"bins": np.array([1])},
        {"bins": np.array(1.0)},
        {"power": None},
        {"bins": None},
    ],
)
def test_a_wild_state_is_refused_and_changes_nothing(wrong: dict[str, Any]) -> None:
    amplitude = RunningAmplitude(2)
    amplitude.update(np.array([3, 4], f32), np.ones(2, bool))
    before = amplitude.export_state()
    state = {name: array for name, array in {**before, **wrong}.items() if array is not None}
    with pytest.raises(EngineError, match="shift_"):
        amplitude.import_state(state)
    after = amplitude.export_state()
    assert all(np.array_equal(after[name], before[name]) for name in before)


# ---------------------------------------------------------------- whole streams of raw frames


class Setup:
    """A simulated session, and streams whose statistics are those of the session.

    They are those of the C engine, which decodes minutes in milliseconds.
    """

    def __init__(self, folder: Path) -> None:
        config = SimulationConfig(sessions=1, minutes=2.5, channels=8)
        self.frames = next(iter(simulate_sessions(config))).lfp_uv
        self.config = FrontEndConfig(rate=Fraction(config.rate_hz), channels=config.channels)
        self.warm = settling_bins(self.config) + 400
        bins = FrontEnd(self.config).push(self.frames)
        good, values = ~bins.bad[self.warm :], bins.values[self.warm :]
        rows = [values[good[:, c], c] for c in range(config.channels)]
        self.mean = np.array([row.mean() if len(row) else 0.0 for row in rows])
        self.std = np.array([row.std() if len(row) else 0.0 for row in rows])
        spatial = fit_spatial_model(self.config, values, ~good, self.mean, self.std)
        self.model = random_model(StudentShape(8, 1, 8, 1, 2, 3, 8, 1, 1, 0))
        self.facts = replace(facts_of(self.model, self.config), spatial=spatial, warmup_bins=self.warm)
        for file, text in c_sources(self.model, self.config, self.facts, "scalar").items():
            (folder / file).write_text(text)
        sources = [KERNELS / "c/ed_api.c", KERNELS / "c/ed_engine.c"]
        options = ("-O1", '-DED_MODEL_HEADER="model_test.h"', "-shared", "-fPIC")
        library = compile_c(folder, "engine.so", sources, options, compilers()[0])
        self.library = load_library(library.name, library.read_bytes())

    def stream(self) -> AbiEngine:
        stream = AbiEngine(start_decoder(self.library, "test"), self.model.shape, self.config)
        stream.set_normalization(self.mean, self.std)
        return stream

    def stream_in_numpy(self) -> NumpyStream:
        models = self.facts.spatial, self.facts.deviation, Oracle(self.model)
        stream = NumpyStream(self.config, *models, self.warm)
        stream.set_normalization(self.mean, self.std)
        return stream

    def shifted(self, gain: npt.ArrayLike, offset: npt.ArrayLike = 0.0, until_s: int = 80) -> npt.NDArray[np.bool_]:
        """Returns the bins (B,) flagged SHIFTED of the session times `gain`, (T, 1) or a number, plus `offset`."""
        frames = (self.frames * np.asarray(gain) + offset)[: 1000 * until_s]
        return flagged(self.stream().push(frames.astype(f32)))

    @cached_property
    def raised_once(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Returns a minute of frames whose gain is 20 for a while, and the bins of it that are flagged SHIFTED."""
        frames = (self.frames * self.from_to(20, 45, 20))[:60_000].astype(f32)
        return frames, flagged(self.stream().push(frames))

    def from_to(self, start_s: float, stop_s: float, gain: float) -> npt.NDArray[np.float64]:
        """Returns a gain (T, 1) that is another from `start_s` to `stop_s`."""
        gains = np.ones((len(self.frames), 1))
        gains[round(1000 * start_s) : round(1000 * stop_s)] = gain
        return gains


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    if not compilers():
        pytest.skip("no C compiler")
    return Setup(tmp_path_factory.mktemp("shift"))


def flagged(outputs: list[Output]) -> npt.NDArray[np.bool_]:
    return np.array([Flag.SHIFTED in output.flags for output in outputs])


@pytest.mark.parametrize("gain", [1, 0.4, 2.5])
def test_ordinary_data_and_small_changes_do_not_raise_it(setup: Setup, gain: float) -> None:
    assert not setup.shifted(gain).any()


@pytest.mark.parametrize(
    ("gain", "raised_s", "cleared_s"),
    [(5, (12, 20), 6), (1e6, (10, 14), 80), (1e-3, (20, 30), 6), (1 / 5, (20, 40), 6)],
)
def test_another_gain_raises_it_and_the_old_one_clears_it(
    setup: Setup, gain: float, raised_s: tuple[float, float], cleared_s: float
) -> None:
    """The gain changes after 25 s and is back after 70 s. The step back from 1e6 rings through the high-pass."""
    on = setup.shifted(setup.from_to(25, 70, gain), until_s=80 if cleared_s < 10 else 150)
    first, last = np.flatnonzero(on)[[0, -1]]
    assert raised_s[0] <= first / 100 - 25 <= raised_s[1]
    assert 70 <= last / 100 <= 70 + cleared_s
    assert on[first:last].all()


@pytest.mark.parametrize("gain", [1e6, 1e-3])
def test_a_wrong_unit_from_the_start_waits_for_the_end_of_the_warm_up(setup: Setup, gain: float) -> None:
    on = setup.shifted(gain)
    assert not on[: setup.warm + SHIFTED_BINS - 1].any()
    assert on[-1]


def test_channels_that_become_flat_are_masked_instead(setup: Setup) -> None:
    outputs = setup.stream().push((setup.frames[:50_000] * 1e-6).astype(f32))  # volts in place of microvolts
    assert outputs[-1].flags == Flag.MASKED | Flag.INVALID
    assert not flagged(outputs).any()


def test_one_artefact_or_a_burst_of_a_second_does_not_raise_it(setup: Setup) -> None:
    spike = np.zeros((len(setup.frames), 1))
    spike[40_000:40_005] = 1e5
    assert not setup.shifted(1, spike).any()
    noise = np.random.default_rng(0).normal(size=(len(setup.frames), 8)) * 1e4
    noise[:40_000] = noise[41_000:] = 0
    assert not setup.shifted(1, noise).any()
    noise = np.random.default_rng(0).normal(size=(len(setup.frames), 8)) * 1e4
    noise[:40_000] = noise[52_000:] = 0
    assert setup.shifted(1, noise).any()  # twelve seconds of it do


def test_offsets_of_electrodes_do_not_raise_it(setup: Setup) -> None:
    """Offsets of up to 1,000 deviations are no step to filters that start from rest."""
    offsets = 1000 * setup.std[setup.std > 0].min() * np.linspace(-1, 1, 8)
    assert not setup.shifted(1, offsets).any()


def test_a_gap_keeps_the_flag_and_changes_no_state(setup: Setup) -> None:
    stream = setup.stream()
    frames = setup.frames * 20
    assert flagged(stream.push(frames[:45_000]))[-1]
    before = stream.export_stream()
    outputs = stream.gap(3000)
    assert all(output.flags & Flag.GAP and output.flags & Flag.SHIFTED for output in outputs)
    after = stream.export_stream()
    assert all(np.array_equal(after[name], before[name]) for name in ("shift_power", "shift_bins"))


@pytest.mark.parametrize("how", ["set_normalization", "reset", "step"])
def test_new_statistics_and_a_reset_start_again_and_a_step_does_not(setup: Setup, how: str) -> None:
    stream = setup.stream()
    assert flagged(stream.push(setup.frames[:45_000] * 20))[-1]
    if how == "set_normalization":
        stream.set_normalization(20 * setup.mean, 20 * setup.std)
        assert not flagged(stream.push(setup.frames[45_000:80_000] * 20)).any()
        stream = setup.stream()
        stream.set_normalization(20 * setup.mean, 20 * setup.std)
        assert not flagged(stream.push(setup.frames[:60_000] * 20)).any()
    elif how == "reset":
        stream.reset()
        assert stream.export_stream()["shift_power"].tolist() == [1] * 8
        assert not flagged(stream.push(setup.frames[:60_000])).any()
    else:
        before = stream.export_stream()
        stream.step(np.full(8, 0.5, f32))
        after = stream.export_stream()
        assert all(np.array_equal(after[name], before[name]) for name in ("shift_power", "shift_bins"))
        assert flagged(stream.push(setup.frames[45_000:45_010] * 20)).all()


def test_numpy_flags_the_same_bins(setup: Setup) -> None:
    frames, whole = setup.raised_once
    found = flagged(setup.stream_in_numpy().push(frames[:45_000]))
    assert np.array_equal(found, whole[: len(found)])
    assert found.any()


@settings(max_examples=5, deadline=None)
@given(cuts=st.lists(st.integers(0, 60_000), max_size=6))
def test_any_chunking_flags_the_same_bins(setup: Setup, cuts: list[int]) -> None:
    (frames, whole), stream = setup.raised_once, setup.stream()
    edges = sorted({0, 60_000, *cuts})
    found = [flagged(stream.push(frames[start:stop])) for start, stop in pairwise(edges)]
    assert np.array_equal(np.concatenate(found), whole)
    assert whole.any()
    assert not whole[-1]
