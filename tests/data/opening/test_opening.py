"""A session that cannot be read, or only in part, says which part and why. The rest of it is read."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedistill.data.inspect import describe
from edgedistill.data.opening.hdf5_files import opening_error, reading_error
from edgedistill.data.recording import SeriesNames, open_recording
from edgedistill.errors import RecordingError

from .. import nwb_files as make

LFP = "processing/ecephys/LFP/ElectricalSeries"
BEHAVIOR = "processing/behavior/cursor_vel"

HOLD = """
import sys, h5py
file = h5py.File(sys.argv[1], "r+", **eval(sys.argv[2]))
if "libver" in sys.argv[2]:
    file.swmr_mode = True
print("open", flush=True)
sys.stdin.read()
"""


@contextmanager
def held_open(path: Path, **settings: Any) -> Iterator[subprocess.Popen[str]]:
    """Keeps a file open for writing in another program."""
    command = [sys.executable, "-c", HOLD, str(path), repr(settings)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        try:
            yield other
        finally:
            other.kill()


def spoil(path: Path, change: Callable[[h5py.File], None]) -> Path:
    make.whole_session(path)
    with h5py.File(path, "a") as file:
        change(file)
    return path


def replace_data(file: h5py.File, path: str, data: np.ndarray) -> None:
    attributes = dict(file[path].attrs)
    del file[path]
    file[path] = data
    file[path].attrs.update(attributes)


def test_a_file_that_another_program_writes_is_in_use_and_not_damaged(tmp_path: Path) -> None:
    path = make.whole_session(tmp_path / "a.nwb")
    with held_open(path), pytest.raises(RecordingError, match="in use by another program") as caught:
        open_recording(path)
    assert "damaged" not in str(caught.value)
    open_recording(path).close()


def test_a_file_that_was_not_closed_after_writing_names_h5clear(tmp_path: Path) -> None:
    path = tmp_path / "a.nwb"
    with h5py.File(path, "w", libver="latest") as file:
        file.attrs["nwb_version"] = "2.8.0"
    with held_open(path, libver="latest"):
        pass  # the program is killed
    with pytest.raises(RecordingError, match=r"h5clear -s a\.nwb") as caught:
        open_recording(path)
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("unable to lock file, errno = 11, error message = 'Resource temporarily unavailable'", "in use by another"),
        ("unable to lock file, errno = 37, error message = 'No locks available'", "HDF5_USE_FILE_LOCKING"),
        ("file locking disabled on this file system, errno = 38, error message = 'x'", "HDF5_USE_FILE_LOCKING"),
        ("file read failed: errno = 5, error message = 'Input/output error'", "the drive failed"),
        ("truncated file: eof = 3, stored_eof = 7", "truncated or damaged"),
    ],
)
def test_what_hdf5_reports_is_told_apart(text: str, words: str) -> None:
    assert words in str(opening_error(Path("a.nwb"), OSError(f"Unable to open file ({text})")))


def test_a_drive_that_fails_while_reading_is_no_damaged_file() -> None:
    assert "drive failed" in str(reading_error(Path("a.nwb"), "file read failed: errno = 5, time = now"))
    assert "damaged" in str(reading_error(Path("a.nwb"), "inflate() failed"))


def test_a_link_of_git_annex_that_was_not_fetched_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.nwb"
    path.symlink_to(tmp_path / ".git" / "annex" / "x.nwb")
    with pytest.raises(RecordingError, match="datalad get"):
        open_recording(path)


def test_a_file_of_nwb_1_is_named_and_makin_gets_a_command(tmp_path: Path) -> None:
    path = tmp_path / "a.nwb"
    with h5py.File(path, "w") as file:
        file["nwb_version"] = "NWB-1.0.6"  # a dataset in NWB 1
    with pytest.raises(RecordingError, match=r"NWB-1\.0\.6") as caught:
        open_recording(path)
    assert "edgedistill convert makin" in str(caught.value)


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make.whole_session(tmp_path / "a.nwb")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(RecordingError, match="not allowed to read") as caught:
        open_recording(path)
    assert "damaged" not in str(caught.value)


def delete_clock(file: h5py.File) -> None:
    del file[LFP]["starting_time"]


def delete_electrodes(file: h5py.File) -> None:
    del file["general/extracellular_ephys/electrodes"]


def give_four_dimensions(file: h5py.File) -> None:
    replace_data(file, f"{LFP}/data", np.zeros((10, 2, 2, 2)))


def delete_data(file: h5py.File) -> None:
    del file[LFP]["data"]


def name_unknown_type(file: h5py.File) -> None:
    file[LFP].attrs["neurodata_type"] = "LabSeries"


def link_data_elsewhere(file: h5py.File) -> None:
    del file[LFP]["data"]
    file[LFP]["data"] = h5py.ExternalLink("moved.nwb", "/acquisition/raw/data")


def link_elsewhere(file: h5py.File) -> None:
    del file[LFP]
    file[LFP] = h5py.ExternalLink("moved.nwb", "/acquisition/raw")


def link_within(file: h5py.File) -> None:
    del file[LFP]
    file[LFP] = h5py.SoftLink("/acquisition/raw")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (delete_clock, "shape (31250, 3): either 'timestamps' or 'rate' must be specified"),
        (delete_electrodes, "electrodes refers to a table that is not in this file"),
        (give_four_dimensions, "shape (10, 2, 2, 2): incorrect shape for data"),
        (delete_data, "it has no data"),
        (name_unknown_type, "core.LabSeries is of an extension"),
        (link_data_elsewhere, "data is a link to acquisition/raw/data of the file moved.nwb, which is not there"),
        (link_elsewhere, "a link to acquisition/raw of the file moved.nwb, which is not there"),
        (link_within, "a link to /acquisition/raw, which is not in this file"),
    ],
)
def test_an_lfp_that_cannot_be_built_is_named_and_the_rest_is_read(
    tmp_path: Path, change: Callable[[h5py.File], None], words: str
) -> None:
    path = spoil(tmp_path / "a.nwb", change)
    with open_recording(path) as recording:
        listed = [str(part) for part in recording.unreadable if part.path == LFP]
        assert len(listed) == 1
        assert words in listed[0]
        assert recording.units is not None
        assert [len(unit) for unit in recording.units] == [600] * 4
        assert recording.behavior is not None
        assert f"{LFP} (cannot be read)" in recording.describe_contents()
        with pytest.raises(RecordingError, match="no LFP") as caught:
            recording.require(("lfp",))
        assert words in str(caught.value)
    with (
        open_recording(path, SeriesNames(lfp="LFP/ElectricalSeries")) as recording,
        pytest.raises(RecordingError, match=f"--lfp LFP/ElectricalSeries: {LFP} cannot be read"),
    ):
        _ = recording.lfp
    report = describe(path)
    assert report.units is not None
    assert any(words in problem for problem in report.problems)


def test_two_parts_that_cannot_be_built_are_both_left_out(tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        delete_clock(file)
        del file[BEHAVIOR]["starting_time"]
        file["units"].attrs["colnames"] = ["spike_times", "lost"]

    with open_recording(spoil(tmp_path / "a.nwb", change)) as recording:
        assert {part.path for part in recording.unreadable} == {LFP, BEHAVIOR, "units"}
        assert recording.units is recording.lfp is recording.behavior is None
        assert len(recording.electrodes) == 3


def test_what_refers_to_a_part_that_cannot_be_built_is_left_out_with_it(tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        del file["general/extracellular_ephys/electrodes/location"].attrs["description"]

    with open_recording(spoil(tmp_path / "a.nwb", change)) as recording:
        whys = {part.path: part.why for part in recording.unreadable}
        assert "missing argument 'description'" in whys["general/extracellular_ephys/electrodes/location"]
        assert whys[LFP].startswith("it refers to general/extracellular_ephys/electrodes")
        assert recording.units is not None
        assert recording.electrodes == []


def test_spike_times_in_a_file_that_is_gone_are_named(tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        del file["units/spike_times"]
        file["units/spike_times"] = h5py.ExternalLink("sorted.nwb", "/units/spike_times")

    with open_recording(spoil(tmp_path / "a.nwb", change)) as recording:
        assert recording.lfp is not None
        with pytest.raises(RecordingError, match=r"sorted\.nwb, which is not there"):
            recording.require(("units",))


def test_an_external_link_that_leads_somewhere_is_followed(tmp_path: Path) -> None:
    raw = make.whole_session(tmp_path / "raw.nwb")

    def change(file: h5py.File) -> None:
        del file[LFP]["data"]
        file[LFP]["data"] = h5py.ExternalLink(raw.name, f"/{LFP}/data")

    with open_recording(spoil(tmp_path / "a.nwb", change)) as recording:
        assert recording.unreadable == ()
        assert recording.lfp is not None
        np.testing.assert_allclose(recording.lfp.read(0, 50), make.lfp_volts()[:50] * 1e6, rtol=1e-6)


def test_a_file_without_a_part_that_nwb_needs_says_which(tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        del file["session_start_time"]

    with pytest.raises(RecordingError, match="no session_start_time"):
        open_recording(spoil(tmp_path / "a.nwb", change))


def test_a_start_without_time_zone_and_a_missing_subject_are_no_errors(tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        replace_data(file, "session_start_time", np.array("2024-05-01T12:00:00", dtype=h5py.string_dtype()))
        del file["general/subject"]

    with open_recording(spoil(tmp_path / "a.nwb", change)) as recording:
        assert recording.session_start.endswith("+00:00")
        assert recording.subject_id is None


def test_a_chunk_that_cannot_be_unpacked_names_the_file_and_not_the_disk(tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        times = file["units/spike_times"][:]
        attributes = dict(file["units/spike_times"].attrs)
        del file["units/spike_times"]
        made = file.create_dataset("units/spike_times", data=times, compression="gzip", chunks=(len(times),))
        made.attrs.update(attributes)
        made.id.write_direct_chunk((0,), b"no gzip at all")
        file["units/spike_times_index"].attrs["target"] = made.ref

    path = spoil(tmp_path / "a.nwb", change)
    with open_recording(path) as recording, pytest.raises(RecordingError, match="the spike times cannot be read"):
        _ = recording.units


def list_everything(path: Path) -> list[tuple[str, str | None]]:
    """Returns every object of a file, and every attribute of each."""
    found: list[tuple[str, str | None]] = []
    with h5py.File(path) as file:
        file.visititems(lambda name, held: found.extend([(name, None), *((name, key) for key in held.attrs)]))
    return [(name, key) for name, key in found if not name.startswith("specifications")]


@settings(deadline=None, max_examples=20)
@given(choice=st.integers(0, 10_000))
def test_a_file_that_lacks_any_one_thing_is_read_in_part_or_refused(
    tmp_path_factory: pytest.TempPathFactory, whole: Path, choice: int
) -> None:
    everything = list_everything(whole)
    name, key = everything[choice % len(everything)]
    path = tmp_path_factory.mktemp("lacking") / "a.nwb"
    shutil.copy(whole, path)
    with h5py.File(path, "a") as file:
        if key is None:
            del file[name]
        else:
            del file[name].attrs[key]
    with suppress(RecordingError), open_recording(path) as recording:
        assert recording.describe_contents()
        for part in ("units", "lfp", "behavior", "invalid_times", "electrodes"):
            with suppress(RecordingError):
                getattr(recording, part)


@pytest.mark.parametrize("dataset", ["intervals/invalid_times/start_time", "units/obs_intervals_index"])
def test_a_dataset_of_an_odd_shape_is_refused_with_the_part_and_the_command_that_tells_more(
    tmp_path: Path, dataset: str
) -> None:
    nwb = make.new_nwb()
    make.add_lfp(nwb, make.lfp_volts())
    for first in (1, 2):
        nwb.add_unit(spike_times=np.linspace(first, 120, 300), obs_intervals=np.array([[0.0, 125.0]]))
        nwb.add_invalid_time_interval(start_time=first + 3.0, stop_time=first + 3.5)
    path = make.write(nwb, tmp_path / "a.nwb")
    with h5py.File(path, "r+") as file:
        values, attributes = file[dataset][()], dict(file[dataset].attrs)
        del file[dataset]
        file[dataset] = values.reshape(-1, 1)
        file[dataset].attrs.update(attributes)
    with open_recording(path) as recording, pytest.raises(RecordingError, match="cannot be read") as caught:
        _ = (recording.units, recording.invalid_times)
    assert f"pynwb-validate {path}" in str(caught.value)
