"""Tests that a planted delay is found, a late wake-up is counted, and a subject too slow for its share is refused."""

from __future__ import annotations

import os
from time import perf_counter_ns, sleep

import numpy as np
import pytest

from edgedistill.errors import EngineError
from edgedistill.measure.closed_loop import time_paced, use_real_time

BINS = np.zeros((10, 3), np.float32)


def busy(us: float):
    def step(_: object) -> None:
        end = perf_counter_ns() + int(us * 1e3)
        while perf_counter_ns() < end:
            pass

    return step


@pytest.mark.parametrize("evicted", [False, True])
def test_a_planted_delay_is_found_within_a_tenth(evicted: bool) -> None:
    found = time_paced(
        {"plain": busy(0), "delayed": busy(200)}, {"plain": BINS, "delayed": BINS}, 40, period_s=0.03, evicted=evicted
    )
    assert found["delayed"].step.p50 - found["plain"].step.p50 == pytest.approx(200, rel=0.1)
    assert found["empty"].step.p50 < 50
    assert list(found) == ["plain", "delayed", "empty"]


def test_the_response_counts_from_when_the_input_was_due() -> None:
    found = time_paced({"a": busy(100)}, {"a": BINS}, 50, period_s=0.01)["a"]
    assert (found.ended >= found.started).all()
    assert (found.started >= 0).all()
    assert found.response.p50 >= found.step.p50
    assert found.misses(0) == 50
    assert found.misses(1e9) == 0
    assert found.to_json(1e9)["steps"] == 50


def test_a_step_that_is_held_up_once_makes_the_next_late_and_nothing_is_skipped() -> None:
    calls = []

    def held_up(_: object) -> None:
        calls.append(None)
        if len(calls) == 12:  # the first five calls find out how long a step takes, so this is period 6
            sleep(0.03)

    found = time_paced({"a": held_up}, {"a": BINS}, 20, period_s=0.01)
    assert len(calls) == 25
    assert found["a"].ended[6] > 29e6
    assert found["empty"].started[6] > 20e6
    assert found["a"].ended.min() < 5e6  # on a busy machine others may be late too


def test_a_subject_too_slow_for_its_share_is_refused_by_name() -> None:
    with pytest.raises(EngineError, match="'slow' is too slow"):
        time_paced({"slow": lambda _: sleep(0.006)}, {"slow": BINS}, 5, period_s=0.01)


def test_scheduling_is_reported_and_undone() -> None:
    before = os.sched_getaffinity(0), os.sched_getscheduler(0)
    with use_real_time() as scheduling:
        assert scheduling["policy"] in ("fifo", "other")
        assert scheduling["cores"]
    assert (os.sched_getaffinity(0), os.sched_getscheduler(0)) == before
