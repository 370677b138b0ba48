"""Takes the times and the energy of the subjects of a bench, by name.

First the subjects take turns without pauses ("flat out"). Then each is woken every 10 ms, as in use, once with warm
and once with emptied caches. Energy follows where there is a sensor. A slow subject is timed alone and fewer times.
Nothing is scaled up from another device.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from time import monotonic, perf_counter_ns, sleep

import numpy as np

from edgedistill.bench.subjects import Candidate
from edgedistill.bundle import Bundle
from edgedistill.bundle.contents import read_raw_frames
from edgedistill.decoding import BINS_PER_S
from edgedistill.errors import EngineError
from edgedistill.measure.closed_loop import PacedTimes, time_paced, use_real_time
from edgedistill.measure.energy import Energy, estimate_repeat_s, measure_energy
from edgedistill.measure.latency import EMPTY, Times, time_steps
from edgedistill.measure.sensors import Meter, find_meter
from edgedistill.runtime import Decoder
from edgedistill.target import GPU_ENGINES, Power

logger = logging.getLogger(__name__)

ONE_BIN_US = 1e6 / BINS_PER_S
SLOW_S = 0.005  # a step that takes longer is timed alone
SLOW_BUDGET_S = 10.0
NOT_ASKED = "not measured: not asked for"
TOO_SLOW = "not measured: too slow to share 10 ms"
FRAMES = "frames"


def time_flat_out(candidates: Sequence[Candidate], steps: int) -> dict[str, Times]:
    """Returns the nanoseconds of each step of each candidate and of "empty", one step after the other.

    Fast candidates take turns. A slow one is timed alone, and as often as SLOW_BUDGET_S allows.
    """
    for candidate in candidates:
        candidate.engine.reset()
    once = {c.name: _estimate_step_s(c) for c in candidates}
    fast = [c for c in candidates if once[c.name] <= SLOW_S]
    times: dict[str, Times] = {}
    for slow in (c for c in candidates if once[c.name] > SLOW_S):
        count = int(np.clip(SLOW_BUDGET_S / once[slow.name], 5, steps))
        times |= time_steps({slow.name: slow.engine.step}, slow.inputs, warmup=1, steps=count)
    if fast:
        times |= time_steps({c.name: c.engine.step for c in fast}, {c.name: c.inputs for c in fast}, steps=steps)
    return times


def _estimate_step_s(candidate: Candidate) -> float:
    """Returns the shortest of the times of three steps."""
    taken = []
    for row in candidate.inputs[:3]:
        began = perf_counter_ns()
        candidate.engine.step(row)
        taken.append(perf_counter_ns() - began)
    return min(taken) / 1e9


# ---------------------------------------------------------------- in use: every 10 ms


@dataclass(frozen=True)
class TimesInUse:
    """The times of subjects that were woken every 10 ms, by name."""

    warm: Mapping[str, PacedTimes] = field(default_factory=dict)
    cold: Mapping[str, PacedTimes] = field(default_factory=dict)  # caches emptied before each step
    reasons: Mapping[str, str] = field(default_factory=dict)  # why a subject has no such times
    scheduling: Mapping[str, object] = field(default_factory=dict)  # cores and policy of this process


@dataclass(frozen=True)
class FrameTimes:
    """The times of the whole decoder on the raw frames of a bin, and of "empty" beside it."""

    decoder: PacedTimes
    empty: PacedTimes


def time_in_use(candidates: Sequence[Candidate], times: Mapping[str, Times], seconds: float) -> TimesInUse:
    """Times the candidates every 10 ms for `seconds`, with warm and with emptied caches.

    `times` are those of `time_flat_out`. A candidate whose median there leaves no room for the others is left out.
    """
    share_us = ONE_BIN_US / (len(candidates) + 1) / 2  # half of a fair share, since steps with cold caches are slower
    quick = [c for c in candidates if np.median(times[c.name]) / 1e3 < share_us] if seconds > 0 else []
    reasons = {c.name: NOT_ASKED if seconds <= 0 else TOO_SLOW for c in candidates}
    if not quick:
        return TimesInUse(reasons=reasons)
    steps, inputs = {c.name: c.engine.step for c in quick}, {c.name: c.inputs for c in quick}
    periods = max(1, round(seconds * BINS_PER_S))
    with use_real_time() as scheduling:
        try:
            warm = time_paced(steps, inputs, periods)
        except EngineError:  # a step that was woken is slower than flat out where the machine saves power or is busy
            return TimesInUse(reasons=dict.fromkeys(reasons, TOO_SLOW), scheduling=dict(scheduling))
        try:
            cold = time_paced(steps, inputs, periods, evicted=True)
        except EngineError:  # emptying the caches takes longer than their share
            cold = {}
    reasons = {name: reason for name, reason in reasons.items() if name not in steps}
    return TimesInUse(warm, cold, reasons, dict(scheduling))


def time_raw_frames(bundle: Bundle, engine: str, seconds: float) -> FrameTimes | None:
    """Times the whole decoder, front end included, on the raw frames of a bin every 10 ms.

    Returns None where the bundle holds no raw frames or the decoder is too slow for 10 ms.
    """
    frames = read_raw_frames(bundle)
    if seconds <= 0 or frames is None:
        return None
    decoder = Decoder(bundle, engine)
    config = decoder.frontend_config
    edges = [config.edge(bin_) for bin_ in range(config.bin_of(len(frames)) + 1)]
    rows = [frames[start:stop] for start, stop in pairwise(edges) if stop <= len(frames)]
    if not rows:
        return None
    with use_real_time():
        try:
            found = time_paced({FRAMES: decoder.push}, {FRAMES: rows}, max(1, round(seconds * BINS_PER_S)))
        except EngineError:
            return None
    return FrameTimes(found[FRAMES], found[EMPTY])


# ---------------------------------------------------------------- energy


def find_meters(candidates: Sequence[Candidate], power: Power | None) -> dict[str, Meter | str]:
    """Returns, by name of a candidate, the meter of the engine that runs it, or the reason why there is none.

    `power` names the rails of the target's board. Whatever the target is, a subject on a GPU is measured by a sensor
    that sees the GPU, and a subject on the CPU by one that sees the CPU. Those that share a sensor share the meter.
    """
    on_gpu = {c.name: c.runs_on in GPU_ENGINES for c in candidates}
    meters = {gpu: find_meter(power, gpu) for gpu in set(on_gpu.values())}
    return {name: meters[gpu] for name, gpu in on_gpu.items()}


def measure_energies(
    candidate: Candidate, meter: Meter | str, seconds: float, repeats: int = 3
) -> tuple[Energy, Energy]:
    """Measures the energy of a step above idle, first flat out and then every 10 ms. Logs how long that takes."""
    if not isinstance(meter, str) and seconds > 0:
        whole = 2 * repeats * estimate_repeat_s(max(seconds, meter.shortest_s))
        logger.info("energy of %s: about %.0f s (%s)", candidate.name, whole, meter.source)
    flat = measure_candidate_energy(candidate, meter, seconds, repeats=repeats)
    return flat, measure_candidate_energy(candidate, meter, seconds, paced=True, repeats=repeats)


def measure_candidate_energy(
    candidate: Candidate, meter: Meter | str, seconds: float, paced: bool = False, repeats: int = 3
) -> Energy:
    """Measures the energy of a step above idle, flat out or every 10 ms (`paced`), `repeats` times for `seconds` each.

    The figures are None, with the reason, where `meter` is a reason, or where the step is too slow.
    """
    if isinstance(meter, str):
        return Energy.not_measured(meter)
    if seconds <= 0:
        return Energy.not_measured("not asked for")
    if paced and _estimate_step_s(candidate) > 1 / BINS_PER_S:
        return Energy.not_measured("slower than 100 Hz")

    def run(duration: float) -> int:
        start, count, rows = monotonic(), 0, candidate.inputs
        while (now := monotonic()) < start + duration:
            if paced and (early := start + count / BINS_PER_S - now) > 0:
                sleep(early)
            candidate.engine.step(rows[count % len(rows)])
            count += 1
        return count

    return measure_energy(meter, run, max(seconds, meter.shortest_s), repeats)
