"""Reads several sessions from files and folders, puts them in order, and checks them against each other.

The input is a list of paths. The output is a list of `SessionBins`, sorted by time, with unique ids and one set of
outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from edgedistill.config import NO_BANDS, BandPower
from edgedistill.data.bins import bins_from_recording
from edgedistill.data.candidates import NO_NAMES
from edgedistill.data.opening.session_files import find_session_files
from edgedistill.data.recording import PARTS, SeriesNames, open_recording
from edgedistill.data.session import SessionBins
from edgedistill.errors import RecordingError


def load_sessions(
    paths: Sequence[str | Path],
    need: Iterable[str] = PARTS,
    *,
    also: Iterable[str] = (),
    line_hz: float = 60,
    bands: BandPower = NO_BANDS,
    names: SeriesNames = NO_NAMES,
) -> list[SessionBins]:
    """Reads the sessions in files and folders, one after another, and combines them.

    Raises RecordingError when a session lacks a part in `need`, and as `combine_sessions` does.
    """
    need, also = tuple(need), tuple(also)
    sessions = []
    for path in find_session_files(paths):
        with open_recording(path, names) as recording:
            sessions.append(bins_from_recording(recording, need=need, also=also, line_hz=line_hz, bands=bands))
    return combine_sessions(sessions)


def combine_sessions(sessions: Iterable[SessionBins]) -> list[SessionBins]:
    """Sorts sessions by their start and makes their ids unique.

    Sessions with equal ids are named after their files, and after their paths where the files have equal names too.

    Raises RecordingError when sessions differ in the names or units of their behavior, and for two copies of a file.
    """
    ordered = sorted(sessions, key=lambda session: (session.session_start, session.path))
    _require_no_copies(ordered)
    _require_same_outputs(ordered)
    for name_session in (lambda path: path.stem, lambda path: str(path.with_suffix(""))):  # monday/rec, tuesday/rec
        ids = [session.session_id for session in ordered]
        ordered = [
            replace(session, session_id=name_session(Path(session.path)))
            if ids.count(session.session_id) > 1
            else session
            for session in ordered
        ]
    return ordered


def _require_no_copies(sessions: Sequence[SessionBins]) -> None:
    """Refuses copies of one file, because the end of one, which is held out, would be trained on in the other."""
    paths: dict[str, str] = {}
    for session in sessions:
        if (first := paths.setdefault(session.sha256, session.path)) != session.path:
            raise RecordingError(
                f"{session.path}: a copy of {first}",
                got=f"two files with the SHA-256 {session.sha256[:12]}…",
                expected="every recording once, else scores would be measured on data that was trained on",
                next_step=f"leave one of them out: name the others one by one, or move {session.path} elsewhere",
            )


def _require_same_outputs(sessions: Sequence[SessionBins]) -> None:
    """Refuses sessions with unlike outputs, since a decoder has one set: cm/s beside m/s is a hundredfold error."""
    kinds: dict[tuple[str, ...], list[str]] = {}
    for session in sessions:
        if session.behavior is not None:
            outputs = zip(session.output_names, session.output_units, strict=True)
            kinds.setdefault(tuple(f"{name} ({unit})" for name, unit in outputs), []).append(session.path)
    if len(kinds) > 1:
        raise RecordingError(
            "the sessions differ in their behavior: "
            + "; ".join(
                f"{paths[0]}" + (f" and {len(paths) - 1} more" if paths[1:] else "") for paths in kinds.values()
            ),
            got="; ".join(", ".join(outputs) for outputs in kinds),
            expected="the same names and units in every session",
            next_step="leave some sessions out, or name a series that all of them hold with --behavior",
        )
