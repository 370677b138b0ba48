"""Timestamps tell the true rate, exactly the gaps that are there, and how the clock wanders."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgedistill.data.lfp.clock import Clock, _from_timestamps
from edgedistill.data.lfp.timestamp_clock import read_timestamp_clock
from edgedistill.errors import RecordingError

T = np.arange(200_000) / 1000


def read(times: np.ndarray, frames: int | None = None) -> Clock:
    return _from_timestamps(read_timestamp_clock(times, frames or len(times), Path("a.nwb"), "acquisition/lfp"), 0)


def stored_frames(clock: Clock) -> np.ndarray:
    return np.concatenate([np.arange(run.at, run.at + run.frames) for run in clock.runs])


def assert_times(clock: Clock, times: np.ndarray, within_s: float) -> None:
    """Holds the times of the stored frames to the truth, and the times of all frames to rise."""
    np.testing.assert_allclose(clock.times_at(stored_frames(clock)), times, rtol=0, atol=within_s)
    assert (np.diff(clock.times_at(np.arange(clock.frames + 1))) > 0).all()


# ---------------------------------------------------------------- the property


@st.composite
def gaps(draw: st.DrawFn, runs: st.SearchStrategy[int], most: int = 5) -> list[tuple[int, int]]:
    """Draws (stored frame before which it lies, lost frames) for up to `most` gaps, and the end with 0."""
    lengths = draw(st.lists(runs, min_size=1, max_size=most + 1))
    sizes = draw(st.lists(st.integers(1, 5000), min_size=len(lengths) - 1, max_size=len(lengths) - 1))
    return [*zip(np.cumsum(lengths).tolist(), [*sizes, 0], strict=True)]


def lay_out(found: list[tuple[int, int]]) -> tuple[np.ndarray, tuple[tuple[int, int], ...]]:
    """Returns the grid frames of all stored frames, and the gaps on the grid."""
    frames = np.arange(found[-1][0])
    expected = []
    shift = 0
    for at, size in found[:-1]:
        expected.append((at + shift, size))
        frames[at:] += size
        shift += size
    return frames, tuple(expected)


RATES = st.sampled_from([Fraction(500), Fraction(1000), Fraction(2500), Fraction(390625, 384), Fraction(30000)])


@settings(deadline=None, max_examples=60)
@given(
    found=gaps(st.one_of(st.integers(1, 20), st.integers(20, 8000))),
    rate=RATES,
    start_s=st.floats(0, 1e5),
    seed=st.integers(0, 2**32 - 1),
    jitter=st.sampled_from([0.0, 0.05, 0.1]),
)
def test_gaps_between_runs_of_any_length_are_found_exactly(
    found: list[tuple[int, int]], rate: Fraction, start_s: float, seed: int, jitter: float
) -> None:
    found = [(at + 3000, size) for at, size in found]  # enough frames to know the rate by
    frames, expected = lay_out(found)
    assume(not expected or len(frames) - sum(at <= expected[-1][0] for at in frames) >= 8)  # a few late frames are none
    noise = np.random.default_rng(seed).uniform(-jitter, jitter, len(frames))
    clock = read(start_s + (frames + noise) / float(rate))
    assert clock.gaps == expected
    assert float(clock.rate) == pytest.approx(float(rate), rel=1e-4)


@settings(deadline=None, max_examples=40)
@given(
    found=gaps(st.integers(1000, 8000)),
    rate=RATES,
    ppm=st.floats(-90, 90),
    wander_s=st.floats(0, 0.002),
    jitter=st.sampled_from([0.0, 0.2, 0.3, 0.45]),
    seed=st.integers(0, 2**32 - 1),
)
def test_gaps_are_found_exactly_and_never_invented_in_jitter_and_drift(
    found: list[tuple[int, int]], rate: Fraction, ppm: float, wander_s: float, jitter: float, seed: int
) -> None:
    frames, expected = lay_out([(at + 20_000, size) for at, size in found])
    true = frames * (1 + ppm * 1e-6) / float(rate)
    true += wander_s * np.sin(2 * np.pi * true / 200)  # at most 63 ppm
    noise = np.random.default_rng(seed).uniform(-jitter, jitter, len(frames)) / float(rate)
    clock = read(true + noise)
    # a clock that wanders by a part of a frame while nothing is recorded leaves the length of a gap open by one frame
    unsure = 1 if wander_s * float(rate) > 0.2 else 0
    assert len(clock.gaps) == len(expected)
    assert all(abs(found[1] - true[1]) <= unsure for found, true in zip(clock.gaps, expected, strict=True))
    assert unsure or clock.gaps == expected
    assert_times(clock, true, max(1e-5, 0.25 / float(rate)))


@settings(deadline=None, max_examples=40)
@given(
    packets=gaps(st.integers(40, 800)),
    size=st.integers(3, 40),
    inside_s=st.sampled_from([0.0, 1e-6, 1e-5]),
    late=st.floats(0, 0.3),
    seed=st.integers(0, 2**32 - 1),
)
def test_lost_packets_are_found_exactly_and_never_invented(
    packets: list[tuple[int, int]], size: int, inside_s: float, late: float, seed: int
) -> None:
    frames, expected = lay_out([((at + 500) * size, lost) for at, lost in packets])
    stored = np.arange(len(frames))
    ends = frames[stored // size * size + size - 1] + 1
    delay = np.random.default_rng(seed).uniform(0, late, len(frames) // size)[stored // size]
    clock = read((ends + delay) / 1000 + stored % size * inside_s)
    assert clock.gaps == expected
    assert_times(clock, frames / 1000, 1e-3)
    assert any("packets" in note for note in clock.notes)


# ---------------------------------------------------------------- rates and drift


@pytest.mark.parametrize("decimals", [None, 6])
@pytest.mark.parametrize(
    "rate", [Fraction(1000), Fraction(390625, 384), Fraction(30000), Fraction(6103515625, 3000000)]
)
def test_regular_timestamps_are_a_regular_clock(rate: Fraction, decimals: int | None) -> None:
    times = 3.5 + np.arange(300_000) / float(rate)
    clock = read(times if decimals is None else times.round(decimals))
    assert clock.rate == rate
    assert (clock.start_s, clock.anchors, clock.notes) == (3.5, None, ())
    assert_times(clock, times, 1e-6)


@pytest.mark.parametrize("ppm", [14, -60, 3])
def test_a_constant_drift_is_named_and_the_measured_rate_taken(ppm: float) -> None:
    clock = read(T / (1 + ppm * 1e-6))
    assert float(clock.rate) == pytest.approx(1000 * (1 + ppm * 1e-6), rel=1e-8)
    assert f"{ppm:+.1f} ppm" in clock.notes[0]
    assert "1000 Hz" in clock.notes[0]
    assert_times(clock, T / (1 + ppm * 1e-6), 1e-6)


def test_makins_broadband_runs_faster_than_its_data_sheet() -> None:
    clock = read(np.arange(2_000_000) / 24414.3378)
    assert float(clock.rate) == pytest.approx(24414.3378, rel=1e-8)
    assert "24414.0625" in clock.notes[0]


@pytest.mark.parametrize("rate", [1000, 30000])
def test_a_headstage_that_wanders_by_milliseconds_is_followed_and_not_called_a_pause(rate: int) -> None:
    t = np.arange(200 * rate // (1 if rate == 1000 else 4)) / rate
    times = t + 0.002 * np.sin(np.pi * t / t[-1])
    clock = read(times)
    assert (clock.rate, clock.gaps) == (rate, ())
    assert "wanders by up to 2.00 ms" in " ".join(clock.notes)
    assert_times(clock, times, 1e-4)


def test_packets_with_times_of_arrival_are_spread_evenly() -> None:
    i = np.arange(len(T))
    clock = read(9 * (i // 9 + 1) / 1000 + i % 9 * 1e-5)
    assert (clock.rate, clock.gaps) == (1000, ())
    assert_times(clock, T, 1e-3)


def test_trials_that_were_stored_one_after_another_are_no_packets() -> None:
    clock = read(np.concatenate([5.0 * trial + np.arange(100) / 1000 for trial in range(60)]))
    assert clock.rate == 1000
    assert clock.gaps == tuple((5000 * trial + 100, 4900) for trial in range(59))


def test_gaps_of_parts_of_frames_do_not_add_up() -> None:
    times = T.copy()
    for at in range(1000, 190_000, 1000):
        times[at:] += 0.0014
    clock = read(times)
    assert len(clock.gaps) == 189
    assert {size for _, size in clock.gaps} == {1, 2}
    assert abs(clock.frames / 1000 - (times[-1] + 0.001)) <= 0.001
    assert_times(clock, times, 1e-6)


@pytest.mark.parametrize("spoil", ["repeated", "late", "early", "swapped"])
def test_a_single_odd_timestamp_is_no_gap(spoil: str) -> None:
    times = T.copy()
    if spoil == "repeated":
        times[1000] = times[999]
    elif spoil == "swapped":
        times[1000], times[1001] = times[1001], times[1000]
    else:
        times[1000] += 0.004 if spoil == "late" else -0.004
    clock = read(times)
    assert (clock.rate, clock.gaps, clock.start_s) == (1000, (), 0)
    assert_times(clock, T, 1e-6)


def test_drift_in_times_rounded_to_whole_frames_is_no_row_of_gaps() -> None:
    clock = read(np.round(T * 1.0001, 3))
    assert clock.gaps == ()
    assert "-100." in clock.notes[0]
    assert_times(clock, T * 1.0001, 1e-3)


def test_corrections_of_a_clock_by_less_than_a_millisecond_are_followed() -> None:
    t = np.arange(600_000) / 30_000
    clock = read(t * (1 + 20e-6) - np.floor(t) * 20e-6)
    assert (clock.rate, clock.gaps) == (30_000, ())
    assert_times(clock, t, 2e-5)


@pytest.mark.parametrize("spread_s", [0.001, 0.003])
def test_a_busy_computer_that_stamps_frames_late_invents_no_gaps(spread_s: float) -> None:
    rng = np.random.default_rng(4)
    for times in (T + rng.normal(0, spread_s, len(T)), np.maximum.accumulate(T + rng.exponential(spread_s, len(T)))):
        clock = read(times)
        assert (clock.rate, clock.gaps) == (1000, ())
        assert_times(clock, T, 3 * spread_s)


def test_a_late_stretch_that_catches_up_is_no_gap() -> None:
    times = T.copy()
    times[50_000:52_000] += 0.02
    clock = read(times)
    assert (clock.rate, clock.gaps) == (1000, ())
    assert_times(clock, T, 1e-4)


# ---------------------------------------------------------------- what is refused


def reset(times: np.ndarray) -> None:
    times[120_000:] -= 120


def slightly_back(times: np.ndarray) -> None:
    times[120_000:] -= 0.005


def not_a_number(times: np.ndarray) -> None:
    times[700] = np.nan


def other_rate(times: np.ndarray) -> None:
    times[150_000:] = times[150_000] + np.arange(50_000) / 500


def slightly_other_rate(times: np.ndarray) -> None:
    times[150_000:] = times[150_000] + np.arange(50_000) / 995


def standing(times: np.ndarray) -> None:
    times[:] = 5


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (reset, ("run backwards", "0.000000 s at frame 120000", "119.999000 s at frame 119999")),
        (slightly_back, ("run backwards", "119.995000 s at frame 120000")),
        (not_a_number, ("not all numbers", "nan at frame 700 after 0.699000 s")),
        (other_rate, ("change their rate", "from frame 15", "0.002 s")),
        (slightly_other_rate, ("change their rate", "about 995 Hz", "1000 Hz")),
        (standing, ("no usable clock", "from 5 to 5 s")),
    ],
)
def test_times_that_are_no_clock_are_refused_with_where(spoil: object, words: tuple[str, ...]) -> None:
    times = T.copy()
    spoil(times)  # type: ignore[operator]
    with pytest.raises(RecordingError) as caught:
        read(times)
    for word in ("a.nwb", "acquisition/lfp", *words):
        assert word in str(caught.value)


@pytest.mark.parametrize(("rate", "start_s"), [(1000, 20_000), (500, 20_000), (2000, 100_000), (250, 3000)])
def test_times_in_float32_are_blamed_on_it(rate: int, start_s: int) -> None:
    rounded = (start_s + np.arange(50_000) / rate).astype(np.float32)
    with pytest.raises(RecordingError, match=r"stored as float32, which rounds them to [0-9.]+ ms at"):
        read(rounded)


def test_another_rate_is_not_blamed_on_float32() -> None:
    times = T.copy()
    other_rate(times)
    with pytest.raises(RecordingError) as caught:
        read(times)
    assert "float32" not in str(caught.value)


def test_another_number_of_timestamps_is_refused() -> None:
    with pytest.raises(RecordingError, match="200000 timestamps for 199999 frames"):
        read(T, 199_999)
