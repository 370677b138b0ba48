"""The recording of a stream opens in every lab's reader, and `run` decodes it to the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from threading import Event

import h5py
import numpy as np
import pytest

from edgedistill.bundle import Bundle
from edgedistill.data import rollback_file
from edgedistill.data.recording import open_recording
from edgedistill.data.rollback_file import recover
from edgedistill.decoding import decode_file
from edgedistill.errors import ConfigError
from edgedistill.live.loop import LiveStream
from edgedistill.live.records import StreamCounters
from edgedistill.live.sink import Sink
from edgedistill.live.sinks import nwb
from edgedistill.live.sinks.nwb import NOT_WRITTEN, NwbSink
from edgedistill.runtime import Decoder

from ..fakes import FRAMES, Clock, FakeSource, KeepingSink
from ..test_loop import PLAIN, chunks

DECODED = "processing/behavior/decoded"


def record(decoder: Decoder, path: Path, script: list[object], **more: Sink) -> tuple[StreamCounters, KeepingSink]:
    kept = KeepingSink()
    sinks: dict[str, Sink] = {"kept": kept, "nwb": NwbSink(str(path)), **more}
    counters = LiveStream(decoder, FakeSource(script), sinks, PLAIN).run(Event())  # type: ignore[arg-type]
    return counters, kept


def test_run_on_the_recording_gives_the_bits_of_the_stream(decoder: Decoder, tmp_path: Path) -> None:
    path = tmp_path / "out.nwb"
    counters, kept = record(decoder, path, [*chunks(0, 1000), *chunks(1203, 3001)])
    assert counters.lost_frames == 203
    assert counters.sinks["nwb"].failure is None
    with open_recording(path) as recording:
        predictions = decode_file(decoder, recording)
    with h5py.File(path) as file:
        raw = file["acquisition/raw/data"][:]
        assert np.array_equal(raw[:1000], FRAMES[:1000])
        assert np.isnan(raw[1000:1203]).all()
        assert np.array_equal(raw[1203:], FRAMES[1203:3001])
        for name, values in (("kinematics", predictions.kinematics), ("deviation", predictions.deviations)):
            assert file[f"{DECODED}/{name}/data"][:].tobytes() == values.tobytes()
        assert np.array_equal(file[f"{DECODED}/flags/data"][:], predictions.flags)
        assert np.array_equal(file[f"{DECODED}/bad_channels/data"][:], predictions.bad_channels)
        latency = file[f"{DECODED}/latency/data"][:]
        assert len(latency) == len(kept.bins) == len(predictions.outputs)
        assert (latency >= 0).all()


def test_electrodes_are_those_of_the_bundle(tmp_path: Path) -> None:
    from ...bundles import write_test_bundle

    channels = [{"id": str(7 + i), "label": f"e{i}", "position": [i, 0.0, 2.0]} for i in range(3)]
    bundle = write_test_bundle(tmp_path / "test.edge", channels=channels)
    with Decoder(bundle, "onnxruntime") as decoder:
        record(decoder, tmp_path / "out.nwb", list(chunks(0, 500)))
    with open_recording(tmp_path / "out.nwb") as recording:
        assert recording.lfp is not None
        found = [(e.id, e.label, e.position) for e in recording.lfp.electrodes]
    assert found == [(str(7 + i), f"e{i}", (float(i), 0.0, 2.0)) for i in range(3)]


def test_blocks_that_the_file_missed_are_marked(decoder: Decoder, tmp_path: Path) -> None:
    kept = KeepingSink()
    counters = LiveStream(decoder, FakeSource(chunks(0, 1000)), {"kept": kept}, PLAIN).run(Event())
    assert counters.bins == 400
    sink = NwbSink(str(tmp_path / "out.nwb"))
    assert kept.description is not None
    sink.open(kept.description)
    for block in [*kept.blocks[:100], *kept.blocks[150:]]:
        sink.accept(block)
    sink.close()
    with h5py.File(tmp_path / "out.nwb") as file:
        flags, kinematics = file[f"{DECODED}/flags/data"][:], file[f"{DECODED}/kinematics/data"][:]
        assert len(flags) == len(kinematics) == 400
        assert (flags[100:150] == int(NOT_WRITTEN)).all()
        assert np.isnan(kinematics[100:150]).all()
        assert np.array_equal(kinematics[150:], np.array([b.kinematics for b in kept.bins[150:]]))
        assert np.array_equal(file["acquisition/raw/data"][375:], FRAMES[375:1000])


def test_long_gaps_take_no_space(decoder: Decoder, tmp_path: Path) -> None:
    counters, _ = record(decoder, tmp_path / "out.nwb", [*chunks(0, 100), *chunks(4_000, 4_100)])
    assert counters.lost_frames == 3_900
    with h5py.File(tmp_path / "out.nwb") as file:
        assert file["acquisition/raw/data"].id.get_storage_size() < 20_000
        assert len(file["acquisition/raw/data"]) == 4_100


def test_a_full_disk_stops_the_file_alone_and_what_is_there_opens(
    decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, calls = os.fsync, []

    def fail_later(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 12:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(rollback_file.os, "fsync", fail_later)
    monkeypatch.setattr(nwb, "COMMIT_S", 0.0)  # rows are written block by block
    counters, kept = record(decoder, tmp_path / "out.nwb", [*chunks(0, 1500)])
    monkeypatch.undo()
    recover(tmp_path / "out.nwb")
    assert "could not be written" in (counters.sinks["nwb"].failure or "")
    assert counters.sinks["kept"].failure is None
    assert counters.bins == len(kept.bins) == 600
    with h5py.File(tmp_path / "out.nwb") as file:
        rows = len(file[f"{DECODED}/kinematics/data"])
        assert 0 < rows < 10
        assert np.array_equal(file["acquisition/raw/data"][:], FRAMES[: len(file["acquisition/raw/data"])])


def test_rows_wait_for_half_a_second_at_most(decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kill leaves is what stands in the file after each block, here read from a copy."""
    kept, clock = KeepingSink(), Clock()
    LiveStream(decoder, FakeSource(chunks(0, 500)), {"kept": kept}, PLAIN).run(Event())
    assert kept.description is not None
    monkeypatch.setattr(nwb, "monotonic", clock)
    sink, path = NwbSink(str(tmp_path / "out.nwb")), tmp_path / "copy.nwb"
    sink.open(kept.description)
    least = []
    for at, block in enumerate(kept.blocks):
        clock.now_s += 0.01
        sink.accept(block)
        if at % 7 == 0:
            path.write_bytes((tmp_path / "out.nwb").read_bytes())
            recover(path)
            with h5py.File(path) as file:
                least.append(at + 1 - len(file[f"{DECODED}/kinematics/data"]))
    sink.close()
    assert 30 < max(least) <= 50
    assert min(least) >= 0


