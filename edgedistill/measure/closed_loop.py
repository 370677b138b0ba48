"""How a step does in use: woken every 10 ms, cold, beside whatever else the machine runs.

Any callables in, for each the lateness of its start and the time of its end after the moment its input was due.
Subjects share every period: each has its own phase in it, and so does the empty subject, which shows what of a miss is
the machine's own. Flat out (`latency`) is what a step costs; this is what a user will see.
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
from edgedistill.measure.latency import EMPTY, LatencyUs, Step, Times, no_garbage_collection, nothing, rows_of

EVICTED_BYTES = 8 << 20  # more than a core's own caches; the shared last level is too large for 10 ms
FIFO_PRIORITY = 50


@dataclass(frozen=True)
class PacedTimes:
    """Of every period of one subject, in nanoseconds after its input was due."""

    started: Times  # late by
    ended: Times

    @property
    def step(self) -> LatencyUs:
        """The step alone."""
        return LatencyUs.from_times(self.ended - self.started)

    @property
    def response(self) -> LatencyUs:
        """From the moment the last sample was due to the output, waking up included."""
        return LatencyUs.from_times(self.ended)

    @property
    def jitter_us(self) -> float:
        """Standard deviation of the moment of the output."""
        return float(self.ended.std() / 1e3)

    def misses(self, deadline_us: float) -> int:
        """Outputs that came later than that."""
        return int(np.count_nonzero(self.ended > deadline_us * 1e3))

    def to_json(self, deadline_us: float) -> dict[str, object]:
        """As `bench --json` has it."""
        return {
            "step_us": self.step.to_json(),
            "response_us": self.response.to_json(),
            "jitter_us": self.jitter_us,
            "deadline_misses": self.misses(deadline_us),
            "steps": len(self.ended),
        }


def paced_times(
    subjects: Mapping[str, Step],
    inputs: Mapping[str, npt.NDArray[Any] | Sequence[npt.NDArray[Any]]],
    periods: int,
    period_s: float = 0.01,
    evicted: bool = False,
) -> dict[str, PacedTimes]:
    """Each subject and "empty" once a period, `evicted` with the caches of the core emptied before each.

    A period in which one of them is still busy when the next is due makes that one late: nothing is skipped.
    EngineError for a subject that takes so long that all of them cannot share a period.
    """
    every: dict[str, Step] = {**subjects, EMPTY: nothing}
    rows = {name: rows_of(name, inputs) for name in subjects}
    rows[EMPTY] = next(iter(rows.values()))
    found = {name: PacedTimes(np.zeros(periods, np.int64), np.zeros(periods, np.int64)) for name in every}
    evict = _evictor() if evicted else _no_evictor
    phase = int(period_s * 1e9) // len(every)
    _require_room(every, rows, phase, evict)
    with no_garbage_collection():
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
    """Asleep, as a program that waits for samples is: waking up belongs to the response."""
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


def _evictor() -> Callable[[], None]:
    buffer = np.zeros(EVICTED_BYTES // 8)

    def evict() -> None:
        np.add(buffer, 1.0, out=buffer)  # written, so that lines of others must go

    return evict


def _no_evictor() -> None:
    """Caches keep what they keep."""


# ---------------------------------------------------------------- what was in force


@contextmanager
def real_time() -> Iterator[dict[str, object]]:
    """One core and real-time priority for this process where that is allowed; yields what was in force."""
    if not hasattr(os, "sched_setaffinity"):
        yield {"cores": None, "policy": "other"}
        return
    cores, policy, parameter = os.sched_getaffinity(0), os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        with suppress(OSError):
            os.sched_setaffinity(0, {max(cores)})  # the first is where interrupts go
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(FIFO_PRIORITY))
        fifo = os.sched_getscheduler(0) == os.SCHED_FIFO
        yield {"cores": sorted(os.sched_getaffinity(0)), "policy": "fifo" if fifo else "other"}
    finally:
        with suppress(OSError):
            os.sched_setscheduler(0, policy, parameter)
        with suppress(OSError):
            os.sched_setaffinity(0, cores)
