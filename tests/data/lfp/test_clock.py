"""Parts are put on one grid, and odd clocks do not change what the front end sees."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedistill.data.lfp.clock import Clock, Run, join_clocks
from edgedistill.data.recording import open_recording

from .. import nwb_files as make
from ..binning import read_bins

T = np.arange(round(make.SECONDS * 250)) / 250


@st.composite
def parts(draw: st.DrawFn) -> list[Clock]:
    """Draws parts of one rate that follow each other, each from any time on."""
    rate = draw(st.sampled_from([Fraction(250), Fraction(30000), Fraction(390625, 384)]))
    clocks: list[Clock] = []
    start = draw(st.floats(0, 1e4))
    for part in range(draw(st.integers(1, 6))):
        frames = draw(st.integers(1, 10_000))
        clocks.append(Clock(start, rate, (Run(0, frames, part, 0),)))
        start = clocks[-1].stop_s + draw(st.floats(0, 100))
    return clocks


@given(parts())
def test_joined_parts_keep_all_frames_and_their_times(clocks: list[Clock]) -> None:
    joined = join_clocks(clocks)
    lost = sum(frames for _, frames in joined.gaps)
    assert joined.frames == lost + sum(clock.frames for clock in clocks)
    for clock, run in zip(clocks, joined.runs, strict=True):
        got = joined.times_at(np.array([run.at, run.at + run.frames - 1]))
        want = clock.times_at(np.array([0, run.frames - 1]))
        np.testing.assert_allclose(got, want, rtol=0, atol=max(3e-6, 1e-12 * want[1]))
    times = joined.times_at(np.unique(np.linspace(0, joined.frames, 1000).astype(np.int64)))
    assert (np.diff(times) > 0).all()


@given(st.floats(0, 1e5), st.integers(0, 10**10), st.sampled_from([Fraction(1000), Fraction(390625, 384)]))
def test_a_nominal_clock_has_exact_times(start_s: float, frame: int, rate: Fraction) -> None:
    clock = Clock(start_s, rate, (Run(0, frame + 1, 0, 0),))
    exact = Fraction(start_s) + frame / rate
    assert clock.times_at(np.array([frame]))[0] == pytest.approx(float(exact), rel=3e-16)


def jitter(rng: np.random.Generator) -> np.ndarray:
    return T + rng.uniform(-0.3, 0.3, len(T)) / 250


def wander(rng: np.random.Generator) -> np.ndarray:
    return T + 0.006 * np.sin(np.pi * T / T[-1])


def packets(rng: np.random.Generator) -> np.ndarray:
    i = np.arange(len(T))
    return 7 * (i // 7 + 1) / 250 + i % 7 * 1e-5


def lost(rng: np.random.Generator) -> np.ndarray:
    return np.where(np.arange(len(T)) < 30_000, T, T + 10)


@pytest.mark.parametrize("times", [jitter, wander, packets, lost])
def test_the_bins_of_an_odd_clock_equal_those_of_its_tidy_twin(tmp_path: Path, times: object) -> None:
    data = make.lfp_volts(channels=3)
    bins = []
    for name, clock in (("tidy", {"rate": 250.0}), ("odd", {"timestamps": times(np.random.default_rng(1))})):  # type: ignore[operator]
        nwb = make.new_nwb()
        make.add_lfp(nwb, data, **clock)
        bins.append(read_bins(make.write(nwb, tmp_path / f"{name}.nwb"), need=("lfp",)).lfp)
    tidy, odd = bins
    assert tidy is not None
    assert odd is not None
    same = 12_000 if times is lost else 12_500
    assert np.abs((odd[:same] - tidy[:same]) / tidy.std(axis=0)).max() < 1e-6
    assert len(odd) == (13_500 if times is lost else 12_500)


def test_an_lfp_with_anchors_lasts_as_long_as_its_timestamps(tmp_path: Path) -> None:
    nwb = make.new_nwb()
    make.add_lfp(nwb, make.lfp_volts(), timestamps=T + 0.05 * (T / T[-1]) ** 2)
    with open_recording(make.write(nwb, tmp_path / "a.nwb")) as recording:
        lfp = recording.lfp
        assert lfp is not None
        assert lfp.start_s + lfp.duration_s == pytest.approx(125.05, abs=1e-3)
        assert lfp.times_at(np.array([lfp.frames]))[0] == pytest.approx(125.05, abs=1e-3)


@pytest.mark.parametrize("rest", [0, 700])
def test_a_frame_that_two_parts_share_is_read_once(rest: int) -> None:
    second = (Run(0, 500, 1, 0), *((Run(520, rest, 1, 500),) if rest else ()))
    joined = join_clocks([Clock(0.0, Fraction(1000), (Run(0, 1001, 0, 0),)), Clock(1.0, Fraction(1000), second)])
    assert joined.runs[:2] == (Run(0, 1001, 0, 0), Run(1001, 499, 1, 1))
    assert joined.anchors is None
    assert joined.frames == 1500 + (20 + rest if rest else 0)
    assert len(joined.gaps) == bool(rest)
