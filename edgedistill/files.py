"""Files and folders that appear whole or not at all.

Everything that edgedistill writes goes through `atomic_write`, so that a reader sees the old content or the new one,
and a failure (a full disk, a read-only folder, Ctrl-C) leaves behind what was there before and nothing half-written.
"""

from __future__ import annotations

import errno
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgedistill.errors import OutputError

CAUSES = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your quota on this disk is used up",
    errno.EROFS: "the disk is mounted read-only",
    errno.EACCES: "you are not allowed to write to this folder",
    errno.EPERM: "you are not allowed to write to this folder",
    errno.ENOTDIR: "a part of the path is a file",
    errno.ENOENT: "a folder of the path does not exist or was removed",
}
USUAL_CAUSES = ("the disk is full", "the folder is read-only")


@contextmanager
def atomic_write(path: Path, what: str, *, next_step: str | None = None) -> Iterator[Path]:
    """Yields a temporary path beside `path`; what the caller writes there takes the place of `path` at the end.

    The caller writes a file, or makes a folder and fills it. Folders above `path` are made when they are missing. A
    folder cannot replace a folder in one step, so an old one steps aside first and comes back if the move fails.

    Raises OutputError, with `what` ("the ranges") and `next_step` in its message, for every OSError on the way.
    """
    partial = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        _put_in_place(partial, path)
    except OSError as error:
        raise output_error(path, what, error, next_step) from error
    finally:
        remove(partial)


def atomic_write_bytes(path: Path, data: bytes, what: str, *, next_step: str | None = None) -> None:
    """Writes a whole file through `atomic_write`. Raises OutputError."""
    with atomic_write(path, what, next_step=next_step) as partial:
        partial.write_bytes(data)


def atomic_write_text(path: Path, text: str, what: str, *, next_step: str | None = None) -> None:
    """Writes a whole UTF-8 text through `atomic_write`. Raises OutputError."""
    atomic_write_bytes(path, text.encode(), what, next_step=next_step)


def output_error(path: Path, what: str, error: OSError, next_step: str | None = None) -> OutputError:
    """Returns the error of a result that could not be written, with the cause that the system names."""
    known = CAUSES.get(error.errno or 0)
    return OutputError(
        f"{path}: {what} could not be written",
        got=error.strerror or error,
        causes=USUAL_CAUSES if known is None else (known,),
        next_step=next_step or "free space or choose another place; nothing half-written was left there",
    )


def temporary_beside(path: Path) -> Path:
    """Returns an unused hidden name in the folder of `path`, with the same suffix: writers tell formats by it."""
    return path.with_name(f".{path.stem}.{secrets.token_hex(4)}.partial{path.suffix}")


def remove(path: Path) -> None:
    """Removes a file or a folder with all that is in it; a failure is no error."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _put_in_place(partial: Path, path: Path) -> None:
    if not partial.is_dir() or not path.is_dir():
        partial.replace(path)
        return
    old = temporary_beside(path)
    path.rename(old)
    try:
        partial.rename(path)
    except BaseException:
        old.rename(path)
        raise
    remove(old)
