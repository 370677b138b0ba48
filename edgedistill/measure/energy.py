"""Measures the energy of a step: a meter and a callable go in, millijoules a step and mean power come out.

A step is far shorter than any sensor can see, so it is run for seconds, between two stretches of idling. Their power is
subtracted, and what remains is what decoding adds to a machine that is switched on anyway. Each repeat has its own idle
stretches, and the interval comes from the repeats (Student's t, 95 %). Samples carry monotonic timestamps and are
integrated between them, so that a sampler that was kept waiting distorts nothing.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic, sleep

import numpy as np

from edgedistill.errors import EngineError
from edgedistill.measure.sensors import Meter

Clock = Callable[[], float]  # seconds, never backwards
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Energy:
    """What decoding adds to the power of an idle machine. Figures are None where `source` says why."""

    mj_per_step: float | None
    mw: float | None  # mean power above idle
    interval: float | None  # half the 95 % interval of mj_per_step; None after a single repeat
    idle_mw: float | None
    steps: int
    seconds: float
    source: str  # the meter, or why there is no figure

    @classmethod
    def not_measured(cls, reason: str) -> Energy:
        """Returns an energy without figures, for the reason given."""
        return cls(None, None, None, None, 0, 0.0, f"not measured: {reason}")


@dataclass
class Sampler:
    """Reads a meter in a thread for as long as the `with` block lasts."""

    meter: Meter
    clock: Clock = monotonic
    times: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    _failure: EngineError | None = None
    _end: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Sampler:
        self._sample()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        assert self._thread is not None
        self._thread.join()
        if self._failure is None:
            self._sample()

    def _run(self) -> None:
        while not self._end.wait(self.meter.period_s) and self._failure is None:
            self._sample()

    def _sample(self) -> None:
        try:
            value = self.meter.read()
        except EngineError as error:
            self._failure = error
        else:
            self.times.append(self.clock())
            self.values.append(value)

    def energy_mj(self) -> float:
        """Returns the energy between the first sample and the last.

        Raises EngineError if the meter failed or the clock went backwards.
        """
        if self._failure is not None:
            raise self._failure
        return integrate_energy_mj(self.times, self.values, self.meter)

    @property
    def seconds(self) -> float:
        """The time between the first sample and the last."""
        return self.times[-1] - self.times[0]


def integrate_energy_mj(times: Sequence[float], values: Sequence[float], meter: Meter) -> float:
    """Returns the energy of a trace: the difference of a counter, or power integrated over time (trapezoids).

    Raises EngineError where the clock went backwards.
    """
    steps = np.diff(times)
    if (steps <= 0).any():
        raise EngineError("the clock went backwards while power was sampled", got=f"{steps.min():g} s between samples")
    if meter.counts_energy:
        return float(values[-1] - values[0])
    power = np.asarray(values, float)
    return float(np.sum(steps * (power[:-1] + power[1:]) / 2))


def measure_energy(
    meter: Meter | str, run: Callable[[float], int], seconds: float = 5.0, repeats: int = 3, idle_s: float | None = None
) -> Energy:
    """Measures the energy above idle of `run(seconds)`, which works that long and returns how many steps it did.

    The figures are None, with the reason, where `meter` is a reason instead of a meter, or where it fails on the way.
    Raises EngineError for a run that is too short for the sensor.
    """
    if isinstance(meter, str):
        return Energy.not_measured(meter)
    if seconds < meter.shortest_s:
        raise EngineError(
            f"a run of {seconds:g} s is too short for this sensor",
            got=meter.source,
            expected=f"at least {meter.shortest_s:g} s",
        )
    try:
        idle_s = seconds / 2 if idle_s is None else idle_s
        parts = [_measure_part(meter, run, seconds, idle_s) for _ in range(repeats)]
    except EngineError as error:
        return Energy.not_measured(f"{error.what} ({error.got})")
    return _summarize(parts, meter)


def estimate_repeat_s(seconds: float) -> float:
    """Returns how long one repeat of `measure_energy` takes, with its idle stretches before and after."""
    return 2 * seconds


@dataclass(frozen=True)
class _Part:
    idle_mw: float
    added_mj: float
    seconds: float
    steps: int


def _measure_part(meter: Meter, run: Callable[[float], int], seconds: float, idle_s: float) -> _Part:
    before = _measure_idle_mw(meter, idle_s)
    with Sampler(meter) as sampler:
        steps = run(seconds)
    after = _measure_idle_mw(meter, idle_s)
    if sampler.seconds < meter.shortest_s or steps < 1:
        raise EngineError(
            "the run ended too early for this sensor", got=f"{sampler.seconds:.3g} s, {steps} steps", expected=seconds
        )
    idle = (before + after) / 2
    return _Part(idle, sampler.energy_mj() - idle * sampler.seconds, sampler.seconds, steps)


def _measure_idle_mw(meter: Meter, seconds: float) -> float:
    with Sampler(meter) as sampler:
        sleep(seconds)
    return sampler.energy_mj() / sampler.seconds


def _summarize(parts: Sequence[_Part], meter: Meter) -> Energy:
    from scipy.stats import t as student_t  # imported late: it takes half a second, and most machines have no sensor

    per_step = np.array([part.added_mj / part.steps for part in parts])
    interval = None
    if len(parts) > 1:
        spread = float(per_step.std(ddof=1)) / math.sqrt(len(parts))
        interval = float(student_t.ppf((1 + CONFIDENCE) / 2, len(parts) - 1)) * spread
    seconds = sum(part.seconds for part in parts)
    return Energy(
        float(per_step.mean()),
        sum(part.added_mj for part in parts) / seconds,
        interval,
        float(np.mean([part.idle_mw for part in parts])),
        sum(part.steps for part in parts),
        seconds,
        meter.source,
    )
