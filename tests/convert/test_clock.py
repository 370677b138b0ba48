"""Rate and gaps of a long series follow from its timestamps, whatever its clock does."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedistill.convert.clock import Clock, read_clock, settings_for_times
from edgedistill.errors import RecordingError


def clock_of(times: np.ndarray) -> Clock:
    with h5py.File("clock", "w", driver="core", backing_store=False) as file:
        return read_clock(file.create_dataset("timestamps", data=times), Path("file.nwb"))


@settings(max_examples=30, deadline=None)
@given(
    rate=st.floats(900, 31_000),
    ppm=st.floats(-200, 200),
    steps=st.lists(
        st.tuples(st.integers(1000, 19_000), st.floats(0.01, 5)), max_size=3, unique_by=lambda s: s[0] // 100
    ),
)
def test_every_step_is_a_gap_and_a_drift_is_none(rate: float, ppm: float, steps: list) -> None:
    rate *= 1 + ppm * 1e-6
    times = 3 + np.arange(20_000) / rate
    for at, gap in steps:
        times[at:] += gap
    found = clock_of(times)
    off = 0.5 / rate  # a nominal rate that near is taken for the true one
    assert found.rate_hz == pytest.approx(rate, rel=0.5 / 20_000)
    assert [(s.first, s.stop) for s in found.segments] == list(
        zip([0, *sorted(at for at, _ in steps)], [*sorted(at for at, _ in steps), 20_000], strict=True)
    )
    for segment in found.segments:
        assert segment.start_s == pytest.approx(times[segment.first], abs=off)
    gaps = [after - before for before, after in found.gaps]
    assert gaps == pytest.approx([gap for _, gap in sorted(steps)], abs=2 * off)


def test_timestamps_that_wander_a_little_are_told_and_no_gap() -> None:
    nominal = np.arange(50_000) / 1000
    found = clock_of(nominal + 1e-3 * np.sin(nominal))
    assert len(found.segments) == 1
    assert found.wander_s == pytest.approx(1e-3, rel=0.2)


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        (lambda t: np.where(np.arange(len(t)) >= 600, t - 0.3, t), "run backwards"),
        (lambda t: np.where(np.arange(len(t)) == 600, np.nan, t), "not all numbers"),
        (lambda t: t + 0.02 * np.sin(t), "change their rate"),
        (lambda t: 10 * t + 0.012 * np.sin(t / 2.5), "wander"),
        (lambda t: t + 0.01 * (np.arange(len(t)) // 15), "steps more than"),
        (lambda t: 2000 * t + np.arange(len(t)) % 2, "change their rate"),  # 1 and 3 s by turns
        (lambda t: np.array([0.0, 1.0, 5.0]), "wander"),
        (lambda t: t[:1], "no usable clock"),
    ],
)
def test_timestamps_that_are_no_clock_are_refused(odd, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(RecordingError, match=says):
        clock_of(odd(np.arange(20_000) / 1000))


@pytest.mark.parametrize("late", [0.6, -0.6, 40, -40])
def test_a_frame_that_is_late_or_early_for_a_moment_is_kept_and_told(late: float) -> None:
    times = np.arange(20_000) / 1000
    times[700] += late / 1000
    found = clock_of(times)
    assert [(s.first, s.stop, s.start_s) for s in found.segments] == [(0, 20_000, pytest.approx(0, abs=1e-9))]
    assert (found.off_grid, found.wander_s) == (1, pytest.approx(0, abs=1e-9))


def test_a_first_frame_alone_before_a_gap_is_kept() -> None:
    found = clock_of(np.arange(20_000) / 1000 + np.where(np.arange(20_000) > 0, 2, 0))
    assert [(s.first, s.stop) for s in found.segments] == [(0, 1), (1, 20_000)]
    assert found.gaps == [pytest.approx((0.001, 2.001))]


def test_times_on_a_grid_become_a_rate_and_others_stay() -> None:
    times = 2 + np.arange(100) / 250
    assert settings_for_times(times) == {"rate": pytest.approx(250), "starting_time": 2}
    stepped = np.where(np.arange(100) > 50, times + 0.1, times)
    assert settings_for_times(stepped)["timestamps"] is stepped
