"""Holds large arrays in files in place of memory, and gives back the memory of what was read of them.

A command says in which folder (`scratch_in`), and `allocate` then returns arrays that lie in a file there. The file has
no name, so nothing is left of it when the program ends, however it ends. A file that is kept is opened by `map_file`.
Arrays of both are ordinary arrays, of which the system reads a page when it is used. `fill_file` makes files without a
name for what is written and read as a file.

Pages that were used count as memory of the process until they are given back. `split_rows` goes over an array block by
block and gives back what each block used, so memory stays flat whatever the length of the array. Nothing is lost by
that, because the pages are those of a shared file.
"""

from __future__ import annotations

import io
import math
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import IO, Any, ClassVar, ParamSpec, TypeVar
from weakref import WeakSet

import numpy as np
import numpy.typing as npt

from edgedistill.errors import EdgeDistillError
from edgedistill.files import output_error

BLOCK_VALUES = 1 << 22  # numbers in a block of rows, 32 MB in float64
LEAST_BYTES = 1 << 16  # of an array that is worth a place in a file
POOL_BYTES = 1 << 26  # of a file that several smaller arrays share
ALIGNED = 64  # bytes, at which arrays begin

Array = npt.NDArray[Any]
P = ParamSpec("P")
R = TypeVar("R")


class _Scratch:
    """Holds the folder of the command that runs, the file that is being filled, and every mapping that is in use."""

    folder: Path | None = None
    pool: mmap.mmap | None = None
    used: int = 0  # bytes of the pool
    maps: ClassVar[WeakSet[mmap.mmap]] = WeakSet()


@contextmanager
def scratch_in(folder: Path) -> Iterator[None]:
    """Lets `allocate` put arrays in files in `folder`, or in the nearest folder above it that exists."""
    before = _Scratch.folder, _Scratch.pool, _Scratch.used
    _Scratch.folder, _Scratch.pool, _Scratch.used = folder.absolute(), None, 0
    try:
        yield
    finally:
        _Scratch.folder, _Scratch.pool, _Scratch.used = before


def with_scratch(folder_of: Callable[[Any], Path]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorates a command, whose first argument are its options, so that it runs in `scratch_in` of a folder."""

    def decorate(command: Callable[P, R]) -> Callable[P, R]:
        @wraps(command)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            with scratch_in(folder_of(args[0])):
                return command(*args, **kwargs)

        return run

    return decorate


def allocate(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """Returns an array to be filled: in a file where a command named a folder and the array is large, else in memory.

    Raises OutputError where the disk has no room for it.
    """
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    if _Scratch.folder is None or size < LEAST_BYTES:
        return np.empty(shape, kind)
    if size >= POOL_BYTES:
        return np.frombuffer(_make_file(_Scratch.folder, size), kind, math.prod(shape)).reshape(shape)
    if _Scratch.pool is None or _Scratch.used + size > POOL_BYTES:
        _Scratch.pool, _Scratch.used = _make_file(_Scratch.folder, POOL_BYTES), 0
    start = _Scratch.used
    _Scratch.used += -(-size // ALIGNED) * ALIGNED
    return np.frombuffer(_Scratch.pool, kind, math.prod(shape), start).reshape(shape)


def keep(values: Array) -> Array:
    """Returns a copy of an array where `allocate` puts it."""
    copy = allocate(values.shape, values.dtype)
    copy_rows(values, copy)
    return copy


def move(values: Array) -> Array:
    """Returns an array that is used in place of `values`: a copy in a file, where `allocate` would put it in one."""
    return values if _Scratch.folder is None or values.nbytes < LEAST_BYTES else keep(values)


def copy_rows(source: Array, target: Array) -> None:
    """Copies an array into another of the same shape, block by block."""
    for rows in split_rows(slice(0, len(source)), math.prod(source.shape[1:])):
        target[rows] = source[rows]


def fill_file(write: Callable[[IO[bytes]], object]) -> IO[bytes]:
    """Returns a new file without a name, which `write` has filled, opened at its beginning. The caller closes it.

    It lies in the folder that a command named, else in memory. Raises OutputError where the disk has no room for it.
    """
    if _Scratch.folder is None:
        memory = io.BytesIO()
        write(memory)
        memory.seek(0)
        return memory
    place = _find_place(_Scratch.folder)
    with ExitStack() as opened:
        try:
            file = opened.enter_context(tempfile.TemporaryFile(dir=place))
            write(file)
            file.seek(0)
        except OSError as error:
            raise _no_room(place, error) from error
        opened.pop_all()  # the file stays open where it was filled
    return file


def map_file(path: Path) -> mmap.mmap:
    """Returns the content of a file, to be read only. Raises OSError, and ValueError for an empty file."""
    with path.open("rb") as file:
        found = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    _Scratch.maps.add(found)
    return found


def split_rows(rows: slice, width: int) -> Iterator[slice]:
    """Yields blocks of `rows`, which has a start and a stop, of about BLOCK_VALUES / `width` bins each.

    After each block, and when the loop is left, the memory of what it used of arrays in files is given back.
    """
    length = max(64, BLOCK_VALUES // max(1, width))
    for start in range(rows.start, rows.stop, length):
        try:
            yield slice(start, min(start + length, rows.stop))
        finally:
            release_pages()


def release_pages() -> None:
    """Gives back the memory of all pages of arrays in files. Where they are used again, the system reads them again."""
    if hasattr(mmap, "MADV_DONTNEED"):
        for one in list(_Scratch.maps):
            one.madvise(mmap.MADV_DONTNEED)


def _make_file(folder: Path, size: int) -> mmap.mmap:
    """Returns the mapping of a new file without a name. Its room is taken at once, so that a full disk is an error."""
    place = _find_place(folder)
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            made = mmap.mmap(file.fileno(), size)
    except OSError as error:
        raise _no_room(place, error) from error
    _Scratch.maps.add(made)
    return made


def _find_place(folder: Path) -> Path:
    return next(one for one in (folder, *folder.parents) if one.is_dir())


def _no_room(place: Path, error: OSError) -> EdgeDistillError:
    stays = place.parent if place.suffix == ".partial" else place  # a stage that fails leaves no folder
    return output_error(stays, "scratch space", error, f"df -h {stays}")
