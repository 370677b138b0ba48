"""Reads the stretches that a file marks as invalid: its table `intervals/invalid_times`.

The input is the pynwb object. The output is one `InvalidTime` a row, sorted by start. No other table is read, because
trials and epochs that a lab marks as bad say so each in its own way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgedistill.errors import RecordingError

PATH = "intervals/invalid_times"


@dataclass(frozen=True, order=True)
class InvalidTime:
    """Marks [start_s, stop_s) as invalid, in seconds on the clock of the file. `stop_s` may be infinite."""

    start_s: float
    stop_s: float
    why: str  # tags and labels of the row, or "invalid_times" where it has none


def read_invalid_times(nwb: Any, file: Path) -> tuple[InvalidTime, ...]:
    """Returns the invalid stretches. Raises RecordingError where a row lacks a time or ends before it begins."""
    table = nwb.invalid_times
    if table is None or not len(table):
        return ()
    starts, stops = (np.asarray(table[name].data[:], dtype=np.float64) for name in ("start_time", "stop_time"))
    wrong = np.isnan(starts) | np.isnan(stops) | (stops < starts)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise RecordingError(
            f"{file}: row {row} of {PATH} marks no stretch of time",
            got=f"{starts[row]} to {stops[row]} s; {int(wrong.sum())} of {len(wrong)} rows are like this",
            expected="start_time and stop_time in seconds, in this order",
            next_step=f"correct or delete this row, then edgedistill inspect {file}",
        )
    labels = [name for name in table.colnames if name not in ("start_time", "stop_time", "timeseries")]
    rows = zip(starts, stops, range(len(table)), strict=True)
    return tuple(
        sorted(
            InvalidTime(float(start), float(stop), ", ".join(_read_labels(table, labels, row)) or "invalid_times")
            for start, stop, row in rows
        )
    )


def _read_labels(table: Any, columns: list[str], row: int) -> Iterator[str]:
    """Yields the texts of one row: a column of text, or a list of tags. Numbers and references say no reason."""
    for name in columns:
        value = table[name][row]
        for text in [value] if isinstance(value, (str, bytes)) else np.ravel(np.asarray(value, dtype=object)):
            if isinstance(text, (str, bytes)) and (plain := text.decode() if isinstance(text, bytes) else text).strip():
                yield plain.strip()
