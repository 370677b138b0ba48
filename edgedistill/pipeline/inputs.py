"""Sessions on the bin clock, each NWB file read once.

Paths of NWB files or folders go in, and `SessionBins` come out. This module imports nothing of models or training,
so that a change there reads no file again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgedistill.data.bins import (
    SessionBins,
    bins_from_recording,
    file_sha256,
    load_session_bins,
    save_session_bins,
)
from edgedistill.data.recording import open_recording
from edgedistill.data.session_files import find_session_files
from edgedistill.data.session_loading import combine_sessions
from edgedistill.pipeline.cache import Cache


def read_sessions(
    cache: Cache,
    data: Sequence[Path],
    behavior: str | None,
    line_hz: float,
    need: tuple[str, ...] = ("lfp", "units", "behavior"),
    also: tuple[str, ...] = (),
) -> list[SessionBins]:
    """Returns the bins of every NWB file in `data`; a file that was read before is not read again.

    Each session must have the parts in `need`, and has those of `also` where its file does. RecordingError otherwise.
    """
    sessions = []
    for path in find_session_files(list(data)):

        def make(folder: Path, path: Path = path) -> None:
            with open_recording(path, behavior=behavior) as recording:
                bins = bins_from_recording(recording, need=need, also=also, line_hz=line_hz)
            save_session_bins(bins, folder / "bins.npz")

        inputs = [file_sha256(path), behavior, line_hz, need, also]
        kept = load_session_bins(cache.stage(f"read-{path.stem}", inputs, make) / "bins.npz")
        sessions.append(replace(kept, path=str(path)))
    return combine_sessions(sessions)
