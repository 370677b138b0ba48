"""Measures how long a step takes: any callable goes in, and percentiles in microseconds come out.

Every call is timed alone with `perf_counter_ns`, because a closed loop cares about the slowest ones, which a mean over
many calls hides. The timed region holds the call and nothing else: inputs lie ready as rows, and the garbage collector
is off. Subjects that are compared take turns in one run, so that a clock that slows down slows all of them. An empty
subject in the same loop shows how much of a figure is the loop's own.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from time import perf_counter_ns
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.errors import EngineError

Step = Callable[[npt.NDArray[Any]], object]  # takes one bin (C,); what it returns is dropped
Times = npt.NDArray[np.int64]  # nanoseconds, one a step

EMPTY = "empty"


@dataclass(frozen=True)
class LatencyUs:
    """Percentiles of the time of a step, in microseconds. Each is a time that occurred, so none is interpolated."""

    p50: float
    p95: float
    p99: float
    p999: float
    max: float
    mean: float
    steps: int

    @classmethod
    def from_times(cls, times_ns: Times) -> LatencyUs:
        """Summarizes the times of single steps."""
        ordered = np.percentile(times_ns, (50, 95, 99, 99.9, 100), method="higher") / 1e3
        p50, p95, p99, p999, longest = map(float, ordered)
        return cls(p50, p95, p99, p999, longest, float(times_ns.mean() / 1e3), len(times_ns))

    def to_json(self) -> dict[str, float]:
        """Returns the figures by name."""
        return asdict(self)


def measure_steps(step: Step, inputs: npt.NDArray[Any], warmup: int = 200, steps: int = 2000) -> LatencyUs:
    """Measures `step` over the rows of `inputs` (N, C), which are used again from the top when they run out."""
    return LatencyUs.from_times(time_steps({"step": step}, inputs, warmup, steps)["step"])


def time_steps(
    subjects: Mapping[str, Step],
    inputs: npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]],
    warmup: int = 200,
    steps: int = 2000,
    block: int = 50,
) -> dict[str, Times]:
    """Returns the times (steps,) of each subject and of "empty", a subject that does nothing.

    Subjects take turns of `block` steps. That is short enough for all to share what else the machine is doing, and long
    enough for the caches to be the subject's own. `inputs` are (N, C) for all subjects, or a mapping by subject. Raises
    EngineError where there is nothing to measure.
    """
    rows = {name: split_rows(name, inputs) for name in subjects}
    if EMPTY in subjects or not rows or min(steps, block) < 1 or warmup < 0:
        raise EngineError(
            "nothing to measure like this",
            got=f"subjects {sorted(subjects)}, {steps} steps, {warmup} to warm up, blocks of {block}",
            expected=f"at least one subject, none of them named '{EMPTY}', and at least one step",
        )
    every: dict[str, Step] = {**subjects, EMPTY: do_nothing}
    rows[EMPTY] = next(iter(rows.values()))
    times = {name: np.zeros(warmup + steps, np.int64) for name in every}
    with pause_garbage_collection():
        for start in range(0, warmup + steps, block):
            for name, step in every.items():
                _time_block(step, rows[name], times[name], start, min(start + block, warmup + steps))
    return {name: taken[warmup:] for name, taken in times.items()}


def count_by_time(times_ns: Times, bins: int = 48) -> dict[str, list[float]]:
    """Returns a histogram whose bins are evenly wide on a log axis, because rare slow steps lie decades away."""
    us = np.maximum(times_ns, 1) / 1e3
    low, high = float(us.min()), float(us.max())
    edges = np.geomspace(low * 0.999, max(high, low * 1.001) * 1.001, bins + 1)
    return {"edges_us": edges.tolist(), "counts": np.histogram(us, edges)[0].tolist()}


def compute_part_medians(times_ns: Times, parts: int = 8) -> list[float]:
    """Returns the median (µs) of each part of a run. Their spread is what a difference between two runs must exceed."""
    return [float(np.median(part) / 1e3) for part in np.array_split(times_ns, min(parts, len(times_ns)))]


def count_misses(times_ns: Times, deadline_us: float) -> int:
    """Counts the steps that took longer than `deadline_us`."""
    return int(np.count_nonzero(times_ns > deadline_us * 1e3))


def _time_block(step: Step, rows: list[npt.NDArray[Any]], times: Times, start: int, stop: int) -> None:
    for i in range(start, stop):
        row = rows[i % len(rows)]
        before = perf_counter_ns()
        step(row)
        after = perf_counter_ns()
        times[i] = after - before


def split_rows(
    name: str, inputs: npt.NDArray[Any] | Mapping[str, npt.NDArray[Any] | Sequence[npt.NDArray[Any]]]
) -> list[npt.NDArray[Any]]:
    """Returns the inputs (N, C) of a subject as rows. Raises EngineError where there is none."""
    rows = list(inputs[name] if isinstance(inputs, Mapping) else inputs)
    if not rows:
        raise EngineError(f"no inputs to measure '{name}' with", got="0 bins", expected="at least one")
    return rows


def do_nothing(row: npt.NDArray[Any]) -> None:
    """Does nothing, as the empty subject."""


@contextmanager
def pause_garbage_collection() -> Iterator[None]:
    """Switches the collector off, because a collection in a timed region would be taken for the subject's time."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
