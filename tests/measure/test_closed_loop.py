"""Tests that a planted delay is found, a late wake-up is counted, and a subject too slow for its share is refused.

The clock is one that only steps, sleeps and emptied caches move, so that the results are exact on any machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from time import sleep

import numpy as np
import pytest

from edgedistill.errors import EngineError
from edgedistill.measure import closed_loop
from edgedistill.measure.closed_loop import time_paced, use_real_time

BINS = np.zeros((10, 3), np.float32)
EVICTING_US = 400  # that emptying the caches takes


class MadeClock:
    """Counts nanoseconds. A sleep ends `oversleeps_us` after it should."""

    oversleeps_us = 0.0

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns

    def spend(self, us: float) -> None:
        self.now_ns += round(us * 1e3)

    def sleep(self, seconds: float) -> None:
        self.spend(seconds * 1e6 + self.oversleeps_us)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> MadeClock:
    clock = MadeClock()
    monkeypatch.setattr(closed_loop, "perf_counter_ns", clock)
    monkeypatch.setattr(closed_loop, "sleep", clock.sleep)
    monkeypatch.setattr(closed_loop, "_make_evict", lambda: lambda: clock.spend(EVICTING_US))
    return clock


def busy(clock: MadeClock, us: float) -> Callable[[object], None]:
    return lambda _: clock.spend(us)


@pytest.mark.parametrize("evicted", [False, True])
def test_a_planted_delay_is_found(clock: MadeClock, evicted: bool) -> None:
    subjects = {"plain": busy(clock, 30), "delayed": busy(clock, 230)}
    found = time_paced(subjects, {"plain": BINS, "delayed": BINS}, 40, period_s=0.03, evicted=evicted)
    assert list(found) == ["plain", "delayed", "empty"]
    for name, us in (("plain", 30), ("delayed", 230), ("empty", 0)):
        assert found[name].step.p50 == found[name].step.max == found[name].response.max == us
        assert not found[name].started.any()  # emptying the caches fits in the pause


def test_the_response_counts_from_when_the_input_was_due(clock: MadeClock) -> None:
    clock.oversleeps_us = 70
    found = time_paced({"a": busy(clock, 100)}, {"a": BINS}, 50, period_s=0.01)["a"]
    assert (found.started == 70e3).all()
    assert (found.ended == 170e3).all()
    assert (found.step.p50, found.response.p50, found.jitter_us) == (100, 170, 0)
    assert (found.misses(169), found.misses(170)) == (50, 0)
    assert found.to_json(1e9)["steps"] == 50


def test_a_step_that_is_held_up_once_makes_the_next_late_and_nothing_is_skipped(clock: MadeClock) -> None:
    calls = []

    def held_up(_: object) -> None:
        calls.append(None)
        if len(calls) == 12:  # the first five calls find out how long a step takes, so this is period 6
            clock.spend(33e3)

    found = time_paced({"a": held_up}, {"a": BINS}, 20, period_s=0.01)
    assert len(calls) == 25
    late_ms = np.zeros((2, 20))
    late_ms[0, 7:9] = 23, 13  # of `a`: the next two starts, and then 3 ms
    late_ms[0, 9] = 3
    late_ms[1, 6:9] = 28, 18, 8
    assert (found["a"].started == 1e6 * late_ms[0]).all()
    assert (found["empty"].started == 1e6 * late_ms[1]).all()
    assert found["a"].ended[6] == 33e6


def test_a_subject_too_slow_for_its_share_is_refused_by_name(clock: MadeClock) -> None:
    with pytest.raises(EngineError, match="'slow' is too slow"):
        time_paced({"slow": busy(clock, 5001)}, {"slow": BINS}, 5, period_s=0.01)
    assert time_paced({"quick": busy(clock, 5000)}, {"quick": BINS}, 5, period_s=0.01)


def test_the_clock_of_the_machine_counts_what_a_step_takes() -> None:
    found = time_paced({"slow": lambda _: sleep(0.002)}, {"slow": BINS}, 3, period_s=1.0, evicted=True)["slow"]
    assert (found.started >= 0).all()
    assert found.step.p50 >= 2000


def test_scheduling_is_reported_and_undone() -> None:
    before = os.sched_getaffinity(0), os.sched_getscheduler(0)
    with use_real_time() as scheduling:
        assert scheduling["policy"] in ("fifo", "other")
        assert scheduling["cores"]
    assert (os.sched_getaffinity(0), os.sched_getscheduler(0)) == before
