"""Real-time manners are granted or warned of, and undone."""

from __future__ import annotations

import os
import subprocess
import sys
from threading import Event, Thread
from typing import Any

import pytest

from edgedistill.live import real_time
from edgedistill.live.real_time import real_time_manners, stay_before_other_programs


def state() -> tuple[Any, ...]:
    return os.sched_getaffinity(0), os.sched_getscheduler(0), sys.getswitchinterval()


def test_what_is_in_force_is_told_and_undone() -> None:
    before, core = state(), min(os.sched_getaffinity(0))
    with real_time_manners(core=core) as manners:
        assert manners.memory_locked != any("memory" in warning for warning in manners.warnings)
        assert (manners.policy == "fifo") != any("priority" in warning for warning in manners.warnings)
        assert manners.policy == ("fifo" if os.sched_getscheduler(0) == os.SCHED_FIFO else "other")
        assert manners.cores == tuple(os.sched_getaffinity(0)) == (core,)
        assert [row[1] for row in manners.rows()] == [manners.memory_locked, manners.policy == "fifo", True]
    assert state() == before
    assert real_time._locks == 0


def test_two_streams_in_one_program_have_a_core_each_and_one_may_end_first() -> None:
    cores, interval = os.sched_getaffinity(0), sys.getswitchinterval()
    first_began, second_began, first_ended = Event(), Event(), Event()
    found: dict[str, Any] = {}

    def second() -> None:
        first_began.wait(60)
        with real_time_manners() as manners:
            found["second"] = manners
            second_began.set()
            first_ended.wait(60)
            found["interval"], found["locks"] = sys.getswitchinterval(), real_time._locks

    thread = Thread(target=second)
    thread.start()  # outside, because threads inherit manners
    with real_time_manners() as first:
        first_began.set()
        assert second_began.wait(60)
    first_ended.set()
    thread.join(60)
    assert first.cores == (max(cores),)
    assert found["second"].cores == (max(cores - {max(cores)} or cores),)
    assert found["interval"] == pytest.approx(real_time.SWITCH_S)  # which the end of the first has not undone
    assert found["locks"] == int(first.memory_locked)
    assert sys.getswitchinterval() == interval
    assert (real_time._locks, real_time._taken) == (0, [])


def test_sinks_come_before_other_programs_and_what_they_start_does_not() -> None:
    allowed = True
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    except OSError:
        allowed = False
    found: list[Any] = []

    def sink() -> None:
        stay_before_other_programs()
        found.append(os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK)
        code = "import os; print(os.sched_getscheduler(0))"
        found.append(int(subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout))

    thread = Thread(target=sink)
    thread.start()
    thread.join(60)
    assert found == [os.SCHED_FIFO if allowed else os.SCHED_OTHER, os.SCHED_OTHER]


def test_what_is_refused_is_a_warning_with_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    monkeypatch.setattr(real_time, "_lock_memory", lambda: "Cannot allocate memory")
    with real_time_manners(core=max(os.sched_getaffinity(0)) + 1) as manners:
        said = " ".join(manners.warnings)
    assert len(manners.warnings) == 3
    assert "ulimit -l" in said
    assert "ulimit -r" in said
    assert "refused" in said


def test_nothing_is_changed_where_nothing_is_wanted() -> None:
    before = state()
    with real_time_manners(wanted=False) as manners:
        assert state() == before
    assert (manners.memory_locked, manners.policy) == (False, "other")
    assert manners.warnings
