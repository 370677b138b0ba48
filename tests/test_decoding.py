"""A file and a stream of the same frames give the same predictions, and what is written can be read back."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pynwb import NWBHDF5IO

from edgedistill.data.recording import open_recording
from edgedistill.decoding import (
    Predictions,
    decode_file,
    decode_stream,
    format_csv_header,
    format_csv_line,
    write_predictions,
)
from edgedistill.errors import OutputError, RecordingError
from edgedistill.runtime import Decoder, Flag, Output

from .bundles import CHANNELS, write_test_bundle
from .data.nwb_files import add_lfp, lfp_volts, new_nwb, write


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return Decoder(write_test_bundle(tmp_path_factory.mktemp("runs") / "test.edge"))


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the file of a session of 30 s."""
    nwb = new_nwb("s1", 1)
    add_lfp(nwb, lfp_volts(seconds=30))
    return write(nwb, tmp_path_factory.mktemp("runs") / "s1.nwb")


@pytest.fixture(scope="module")
def predictions(decoder: Decoder, session: Path) -> Predictions:
    with open_recording(session) as recording:
        return decode_file(decoder, recording)


class Trickle:
    """A pipe that gives a few bytes at a time, cut anywhere."""

    def __init__(self, data: bytes, pieces: list[int]) -> None:
        self.data, self.pieces = io.BytesIO(data), pieces

    def read1(self, size: int, /) -> bytes:
        return self.data.read(min(size, self.pieces.pop()) if self.pieces else size)


def facts(output: Output) -> tuple[object, ...]:
    values = output.kinematics.tobytes() + output.deviation.tobytes()
    return output.bin, output.end_frame, output.flags, output.bad_channels, values


def frames(n: int) -> np.ndarray:
    return (60 * np.random.default_rng(3).normal(size=(n, CHANNELS))).astype("<f4")


@settings(max_examples=20, deadline=None)
@given(pieces=st.lists(st.integers(1, 500), max_size=30))
def test_a_stream_may_be_cut_anywhere(decoder: Decoder, pieces: list[int]) -> None:
    data = frames(300)
    found = [o for part in decode_stream(decoder, Trickle(data.tobytes(), pieces)) for o in part]
    decoder.reset()
    assert [facts(o) for o in found] == [facts(o) for o in decoder.push(data)]


def test_a_stream_that_ends_inside_a_frame_is_told_after_what_came_before(decoder: Decoder) -> None:
    found: list[list[Output]] = []
    stream = Trickle(frames(100).tobytes() + b"12345", [])
    with pytest.raises(RecordingError, match=r"5 bytes(.|\n)*3 channels of float32"):
        found.extend(decode_stream(decoder, stream))
    assert sum(map(len, found)) == 40


def test_a_file_decodes_as_its_frames_do(decoder: Decoder, session: Path, predictions: Predictions) -> None:
    with open_recording(session) as recording:
        data = recording.lfp.read(0, recording.lfp.frames)
    decoder.reset()
    assert [facts(o) for o in predictions.outputs] == [facts(o) for o in decoder.push(data)]
    assert predictions.kinematics.shape == (3000, 2)
    assert predictions.counts()["warmup"] > 0


