"""Makes a file or folder beside its final place, and moves it there whole once it is on the disk.

The opened folder of the result and the result's name go in. While it is written it lies in a hidden folder beside its
place, `.NAME.MACHINE-BOOT-RANDOM.partial/`, which holds

    lock       a file that the writing process has locked for as long as it lives
    new/NAME   what is being written
    old/NAME   what it replaces, only where the disk cannot exchange two folders, and only between two renames

A process that is killed cannot tidy up. The next one that writes to the same folder does it: a hidden folder whose lock
is free belongs to nobody. The lock ends with its process, so that neither a reused process number nor a clock that was
set back matters. On some network disks locks reach only one machine. A hidden folder is therefore removed only if its
name says that this machine made it, or that it was made since this kernel started, which all containers share.

Names are opened step by step in folders that are open already, and links are not followed. Everything here raises
OSError.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
ENTRY = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # without the last, opening a pipe would wait
LOCK_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
LOCK, NEW, OLD = "lock", "new", "old"
LONGEST_STEM = 40  # characters of a hidden name that come from the final one; names end at 255 bytes
LEFTOVER = re.compile(r"\..+\.([0-9a-f]{8})-([0-9a-f]{8})-[0-9a-f]{8}\.partial", re.DOTALL)
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EBADF)  # of disks without locks
CANNOT = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)  # of disks and systems without an operation
APPEARED = (errno.ENOTEMPTY, errno.EEXIST)  # where a folder is moved to a place that holds one by now
EXCHANGE = 2  # RENAME_EXCHANGE of <linux/fs.h>


@dataclass(frozen=True)
class Staging:
    """Gives access to the hidden folder in which one result is made."""

    inside: int  # descriptor of the folder of the result
    name: str  # of the result
    folder: int  # descriptor of the hidden folder
    new: int  # descriptor of its folder NEW, in which the caller makes the result under its final name
    path: str  # of the result while it is made, relative to `inside`

    def put_in_place(self) -> None:
        """Moves the new file or folder to its place, once all of it is on the disk.

        A file replaces a file, a folder replaces a folder or a link, each in one step where the disk can do it.
        """
        is_folder = stat.S_ISDIR(os.lstat(self.name, dir_fd=self.new).st_mode)
        sync_to_disk(self.new, self.name)
        if is_folder and _is_folder_or_link(self.inside, self.name):
            self._replace_folder()
        else:
            try:
                os.rename(self.name, self.name, src_dir_fd=self.new, dst_dir_fd=self.inside)
            except OSError as error:
                if not is_folder or error.errno not in APPEARED:
                    raise
                self._replace_folder()  # another process was faster by a moment
        sync_folder(self.inside)

    def _replace_folder(self) -> None:
        try:
            _exchange(self.new, self.inside, self.name)
        except OSError as error:
            if error.errno not in CANNOT:
                raise
            self._replace_in_two_steps()

    def _replace_in_two_steps(self) -> None:
        """Moves the old folder away and the new one to its place. `_clear` brings it back if this ends in between."""
        os.mkdir(OLD, 0o700, dir_fd=self.folder)
        old = os.open(OLD, FOLDER | os.O_NOFOLLOW, dir_fd=self.folder)
        try:
            os.rename(self.name, self.name, src_dir_fd=self.inside, dst_dir_fd=old)
            os.rename(self.name, self.name, src_dir_fd=self.new, dst_dir_fd=self.inside)
        finally:
            os.close(old)


@contextmanager
def stage(inside: int, name: str) -> Iterator[Staging]:
    """Yields a place in which `name` can be made, and removes at the end what was not moved from there.

    `inside` is the descriptor of a folder. What dead processes have left in it is removed first.
    """
    remove_leftovers(inside)
    hidden, folder, lock = _make_hidden_folder(inside, name)
    new = -1
    try:
        os.mkdir(NEW, 0o700, dir_fd=folder)
        new = os.open(NEW, FOLDER | os.O_NOFOLLOW, dir_fd=folder)
        yield Staging(inside, name, folder, new, f"{hidden}/{NEW}/{name}")
    finally:
        with suppress(OSError):
            _clear(inside, hidden, folder)
        for descriptor in (new, folder, lock):
            if descriptor >= 0:
                os.close(descriptor)


@contextmanager
def opened_folder(path: Path) -> Iterator[int]:
    """Yields a descriptor of a folder, which the caller names and may be a link."""
    descriptor = os.open(path, FOLDER)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def remove_leftovers(inside: int) -> None:
    """Removes from a folder what dead processes have left there, and brings back what they were about to replace.

    What belongs to a living process, to another user or to another machine stays, and so does what cannot be removed.
    """
    for name in os.listdir(inside):
        found = LEFTOVER.fullmatch(name)
        if found and (found[1] == _identify_machine() or found[2] == _identify_boot()):
            with suppress(OSError):
                _remove_if_dead(inside, name)


def try_lock(descriptor: int) -> bool:
    """Locks an opened file until it is closed. Returns False where another process or thread has locked it.

    Raises OSError with a number in NO_LOCKS on a disk that has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def sync_to_disk(inside: int, name: str) -> None:
    """Waits until a file, or a folder with all files in it, is on the disk.

    A folder takes one call for its whole disk where the system has it. One call for each file takes ten times as long.
    """
    descriptor = os.open(name, ENTRY, dir_fd=inside)
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            _sync(descriptor)
        elif not _sync_whole_disk(descriptor):
            _sync_tree(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(descriptor: int) -> None:
    """Waits until the names in a folder are on the disk."""
    _sync(descriptor)


def remove_tree(inside: int, name: str) -> None:
    """Removes a file, a link or a whole folder. What a link leads to is left alone."""
    try:
        inner = os.open(name, FOLDER | os.O_NOFOLLOW, dir_fd=inside)
    except FileNotFoundError:
        return
    except OSError:
        os.unlink(name, dir_fd=inside)
        return
    try:
        for entry in os.listdir(inner):  # noqa: PTH208, as a descriptor has no Path
            remove_tree(inner, entry)
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=inside)


