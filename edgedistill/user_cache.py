"""Finds the folder in which this user keeps compiled engines, and reads from it only what this user can have written.

A compiled engine is a program, and loading one runs it. It is therefore loaded only from a folder that belongs to the
user who runs this process and that nobody else can write to. This is `edgedistill` in XDG_CACHE_HOME or in ~/.cache, or
the folder that `use_cache` names. Where there is no such folder (a service without a home directory, a disk that is
read-only, a cache that others can write to), a private temporary folder serves for the time of the process, and a line
in the log says so.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import grp
import logging
import os
import pwd
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from edgedistill.contained import read_file
from edgedistill.errors import OutputError
from edgedistill.staging import opened_folder, stage

NAME = "edgedistill"
TEMPORARY = "temporary"  # name of folders that do not stay
PRIVATE = 0o700
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
ROOT = 0

logger = logging.getLogger(__name__)
_chosen: list[Path] = []  # by `use_cache`, the last one counts


@contextmanager
def use_cache(folder: Path | None) -> Iterator[None]:
    """Keeps compiled engines in `folder` inside the block, or in the usual place if it is None.

    Raises OutputError for a folder that cannot be made, or that others than this user can write to.
    """
    if folder is None:
        yield
        return
    place = folder.absolute()
    if (reason := make_private(place)) is not None:
        raise OutputError(
            f"{folder}: compiled engines cannot be kept here",
            got=reason,
            expected="a folder of this user's that nobody else can write to: whoever writes there could run programs",
            next_step=_next_step(folder),
        )
    _chosen.append(place)
    try:
        yield
    finally:
        _chosen.remove(place)


@contextmanager
def use_temporary_cache() -> Iterator[None]:
    """Keeps compiled engines in a folder of its own inside the block, which is removed at its end."""
    with _passing_folder(find_cache()) as folder, use_cache(folder):
        yield


@contextmanager
def write_private_copy(files: Mapping[str, bytes]) -> Iterator[Path]:
    """Writes files to a new folder of this user's alone, for a library that opens its files by path."""
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(_passing_folder(find_cache()))
        except OSError:  # the cache is there, and cannot be written to
            folder = stack.enter_context(_passing_folder(_temporary_folder("the cache is read-only")))
        for name, data in files.items():
            (folder / name).write_bytes(data)
        yield folder


@contextmanager
def _passing_folder(parent: Path, name: str = TEMPORARY) -> Iterator[Path]:
    """Makes a private folder for the time of the block. A later process removes that of one that was killed."""
    with opened_folder(parent) as inside, stage(inside, name) as staging:
        folder = parent / staging.path
        folder.mkdir(PRIVATE)
        yield folder


def find_cache() -> Path:
    """Returns the folder of compiled engines, which exists, and which only this user can write to.

    Raises OutputError where not even a private temporary folder can be made.
    """
    if _chosen:
        return _chosen[-1]
    usual = _usual_folder()
    reason = "there is no home directory" if usual is None else make_private(usual)
    return usual if usual is not None and reason is None else _temporary_folder(str(reason))


def make_private(folder: Path) -> str | None:
    """Makes a folder that only this user can enter. Returns the reason where that fails or it is not private.

    A folder that is there already is left as it is. The folders above it must not be replaceable by another user. Those
    above the user's home directory are not looked at: whoever can replace a home directory can run programs anyway.
    """
    try:
        missing = [path for path in (folder, *folder.parents) if not path.is_dir()]
        for path in reversed(missing):
            with suppress(FileExistsError):
                path.mkdir(PRIVATE)
        above_home = _folders_above_home()
        for path in _steps(folder.parent):
            if path not in above_home:
                require_safe_step(path, os.lstat(path))
        found = os.lstat(folder)
        require_private(found, str(folder))
        if not stat.S_ISDIR(found.st_mode):
            raise OSError(errno.ENOTDIR, "it is not a folder", str(folder))
    except OSError as error:
        return f"{error.filename or folder}: {error.strerror or error}"
    return None


def require_private(found: os.stat_result, name: str) -> None:
    """Raises OSError unless a file or folder is this user's alone to write, and has no second name elsewhere."""
    if stat.S_ISLNK(found.st_mode):
        raise OSError(errno.ELOOP, "it is a link", name)
    if found.st_uid != os.geteuid():
        raise OSError(errno.EPERM, f"it belongs to the user with number {found.st_uid}", name)
    if found.st_mode & OTHERS_WRITE:
        raise OSError(errno.EPERM, "other users can write to it", name)
    if stat.S_ISREG(found.st_mode) and found.st_nlink != 1:
        raise OSError(errno.EPERM, "it has a second name, a hard link", name)


