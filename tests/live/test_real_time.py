"""Real-time manners are granted or warned of, and undone."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

from edgedistill.live import real_time
from edgedistill.live.real_time import real_time_manners


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
        with real_time_manners(core=core) as inner:  # two streams in one program
            assert inner.memory_locked == manners.memory_locked
        assert real_time._locks == int(manners.memory_locked)
    assert state() == before
    assert real_time._locks == 0


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
