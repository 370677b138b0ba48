"""`edgedistill run` decodes a recording or a stream, and writes CSV, NWB or JSON."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from ..bundles import CHANNELS
from .calling import answer, call, refused


def test_run_writes_csv_and_nwb_and_says_what_was_flagged(bundle: Path, session: Path, tmp_path: Path) -> None:
    for name in ("out.csv", "out.nwb"):
        facts = answer("run", bundle, session, "--out", tmp_path / name)
        assert (facts["bins"], facts["out"]) == (12_500, str(tmp_path / name))
        assert set(facts["flags"]) == {"warmup", "masked", "gap", "invalid", "shifted"}
        assert "predictions" not in facts
    assert (tmp_path / "out.csv").read_text().count("\n") == 12_501
    assert answer("inspect", tmp_path / "out.nwb")["session_id"] == "s1"


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
    decoded = np.array([line.split(",")[5:] for line in lines], np.float32)
    assert np.array_equal(decoded, np.array(columns["kinematics"], np.float32))
    assert 1 in columns["bad_channels"]


def test_outputs_that_cannot_be_written(bundle: Path, session: Path, tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    refused("run", bundle, session, "--out", tmp_path / "none" / "x.csv", says=("x.csv", "cannot be written"))
    refused("run", bundle, session, "--out", tmp_path / "x.txt", says=("x.txt", ".csv or .nwb"))
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
        assert run.wait(timeout=60) == 1
