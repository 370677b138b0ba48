"""A session that cannot be used is refused with the reason that is true, and what looks odd is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from edgedistill.errors import RecordingError

from .. import nwb_files as make
from ..binning import read_bins

RATE = 250
FRAMES = round(make.SECONDS * RATE)
TIMES = np.arange(FRAMES) / RATE


def write(path: Path, lfp: np.ndarray | None = None, invalid: tuple[float, float] | None = None, **clock: Any) -> Path:
    nwb = make.new_nwb()
    make.add_lfp(nwb, make.lfp_volts() if lfp is None else lfp, **clock)
    make.add_units(nwb)
    make.add_behavior(nwb)
    if invalid is not None:
        nwb.add_invalid_time_interval(start_time=invalid[0], stop_time=invalid[1])
    return make.write(nwb, path / "a.nwb")


def refuse(path: Path) -> str:
    with pytest.raises(RecordingError) as caught:
        read_bins(path)
    assert str(path) in str(caught.value)
    assert "next:" in str(caught.value)
    return str(caught.value)


def test_a_field_on_another_clock_is_not_blamed_on_the_units(tmp_path: Path) -> None:
    message = refuse(write(tmp_path, timestamps=TIMES + 1.7e9))
    assert "unequal clocks" in message
    assert "LFP 1700000000.000" in message


@pytest.mark.parametrize("scale", [1e3, 1e6, RATE])
def test_timestamps_in_another_unit_than_seconds_are_named(tmp_path: Path, scale: float) -> None:
    message = refuse(write(tmp_path, timestamps=TIMES * scale))
    assert "sampling rate" in message
    assert "milliseconds or samples" in message


def test_a_field_that_goes_on_for_hours_after_the_task_is_read(tmp_path: Path) -> None:
    times = np.where(np.arange(FRAMES) < FRAMES - 250, TIMES, TIMES + 36000)
    bins = read_bins(write(tmp_path, timestamps=times))
    assert bins.coverage.kept_s > 110
    assert bins.session_s == pytest.approx(36000 + make.SECONDS)
    assert sum(bins.left_out_s.values()) + bins.coverage.kept_s == pytest.approx(bins.session_s)


@pytest.mark.parametrize(("trial", "lost", "cause"), [(1000, 800, "gap in the LFP"), (75, 25, "never settle")])
def test_trials_that_are_too_short_for_the_filters_are_named_by_their_gaps(
    tmp_path: Path, trial: int, lost: int, cause: str
) -> None:
    """After a long gap the filters start anew, and after a short one they need more than the 0.2 s of a trial."""
    keep = (np.arange(FRAMES) % trial) >= lost
    message = refuse(write(tmp_path, make.lfp_volts()[keep], timestamps=TIMES[keep]))
    assert "almost nothing of the session" in message
    assert cause in message


def test_a_session_that_is_invalid_from_end_to_end_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, invalid=(-10.0, 1e6))
    assert "invalid_times" in refuse(path)
    with pytest.raises(RecordingError, match="almost nothing"):
        read_bins(path, need=("lfp",))


def test_numbers_that_are_no_volts_are_noted_in_the_bins(tmp_path: Path) -> None:
    path = write(tmp_path, make.lfp_volts() * np.float32(1e6))
    assert any("`conversion` to volts" in note for note in read_bins(path).notes)
    with h5py.File(path, "a") as file:
        file["processing/ecephys/LFP/ElectricalSeries/data"].attrs["unit"] = "uV"
    assert not any("`conversion`" in note for note in read_bins(path).notes)