# ---------------------------------------------------------------- hidden folders


def _make_hidden_folder(inside: int, name: str) -> tuple[str, int, int]:
    """Makes a hidden folder with a lock, and returns its name, its descriptor and that of the lock.

    Another process may take it for a leftover in the moment before it is locked. Then the next name is tried.
    """
    while True:
        token = f"{_identify_machine()}-{_identify_boot()}-{secrets.token_hex(4)}"
        hidden, open_ones = f".{name[:LONGEST_STEM]}.{token}.partial", []
        os.mkdir(hidden, 0o700, dir_fd=inside)
        try:
            open_ones.append(os.open(hidden, FOLDER | os.O_NOFOLLOW, dir_fd=inside))
            open_ones.append(os.open(LOCK, LOCK_FLAGS | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=open_ones[0]))
            if _lock_if_possible(open_ones[1]) and _is_same_file(open_ones[1], open_ones[0], LOCK):
                return hidden, open_ones[0], open_ones[1]
        except FileNotFoundError:
            pass
        except BaseException:
            with suppress(OSError):
                remove_tree(inside, hidden)
            for descriptor in open_ones:
                os.close(descriptor)
            raise
        for descriptor in open_ones:
            os.close(descriptor)


def _lock_if_possible(descriptor: int) -> bool:
    """Locks a file. On a disk without locks nobody can, and nobody takes anything for a leftover."""
    try:
        return try_lock(descriptor)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return True
        raise


def _is_same_file(descriptor: int, inside: int, name: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(name, dir_fd=inside))
    except FileNotFoundError:
        return False


def _remove_if_dead(inside: int, hidden: str) -> None:
    folder = os.open(hidden, FOLDER | os.O_NOFOLLOW, dir_fd=inside)
    try:
        if os.fstat(folder).st_uid != os.geteuid():
            return
        try:
            lock = os.open(LOCK, LOCK_FLAGS, dir_fd=folder)
        except FileNotFoundError:  # its process was killed before there was a lock, or at the end of `_clear`
            os.rmdir(hidden, dir_fd=inside)
            return
        try:
            if try_lock(lock):
                _clear(inside, hidden, folder)
        finally:
            os.close(lock)
    finally:
        os.close(folder)


def _clear(inside: int, hidden: str, folder: int) -> None:
    """Removes a hidden folder, its lock last, and first brings back what has lost its place."""
    _bring_back(inside, folder)
    for entry in (OLD, NEW, LOCK):
        remove_tree(folder, entry)
    os.rmdir(hidden, dir_fd=inside)


def _bring_back(inside: int, folder: int) -> None:
    try:
        old = os.open(OLD, FOLDER | os.O_NOFOLLOW, dir_fd=folder)
    except FileNotFoundError:
        return
    try:
        for name in os.listdir(old):  # noqa: PTH208, as a descriptor has no Path
            if not _exists(inside, name):
                os.rename(name, name, src_dir_fd=old, dst_dir_fd=inside)
    finally:
        os.close(old)


def _exists(inside: int, name: str) -> bool:
    try:
        os.lstat(name, dir_fd=inside)
    except FileNotFoundError:
        return False
    return True


def _is_folder_or_link(inside: int, name: str) -> bool:
    try:
        mode = os.lstat(name, dir_fd=inside).st_mode
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(mode) or stat.S_ISLNK(mode)


@lru_cache(maxsize=1)
def _identify_machine() -> str:
    return _hash(_read("/etc/machine-id") + os.uname().nodename)


@lru_cache(maxsize=1)
def _identify_boot() -> str:
    return _hash(_read("/proc/sys/kernel/random/boot_id") or secrets.token_hex(8))


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


# ---------------------------------------------------------------- calls of the system


def _exchange(from_folder: int, to_folder: int, name: str) -> None:
    """Lets the two entries of that name change places, in one step. Raises OSError in CANNOT where that is unknown."""
    rename = _c_function("renameat2")
    if rename is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), name)
    path = os.fsencode(name)
    _call(rename(from_folder, path, to_folder, path, EXCHANGE), name)


def _sync_whole_disk(descriptor: int) -> bool:
    """Waits until everything that was written to the disk of a file is there. Returns False where that is unknown."""
    sync = _c_function("syncfs")
    if sync is None:
        return False
    try:
        _call(sync(descriptor), "")
    except OSError as error:
        if error.errno in CANNOT:
            return False
        raise
    return True


def _call(result: int, name: str) -> None:
    if result != 0:
        import ctypes

        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)


@lru_cache(maxsize=8)
def _c_function(name: str) -> Callable[..., int] | None:
    """Returns a function of the C library that Python does not offer, or None where the library has none."""
    import ctypes

    found: Callable[..., int] | None = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    return found


def _sync_tree(folder: int) -> None:
    for name in os.listdir(folder):
        mode = os.lstat(name, dir_fd=folder).st_mode
        if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
            continue
        inner = os.open(name, ENTRY, dir_fd=folder)
        try:
            _sync_tree(inner) if stat.S_ISDIR(mode) else _sync(inner)
        finally:
            os.close(inner)
    _sync(folder)


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in CANNOT:  # of network disks that cannot sync a folder
            raise
