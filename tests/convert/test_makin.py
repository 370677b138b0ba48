"""A session of O'Doherty, Makin and Sabes keeps its values, times and units in the conversion, in little memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from pynwb import NWBHDF5IO, validate

from edgedistill.convert import broadband as broadband_module
from edgedistill.convert import convert_makin
from edgedistill.data.recording import open_recording
from edgedistill.errors import OutputError, RecordingError

from .published import BROADBAND, TRUE_HZ, VOLTS_PER_BIT, Makin, write_makin


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Makin:
    return write_makin(tmp_path_factory.mktemp("makin"))


@pytest.fixture(scope="module")
def converted(made: Makin) -> Path:
    return convert_makin(made.mat, made.broadband, made.mat.with_name("out.nwb")).path


def test_the_broadband_keeps_every_number_its_scale_and_its_true_rate(made: Makin, converted: Path) -> None:
    with NWBHDF5IO(str(converted), "r") as file:
        series = file.read().acquisition["ElectricalSeriesBroadband"]
        assert series.data.dtype == np.int16
        np.testing.assert_array_equal(series.data[:], made.data)
        assert series.conversion == pytest.approx(VOLTS_PER_BIT, rel=1e-6)
        assert series.rate == pytest.approx(TRUE_HZ, abs=0.02)
        assert series.starting_time == pytest.approx(10.0, abs=1e-6)
        assert series.data.chunks[1] == made.data.shape[1]  # whole frames, so that reading in time is linear
        assert series.data.compression == "gzip"


def test_edgedistill_reads_lfp_units_and_cursor_with_the_right_units(made: Makin, converted: Path) -> None:
    with open_recording(converted) as recording:
        lfp, units, behavior = recording.lfp, recording.units, recording.behavior
        assert lfp is not None
        assert units is not None
        assert behavior is not None
        np.testing.assert_allclose(lfp.read(100, 200), made.data[100:200] * VOLTS_PER_BIT * 1e6, rtol=1e-6)
        assert float(lfp.rate) == pytest.approx(TRUE_HZ, abs=0.02)
        assert sorted(map(len, units)) == sorted(len(times) for times in made.spikes.values())
        assert behavior.series.endswith("cursor_pos")
        assert set(behavior.units) == {"mm/s"}
        np.testing.assert_allclose(behavior.values, made.cursor_mm)
        np.testing.assert_allclose(behavior.times_s, made.t, atol=1e-9)
        assert recording.subject_id == "indy"
        assert recording.session_start.startswith("2016-04-07")


def test_units_say_channel_number_electrode_and_when_they_were_observed(made: Makin, converted: Path) -> None:
    with NWBHDF5IO(str(converted), "r") as file:
        nwb = file.read()
        table = nwb.units
        for row in range(len(table)):
            channel, _, number = table["unit_name"][row].rpartition(" unit ")
            np.testing.assert_array_equal(table["spike_times"][row], made.spikes[channel, int(number)])
            assert bool(table["is_sorted"][row]) == (int(number) > 0)
            assert table["electrodes"][row]["channel_name"].tolist() == [channel]
            (first, last) = table["obs_intervals"][row][0]
            assert first <= made.t[0] < made.t[-1] <= last
        assert len(table) == len(made.spikes)
        electrodes = nwb.electrodes.to_dataframe()
        assert electrodes["location"].tolist() == ["M1"] * 4 + ["S1"]
        assert electrodes["rel_x"][:4].tolist() == pytest.approx([0, 400, 800, 1200])  # micrometers
        assert nwb.acquisition["ElectricalSeriesBroadband"].electrodes.data[:].tolist() == [0, 1, 2, 3]


def test_the_file_is_valid_nwb(converted: Path) -> None:
    with NWBHDF5IO(str(converted), "r") as io:
        assert not validate(io=io)


def test_a_step_of_the_timestamps_splits_the_series_and_is_told(tmp_path: Path) -> None:
    made = write_makin(tmp_path, step_after=30_000, step_s=0.4)
    found = convert_makin(made.mat, made.broadband, tmp_path / "out.nwb")
    assert (found.lfp.gaps, len(found.lfp.series)) == (1, 2)
    assert found.lfp.gap_seconds == pytest.approx(0.4)
    assert any("a gap in the broadband from" in note for note in found.notes)
    with NWBHDF5IO(str(found.path), "r") as file:
        nwb = file.read()
        first, second = (nwb.acquisition[path.rpartition("/")[2]] for path in found.lfp.series)
        np.testing.assert_array_equal(np.concatenate([first.data[:], second.data[:]]), made.data)
        assert first.rate == second.rate == pytest.approx(TRUE_HZ, abs=0.02)
        assert second.starting_time == pytest.approx(made.timestamps[30_000], abs=3e-6)
        assert first.electrodes.data[:].tolist() == second.electrodes.data[:].tolist()


def test_one_late_frame_is_kept_and_told(tmp_path: Path) -> None:
    made = write_makin(tmp_path, seconds=1)
    with h5py.File(made.broadband, "r+") as file:
        file[f"{BROADBAND}/timestamps"][700] += 0.6 / TRUE_HZ
    found = convert_makin(made.mat, made.broadband, tmp_path / "out.nwb")
    assert (found.lfp.gaps, len(found.lfp.series)) == (0, 1)
    assert any(note.startswith("1 timestamps lie more than half a frame off") for note in found.notes), found.notes
    with h5py.File(found.path) as file:
        np.testing.assert_array_equal(file["acquisition/ElectricalSeriesBroadband/data"][()], made.data)


@pytest.mark.parametrize("silent", [False, True])
def test_units_are_unobserved_in_a_gap_only_if_none_of_them_fired_there(tmp_path: Path, silent: bool) -> None:
    made = write_makin(tmp_path, step_after=30_000, step_s=0.4)
    gap = made.timestamps[29_999] + 1 / TRUE_HZ, made.timestamps[30_000]
    if silent:
        with h5py.File(made.mat, "r+") as file:
            for cell in file["#refs#"].values():
                if cell.dtype == np.float64:
                    times = cell[()]
                    cell[()] = np.where((times >= gap[0]) & (times <= gap[1]), made.t[0], times)
    found = convert_makin(made.mat, made.broadband, tmp_path / "out.nwb")
    with NWBHDF5IO(str(found.path), "r") as file:
        observed = np.asarray(file.read().units["obs_intervals"][0])
    assert len(observed) == (2 if silent else 1)
    if silent:
        assert observed[:, 1][0] == pytest.approx(gap[0], abs=1e-6)
        assert observed[:, 0][1] == pytest.approx(gap[1], abs=1e-6)


def test_channels_first_is_read_as_such(tmp_path: Path) -> None:
    made = write_makin(tmp_path, seconds=1)
    with h5py.File(made.broadband, "r+") as file:
        attributes = dict(file[f"{BROADBAND}/data"].attrs)
        del file[f"{BROADBAND}/data"]
        file.create_dataset(f"{BROADBAND}/data", data=made.data.T).attrs.update(attributes)
    found = convert_makin(made.mat, made.broadband, tmp_path / "out.nwb")
    with h5py.File(found.path) as file:
        np.testing.assert_array_equal(file["acquisition/ElectricalSeriesBroadband/data"][()], made.data)


def test_channels_without_a_common_name_are_matched_by_their_order_and_it_is_told(tmp_path: Path) -> None:
    made = write_makin(tmp_path, seconds=1)
    with h5py.File(made.broadband, "r+") as file:
        del file[f"{BROADBAND}/electrode_names"]
    found = convert_makin(made.mat, made.broadband, tmp_path / "out.nwb")
    assert any("matched by their order" in note for note in found.notes)
    with NWBHDF5IO(str(found.path), "r") as file:
        assert file.read().electrodes["channel_name"][:].tolist() == [f"M1 00{i}" for i in range(1, 5)] + ["S1 001"]


def test_six_numbers_of_a_finger_are_position_and_orientation(tmp_path: Path) -> None:
    made = write_makin(tmp_path, seconds=1, fingers=6)
    found = convert_makin(made.mat, made.broadband, tmp_path / "out.nwb")
    with NWBHDF5IO(str(found.path), "r") as file:
        behavior = file.read().processing["behavior"]
        assert behavior["Position"]["finger_pos"].data.shape[1] == 3
        assert behavior["Position"]["finger_pos"].unit == "centimeters"
        assert behavior["finger_orientation"].data.shape[1] == 3


# ---------------------------------------------------------------- memory


def test_no_read_is_larger_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset that refuses large reads stands in for an hour, which would not fit into memory."""
    made = write_makin(tmp_path)
    monkeypatch.setattr(broadband_module, "BLOCK_BYTES", 1 << 15)
    reads: list[int] = []
    read = h5py.Dataset.__getitem__

    def measured(dataset: Any, key: Any, *rest: Any) -> Any:
        found = read(dataset, key, *rest)
        if dataset.name == f"/{BROADBAND}/data":
            reads.append(found.nbytes)
        return found

    monkeypatch.setattr(h5py.Dataset, "__getitem__", measured)
    convert_makin(made.mat, made.broadband, tmp_path / "out.nwb")
    assert max(reads) <= 1 << 15
    assert sum(reads) == made.data.nbytes  # each frame once


