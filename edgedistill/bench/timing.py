"""How the subjects of a bench are timed and their energy taken: candidates in, times and energies by name out.

Flat out in turn, then in use (every 10 ms, warm and cold), then energy where there is a sensor. Slow subjects are timed
by themselves and fewer times; nothing is scaled up from another device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from time import monotonic, perf_counter_ns, sleep

import numpy as np

from edgedistill.bench.subjects import Candidate
from edgedistill.bundle import Bundle
from edgedistill.bundle.contents import read_raw_frames
from edgedistill.decoding import BINS_PER_S
from edgedistill.errors import EngineError
from edgedistill.measure.closed_loop import PacedTimes, paced_times, real_time
from edgedistill.measure.energy import Energy, measure_energy
from edgedistill.measure.latency import Times, step_times
from edgedistill.measure.sensors import Meter
from edgedistill.runtime import Decoder
from edgedistill.target import GPU_ENGINES

ONE_BIN_US = 1e6 / BINS_PER_S
SLOW_S = 0.005  # a step that takes longer is timed by itself
SLOW_BUDGET_S = 10.0
NOT_ASKED = "not measured: not asked for"
TOO_SLOW = "not measured: too slow to share 10 ms"
FRAMES = "frames"


def flat_out(candidates: Sequence[Candidate], steps: int) -> dict[str, Times]:
    """Nanoseconds of each step of each subject, and of "empty"; slow ones by themselves, as often as time allows."""
    for candidate in candidates:
        candidate.engine.reset()
    once = {c.name: _seconds_of_a_step(c) for c in candidates}
    fast = [c for c in candidates if once[c.name] <= SLOW_S]
    times: dict[str, Times] = {}
    for slow in (c for c in candidates if once[c.name] > SLOW_S):
        count = int(np.clip(SLOW_BUDGET_S / once[slow.name], 5, steps))
        times |= step_times({slow.name: slow.engine.step}, slow.inputs, warmup=1, steps=count)
    if fast:
        times |= step_times({c.name: c.engine.step for c in fast}, {c.name: c.inputs for c in fast}, steps=steps)
    return times


def _seconds_of_a_step(candidate: Candidate) -> float:
    taken = []
    for row in candidate.inputs[:3]:
        began = perf_counter_ns()
        candidate.engine.step(row)
        taken.append(perf_counter_ns() - began)
    return min(taken) / 1e9


def in_use(
    candidates: Sequence[Candidate], times: Mapping[str, Times], seconds: float
) -> tuple[dict[str, PacedTimes], dict[str, PacedTimes], dict[str, str], dict[str, object]]:
    """Every 10 ms: warm, with the caches emptied, why a subject has no such figures, and what was in force."""
    share_us = ONE_BIN_US / (len(candidates) + 1) / 2  # room for those that are slower when cold
    quick = [c for c in candidates if np.median(times[c.name]) / 1e3 < share_us] if seconds > 0 else []
    why = {c.name: NOT_ASKED if seconds <= 0 else TOO_SLOW for c in candidates}
    if not quick:
        return {}, {}, why, {}
    steps, inputs = {c.name: c.engine.step for c in quick}, {c.name: c.inputs for c in quick}
    periods = max(1, round(seconds * BINS_PER_S))
    with real_time() as force:
        try:
            warm = paced_times(steps, inputs, periods)
        except EngineError:  # slower when woken than flat out, on a machine that saves power or is busy
            return {}, {}, dict.fromkeys(why, TOO_SLOW), dict(force)
        try:
            cold = paced_times(steps, inputs, periods, evicted=True)
        except EngineError:  # emptying the caches takes longer than their share
            cold = {}
    return warm, cold, {name: reason for name, reason in why.items() if name not in steps}, dict(force)


def decoding_frames(bundle: Bundle, engine: str, seconds: float) -> dict[str, PacedTimes] | None:
    """The whole decoder in use, FRAMES: every 10 ms the raw frames of a bin, front end included; and "empty" beside
    it. None without raw frames, and where the front end is too slow for it."""
    frames = read_raw_frames(bundle)
    if seconds <= 0 or frames is None:
        return None
    decoder = Decoder(bundle, engine)
    rate = decoder.frontend_config
    edges = [rate.edge(bin_) for bin_ in range(rate.bin_of(len(frames)) + 1)]
    rows = [frames[start:stop] for start, stop in pairwise(edges) if stop <= len(frames)]
    if not rows:
        return None
    with real_time():
        try:
            return paced_times({FRAMES: decoder.push}, {FRAMES: rows}, max(1, round(seconds * BINS_PER_S)))
        except EngineError:
            return None


def energy_of(candidate: Candidate, meter: Meter | str, seconds: float, paced: bool = False) -> Energy:
    """Of a step above idle, flat out or every 10 ms; None with the reason without a sensor or for a run too short."""
    if isinstance(meter, str):
        return Energy.none(meter)
    if seconds <= 0:
        return Energy.none("not asked for")
    if meter.sees_gpu_only and candidate.runs_on not in GPU_ENGINES:
        return Energy.none(f"the sensor ({meter.source}) does not see the CPU that this ran on")
    if paced and _seconds_of_a_step(candidate) > 1 / BINS_PER_S:
        return Energy.none("slower than 100 Hz")

    def run(duration: float) -> int:
        start, count, rows = monotonic(), 0, candidate.inputs
        while (now := monotonic()) < start + duration:
            if paced and (early := start + count / BINS_PER_S - now) > 0:
                sleep(early)
            candidate.engine.step(rows[count % len(rows)])
            count += 1
        return count

    return measure_energy(meter, run, max(seconds, meter.shortest_s))
