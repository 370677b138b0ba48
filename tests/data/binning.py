"""Reads the bins of one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgedistill.data.bins import SessionBins, bins_from_recording
from edgedistill.data.recording import open_recording


def read_bins(path: Path, **settings: Any) -> SessionBins:
    with open_recording(path) as recording:
        return bins_from_recording(recording, **settings)