def test_a_killed_program_leaves_a_file_that_opens(bundle: Bundle, tmp_path: Path) -> None:
    """Frames come at the pace of the recording, which the sink of another process writes until it is killed."""
    from ...data.nwb_files import whole_session

    session, out, lines = whole_session(tmp_path / "s1.nwb"), tmp_path / "out.nwb", []
    code = "from edgedistill.cli import main; main()"
    words = ["stream", bundle.path, "--from", f"replay:{session}", "--to", f"nwb:{out}", "--to", "csv:-"]
    command = [sys.executable, "-c", code, *map(str, words), "--no-real-time", "--engine", "onnxruntime"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as run:
        assert run.stdout is not None
        lines.append(run.stdout.readline())
        empty = out.stat().st_size
        while out.stat().st_size == empty or len(lines) < 120:  # until rows were written
            lines.append(run.stdout.readline())
            assert lines[-1]
        run.send_signal(signal.SIGKILL)
        lines += run.stdout.readlines()
    recover(out)
    with h5py.File(out) as file:
        rows, flags = len(file[f"{DECODED}/kinematics/data"]), file[f"{DECODED}/flags/data"][:]
        assert rows > 0
        assert len(file["acquisition/raw/data"]) >= 2.5 * rows
        told = [int(line.split(",")[3]) for line in lines[1:] if line.endswith("\n")]
        both = min(rows, len(told))
        kept = (flags[:both] & int(NOT_WRITTEN)) != int(
            NOT_WRITTEN
        )  # a disk that stands still makes this file miss bins
        assert kept.any()
        assert np.array_equal(flags[:both][kept], np.array(told[:both])[kept])
    with open_recording(out) as recording:
        assert recording.lfp is not None


def test_another_suffix_is_refused() -> None:
    with pytest.raises(ConfigError, match="no NWB file"):
        NwbSink("out.csv")


def test_odd_ids_labels_and_positions_of_a_bundle_are_recorded(tmp_path: Path) -> None:
    from ...bundles import write_test_bundle

    ids, places = ("1", "9" * 5000, "\u0661"), ([1, 2, 3], [1], [1, 2, 3, 4])
    channels = [{"id": one, "label": None, "position": place} for one, place in zip(ids, places, strict=True)]
    bundle = write_test_bundle(tmp_path / "test.edge", channels=channels, name="a\0b")
    with Decoder(bundle, "onnxruntime") as decoder:
        counters, _ = record(decoder, tmp_path / "out.nwb", list(chunks(0, 500)))
    assert counters.sinks["nwb"].failure is None
    with open_recording(tmp_path / "out.nwb") as recording:
        assert [str(one["channel_name"]) for one in recording.electrodes] == list(ids)