def require_safe_step(path: Path, found: os.stat_result) -> None:
    """Raises OSError where another user could replace what lies below a folder, or lead a link elsewhere."""
    if found.st_uid not in (ROOT, os.geteuid()):
        raise OSError(errno.EPERM, f"it belongs to the user with number {found.st_uid}", str(path))
    if stat.S_ISLNK(found.st_mode) or found.st_mode & stat.S_ISVTX:  # in a sticky folder only owners rename
        return
    by_group = found.st_mode & stat.S_IWGRP and not _is_own_group(found.st_gid)
    if by_group or found.st_mode & stat.S_IWOTH:
        raise OSError(errno.EPERM, "other users can write to it", str(path))


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lets one process or thread at a time into the block, for each folder. A disk that has no locks lets all in."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read_private(folder: Path, name: str) -> bytes:
    """Returns the content of a file of `folder`, which lies in the cache.

    All folders from the cache on and the file are checked as they are opened, and the bytes come from the opened file.
    Raises OSError where one of them is a link or can be written to by others.
    """
    cache = find_cache()
    return read_file(cache, f"{folder.relative_to(cache).as_posix()}/{name}", require_private)


def make_tree_private(folder: Path) -> None:
    """Takes from other users all rights on a folder that this user made, whatever the umask was."""
    folder.chmod(PRIVATE)
    for path in folder.rglob("*"):
        path.chmod(PRIVATE if path.is_dir() else PRIVATE & ~0o100)


def _next_step(folder: Path) -> str:
    """Returns what helps where a folder cannot be used. A folder that is shared on purpose keeps its rights."""
    another = "name another folder with --cache"
    try:
        found = os.lstat(folder)
    except OSError:
        return another
    own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    mistaken = own and found.st_mode & OTHERS_WRITE and not found.st_mode & stat.S_ISVTX
    return f"chmod go-w {folder}, or {another}" if mistaken else another


def _usual_folder() -> Path | None:
    named = os.environ.get("XDG_CACHE_HOME", "")
    if Path(named).is_absolute():  # the specification says to ignore a relative one
        return Path(named) / NAME
    try:
        home = Path.home()
    except RuntimeError:
        return None
    real = home.is_absolute() and home.is_dir() and home != Path(home.anchor)  # users of services have / as theirs
    return home / ".cache" / NAME if real else None


@lru_cache(maxsize=1)
def _temporary_folder(reason: str) -> Path:
    """Returns a folder for the time of this process. The line in the log comes once."""
    stack = ExitStack()
    try:
        folder = stack.enter_context(_passing_folder(Path(tempfile.gettempdir()), NAME))
    except OSError as error:
        raise OutputError(
            "there is no place for a compiled engine", got=f"{reason}; {error}", next_step=STEP
        ) from error
    atexit.register(_close_in, os.getpid(), stack)
    if (unsafe := make_private(folder)) is not None:
        raise OutputError("there is no place for a compiled engine", got=f"{reason}; {unsafe}", next_step=STEP)
    logger.warning("compiled engines are kept in a temporary folder and lost at the end, because %s (%s)", reason, STEP)
    return folder


STEP = "--cache FOLDER, or the environment variable XDG_CACHE_HOME, names a lasting one"


def _close_in(process: int, stack: ExitStack) -> None:
    if os.getpid() == process:  # not in a child that was forked
        stack.close()


def _steps(folder: Path) -> Iterator[Path]:
    """Yields every folder and link from the root to `folder`, and those on the way to where the links lead."""
    waiting, seen = [folder], set[Path]()
    while waiting:
        path = waiting.pop()
        for step in (*reversed(path.parents), path):
            if step in seen:
                continue
            seen.add(step)
            yield step
            if step.is_symlink():
                waiting.append(Path(os.path.normpath(step.parent.resolve() / step.readlink())))


def _folders_above_home() -> set[Path]:
    """Returns the folders that lead to the home directory which the system knows, whatever HOME says."""
    try:
        home = Path(pwd.getpwuid(os.geteuid()).pw_dir)
    except KeyError:
        return set()
    return {*home.parents, *home.resolve().parents} if home.is_dir() else set()


def _is_own_group(number: int) -> bool:
    """Tells whether a group is this user's alone, as Debian and Ubuntu make one for each user."""
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(number)
    except KeyError:
        return False
    return number == user.pw_gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
