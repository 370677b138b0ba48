"""Computes the SHA-256 that stands for all samples of a session, those in other files included.

The input is the path of a session. The output is a digest. Of an HDF5 file that keeps nothing elsewhere, it is that of
the file. External links, external storage and virtual datasets lead to other files, whose contents then count too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from edgedistill.data.opening.hdf5_datasets import find_value_files
from edgedistill.data.opening.hdf5_files import require_hdf5, system_error
from edgedistill.data.opening.hdf5_targets import require_plain_targets
from edgedistill.errors import RecordingError
from edgedistill.limits import require_plain

BLOCK_BYTES = 1 << 22


def file_sha256(path: str | Path) -> str:
    """Returns the SHA-256 of a session, read in blocks.

    For an HDF5 file it is that of its content, or, where it refers to other files, that of all their digests in the
    order in which they are met. For a Zarr folder it is that of the names and contents of its files.

    Raises RecordingError where a file cannot be read.
    """
    top = Path(path)
    if top.is_dir():
        return _hash_folder(top)
    own, others = _hash_file(top), find_other_files(top)
    return hashlib.sha256("\0".join([own, *map(_hash_file, others)]).encode()).hexdigest() if others else own


@contextmanager
def require_unchanged(path: str | Path, sha256: str) -> Iterator[None]:
    """Runs a block that reads a session, and then raises RecordingError if the session is no longer the one known.

    `sha256` is what `file_sha256` gave for it. Where the block fails to read, a change is told as the cause.
    """
    try:
        yield
    except (OSError, RecordingError) as error:
        if Path(path).exists() and file_sha256(path) != sha256:
            raise _changed_error(path) from error
        raise
    if file_sha256(path) != sha256:
        raise _changed_error(path)


def _changed_error(path: str | Path) -> RecordingError:
    return RecordingError(
        f"{path}: the session changed while it was used",
        got="another SHA-256 than when the command began to read it",
        expected="the same samples until the command ends, because its result names the file by its hash",
        causes=("another program writes to it", "a download or a synchronization was not over", "it was replaced"),
        next_step="run the same command again when the file stays as it is",
    )


def find_other_files(path: Path) -> list[Path]:
    """Returns the files that an HDF5 file refers to, directly or through others, in the order in which they are met.

    Files that are not there are left out, and so is what a file refers to that HDF5 cannot open. Raises RecordingError
    where what is there is no plain file.
    """
    import h5py

    if not h5py.is_hdf5(path):
        return []
    found: dict[Path, None] = {}
    with suppress(OSError), h5py.File(path, "r") as file:
        require_plain_targets(file)
        for other in _walk(file, set()):
            found[other] = None
    found.pop(path.resolve(), None)
    return list(found)


def _walk(held: Any, seen: set[object]) -> Iterator[Path]:
    """Yields the other files that an open group or dataset leads to. An object is looked at once."""
    import h5py

    here = Path(held.file.filename).resolve()
    info = h5py.h5o.get_info(held.id)
    if (here, info.addr) in seen:
        return
    seen.add((here, info.addr))
    if isinstance(held, h5py.Dataset):
        for other in find_value_files(held):
            yield other.resolve()
            if held.is_virtual and h5py.is_hdf5(other):
                with suppress(OSError), h5py.File(other, "r") as file:
                    yield from _walk(file, seen)
    elif isinstance(held, h5py.Group):
        for name in held:
            child = _follow(held, name)
            if child is None:
                continue
            if (file := Path(child.file.filename).resolve()) != here:
                yield file
            yield from _walk(child, seen)


def _follow(group: Any, name: str) -> Any:
    """Returns a member of a group, or None where its link leads nowhere."""
    try:
        return group.get(name)
    except (OSError, RuntimeError, ValueError):
        return None


def _hash_folder(top: Path) -> str:
    digest = hashlib.sha256()
    for part in sorted(p for p in top.rglob("*") if p.is_file()):
        digest.update(f"{part.relative_to(top)}\0{part.stat().st_size}\0".encode(errors="surrogateescape"))
        _hash_into(digest, part)
    return digest.hexdigest()


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    _hash_into(digest, path)
    return digest.hexdigest()


def _hash_into(digest: Any, path: Path) -> None:
    try:
        require_plain(path, path.stat())  # a pipe would be read for ever
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
    except OSError as error:
        if path.is_symlink():
            require_hdf5(path)  # which says what a link of git-annex needs
        raise system_error(path, error) from error
