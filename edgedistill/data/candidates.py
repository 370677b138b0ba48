"""Says which series of a file could be read, which one is, and why, and finds series by the name that a user gives.

The inputs are series or tables with their paths inside the file. The outputs are `Candidate` entries, which `inspect`
lists, and the entries that a name, a path or a container stands for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from edgedistill.errors import RecordingError, did_you_mean


class HasPath(Protocol):
    """Describes anything that lies at a path inside an NWB file."""

    @property
    def path(self) -> str:
        """Returns the path, e.g. `processing/ecephys/LFP/lfp`."""


Entry = TypeVar("Entry", bound=HasPath)


@dataclass(frozen=True)
class SeriesNames:
    """Holds the series that a user named: each a name, a path or a container. None leaves the choice to the rules."""

    lfp: str | None = None
    units: str | None = None
    behavior: str | None = None


NO_NAMES = SeriesNames()


@dataclass(frozen=True)
class Candidate:
    """Says of one series whether it is read, and why or why not."""

    series: str  # path inside the file
    read: bool
    why: str  # one sentence or a part of one, e.g. "named by --lfp" or "a narrow-band copy (theta)"

    def to_json(self) -> dict[str, object]:
        """Returns the entry for `inspect --json`."""
        return asdict(self)


def find_named(entries: Sequence[Entry], wanted: str, option: str, file: Path) -> list[Entry]:
    """Returns the entries that `wanted` stands for: a whole path, else a name, else a container that holds them.

    Capital letters and a slash at either end do not matter. The end of a path will do, so that `LFP/probe1` finds
    `processing/ecephys/LFP/probe1`. `option` is the name of the option for the message, e.g. `--lfp`.

    Raises RecordingError when nothing has that name.
    """
    asked = wanted.strip("/").lower()
    matches = (
        lambda path: path == asked,
        lambda path: path.endswith("/" + asked),
        lambda path: f"/{asked}/" in f"/{path}",
    )
    for match in matches:
        if found := [entry for entry in entries if match(entry.path.lower())]:
            return found
    names = [entry.path for entry in entries]
    raise RecordingError(
        f"{file}: {option} {wanted} is not in this file",
        got=list_paths(names),
        expected=did_you_mean(wanted, names + [path.rpartition("/")[2] for path in names]) if names else None,
        next_step=f"edgedistill inspect {file} lists every series that could be read",
    )


def list_paths(paths: Iterable[str], most: int = 8) -> str:
    """Returns paths in one line, at most `most` of them."""
    listed = list(paths)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return (", ".join(listed[:most]) + more) or "nothing"
