"""Says what a converted file holds: the session, its LFP, its units, its behavior, and what was noticed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

Progress = Callable[[str, int, int], None]  # what is being converted, step, steps


@dataclass(frozen=True)
class LfpSummary:
    """Describes the voltages of one file. Several series are segments of one array, one after another."""

    series: tuple[str, ...]  # paths in the file
    channels: int
    rate_hz: float
    seconds: float  # without gaps
    gaps: int
    gap_seconds: float


@dataclass(frozen=True)
class ConvertedFile:
    """Describes one NWB file that was written."""

    path: Path
    session_id: str
    session_start: str  # ISO 8601
    lfp: LfpSummary
    units: int
    spikes: int
    behavior: tuple[dict[str, str], ...]  # series and unit of each
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Returns the description as a JSON object."""
        return {**asdict(self), "path": str(self.path), "bytes": self.path.stat().st_size}
