"""Stretches that a file marks as invalid are read with their reason, and a malformed row is refused."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from edgedistill.data.invalid_times import InvalidTime
from edgedistill.data.recording import open_recording
from edgedistill.errors import RecordingError

from . import nwb_files as make


def write_marked(path: Path, *rows: tuple[float, float], tags: list[list[str]] | None = None) -> Path:
    nwb = make.new_nwb()
    make.add_units(nwb)
    for row, (start, stop) in enumerate(rows):
        nwb.add_invalid_time_interval(
            start_time=start, stop_time=stop, **({"tags": tags[row]} if tags is not None else {})
        )
    return make.write(nwb, path)


def test_a_file_without_the_table_marks_nothing(whole: Path) -> None:
    with open_recording(whole) as recording:
        assert recording.invalid_times == ()


def test_rows_are_sorted_and_their_tags_are_the_reason(tmp_path: Path) -> None:
    path = write_marked(tmp_path / "a.nwb", (60.0, 120.0), (5.0, np.inf), tags=[["stimulation test", "cable"], ["x"]])
    with open_recording(path) as recording:
        assert recording.invalid_times == (
            InvalidTime(5.0, np.inf, "x"),
            InvalidTime(60.0, 120.0, "stimulation test, cable"),
        )


def test_columns_of_text_are_reasons_and_numbers_are_not(tmp_path: Path) -> None:
    nwb = make.new_nwb()
    nwb.add_invalid_times_column("reason", "why")
    nwb.add_invalid_times_column("severity", "a number")
    nwb.add_invalid_time_interval(start_time=1.0, stop_time=2.0, reason="grooming", severity=3)
    nwb.add_invalid_time_interval(start_time=3.0, stop_time=4.0, reason="", severity=1)
    with open_recording(make.write(nwb, tmp_path / "a.nwb")) as recording:
        assert [row.why for row in recording.invalid_times] == ["grooming", "invalid_times"]


@pytest.mark.parametrize("row", [(7.0, 6.0), (np.nan, 6.0), (7.0, np.nan)])
def test_a_row_without_a_stretch_is_refused_and_located(tmp_path: Path, row: tuple[float, float]) -> None:
    path = write_marked(tmp_path / "a.nwb", (1.0, 2.0), row)
    with open_recording(path) as recording, pytest.raises(RecordingError, match="row 1 of intervals/invalid_times"):
        _ = recording.invalid_times


def test_a_table_that_cannot_be_read_is_no_table_without_rows(tmp_path: Path) -> None:
    path = write_marked(tmp_path / "a.nwb", (1.0, 2.0))
    with h5py.File(path, "a") as file:
        del file["intervals/invalid_times/stop_time"]
    with open_recording(path) as recording:
        assert recording.units is not None
        with pytest.raises(RecordingError, match="intervals/invalid_times cannot be read"):
            _ = recording.invalid_times
