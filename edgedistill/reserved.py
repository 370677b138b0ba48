"""Keeps two commands from writing to the same result or the same work folder at once.

A command says where it writes. While another process or thread does the same there, it waits, and a line in the log
says for whom. The lock is a hidden file beside the place, `.NAME.lock`. It is the lock on the file that counts and not
the file: it ends with its process, so that a command that was killed blocks nobody.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from edgedistill import ranks
from edgedistill.files import output_error
from edgedistill.staging import LONGEST_STEM, NO_LOCKS, try_lock

FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
OWNER_BYTES = 200
P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger(__name__)


def reserving(places_of: Callable[[Any], tuple[Path, ...]]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorates a command, whose first argument are its options, so that it runs while it holds its places.

    Of several processes that train together only the main one holds them, because the others write nothing.
    """

    def decorate(command: Callable[P, R]) -> Callable[P, R]:
        @wraps(command)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            with reserve(*(places_of(args[0]) if ranks.is_main() else ())):
                return command(*args, **kwargs)

        return run

    return decorate


def work_folder(out: Path, named: Path | None = None) -> Path:
    """Returns the work folder of a command, which lies beside its result unless the user has named one."""
    return named or out.parent / f"{out.name}.work"


@contextmanager
def reserve(*places: Path) -> Iterator[None]:
    """Holds the places inside the block, and waits for whoever else holds one of them.

    Every command takes its locks in the same order, so that no two wait for each other. Raises OutputError where no
    lock can be made beside the first of the places, which is the result.
    """
    named = {_lock_of(place): place for place in places if place.name}
    with ExitStack() as stack:
        for lock in sorted(named):
            _enter(stack, lock, named[lock], needed=named[lock] == places[0])
        yield


def _enter(stack: ExitStack, lock: Path, place: Path, needed: bool) -> None:
    """Takes a lock. A work folder that the user named may lie in a folder where no file can be made."""
    try:
        stack.enter_context(_hold(lock, place))
    except OSError as error:
        if needed or error.errno not in FORBIDDEN:
            raise output_error(place, "the result", error, "choose another place") from error


def _lock_of(place: Path) -> Path:
    real = Path(os.path.realpath(place))
    return real.with_name(f".{real.name[:LONGEST_STEM]}.lock")


@contextmanager
def _hold(lock: Path, place: Path) -> Iterator[None]:
    made = [folder for folder in lock.parents if not folder.exists()]
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _take(lock, place)
    try:
        yield
    finally:
        with suppress(OSError):
            lock.unlink()
        os.close(descriptor)
        with suppress(OSError):  # where the command has written nothing
            for folder in made:
                folder.rmdir()


def _take(lock: Path, place: Path) -> int:
    """Returns the descriptor of the file, which is locked. Who had it before removes it, and then it is made anew."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            _wait_for_lock(descriptor, place)
            if _is_still_there(lock, descriptor):
                _require_own(lock, descriptor)
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename}".encode()[:OWNER_BYTES], 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_still_there(lock: Path, descriptor: int) -> bool:
    """Returns whether the open file still has its name. Its last owner may remove it at any moment."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(lock))
    except FileNotFoundError:
        return False


def _require_own(lock: Path, descriptor: int) -> None:
    """Raises OSError for a lock that is another file as well. Whoever shares the folder could name any file so."""
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        raise OSError(errno.EEXIST, "it is not a plain file, or has a second name", str(lock))


def _wait_for_lock(descriptor: int, place: Path) -> None:
    try:
        if try_lock(descriptor):
            return
        owner = os.pread(descriptor, OWNER_BYTES, 0).decode(errors="replace") or "another process"
        logger.warning("%s: waiting for %s, which writes there; Ctrl-C ends the wait", place, owner)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        logger.warning("%s: this disk has no locks; let no second command write there at the same time", place)
