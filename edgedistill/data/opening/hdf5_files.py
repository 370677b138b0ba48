"""Opens the HDF5 file of a session, and says of one that cannot be opened what is wrong with it.

The input is a path. The output is an open h5py file of NWB 2. HDF5 reports a locked, a truncated and a missing file in
nearly the same words, so this module tells them apart.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

from edgedistill.errors import RecordingError
from edgedistill.files import find_number
from edgedistill.limits import require_plain

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
SIGNATURE_PLACES = (0, 512, 1024, 2048)  # a block of the user may lie before it
PLACEHOLDER_BYTES = 200
PLACEHOLDERS = (
    (b"/annex/objects/", "git-annex or DataLad", "datalad get"),
    (b"git-lfs.github.com/spec", "git-lfs", "git lfs pull --include"),
)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, 524)  # drives that cannot lock; 524 is Linux' ENOTSUPP
DRIVE_FAILED = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO, errno.ENOTCONN)


def require_hdf5(path: Path) -> None:
    """Raises RecordingError where `path` is no HDF5 file, because the message of HDF5 itself is hard to read."""
    if path.is_symlink() and not path.exists():
        raise RecordingError(
            f"{path}: a link to a file that is not here",
            got=str(path.readlink()),
            causes=("a file of git-annex or DataLad that was not fetched", "a file that was moved"),
            next_step=f"datalad get {path}",
        )
    try:
        if path.is_dir():
            raise _folder_error(path)
        require_plain(path, path.stat())  # a pipe would be read for ever
        with path.open("rb") as file:
            head = file.read(SIGNATURE_PLACES[-1] + len(HDF5_SIGNATURE))
    except OSError as error:
        raise system_error(path, error) from error
    if not any(head.startswith(HDF5_SIGNATURE, at) for at in SIGNATURE_PLACES):
        raise _no_hdf5_error(path, head)


def _folder_error(path: Path) -> RecordingError:
    lacks = "a folder that is no Zarr session: it has neither .zgroup nor zarr.json"
    if inside := sorted(path.glob("*.nwb")):
        return RecordingError(
            f"{path}: a folder of sessions, where one session is read",
            got=f"{len(inside)} files that end in .nwb",
            next_step=f"name one of them, for example {inside[0]}",
        )
    return RecordingError(
        f"{path}: not an NWB file",
        got=lacks if any(path.iterdir()) else "a folder that is empty",
        expected="one .nwb file, or a Zarr folder",
        causes=("a Zarr session that was copied without its hidden files", "a download that was stopped"),
        next_step="copy the session again, or move this folder elsewhere",
    )


def _no_hdf5_error(path: Path, head: bytes) -> RecordingError:
    for mark, program, command in PLACEHOLDERS:
        if mark in head[:PLACEHOLDER_BYTES]:
            return RecordingError(
                f"{path}: a placeholder of {program}, not the recording itself",
                got=head.decode(errors="replace").splitlines()[0][:100],
                causes=("the repository was cloned, but this file was not fetched",),
                next_step=f"{command} {path.name}, in the folder {path.parent}",
            )
    return RecordingError(
        f"{path}: not an NWB file",
        got=f"a file that begins with {head[: len(HDF5_SIGNATURE)]!r}" if head else "an empty file",
        expected="NWB 2 in HDF5",
        causes=("a download or a copy that failed", "another format"),
        next_step="download or convert the session again",
    )


def open_nwb2(h5py: Any, path: Path) -> Any:
    """Returns the open HDF5 file. Raises RecordingError where it is in use, damaged or not NWB 2."""
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise opening_error(path, error) from error
    text = _read_version(file)
    if text.removeprefix("NWB-").startswith("2"):
        return file
    held = ", ".join(sorted(file)[:8]) or "nothing"
    file.close()
    raise RecordingError(
        f"{path}: an HDF5 file, but not NWB 2",
        got=f"NWB version {text}" if text else f"no nwb_version; it holds {held}",
        expected="nwb_version 2.x",
        causes=("the broadband files of Makin et al. are NWB 1.0",)
        if text.removeprefix("NWB-").startswith("1")
        else (),
        next_step="edgedistill convert makin FILE.mat BROADBAND.nwb for these; convert other sessions to NWB 2"
        if text.removeprefix("NWB-").startswith("1")
        else "convert the session to NWB 2",
    )


def _read_version(file: Any) -> str:
    """Returns the version: an attribute in NWB 2, a dataset in NWB 1."""
    version = file.attrs.get("nwb_version", b"")
    if not len(version) and "nwb_version" in file and not hasattr(file["nwb_version"], "keys"):
        version = file["nwb_version"][()]
        version = version if isinstance(version, (bytes, str)) else version[0]
    return version.decode() if isinstance(version, bytes) else str(version)


def opening_error(path: Path, error: OSError) -> RecordingError:
    """Returns the error for a file that HDF5 cannot open: in use, on a drive without locks, or damaged."""
    text, number = str(error), find_number(error)
    lock = "lock" in text
    if lock and number in NO_LOCKS:
        return RecordingError(
            f"{path}: this drive cannot lock files, and HDF5 does not read without a lock",
            got=text,
            causes=("a network drive that is mounted read-only or without locks",),
            next_step="copy the file to a local disk, or set HDF5_USE_FILE_LOCKING=FALSE where nothing writes to it",
        )
    if lock and number in (errno.EAGAIN, errno.EACCES):
        return RecordingError(
            f"{path}: in use by another program, which has it open for writing",
            got=text,
            causes=("an export, a conversion or the recording itself still runs", "a notebook that did not close it"),
            next_step="wait for the program or close it; a copy that is made before may be incomplete",
        )
    if "already open for" in text:
        return RecordingError(
            f"{path}: in use by another program, or by one that ended before it closed the file",
            got=text,
            causes=("an acquisition that still writes (SWMR)", "a program that crashed while it wrote"),
            next_step=f"close the program; if it has ended, copy the file and run `h5clear -s {path.name}` on the copy",
        )
    return reading_error(path, text, number)


def reading_error(path: Path, got: str, number: int | None = None) -> RecordingError:
    """Returns the error for a file that cannot be read to its end. `number` is that of the system error, if known."""
    number = number or find_number(OSError(got))
    if number in DRIVE_FAILED:
        return RecordingError(
            f"{path}: the drive failed while the file was read",
            got=got,
            causes=("a network drive or a USB disk that was disconnected", "a disk that is failing"),
            next_step="copy the file to a local disk",
        )
    return damaged_file_error(path, got)


def damaged_file_error(path: Path, got: str) -> RecordingError:
    """Returns the error for a file whose content is cut short or damaged."""
    return RecordingError(
        f"{path}: the file is truncated or damaged",
        got=got,
        expected="a whole NWB file",
        causes=("the download or copy was cut short", "the program that wrote it was stopped, or still runs"),
        next_step="copy the file again and compare its size with the source",
    )


def system_error(path: Path, error: OSError) -> RecordingError:
    """Returns the error for a file that the system does not open or read: no permission, no file, a failed drive."""
    if error.errno in DRIVE_FAILED:
        return reading_error(path, str(error), error.errno)
    denied = isinstance(error, PermissionError)
    return RecordingError(
        f"{path}: cannot be opened",
        got=error.strerror,
        causes=("you are not allowed to read this file",) if denied else (),
        next_step=f"ls -l {path}" if denied else f"ls -l {path.parent}",
    )
