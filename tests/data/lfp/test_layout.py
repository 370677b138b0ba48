"""Time is found among the axes by electrodes, timestamps or shape, and a shape that fits nothing is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from edgedistill.data.lfp.lfp import Lfp
from edgedistill.data.recording import open_recording
from edgedistill.errors import RecordingError

from .. import nwb_files as make

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning")  # pynwb warns of the layout, too

SERIES = "processing/ecephys/LFP/ElectricalSeries"


def write(path: Path, stored: np.ndarray, electrodes: int, **settings: Any) -> Path:
    """Writes a series of `electrodes` electrodes, and puts `stored` in place of its data."""
    nwb = make.new_nwb()
    make.add_lfp(nwb, np.ones((len(settings.get("timestamps", [0])), electrodes), np.float32), **settings)
    with h5py.File(make.write(nwb, path / "a.nwb"), "a") as file:
        old = dict(file[SERIES]["data"].attrs)
        del file[SERIES]["data"]
        file[SERIES].create_dataset("data", data=stored).attrs.update(old)
    return path / "a.nwb"


def read(path: Path) -> Lfp:
    with open_recording(path) as recording:
        assert recording.lfp is not None
        _ = recording.lfp.read(0, 10)
        return recording.lfp


@pytest.mark.parametrize(
    ("shape", "electrodes", "transposed"),
    [((5000, 3), 3, False), ((3, 5000), 3, True), ((3, 3), 3, False), ((2, 3), 3, False), ((3, 2), 3, True)],
)
def test_the_axis_that_fits_the_electrodes_is_channels(
    tmp_path: Path, shape: tuple[int, int], electrodes: int, transposed: bool
) -> None:
    stored = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    path = write(tmp_path, stored, electrodes)
    with open_recording(path) as recording:
        lfp = recording.lfp
        assert lfp is not None
        assert (lfp.transposed, lfp.channels) == (transposed, 3)
        np.testing.assert_allclose(lfp.read(0, lfp.frames), (stored.T if transposed else stored) * 1e6)
    assert any("3 electrodes" in note for note in lfp.notes) == transposed


def test_timestamps_decide_where_both_axes_fit_the_electrodes(tmp_path: Path) -> None:
    lfp = read(write(tmp_path, np.ones((600, 600), np.float32), 600, timestamps=np.arange(600) / 250))
    assert not lfp.transposed


@pytest.mark.parametrize("shape", [(5000, 4), (4, 5000), (5000,)])
def test_a_shape_that_fits_neither_way_is_refused_with_both_counts(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(RecordingError) as caught:
        read(write(tmp_path, np.ones(shape, np.float32), 3))
    message = str(caught.value)
    assert f"shape {shape} for 3 electrodes" in message
    assert SERIES in message


@pytest.mark.parametrize(
    ("shape", "timestamps", "transposed", "why"),
    [
        ((4, 5000), None, True, "far more columns than rows"),
        ((5000, 4), None, False, ""),
        ((40, 50), None, False, ""),
        ((500, 900), 900, True, "900 timestamps"),
        ((900, 5000), 900, False, ""),
    ],
)
def test_without_electrodes_the_timestamps_or_the_shape_decide(
    tmp_path: Path, shape: tuple[int, int], timestamps: int | None, transposed: bool, why: str
) -> None:
    from edgedistill.data.lfp.layout import find_layout
    from edgedistill.data.series import Series

    class Node:
        data = np.ones(shape)
        electrodes = None
        timestamps: Any = None

    Node.timestamps = None if timestamps is None else np.arange(timestamps)
    layout = find_layout(Series("acquisition/lfp", Node()), tmp_path)
    assert layout.transposed == transposed
    assert (layout.frames, layout.channels) == (shape[::-1] if transposed else shape)
    assert (layout.why is not None) == transposed
    assert why in (layout.why or "")


@pytest.mark.parametrize(
    ("rows", "cause"), [([0, 1, 9], "not in place"), ([0, 1, -1], "ids of electrodes"), ([1, 2, 3], "MATLAB")]
)
def test_electrodes_that_are_not_in_the_table_are_refused(tmp_path: Path, rows: list[int], cause: str) -> None:
    path = write(tmp_path, np.ones((500, 3), np.float32), 3)
    with h5py.File(path, "a") as file:
        file[SERIES]["electrodes"][...] = rows
    with pytest.raises(RecordingError, match="not in the electrode table") as caught:
        read(path)
    assert SERIES in str(caught.value)
    assert f"row {rows[-1]}, in a table of 3 rows" in str(caught.value)
    assert (cause in str(caught.value)) == (cause != "not in place")


def test_complex_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="not an LFP"):
        read(write(tmp_path, np.ones((500, 3), np.complex64), 3))


@pytest.mark.parametrize("rate", [0.0, -1000.0, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(tmp_path: Path, rate: float) -> None:
    path = write(tmp_path, np.ones((5000, 3), np.float32), 3)
    with h5py.File(path, "a") as file:
        file[SERIES]["starting_time"].attrs["rate"] = rate
    with pytest.raises(RecordingError, match="no usable clock"):
        read(path)


@pytest.mark.parametrize(
    ("unit", "uv"),
    [
        *(("volts", 1e6), ("V", 1e6), ("Volts (V)", 1e6), (b"uV", 1.0), ("microvolt(s)", 1.0), ("\u00b5Volts", 1.0)),
        *(("mV", 1e3), ("millivolts", 1e3), ("nV", 1e-3), ("a.u.", None), ("counts", None), ("", None), ("adu", None)),
    ],
)
def test_every_spelling_of_a_unit_is_understood_and_other_words_are_noted(
    tmp_path: Path, unit: str | bytes, uv: float | None
) -> None:
    path = write(tmp_path, np.ones((500, 3), np.float32), 3)
    with h5py.File(path, "a") as file:
        file[SERIES]["data"].attrs["unit"] = unit
    with open_recording(path) as recording:
        lfp = recording.lfp
        assert lfp is not None
        assert lfp.read(0, 1)[0, 0] == pytest.approx(1e6 if uv is None else uv)
        assert any("no voltage" in note for note in lfp.notes) == (uv is None)


def test_an_offset_that_is_no_number_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, np.ones((500, 3), np.float32), 3)
    with h5py.File(path, "a") as file:
        file[SERIES]["data"].attrs["offset"] = np.nan
    with pytest.raises(RecordingError, match="cannot be converted"):
        read(path)