def test_csv_gives_back_every_bit(predictions: Predictions, tmp_path: Path) -> None:
    write_predictions(predictions, tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header[:5] == ["bin", "end_frame", "time_s", "flags", "bad_channels"]
    assert header[5:7] == ["cursor_vel_x (cm/s)", "cursor_vel_y (cm/s)"]
    assert header[7:] == ["cursor_vel_x sd (cm/s)", "cursor_vel_y sd (cm/s)"]
    values = np.array([row[5:] for row in rows], np.float32)
    assert np.array_equal(values, np.hstack([predictions.kinematics, predictions.deviations]))
    assert (predictions.deviations > 0).all()
    assert [float(row[2]) for row in rows[:3]] == [0.01, 0.02, 0.03]
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_nwb_holds_predictions_on_the_recordings_clock(predictions: Predictions, session: Path, tmp_path: Path) -> None:
    with open_recording(session) as recording:
        start = recording.session_start
    write_predictions(predictions, tmp_path / "out.nwb")
    with NWBHDF5IO(str(tmp_path / "out.nwb"), "r") as file:
        nwb = file.read()
        decoded = nwb.processing["behavior"]["decoded"].time_series
        assert np.array_equal(decoded["kinematics"].data[:], predictions.kinematics)
        assert np.array_equal(decoded["deviation"].data[:], predictions.deviations)
        assert np.array_equal(decoded["flags"].data[:], predictions.flags)
        for series in (decoded["kinematics"], decoded["deviation"]):
            assert (series.rate, series.starting_time) == (100.0, 0.01)
            assert series.unit == "cm/s"
            assert "cursor_vel_x" in series.description
        assert "standard deviation" in decoded["deviation"].description
        assert (nwb.session_id, nwb.subject.subject_id) == ("s1", "monkey")
        assert nwb.session_start_time.isoformat() == start
    assert [path.name for path in tmp_path.iterdir()] == ["out.nwb"]


@pytest.mark.parametrize("steady", [True, False])
def test_nwb_has_the_rate_of_a_steady_clock_and_else_timestamps(decoder: Decoder, tmp_path: Path, steady: bool) -> None:
    decoder.reset()
    outputs = tuple(decoder.push(frames(100)))
    end_s = 7 + np.arange(1, 41) / 100.00138 + (0 if steady else np.repeat((0, 0.5), 20))
    predictions = Predictions(decoder.info, outputs, end_s, 100.00138 if steady else None)
    write_predictions(predictions, tmp_path / "out.nwb")
    with NWBHDF5IO(str(tmp_path / "out.nwb"), "r") as file:
        decoded = file.read().processing["behavior"]["decoded"]["flags"]
        assert (decoded.rate, decoded.starting_time) == ((100.00138, end_s[0]) if steady else (None, None))
        assert decoded.timestamps is None if steady else np.array_equal(decoded.timestamps[:], end_s)
    write_predictions(predictions, tmp_path / "out.csv")
    last = (tmp_path / "out.csv").read_text().splitlines()[-1]
    assert last.split(",")[2] == f"{end_s[-1]:.6f}"


def test_a_stream_becomes_nwb_too(decoder: Decoder, tmp_path: Path) -> None:
    parts = decode_stream(decoder, Trickle(frames(100).tobytes(), []))
    predictions = Predictions(decoder.info, tuple(output for part in parts for output in part))
    write_predictions(predictions, tmp_path / "out.nwb")
    with NWBHDF5IO(str(tmp_path / "out.nwb"), "r") as file:
        assert len(file.read().processing["behavior"]["decoded"]["kinematics"].data) == 40


def test_nan_stretches_and_dead_channels_are_masked(decoder: Decoder, tmp_path: Path) -> None:
    volts = lfp_volts(seconds=20)
    volts[2000:2500, 1] = np.nan
    volts[:, 2] = 0
    nwb = new_nwb()
    add_lfp(nwb, volts)
    with open_recording(write(nwb, tmp_path / "odd.nwb")) as recording:
        predictions = decode_file(decoder, recording)
    assert np.isfinite(predictions.kinematics).all()
    hit = next(o for o in predictions.outputs if o.end_frame >= 2200)
    assert (hit.bad_channels, Flag.MASKED in hit.flags, Flag.INVALID in hit.flags) == (2, True, False)


@pytest.mark.parametrize(
    ("channels", "settings_", "message"),
    [
        (4, {}, r"4 channels(.|\n)*3 channels"),
        (3, {"rate": 500.0}, r"500 Hz(.|\n)*250 Hz"),
    ],
)
def test_another_array_is_refused(
    decoder: Decoder, tmp_path: Path, channels: int, settings_: dict, message: str
) -> None:
    nwb = new_nwb()
    add_lfp(nwb, lfp_volts(channels=channels), **settings_)
    path = write(nwb, tmp_path / "other.nwb")
    with open_recording(path) as recording, pytest.raises(RecordingError, match=message):
        decode_file(decoder, recording)


@pytest.mark.parametrize("name", ["out.txt", "out", "missing/out.csv", "folder.csv"])
def test_a_destination_that_cannot_be_is_told_before_decoding(decoder: Decoder, tmp_path: Path, name: str) -> None:
    from edgedistill.decoding import check_destination

    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(OutputError, match=name.split("/")[0]):
        check_destination(tmp_path / name)


def test_a_full_disk_leaves_nothing_behind(decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgedistill import decoding

    def full(predictions: object, path: Path) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(decoding, "_write_csv", full)
    with pytest.raises(OutputError, match="No space left"):
        write_predictions(decoding.Predictions(decoder.info, ()), tmp_path / "out.csv")
    assert not list(tmp_path.iterdir())


def test_a_line_has_as_many_fields_as_the_header(decoder: Decoder) -> None:
    decoder.reset()
    (output,) = decoder.push(frames(3))
    line = format_csv_line(output, 2.51)
    assert line.count(",") == format_csv_header(decoder.info).count(",")
    assert line.startswith("0,2,2.510000,")
    assert format_csv_line(output).startswith("0,2,0.010000,")
