"""Frames are numbered by their stamps whatever jitter and drift they have, and gaps are seen."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from edgedistill.live.stamp_clock import StampClock


def feed(clock: StampClock, stamps_s: np.ndarray, chunk: int, arrivals_s: np.ndarray | None = None) -> np.ndarray:
    """Returns the numbers of all frames. They arrive as soon as they are stamped."""
    arrivals_s = stamps_s if arrivals_s is None else arrivals_s
    parts = range(0, len(stamps_s), chunk)
    return np.concatenate([clock.number(stamps_s[i : i + chunk], arrivals_s[i : i + chunk][-1]) for i in parts])


def test_a_steady_clock_counts() -> None:
    clock = StampClock(Fraction(1000))
    assert (feed(clock, 5 + np.arange(20_000) / 1000, 10) == np.arange(20_000)).all()
    assert clock.jumps == 0
    assert clock.jitter_ms == pytest.approx(0, abs=1e-6)
    assert clock.drift_ppm == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("rate", [1000, 30_000])
def test_drift_is_followed_and_is_no_gap(rate: int) -> None:
    clock = StampClock(Fraction(rate))
    stamps = np.arange(60 * rate) / (rate * (1 + 150e-6))
    assert (feed(clock, stamps, rate // 50) == np.arange(60 * rate)).all()
    assert clock.drift_ppm == pytest.approx(150, abs=10)


def test_jitter_is_no_gap_and_a_gap_beyond_it_is_seen() -> None:
    rng = np.random.default_rng(0)
    true = np.concatenate([np.arange(12_000), np.arange(12_050, 20_000)])
    stamps = true / 1000 + np.repeat(rng.normal(scale=0.002, size=(len(true) + 9) // 10), 10)[: len(true)]
    clock = StampClock(Fraction(1000))
    numbers = feed(clock, stamps, 10)
    assert (numbers[:12_000] == np.arange(12_000)).all()
    assert 1 <= np.count_nonzero(np.diff(numbers) != 1) <= 2  # at once, and what the mean error shows afterwards
    assert numbers[-1] == pytest.approx(19_999, abs=6)  # as well as the jitter lets it be told
    assert clock.jitter_ms == pytest.approx(2, rel=0.3)


def test_a_loss_within_the_jitter_is_seen_a_little_later() -> None:
    rng = np.random.default_rng(1)
    true = np.concatenate([np.arange(20_000), np.arange(20_005, 40_000)])
    stamps = true / 1000 + np.repeat(rng.normal(scale=0.003, size=len(true) // 10 + 1), 10)[: len(true)]
    numbers = feed(StampClock(Fraction(1000)), stamps, 10)
    assert (np.diff(numbers[:20_000]) == 1).all()
    assert 2 <= numbers[-1] - (len(true) - 1) <= 6


def test_frames_that_come_twice_or_late_get_their_own_numbers() -> None:
    true = np.concatenate([np.arange(5000), np.arange(4990, 5000), np.arange(5010, 5020), np.arange(5000, 5010)])
    arrivals = np.arange(len(true)) / 1000
    assert (feed(StampClock(Fraction(1000)), true / 1000, 10, arrivals) == true).all()


def test_a_clock_that_is_set_anew_is_no_gap() -> None:
    for step_s in (3600.0, -3600.0):
        clock = StampClock(Fraction(1000))
        arrivals = np.arange(10_000) / 1000
        stamps = arrivals + np.where(np.arange(10_000) < 5000, 0, step_s)
        numbers = feed(clock, stamps, 10, arrivals)
        assert clock.jumps == 1
        assert (np.diff(numbers) == 1).all()


def test_a_pause_that_the_receiver_saw_too_is_a_gap() -> None:
    clock = StampClock(Fraction(1000))
    stamps = np.concatenate([np.arange(5000), np.arange(65_000, 70_000)]) / 1000
    assert feed(clock, stamps, 10)[-1] == 69_999
    assert clock.jumps == 0
