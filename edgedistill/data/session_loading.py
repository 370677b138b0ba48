"""Reads several sessions from files and folders, puts them in order, and checks them against each other.

A session appears once, whatever the names of the files are in which it is found.

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
    """Sorts sessions by their start, leaves out copies, and makes their ids unique.

    Sessions with equal ids are named after their files, and after their paths where the files have equal names too.

    Raises RecordingError when sessions differ in the names or units of their behavior.
    """
    ordered = sorted(sessions, key=lambda session: (session.session_start, session.path))
    copies = find_copies(ordered)
    ordered = [session for session in ordered if session.path not in copies]
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


def find_copies(sessions: Iterable[SessionBins]) -> dict[str, RecordingError]:
    """Returns the paths of all copies of sessions that come before them by start and path, with the reason.

    The end of a copy, which is held out, would be trained on in the other. Files are copies of each other where they
    have the same bytes, or where identifier, session id, subject, start and length are the same: one of them was then
    stored again, with another compression for example.
    """
    first: dict[tuple[object, ...], str] = {}
    found: dict[str, RecordingError] = {}
    for session in sorted(sessions, key=lambda session: (session.session_start, session.path)):
        who = (session.identifier, session.session_id, session.subject_id, session.session_start, session.bins)
        keys = [(session.sha256,), *([who] if session.identifier else [])]
        same = next((first[key] for key in keys if key in first), None)
        if same is not None and same != session.path:
            found[session.path] = RecordingError(
                f"{session.path}: a copy of {same}",
                got="the same bytes" if (session.sha256,) in first else f"the same identifier {session.identifier!r}",
                expected="every recording once, else scores would be measured on data that was trained on",
            )
        for key in keys:
            first.setdefault(key, session.path)
    return found


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
