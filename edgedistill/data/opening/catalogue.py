"""Turns what a user names as data into paths: files, folders, patterns, and text files that list them.

Patterns are those of a shell, with ** for any depth, for shells that do not expand them and for lists of files that are
too long for a command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from glob import has_magic, iglob
from itertools import islice
from pathlib import Path

from edgedistill.errors import RecordingError

LIST_ENDING = ".txt"
MOST_LIST_BYTES = 1 << 24
MOST_FOUND = 100_000  # paths that fit a pattern; links in a circle would give them without end


@dataclass(frozen=True)
class ReadingOptions:
    """Says how many sessions are read at a time, and whether those that cannot be read are left out."""

    jobs: int = 1
    skip_bad: bool = False


ONE_BY_ONE = ReadingOptions()


def expand_paths(paths: Sequence[str | Path]) -> list[Path]:
    """Returns files and folders for `paths`, of which some may be patterns or text files of paths.

    A line of a text file is a path or a pattern, relative to the folder of the file. Empty lines, and those that begin
    with #, are comments. Raises RecordingError for a pattern that nothing or too much fits, and for a text
    file that lists nothing.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.suffix == LIST_ENDING and path.is_file():
            found += [one for line in read_list(path) for one in expand_pattern(Path(line), path.parent)]
        else:
            found += expand_pattern(path)
    return found


def expand_pattern(pattern: Path, folder: Path = Path()) -> list[Path]:
    """Returns what fits a pattern, in order, or a path that is none. A path that exists is never a pattern.

    Both are relative to `folder`, whose own name is no pattern.
    """
    path = folder / pattern
    if not has_magic(str(pattern)) or path.exists():
        return [path]
    fits = iglob(str(pattern), root_dir=folder, recursive=True)  # noqa: PTH207, Path.glob cannot begin at a pattern
    found = sorted(islice(fits, MOST_FOUND + 1))
    if len(found) > MOST_FOUND:
        raise RecordingError(
            f"{path}: this pattern fits too many paths",
            got=f"more than {MOST_FOUND}",
            causes=("links to folders lead in a circle",),
            next_step="name the folder instead, in which no link to a folder is followed",
        )
    if not found:
        raise RecordingError(
            f"{path}: nothing fits this pattern",
            expected="NWB files, or folders of them",
            next_step=f"ls {path.parent}",
        )
    return [folder / one for one in found]


def read_list(path: Path) -> list[str]:
    """Returns the paths and patterns that a text file lists."""
    try:
        with path.open("rb") as file:
            text = file.read(MOST_LIST_BYTES + 1).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordingError(f"{path}: this list of sessions cannot be read", got=str(error)) from error
    lines = [line.strip() for line in text.splitlines()]
    listed = [line for line in lines if line and not line.startswith("#")]
    if not listed or len(text) > MOST_LIST_BYTES or "\0" in text:
        raise RecordingError(
            f"{path}: not a list of sessions",
            got=f"{len(listed)} paths in {len(text)} characters",
            expected="one path or pattern a line, relative to the folder of this file",
        )
    return listed
