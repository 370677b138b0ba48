"""Finds NWB files on disk, and refuses a file that is not a whole NWB 2 file, with an error that says what it is.

The input is a path, or files and folders. The output is a list of files, or an open HDF5 file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgedistill.errors import RecordingError

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def find_session_files(paths: Sequence[str | Path]) -> list[Path]:
    """Returns the files among `paths` and the *.nwb files at any depth of the folders among them, without repeats.

    Raises RecordingError when a path does not exist or a folder holds no session.
    """
    files: dict[Path, Path] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise RecordingError(
                f"{path}: there is no such file or folder",
                expected="NWB files, or folders of them",
                next_step=f"ls {path.parent}",
            )
        found = sorted(p for p in path.rglob("*.nwb") if p.is_file() and not p.name.startswith("."))
        if path.is_dir() and not found:
            held = sorted(p.name for p in path.iterdir())[:8]
            raise RecordingError(
                f"{path}: no NWB files in this folder",
                got=", ".join(held) or "an empty folder",
                expected="files that end in .nwb, at any depth",
                next_step="edgedistill simulate --out DIR makes some to try with",
            )
        files |= {p.resolve(): p for p in (found if path.is_dir() else [path])}
    if not files:
        raise RecordingError("no sessions given", expected="NWB files, or folders of them")
    return list(files.values())


def require_hdf5(path: Path) -> None:
    """Raises RecordingError where `path` is no HDF5 file, because the message of HDF5 itself is hard to read."""
    if path.is_dir():
        kind = "a folder (NWB in Zarr is not supported)" if (path / ".zgroup").exists() else "a folder"
        raise RecordingError(f"{path}: not an NWB file", got=kind, expected="one .nwb file")
    try:
        with path.open("rb") as file:
            head = file.read(len(HDF5_SIGNATURE))
    except OSError as error:
        raise RecordingError(
            f"{path}: cannot be opened", got=error.strerror, next_step=f"ls -l {path.parent}"
        ) from error
    if head != HDF5_SIGNATURE:
        raise RecordingError(
            f"{path}: not an NWB file",
            got=f"a file that begins with {head!r}" if head else "an empty file",
            expected="NWB 2 in HDF5",
            causes=("a placeholder of git-lfs or git-annex", "a download that failed", "another format"),
            next_step="download or convert the session again",
        )


def open_nwb2(h5py: Any, path: Path) -> Any:
    """Returns the open HDF5 file. Raises RecordingError where it is damaged or not NWB 2."""
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise damaged_file_error(path, str(error)) from error
    version = file.attrs.get("nwb_version", b"")
    text = version.decode() if isinstance(version, bytes) else str(version)
    if text.removeprefix("NWB-").startswith("2"):
        return file
    held = ", ".join(sorted(file)[:8]) or "nothing"
    file.close()
    raise RecordingError(
        f"{path}: an HDF5 file, but not NWB 2",
        got=f"NWB version {text}" if text else f"no nwb_version; it holds {held}",
        expected="nwb_version 2.x",
        next_step="convert the session to NWB 2",
    )


def damaged_file_error(path: Path, got: str) -> RecordingError:
    """Returns the error for a file that HDF5 cannot read to its end."""
    return RecordingError(
        f"{path}: the file is truncated or damaged",
        got=got,
        expected="a whole NWB file",
        causes=("the download or copy was cut short", "the program that wrote it was stopped"),
        next_step="copy the file again and compare its size with the source",
    )
