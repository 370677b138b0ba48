"""Reads sessions as bins, and each NWB file only once.

Paths of NWB files or folders go in, and `SessionBins` come out. This module imports nothing from models or training, so
that a change there does not make a file be read again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from edgedistill.config import NO_BANDS, BandPower
from edgedistill.data.bins import (
    SessionBins,
    bins_from_recording,
    file_sha256,
    load_session_bins,
    save_session_bins,
)
from edgedistill.data.opening.hdf5_files import reading_error
from edgedistill.data.opening.session_files import find_session_files
from edgedistill.data.recording import SeriesNames, open_recording
from edgedistill.data.session_loading import combine_sessions
from edgedistill.files import find_number
from edgedistill.pipeline.cache import Cache

logger = logging.getLogger(__name__)


def read_sessions(
    cache: Cache,
    data: Sequence[Path],
    names: SeriesNames,
    line_hz: float,
    bands: BandPower = NO_BANDS,
    need: tuple[str, ...] = ("lfp", "units", "behavior"),
    also: tuple[str, ...] = (),
) -> list[SessionBins]:
    """Returns the bins of every NWB file in `data`. A file that was read before comes from the cache.

    Each session gets the parts in `need`, and those in `also` if its file has them. Raises RecordingError for a file
    that lacks a part in `need`. How each session was read is logged, one line at a time.
    """
    sessions = []
    for path in find_session_files(list(data)):
        digest = file_sha256(path)

        def make(folder: Path, path: Path = path, digest: str = digest) -> None:
            try:
                with open_recording(path, names) as recording:
                    bins = bins_from_recording(
                        recording, need=need, also=also, line_hz=line_hz, bands=bands, sha256=digest
                    )
            except OSError as error:  # the cache would take it for a full disk
                raise reading_error(path, str(error), find_number(error)) from error
            save_session_bins(bins, folder / "bins.npz")

        inputs = [digest, asdict(names), line_hz, asdict(bands), need, also]
        kept = load_session_bins(cache.stage(f"read-{path.stem}", inputs, make) / "bins.npz")
        sessions.append(replace(kept, path=str(path)))
    combined = combine_sessions(sessions)
    for session in combined:
        for line in describe_session(session):
            logger.info(line)
    return combined


def describe_session(session: SessionBins) -> list[str]:
    """Returns what a person should know of how a session was read: its series, what is left out, and notes."""
    series = ", ".join(f"{part} {path}" for part, path in session.series.items())
    return [
        f"{session.session_id}: {series}; {session.coverage.to_text()}",
        *(f"{session.session_id}: note: {note}" for note in session.notes),
    ]
