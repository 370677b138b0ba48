"""Writes files and folders that appear whole or not at all.

Everything that edgedistill writes goes through `atomic_write`, except for the file of a stream (`stream_file`). A
reader sees the old content or the new one. A failure (a full disk, a read-only folder, Ctrl-C) leaves behind what was
there before and nothing half-written. What is written is on the disk before it gets its name, so this holds for a power
cut as well. What a process that was killed leaves is hidden, and the next one that writes to that folder removes it.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgedistill.errors import EdgeDistillError, OutputError, RecordingError
from edgedistill.staging import opened_folder, remove_tree, stage, sync_folder, sync_to_disk

CAUSES = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your quota on this disk is used up",
    errno.EROFS: "the disk is mounted read-only",
    errno.EACCES: "you are not allowed to write to this folder",
    errno.EPERM: "you are not allowed to write to this folder",
    errno.ENOENT: "a folder of the path does not exist or was removed",
    errno.ENOTDIR: "a file is in the way, at this path or above it",
    errno.EEXIST: "a file is in the way, at this path or above it",
    errno.EISDIR: "a folder is in the way",
    errno.EIO: "the disk or the network drive failed",
    errno.EFBIG: "a limit on the size of files is reached (ulimit -f), or the disk takes no files of this size",
    errno.ENAMETOOLONG: "the name is too long for this disk",
}
WRITING_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # errors that only happen in writing
HDF5_READS = re.compile(r"synchronously (?:read|open)|read failed|during read")
USUAL_CAUSES = ("the disk is full", "the folder is read-only")
USUAL_STEP = "free space or choose another place; nothing half-written was left there"
NUMBERS = re.compile(r"errno = (\d+)|os error (\d+)")  # as HDF5 and safetensors name the error of the system


@contextmanager
def atomic_write(path: Path, what: str, *, next_step: str | None = None) -> Iterator[Path]:
    """Yields a hidden path beside `path`. At the end, what the caller wrote there replaces `path`.

    The caller writes a file, or makes a folder and fills it. The hidden path ends in the name of `path`, because some
    writers look at it. Missing folders above `path` are made. Where `path` is a symbolic link, the link stays and its
    target is replaced. A device, a pipe or a socket is not replaced. An old folder is removed with its whole content,
    so a caller that writes folders must first be sure that edgedistill wrote the old one. Errors of the caller that
    name the hidden path name `path` instead.

    Raises OutputError, with `what` ("the ranges") and `next_step` in its message, for every OSError inside the block.
    Read inputs before the block, so that their errors are not reported as errors of the output. Where HDF5 fails to
    read one inside the block all the same, a RecordingError says so.
    """
    place = Path(os.path.realpath(path)) if path.is_symlink() else path
    try:
        if not place.name:  # "." and "/" have no parent folder for a hidden name
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        require_replaceable(place)
        place.parent.mkdir(parents=True, exist_ok=True)
        with opened_folder(place.parent) as inside, stage(inside, place.name) as staging:
            hidden = place.parent / staging.path
            try:
                yield hidden
            except EdgeDistillError as error:
                error.rename(str(hidden), str(path))
                raise
            staging.put_in_place()
    except OSError as error:
        raise output_error(path, what, error, next_step) from error


def require_replaceable(place: Path) -> None:
    """Raises OSError for a device, a pipe or a socket. To replace /dev/null by a file would break the whole machine."""
    with suppress(FileNotFoundError):
        mode = place.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise FileExistsError(errno.EEXIST, "a device, a pipe or a socket, which is not replaced", str(place))


def require_no_input(out: Path, inputs: Iterable[str | Path]) -> None:
    """Raises OutputError where a result would replace one of the inputs of its command."""
    for path in map(Path, inputs):
        if out.exists() and path.exists() and out.samefile(path):
            raise OutputError(
                f"{out}: this is an input of the command, and the result would replace it",
                next_step="choose another --out",
            )


def atomic_write_bytes(path: Path, data: bytes, what: str, *, next_step: str | None = None) -> None:
    """Writes a whole file through `atomic_write`. Raises OutputError."""
    with atomic_write(path, what, next_step=next_step) as partial:
        partial.write_bytes(data)


def atomic_write_text(path: Path, text: str, what: str, *, next_step: str | None = None) -> None:
    """Writes a whole text in UTF-8 through `atomic_write`. What is no character becomes "?". Raises OutputError."""
    atomic_write_bytes(path, text.encode(errors="replace"), what, next_step=next_step)


def output_error(path: Path, what: str, error: OSError, next_step: str | None = None) -> EdgeDistillError:
    """Returns the error for a result that could not be written, with the cause that the system reports.

    HDF5 reports failures to read and to write alike, as an OSError without a number. A failure to read is no full disk,
    so it becomes a RecordingError.
    """
    if error.errno is None and HDF5_READS.search(str(error)):
        return RecordingError(
            f"an input could not be read while {what} was made",
            got=error,
            causes=("a session file is damaged", "the drive that holds it failed or was disconnected"),
            next_step="edgedistill inspect FOLDER names the file",
        )
    known, reason = CAUSES.get(find_number(error) or 0), error.strerror or str(error)
    elsewhere = Path(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes)) else None
    if elsewhere is not None and elsewhere.is_absolute() and path.absolute().parent not in elsewhere.parents:
        reason = f"{reason}: {elsewhere}"  # such as the cache of compiled engines, on another disk
    return OutputError(
        f"{path}: {what} could not be written",
        got=reason,
        causes=USUAL_CAUSES if known is None else (known,),
        next_step=next_step or USUAL_STEP,
    )


def find_number(error: OSError) -> int | None:
    """Returns the number of a system error. HDF5 and safetensors give it only in their text."""
    if error.errno is not None:
        return error.errno
    found = NUMBERS.search(str(error))
    return int(found[1] or found[2]) if found else None


def move_whole(partial: Path, path: Path) -> None:
    """Gives a file or folder that was filled under another name in the same folder its own, once it is on the disk.

    Raises OSError.
    """
    with opened_folder(path.parent) as inside:
        sync_to_disk(inside, partial.name)
        partial.rename(path)
        sync_folder(inside)


def remove(path: Path) -> None:
    """Removes a file, a link, or a folder with its content. Ignores a failure to remove."""
    with suppress(OSError), opened_folder(path.parent) as inside:
        remove_tree(inside, path.name)