def test_a_large_broadband_is_converted_in_little_memory(tmp_path: Path) -> None:
    """400 MB of frames that take no room on the disk; the limit counts everything beyond what imports take."""
    made = write_makin(tmp_path, seconds=1.5)
    frames = 1_100_000
    with h5py.File(made.broadband, "r+") as file:
        for name in ("data", "timestamps", "electrode_names"):
            del file[f"{BROADBAND}/{name}"]
        stored = file.create_dataset(f"{BROADBAND}/data", (frames, 192), np.int16, chunks=(8192, 192), fillvalue=7)
        stored.attrs["conversion"] = np.float32(VOLTS_PER_BIT)
        file[f"{BROADBAND}/timestamps"] = 10 + np.arange(frames) / (frames / 1.5)
    code = (
        "import sys, pynwb, h5py, scipy\n"
        "from pathlib import Path\n"
        "from edgedistill.convert import convert_makin\n"
        "def peak():\n"  # getrusage would count what the parent held
        "    lines = Path('/proc/self/status').read_text().splitlines()\n"
        "    return next(int(line.split()[1]) for line in lines if line.startswith('VmHWM'))\n"
        "before = peak()\n"
        "convert_makin(*map(Path, sys.argv[1:]))\n"
        "print(peak() - before)"
    )
    words = (made.mat, made.broadband, tmp_path / "out.nwb")
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 200_000  # kB
    with h5py.File(tmp_path / "out.nwb") as file:
        data = file["acquisition/ElectricalSeriesBroadband/data"]
        assert data.shape == (frames, 192)
        assert data[-1].tolist() == [7] * 192


