"""Tests that a known energy is found within 1 %, and that what cannot be measured is null with the reason.

Time passes where a test says so, and the meter is read every 10 ms of it, whatever else the machine does.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from edgedistill.errors import EngineError
from edgedistill.measure import energy
from edgedistill.measure.energy import Sampler, integrate_energy_mj, measure_energy

from ..waiting import wait_until

STEP_MW = 700.0
IDLE_MW = 5000.0


class MadeTime:
    """A clock, and the sampler that reads a meter at its pace. Steps are run until a given time has passed."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.busy = False
        self.sampler: MadeSampler | None = None

    def pass_by(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.01)):
            self.now_s += 0.01
            if self.sampler is not None:
                self.sampler.tick()

    def run(self, steps: int) -> Callable[[float], int]:
        def work(seconds: float) -> int:
            self.busy = True
            self.pass_by(seconds)
            self.busy = False
            return steps

        return work


class MadeSampler(Sampler):
    """Is read when time passes by, and not by a thread."""

    time: MadeTime

    def __enter__(self) -> MadeSampler:
        self.clock = lambda: self.time.now_s
        self.time.now_s += 1e-6  # between two samplers
        self._sample()
        self.time.sampler = self
        return self

    def __exit__(self, *_: object) -> None:
        self.time.sampler = None
        self.time.now_s += 1e-6
        if self._failure is None:
            self._sample()

    def tick(self) -> None:
        if self._failure is None:
            self._sample()


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> MadeTime:
    time = MadeTime()
    monkeypatch.setattr(MadeSampler, "time", time, raising=False)
    monkeypatch.setattr(energy, "Sampler", MadeSampler)
    monkeypatch.setattr(energy, "sleep", time.pass_by)
    return time


@dataclass
class Board:
    """A sensor of a board that draws STEP_MW more while `busy`; it may fail at a reading."""

    power_mw: Callable[[], float] = lambda: IDLE_MW
    fail_at: int | None = None
    source: str = "a board"
    period_s: float = 0.01
    shortest_s: float = 0.02
    counts_energy: bool = False
    readings: int = 0

    def read(self) -> float:
        self.readings += 1
        if self.readings == self.fail_at:
            raise EngineError("the sensor vanished", got="No such file")
        return self.power_mw()


@dataclass
class Counter(Board):
    """The same board, read as a counter of energy."""

    counts_energy: bool = True
    total_mj: float = 0.0
    last_s: float | None = None
    clock: Callable[[], float] = lambda: 0.0

    def read(self) -> float:
        now, power = self.clock(), super().read()
        self.total_mj += 0.0 if self.last_s is None else (now - self.last_s) * power
        self.last_s = now
        return self.total_mj


@pytest.mark.parametrize("kind", [Board, Counter])
def test_what_a_step_adds_to_an_idle_board_is_found(time: MadeTime, kind: type[Board]) -> None:
    clock = {"clock": lambda: time.now_s} if kind is Counter else {}
    meter = kind(power_mw=lambda: IDLE_MW + STEP_MW * time.busy, **clock)
    found = measure_energy(meter, time.run(50), seconds=1.0, repeats=3, idle_s=0.1)
    assert found.mw == pytest.approx(STEP_MW, rel=0.01)  # the flanks fall between two samples
    assert found.mj_per_step == pytest.approx(STEP_MW / 50, rel=0.01)
    assert found.idle_mw == pytest.approx(IDLE_MW, rel=1e-3)
    assert found.interval == pytest.approx(0, abs=1e-6)
    assert found.steps == 150
    assert found.source == "a board"


def test_a_thread_reads_the_meter_until_the_end() -> None:
    board = Board(period_s=0.001)
    with Sampler(board) as sampler:
        wait_until(lambda: board.readings >= 5)
    read = board.readings
    assert len(sampler.times) == len(sampler.values) == read
    assert sampler.energy_mj() == pytest.approx(IDLE_MW * sampler.seconds)


def test_a_trace_is_integrated_within_a_hundredth() -> None:
    """Integrates a sine on a ramp, which is sampled at uneven times around 10 Hz."""
    times = np.cumsum(np.random.default_rng(0).uniform(0.05, 0.15, 200))
    power = 4000 + 30 * times + 500 * np.sin(times)
    primitive = 4000 * times + 15 * times**2 - 500 * np.cos(times)
    found = integrate_energy_mj(list(times), list(power), Board())
    assert found == pytest.approx(primitive[-1] - primitive[0], rel=0.01)


def test_a_clock_that_jumps_back_is_refused() -> None:
    with pytest.raises(EngineError, match="clock went backwards"):
        integrate_energy_mj([0.0, 0.1, 0.05], [1.0, 1.0, 1.0], Board())
    ticks = itertools.chain([5.0], itertools.repeat(1.0))
    with Sampler(Board(), clock=lambda: next(ticks)) as sampler:
        pass
    with pytest.raises(EngineError, match="clock"):
        sampler.energy_mj()


@pytest.mark.parametrize("fail_at", [1, 3, 12])
def test_a_sensor_that_disappears_leaves_null_and_the_reason(time: MadeTime, fail_at: int) -> None:
    found = measure_energy(Board(fail_at=fail_at), time.run(10), seconds=0.1, repeats=1, idle_s=0.05)
    assert (found.mj_per_step, found.mw) == (None, None)
    assert "vanished" in found.source


def test_without_a_meter_the_energy_is_null_with_the_reason() -> None:
    found = measure_energy("only root may", lambda seconds: 1)
    assert found.mj_per_step is None
    assert found.source == "not measured: only root may"


def test_a_run_too_short_for_the_sensor_is_refused() -> None:
    with pytest.raises(EngineError, match="too short"):
        measure_energy(Board(shortest_s=2.0), lambda seconds: 1, seconds=0.5)


def test_a_run_that_ends_too_early_has_no_figure(time: MadeTime) -> None:
    found = measure_energy(Board(shortest_s=0.2), lambda seconds: 1, seconds=0.3, repeats=1, idle_s=0.05)
    assert found.mj_per_step is None
    assert "too early" in found.source


def test_one_repeat_has_no_interval(time: MadeTime) -> None:
    assert measure_energy(Board(), time.run(3), seconds=0.05, repeats=1, idle_s=0.05).interval is None
