"""Asks the system for what a real-time thread needs: memory that stays, a core, and priority.

What is not granted is a warning with its cause, and the stream runs without it.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Lock
from typing import cast

from edgedistill.live.records import RealTimeManners
from edgedistill.measure.closed_loop import FIFO_PRIORITY, use_real_time

MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4  # linux/mman.h
SWITCH_S = 0.0005  # after which a thread of Python that computes must let another one go on

_guard = Lock()  # of what follows, since several streams may run in one program
_locks = 0  # streams that want the memory of this process locked
_streams = 0  # that want Python's interpreter lock to change hands fast
_usual_switch_s = 0.0  # of a program without streams
_taken: list[int] = []  # cores of the streams


@contextmanager
def real_time_manners(wanted: bool = True, core: int | None = None) -> Iterator[RealTimeManners]:
    """Gives this thread and those that it starts real-time manners, and yields what is in force.

    `core` is the processor core to stay on, without it the last one that no other stream of this program has. If not
    `wanted`, nothing is changed.
    """
    if not wanted:
        yield RealTimeManners(False, "other", None, _read_cores(), ("real-time manners were switched off",))
        return
    with _guard:
        _hasten_python()
        lock_failure = _lock_memory()
        place = _take_core(core)
    try:
        with use_real_time(place) as got:
            yield _describe(got, lock_failure, core)
    finally:
        with _guard:
            if place is not None:
                _taken.remove(place)
            if lock_failure is None:
                _unlock_memory()
            _leave_python()


def stay_before_other_programs() -> None:
    """Gives this thread the lowest FIFO priority where that is allowed. What it starts does not inherit it.

    A sink may hold Python's interpreter lock while it computes. If another program took the core from it in that
    moment, the thread that decodes would wait for that program.
    """
    with suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))


def _describe(got: dict[str, object], lock_failure: str | None, core: int | None) -> RealTimeManners:
    policy, cores = str(got["policy"]), tuple(cast("list[int]", got["cores"] or []))
    warnings = []
    if lock_failure is not None:
        warnings.append(f"memory is not locked: {lock_failure}; `ulimit -l unlimited` allows it")
    if policy != "fifo":
        warnings.append("no real-time priority: not allowed here; `ulimit -r 99` or CAP_SYS_NICE allows it")
    if len(cores) != 1 or (core is not None and cores != (core,)):
        place = "a core" if core is None else f"core {core}"
        warnings.append(f"the thread does not have {place} to itself: the system refused it")
    return RealTimeManners(
        lock_failure is None, policy, FIFO_PRIORITY if policy == "fifo" else None, cores, tuple(warnings)
    )


def _hasten_python() -> None:
    """Lets Python's interpreter lock change hands fast, and keeps the garbage collector from what exists by now."""
    global _streams, _usual_switch_s
    if not _streams:
        _usual_switch_s = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_S)
    _streams += 1
    gc.freeze()


def _leave_python() -> None:
    """Undoes that with the last stream."""
    global _streams
    _streams -= 1
    if not _streams:
        gc.unfreeze()
        sys.setswitchinterval(_usual_switch_s)


def _take_core(core: int | None) -> int | None:
    """Returns the core of a stream, and notes it in `_taken`. It is None where the system has no such choice."""
    cores = set(_read_cores())
    if core is None:
        core = max(cores - set(_taken) or cores, default=None)
    if core is not None:
        _taken.append(core)
    return core


def _read_cores() -> tuple[int, ...]:
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()


def _lock_memory() -> str | None:
    """Keeps all pages of this process in memory, or returns why not.

    Pages of the future are only asked for without a limit, since allocations would fail where a limit is reached.
    """
    global _locks
    unlimited = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY or os.geteuid() == 0
    flags = MCL_CURRENT | (MCL_FUTURE | MCL_ONFAULT if unlimited else 0)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.mlockall(flags)
    except (OSError, AttributeError):
        return "this system has no mlockall"
    if failed:
        return os.strerror(ctypes.get_errno())
    _locks += 1
    return None


def _unlock_memory() -> None:
    global _locks
    _locks -= 1
    if not _locks:
        ctypes.CDLL(None).munlockall()