# ---------------------------------------------------------------- refusals


def refused(made: Makin, out: Path, error: type[Exception], *says: str) -> None:
    with pytest.raises(error) as caught:
        convert_makin(made.mat, made.broadband, out)
    for words in says:
        assert words in str(caught.value), str(caught.value)
    assert not list(out.parent.glob("*.partial*"))
    assert not out.exists() or out in (made.mat, made.broadband)


def test_swapped_files_are_named(tmp_path: Path) -> None:
    made = write_makin(tmp_path, seconds=1)
    made.mat, made.broadband = made.broadband, made.mat
    refused(made, tmp_path / "out.nwb", RecordingError, "an NWB 1 file", "wrong order")


def test_files_of_two_sessions_are_named(tmp_path: Path) -> None:
    made, other = write_makin(tmp_path), write_makin(tmp_path / "other", name="indy_20160411_01", seconds=1)
    made.broadband = other.broadband
    refused(made, tmp_path / "out.nwb", RecordingError, "indy_20160407_02", "indy_20160411_01", "two sessions")


def test_files_that_do_not_run_at_the_same_time_are_refused(tmp_path: Path) -> None:
    made, other = write_makin(tmp_path), write_makin(tmp_path / "other", start=500.0)
    made.broadband = other.broadband
    refused(made, tmp_path / "out.nwb", RecordingError, "at the same time", "500.000")


