"""Opens, lists and replaces what lies inside a folder that somebody else may have made, without following links.

A folder and a name relative to it go in. Every step from the folder to the file is opened by its own name in the folder
above it, and a symbolic link on the way is refused. A link in a bundle, also one that is put there while a command
runs, therefore leads neither out of it nor to another file. Only plain files are opened, so that a pipe or a device
cannot block a command.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from edgedistill.staging import ENTRY, FOLDER, stage

NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
LINK_ERRORS = (errno.ELOOP, errno.ENOTDIR, errno.EMLINK)  # of systems that open a link with O_NOFOLLOW
NOT_PLAIN = (errno.ELOOP, errno.EINVAL)  # of a link or of what is no plain file, as the functions below raise them

Folder = Path | int  # a descriptor stays with its folder when another one takes the path
Check = Callable[[os.stat_result, str], None]  # raises OSError for a file or folder that must not be used


@contextmanager
def open_file(folder: Folder, name: str, check: Check | None = None) -> Iterator[IO[bytes]]:
    """Opens the plain file `name`, such as "build/host/README", for reading.

    `check` is called for the file and for every folder from `folder` on. Raises OSError, also for a link, a name with
    "..", and anything that is not a plain file.
    """
    *parents, last = _split(name)
    with _open_folder(folder, parents, check=check) as inside:
        descriptor = _open_step(last, ENTRY, inside)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a plain file", name)
        if check is not None:
            check(found, name)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def read_file(folder: Folder, name: str, check: Check | None = None) -> bytes:
    """Returns the content of a file. Raises OSError as `open_file` does."""
    with open_file(folder, name, check) as file:
        return file.read()


def list_files(folder: Path, name: str) -> list[str]:
    """Returns the names, relative to `folder`, of all files below its folder `name`, without hidden ones, sorted.

    The list is empty where there is no such folder. Raises OSError for a link.
    """
    found: list[str] = []
    try:
        with _open_folder(folder, _split(name)) as inside:
            entries = sorted(os.scandir(inside), key=lambda entry: entry.name)
            kinds = {entry.name: entry.stat(follow_symlinks=False).st_mode for entry in entries}
    except FileNotFoundError:
        return []
    for entry, mode in kinds.items():
        if entry.startswith("."):
            continue
        if stat.S_ISDIR(mode):
            found += list_files(folder, f"{name}/{entry}")
        elif stat.S_ISREG(mode):
            found.append(f"{name}/{entry}")
        else:
            raise OSError(errno.EINVAL, "it is a link, or not a plain file", f"{name}/{entry}")
    return found


def replace_folder(folder: Folder, name: str, files: Mapping[str, bytes]) -> None:
    """Makes `files` the whole content of the folder `name` inside `folder`, at once, and removes what was there.

    A link of that name is removed, and what it leads to is left alone. Raises OSError, and leaves what was there, where
    a folder on the way is a link or the files cannot be written.
    """
    *parents, last = _split(name)
    with _open_folder(folder, parents, make=True) as inside, stage(inside, last) as staging:
        os.mkdir(last, dir_fd=staging.new)
        for file, data in files.items():
            _write(staging.new, (last, *_split(file)), data)
        staging.put_in_place()


def replace_file(folder: Path, name: str, data: bytes) -> None:
    """Makes `data` the whole content of the file `name`, at once. A link of that name is removed, not followed.

    Raises OSError, and leaves what was there, where a folder on the way is a link or the file cannot be written.
    """
    *parents, last = _split(name)
    with _open_folder(folder, parents) as inside, stage(inside, last) as staging:
        _write(staging.new, (last,), data)
        staging.put_in_place()


def _split(name: str) -> list[str]:
    parts = name.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise OSError(errno.EINVAL, "it is not a name inside the folder", name)
    return parts


@contextmanager
def _open_folder(folder: Folder, parts: Sequence[str], make: bool = False, check: Check | None = None) -> Iterator[int]:
    """Opens `folder`, which the caller names and may be a link, then each of `parts` in the one before it."""
    descriptor = os.dup(folder) if isinstance(folder, int) else os.open(folder, FOLDER)
    try:
        if check is not None:
            check(os.fstat(descriptor), str(folder))
        for part in parts:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(part, dir_fd=descriptor)
            inner = _open_step(part, FOLDER | os.O_NOFOLLOW, descriptor)
            os.close(descriptor)
            descriptor = inner
            if check is not None:
                check(os.fstat(descriptor), part)
        yield descriptor
    finally:
        os.close(descriptor)


def _open_step(name: str, flags: int, inside: int) -> int:
    try:
        return os.open(name, flags, dir_fd=inside)
    except OSError as error:
        if error.errno in LINK_ERRORS:
            raise OSError(errno.ELOOP, "it is a link, or not a folder", name) from error
        raise


def _write(inside: int, parts: Sequence[str], data: bytes) -> None:
    """Writes a new file below a folder that nobody else has opened yet."""
    path, *rest = parts
    if not rest:
        with os.fdopen(os.open(path, NEW_FILE, 0o666, dir_fd=inside), "wb") as file:
            file.write(data)
        return
    with suppress(FileExistsError):
        os.mkdir(path, dir_fd=inside)
    inner = _open_step(path, FOLDER | os.O_NOFOLLOW, inside)
    try:
        _write(inner, rest, data)
    finally:
        os.close(inner)
