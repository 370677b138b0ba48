"""`edgedistill run` decodes a recording or a stream, and writes CSV, NWB or JSON."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from edgedistill.runtime.shift import RunningAmplitude

from ..bundles import CHANNELS, write_test_bundle
from .calling import answer, call, refused


def recorded(path: Path, *names: str, gain: float) -> Path:
    """Writes a recording that has the same LFP under each of these names."""
    from ..data.nwb_files import add_lfp, lfp_volts, new_nwb, write

    nwb = new_nwb()
    for name in names:
        add_lfp(nwb, gain * lfp_volts(seconds=20), name=name)
    return write(nwb, path)


def test_run_writes_csv_and_nwb_and_says_what_was_flagged(bundle: Path, session: Path, tmp_path: Path) -> None:
    for name in ("out.csv", "out.nwb"):
        facts = answer("run", bundle, session, "--out", tmp_path / name)
        assert (facts["bins"], facts["out"]) == (4_000, str(tmp_path / name))
        assert set(facts["flags"]) == {"warmup", "masked", "gap", "invalid", "shifted"}
        assert "predictions" not in facts
        assert facts["series"] == "processing/ecephys/LFP/ElectricalSeries"
    assert (tmp_path / "out.csv").read_text().count("\n") == 4_001
    assert answer("inspect", tmp_path / "out.nwb")["session_id"] == "s1"


@pytest.mark.parametrize("engine", ["onnxruntime", pytest.param("oracle", marks=pytest.mark.variant)])
def test_a_bundle_with_bands_decodes_a_recording(session: Path, tmp_path: Path, engine: str) -> None:
    banded = write_test_bundle(tmp_path / "bands.edge", bands=True).path
    facts = answer("run", banded, session, "--engine", engine, "--out", tmp_path / "out.csv")
    assert facts["bins"] == 4_000
    assert facts["flags"]["invalid"] < 2000
    frames = (60 * np.random.default_rng(0).normal(size=(500, CHANNELS))).astype("<f4")
    found = answer("run", banded, "-", "--engine", engine, stdin=frames.tobytes())["predictions"]
    assert len(found["bin"]) == 200
    assert np.isfinite(found["kinematics"]).all()


def test_a_stream_prints_what_the_file_of_the_same_frames_gives(bundle: Path) -> None:
    frames = (60 * np.random.default_rng(0).normal(size=(500, CHANNELS))).astype("<f4")
    frames[100:150, 1] = np.nan
    printed = call("run", bundle, "-", stdin=frames.tobytes())
    assert printed.exit_code == 0
    header, *lines = printed.stdout.splitlines()
    assert header.startswith("bin,end_frame,time_s,flags,bad_channels,cursor_vel_x (cm/s)")
    assert len(lines) == 200
    columns = answer("run", bundle, "-", stdin=frames.tobytes())["predictions"]
    assert [line.split(",")[0] for line in lines] == [str(bin) for bin in columns["bin"]]
    assert header.endswith("cursor_vel_x sd (cm/s),cursor_vel_y sd (cm/s)")
    values = np.array([line.split(",")[5:] for line in lines], np.float32)
    assert np.array_equal(values[:, :2], np.array(columns["kinematics"], np.float32))
    assert np.array_equal(values[:, 2:], np.array(columns["deviations"], np.float32))
    masked = np.array(columns["bad_channels"]) == 1
    assert values[masked, 3].min() > values[~masked, 3].max()  # constant in this output but for the lost channel
    assert 1 in columns["bad_channels"]


def test_warnings_are_lines_on_stderr_and_in_the_json(bundle: Path, tmp_path: Path) -> None:
    loud = recorded(tmp_path / "loud.nwb", "lfp", gain=8)
    words = ("run", bundle, loud, "--out", tmp_path / "out.csv")
    warned = call(*words)
    assert warned.exit_code == 0
    lines = warned.stderr.splitlines()
    assert all(line.startswith("warning: ") for line in lines)
    assert any("the amplitude is" in line and "conversion" in line for line in lines)
    assert "series   processing/ecephys/LFP/lfp" in warned.stdout
    assert answer(*words)["warnings"] == [line.removeprefix("warning: ") for line in lines]


def test_a_recording_with_an_impossible_amplitude_is_refused(bundle: Path, tmp_path: Path) -> None:
    volts = recorded(tmp_path / "volts.nwb", "lfp", gain=1e6)
    refused("run", bundle, volts, says=("volts.nwb", "LFP/lfp", "conversion", "edgedistill inspect"))


def test_the_lfp_is_read_that_is_named(bundle: Path, tmp_path: Path) -> None:
    two = recorded(tmp_path / "two.nwb", "lfp", "lfp_of_pmd", gain=0.6)
    refused("run", bundle, two, says=("several series", "--lfp lfp_of_pmd"))
    refused("run", bundle, two, "--lfp", "none", says=("--lfp none", "LFP/lfp_of_pmd"))
    assert answer("run", bundle, two, "--lfp", "lfp_of_pmd")["series"] == "processing/ecephys/LFP/lfp_of_pmd"


def test_predictions_on_stdout_are_nothing_but_csv(bundle: Path, session: Path) -> None:
    printed = call("run", bundle, session)
    assert printed.stdout.startswith("bin,end_frame")
    assert printed.stdout.count("\n") == 4_001
    assert printed.stderr.splitlines()[-1] == "series: processing/ecephys/LFP/ElectricalSeries"


def test_bins_with_another_amplitude_are_counted_in_a_last_warning(
    bundle: Path, session: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunningAmplitude, "shifted", property(lambda _: True))
    found = answer("run", bundle, session, "--engine", "onnxruntime")
    assert found["warnings"][-1].startswith(f"{found['flags']['shifted']} of 4000 bins have another amplitude")


def test_a_stream_is_compared_with_nothing(bundle: Path) -> None:
    frames = (1e6 * np.random.default_rng(0).normal(size=(500, CHANNELS))).astype("<f4")
    found = answer("run", bundle, "-", stdin=frames.tobytes())
    assert (found["series"], found["warnings"]) == (None, [])
    assert call("run", bundle, "-", "--lfp", "lfp", stdin=b"").exit_code == 2


def test_outputs_that_cannot_be_written(bundle: Path, session: Path, tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    refused("run", bundle, session, "--out", tmp_path / "none" / "x.csv", says=("x.csv", "cannot be written"))
    refused("run", bundle, session, "--out", tmp_path / "x.txt", says=("x.txt", ".csv or .nwb"))
    (tmp_path / "link.nwb").hardlink_to(session)
    refused("run", bundle, tmp_path / "link.nwb", "--out", session, says=(session.name, "an input of the command"))
    refused(
        "simulate", "--out", in_the_way / "sub", "--sessions", 1, says=("could not be written", "a file is in the way")
    )


def test_a_reader_that_has_enough_ends_the_stream_quietly(bundle: Path) -> None:
    frames = np.zeros((200_000, CHANNELS), "<f4").tobytes()
    code = "from edgedistill.cli import main; main()"
    words = [sys.executable, "-c", code, "run", str(bundle), "-"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdin is not None
        assert run.stdout is not None
        assert run.stderr is not None
        run.stdin.write(frames[:100_000])
        run.stdin.flush()
        assert run.stdout.readline().startswith(b"bin,")
        run.stdout.close()
        try:
            run.stdin.write(frames)
            run.stdin.close()
        except BrokenPipeError:
            pass
        assert run.stderr.read() == b""
        assert run.wait(timeout=240) == 1


def test_names_that_hdf5_does_not_hold_are_written_without_what_it_lacks(tmp_path: Path) -> None:
    odd = [{"name": "a\0b\n=x", "unit": "cm\0"}, {"name": "\x1b[31m", "unit": "cm\0"}]
    path = write_test_bundle(tmp_path / "odd.edge", outputs=odd, name="odd\0name").path
    frames = np.zeros((400, 3), "<f4").tobytes()
    done = call("run", path, "-", "--engine", "onnxruntime", "--out", tmp_path / "x.nwb", stdin=frames)
    assert done.exit_code == 0, done.output
    with h5py.File(tmp_path / "x.nwb") as file:
        series = file["processing/behavior/decoded/kinematics"]
        assert series.attrs["description"] == "columns: ab =x (cm), [31m (cm)"
        assert series["data"].attrs["unit"] == "cm"