@pytest.mark.parametrize("key", ["t", "cursor_pos", "finger_pos", "target_pos", "spikes", "chan_names"])
def test_a_missing_variable_is_named_with_what_is_there(tmp_path: Path, key: str) -> None:
    made = write_makin(tmp_path, seconds=1)
    with h5py.File(made.mat, "r+") as file:
        del file[key]
    refused(made, tmp_path / "out.nwb", RecordingError, str(made.mat), f"no dataset '{key}'", "#refs#")


@pytest.mark.parametrize("key", ["data", "timestamps"])
def test_a_missing_part_of_the_broadband_is_named(tmp_path: Path, key: str) -> None:
    made = write_makin(tmp_path, seconds=1)
    with h5py.File(made.broadband, "r+") as file:
        del file[f"{BROADBAND}/{key}"]
    refused(made, tmp_path / "out.nwb", RecordingError, str(made.broadband), f"no dataset '{BROADBAND}/{key}'")


def test_a_broadband_without_conversion_is_refused(tmp_path: Path) -> None:
    made = write_makin(tmp_path, seconds=1)
    with h5py.File(made.broadband, "r+") as file:
        del file[f"{BROADBAND}/data"].attrs["conversion"]
    refused(made, tmp_path / "out.nwb", RecordingError, "cannot be converted to volts", "conversion None")


@pytest.mark.parametrize("which", ["mat", "broadband"])
def test_a_file_that_was_cut_off_is_named(tmp_path: Path, which: str) -> None:
    made = write_makin(tmp_path, seconds=1)
    path = getattr(made, which)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(made, tmp_path / "out.nwb", RecordingError, str(path), "cut off")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs", "git-lfs"),
        (b"MATLAB 5.0 MAT-file, Plat", "a MATLAB 5 file"),
    ],
)
def test_a_file_of_another_kind_is_told(tmp_path: Path, content: bytes, says: str) -> None:
    made = write_makin(tmp_path, seconds=1)
    made.mat.write_bytes(content)
    refused(made, tmp_path / "out.nwb", RecordingError, "a file of another kind", says, "a MATLAB 7.3 file")


def test_a_converted_file_is_not_converted_again(made: Makin, converted: Path, tmp_path: Path) -> None:
    again = Makin(made.mat, converted, made.data, made.timestamps, made.t, made.cursor_mm)
    refused(again, tmp_path / "out.nwb", RecordingError, "an NWB 2 file", "converted already")


def test_the_output_never_replaces_an_input(tmp_path: Path) -> None:
    made = write_makin(tmp_path, seconds=1)
    before = made.broadband.read_bytes()
    refused(made, made.broadband, OutputError, "an input of the command")
    assert made.broadband.read_bytes() == before


def test_a_disk_without_room_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = write_makin(tmp_path, seconds=1)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    refused(made, tmp_path / "new" / "out.nwb", OutputError, "not enough room", "GB")
    assert not (tmp_path / "new").exists()


def test_a_session_without_a_day_needs_one(tmp_path: Path) -> None:
    made = write_makin(tmp_path, name="mine", seconds=1)
    refused(made, tmp_path / "out.nwb", RecordingError, "the day of this session is unknown", "--session-start")
    found = convert_makin(made.mat, made.broadband, tmp_path / "out.nwb", session_start="2016-04-07T10:30")
    assert found.session_start.startswith("2016-04-07T10:30:00-07:00")


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mat")
    with pytest.raises(RecordingError, match="not a plain file"):
        convert_makin(tmp_path / "pipe.mat", tmp_path / "pipe.mat", tmp_path / "out.nwb")
