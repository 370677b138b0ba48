"""Lists the folders in which edgedistill keeps results to save time, and removes those that were not used for long.

The user's cache goes in, which has a folder of compiled engines for each bundle, or a work folder, which has one for
each stage of a training. All of them can be made again, in seconds or in hours. Nothing else in those places is listed
or removed, and no link is followed.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgedistill.errors import EdgeDistillError, OutputError
from edgedistill.files import remove

COMPILED, STAGE, UNFINISHED = "compiled engine", "stage", "unfinished stage"
RECORD = "record.json"  # of the files of a stage
STAGE_FILES = (  # one of these is in every stage, those of version 0.1 included
    *(RECORD, "bins.npz", "model.json", "ranges.json", "ridge.npz", "readout.npz", "study.json"),
    "checkpoint.safetensors",
)
STAGE_NAME = re.compile(r".+-[0-9a-f]{16}(\.partial)?")
BUNDLE_NAME = re.compile(r"[0-9a-f]{32}")
DAY_S = 86400.0


@dataclass(frozen=True)
class KeptFolder:
    """Describes one folder that is kept."""

    path: Path
    kind: str  # COMPILED, STAGE or UNFINISHED
    bytes: int
    last_used: float  # s since 1970


def list_compiled(cache: Path) -> list[KeptFolder]:
    """Returns the folders of compiled engines in the user's cache, one for each bundle, the last used one first."""
    return _list(cache, lambda path: COMPILED if BUNDLE_NAME.fullmatch(path.name) else None)


def list_stages(work: Path) -> list[KeptFolder]:
    """Returns the stages in a work folder, the last used one first. Raises EdgeDistillError for any other folder."""
    found = _list(work, _find_kind_of_stage) if work.is_dir() else []
    if not found:
        raise EdgeDistillError(
            f"{work}: no stages are kept here",
            got="a folder without any" if work.is_dir() else "no folder",
            expected="a work folder, which is that of --work or the result's name with the ending .work",
            next_step=f"ls {work.parent}",
        )
    return found


def remove_unused(kept: Iterable[KeptFolder], days: float, now: float) -> list[KeptFolder]:
    """Removes the folders that were not used for so many days before `now` (s since 1970), and returns them.

    A time of use in the future counts as now. Raises OutputError for a folder that cannot be removed.
    """
    removed = [folder for folder in kept if max(0.0, now - folder.last_used) >= days * DAY_S]
    for folder in removed:
        remove(folder.path)
        if os.path.lexists(folder.path):
            raise OutputError(
                f"{folder.path} could not be removed",
                causes=("you are not allowed to write there", "the disk is mounted read-only"),
                next_step=f"ls -la {folder.path.parent}",
            )
    return removed


def note_use(folder: Path) -> None:
    """Sets the time of a folder to now, so that it counts as used. Does nothing where that is not allowed."""
    with suppress(OSError):
        os.utime(folder, follow_symlinks=False)


def _list(parent: Path, kind_of: Callable[[Path], str | None]) -> list[KeptFolder]:
    kept = []
    for path in parent.iterdir():
        with suppress(OSError):  # removed meanwhile
            found = path.lstat()
            if stat.S_ISDIR(found.st_mode) and (kind := kind_of(path)) is not None:
                kept.append(KeptFolder(path, kind, sum(_sizes(path)), found.st_mtime))
    return sorted(kept, key=lambda folder: folder.last_used, reverse=True)


def _find_kind_of_stage(path: Path) -> str | None:
    name = STAGE_NAME.fullmatch(path.name)
    if name is None or not any(os.path.lexists(path / file) for file in STAGE_FILES):
        return None
    return UNFINISHED if name[1] else STAGE


def _sizes(folder: Path) -> Iterator[int]:
    for here, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                yield Path(here, name).lstat().st_size
