"""Measures a step as a user will see it: woken every 10 ms, beside whatever else the machine runs.

Callables go in. For each, the lateness of its start and the time of its end come out, counted from the moment when its
input was due. Subjects share every period, and each has its own phase in it. So does the empty subject, which shows how
much of a miss is the machine's own. What a step costs without pauses is measured by `latency`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import perf_counter_ns, sleep
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.errors import EngineError
from edgedistill.measure.latency import EMPTY, LatencyUs, Step, Times, do_nothing, pause_garbage_collection, split_rows

EVICTED_BYTES = 8 << 20  # more than a core's own caches hold; emptying the shared last level takes too long for 10 ms
FIFO_PRIORITY = 50


@dataclass(frozen=True)
class PacedTimes:
    """When one subject started and ended in each period, in nanoseconds after its input was due."""

    started: Times  # (periods,)
    ended: Times  # (periods,)

    @property
    def step(self) -> LatencyUs:
        """The time of the step alone."""
        return LatencyUs.from_times(self.ended - self.started)

    @property
    def response(self) -> LatencyUs:
        """The time from when the last sample was due to the output. Waking up is part of it."""
        return LatencyUs.from_times(self.ended)

    @property
    def jitter_us(self) -> float:
        """The standard deviation of the moment of the output."""
        return float(self.ended.std() / 1e3)

    def misses(self, deadline_us: float) -> int:
        """Counts the outputs that came later than `deadline_us`."""
        return int(np.count_nonzero(self.ended > deadline_us * 1e3))

    def to_json(self, deadline_us: float) -> dict[str, object]:
        """Returns the times as `bench --json` has them."""
        return {
            "step_us": self.step.to_json(),
            "response_us": self.response.to_json(),
            "jitter_us": self.jitter_us,
            "deadline_misses": self.misses(deadline_us),
            "steps": len(self.ended),
        }


def time_paced(
    subjects: Mapping[str, Step],
    inputs: Mapping[str, npt.NDArray[Any] | Sequence[npt.NDArray[Any]]],
    periods: int,
    period_s: float = 0.01,
    evicted: bool = False,
) -> dict[str, PacedTimes]:
    """Times each subject and "empty" once a period. If `evicted`, the core's caches are emptied before each step.

    A subject that is still busy when the next one is due makes that one late, and nothing is skipped. Raises
    EngineError for a subject that is too slow for all of them to share a period.
    """
    every: dict[str, Step] = {**subjects, EMPTY: do_nothing}
    rows = {name: split_rows(name, inputs) for name in subjects}
    rows[EMPTY] = next(iter(rows.values()))
    found = {name: PacedTimes(np.zeros(periods, np.int64), np.zeros(periods, np.int64)) for name in every}
    evict = _make_evict() if evicted else _keep_caches
    phase = int(period_s * 1e9) // len(every)
    _require_room(every, rows, phase, evict)
    with pause_garbage_collection():
        start = perf_counter_ns() + phase
        for period in range(periods):
            for turn, (name, step) in enumerate(every.items()):
                due, row = start + (period * len(every) + turn) * phase, rows[name][period % len(rows[name])]
                evict()
                _wait_until(due)
                began = perf_counter_ns()
                step(row)
                ended = perf_counter_ns()
                found[name].started[period], found[name].ended[period] = began - due, ended - due
    return found


def _wait_until(due: int) -> None:
    """Sleeps until `due`, as a program that waits for samples does, because waking up belongs to the response."""
    while (left := due - perf_counter_ns()) > 0:
        sleep(left / 1e9)


def _require_room(
    every: Mapping[str, Step], rows: Mapping[str, list[npt.NDArray[Any]]], phase: int, evict: Callable[[], None]
) -> None:
    for name, step in every.items():
        taken = []
        for row in rows[name][:5]:
            evict()
            began = perf_counter_ns()
            step(row)
            taken.append(perf_counter_ns() - began)
        if sorted(taken)[len(taken) // 2] > phase:
            raise EngineError(
                f"'{name}' is too slow to be paced beside the others",
                got=f"{min(taken) / 1e6:.3g} ms a step",
                expected=f"less than its share of a period, {phase / 1e6:.3g} ms",
            )


def _make_evict() -> Callable[[], None]:
    buffer = np.zeros(EVICTED_BYTES // 8)

    def evict() -> None:
        np.add(buffer, 1.0, out=buffer)  # writing takes the cache lines of others; reading might not

    return evict


def _keep_caches() -> None:
    """Leaves the caches alone."""


# ---------------------------------------------------------------- scheduling


@contextmanager
def use_real_time(core: int | None = None) -> Iterator[dict[str, object]]:
    """Gives this thread one core and real-time priority where that is allowed, and yields what it got.

    Without `core` it is the last one. Threads that this one starts get the same.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield {"cores": None, "policy": "other"}
        return
    cores, policy, parameter = os.sched_getaffinity(0), os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        with suppress(OSError):
            os.sched_setaffinity(0, {max(cores) if core is None else core})  # the first serves most interrupts
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(FIFO_PRIORITY))
        fifo = os.sched_getscheduler(0) == os.SCHED_FIFO
        yield {"cores": sorted(os.sched_getaffinity(0)), "policy": "fifo" if fifo else "other"}
    finally:
        with suppress(OSError):
            os.sched_setscheduler(0, policy, parameter)
        with suppress(OSError):
            os.sched_setaffinity(0, cores)
