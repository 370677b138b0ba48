"""Tests that every step is timed alone in one loop for all subjects, and that percentiles are times that occurred."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from edgedistill.errors import EngineError
from edgedistill.measure.latency import LatencyUs, count_misses, measure_steps, time_steps


def test_percentiles_are_times_that_occurred() -> None:
    latency = LatencyUs.from_times(np.arange(1, 1001, dtype=np.int64) * 1000)
    assert (latency.p50, latency.p95, latency.p99, latency.p999, latency.max) == (501, 951, 991, 1000, 1000)
    assert latency.mean == 500.5
    assert latency.steps == 1000
    assert set(latency.to_json()) == {"p50", "p95", "p99", "p999", "max", "mean", "steps"}


def test_percentiles_are_in_order_whatever_was_measured() -> None:
    latency = measure_steps(lambda row: row.sum(), np.ones((3, 4), np.float32), warmup=2, steps=37)
    assert 0 <= latency.p50 <= latency.p95 <= latency.p99 <= latency.p999 <= latency.max
    assert latency.steps == 37


def test_warm_up_comes_before_and_is_not_counted() -> None:
    seen: list[float] = []
    measure_steps(lambda row: seen.append(float(row[0])), np.arange(4.0)[:, None], warmup=3, steps=6)
    assert seen == [0, 1, 2, 3, 0, 1, 2, 3, 0]


def test_subjects_take_turns_and_an_empty_one_is_among_them() -> None:
    order: list[str] = []
    subjects = {name: lambda row, name=name: order.append(name) for name in ("a", "b")}
    times = time_steps(subjects, np.zeros((2, 1)), warmup=0, steps=5, block=2)
    assert order == ["a"] * 2 + ["b"] * 2 + ["a"] * 2 + ["b"] * 2 + ["a", "b"]
    assert {name: len(taken) for name, taken in times.items()} == {"a": 5, "b": 5, "empty": 5}


def test_subjects_may_have_inputs_of_their_own() -> None:
    widths: dict[str, int] = {}
    subjects = {name: lambda row, name=name: widths.update({name: len(row)}) for name in ("lfp", "spikes")}
    time_steps(subjects, {"lfp": np.zeros((1, 3)), "spikes": np.zeros((1, 7))}, warmup=0, steps=1)
    assert widths == {"lfp": 3, "spikes": 7}


@pytest.mark.parametrize("enabled", [True, False])
def test_no_garbage_collection_inside_and_as_before_afterwards(enabled: bool) -> None:
    was = gc.isenabled()
    states: list[bool] = []

    def fails_late(row: np.ndarray) -> None:
        states.append(gc.isenabled())
        if len(states) == 5:
            raise ValueError("step five")

    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(ValueError, match="step five"):
            measure_steps(fails_late, np.zeros((1, 1)))
        assert gc.isenabled() == enabled
        assert not any(states)
    finally:
        (gc.enable if was else gc.disable)()


def test_deadline_misses_are_the_steps_that_took_longer() -> None:
    assert count_misses(np.array([9_999, 10_000, 10_001, 50_000]), deadline_us=10) == 2


def test_nothing_to_measure_is_an_error() -> None:
    for subjects, inputs, steps in (
        ({}, np.zeros((1, 1)), 1),
        ({"empty": print}, np.zeros((1, 1)), 1),
        ({"a": print}, np.zeros((0, 1)), 1),
        ({"a": print}, np.zeros((1, 1)), 0),
    ):
        with pytest.raises(EngineError):
            time_steps(subjects, inputs, steps=steps)
