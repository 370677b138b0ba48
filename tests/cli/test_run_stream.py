"""A stream that is decoded to a file or stdout loses nothing, however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgedistill.cli.stopping import StoppableStdin
from edgedistill.errors import RecordingError

from ..bundles import CHANNELS
from ..waiting import LONGEST_S, wait_until
from .calling import call

CODE = "from edgedistill.cli import main; main()"
FRAMES = (60 * np.random.default_rng(0).normal(size=(500, CHANNELS))).astype("<f4").tobytes()


def started(bundle: Path, *words: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", CODE, "run", str(bundle), "-", *map(str, words)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for_lines(path: Path, lines: int) -> None:
    wait_until(lambda: path.exists() and path.read_bytes().count(b"\n") >= lines)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.variant) for n in (signal.SIGINT, signal.SIGHUP))]
)
def test_a_file_grows_with_the_stream_and_is_whole_after_a_signal(
    bundle: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out.csv"
    with started(bundle, "--out", out, "--json") as run:
        assert run.stdin is not None
        run.stdin.write(FRAMES[: 12 * 250])
        run.stdin.flush()
        wait_for_lines(out, 101)
        os.kill(run.pid, signal.SIGPIPE)  # which Python ignores
        run.stdin.write(FRAMES[12 * 250 : 12 * 500 - 5])
        run.stdin.flush()
        run.send_signal(number)
        stdout, stderr = run.communicate(timeout=LONGEST_S)
    facts = json.loads(stdout)
    assert run.returncode == 0, stderr
    assert (facts["stopped_by"], facts["torn_bytes"]) == (number.name, 7)
    assert f"stopped by {number.name} after {facts['bins']} bins; 7 bytes" in stderr.decode()
    assert facts["bins"] == 199  # all whole frames of the pipe
    assert out.read_text() == call("run", bundle, "-", stdin=FRAMES[: 12 * 499]).stdout


def test_a_torn_last_frame_is_told_after_all_else_was_kept(bundle: Path, tmp_path: Path) -> None:
    whole = call("run", bundle, "-", stdin=FRAMES)
    for out in (None, tmp_path / "out.csv", tmp_path / "out.nwb"):
        words = ("run", bundle, "-", *(("--out", out) if out else ()))
        torn = call(*words, stdin=FRAMES + b"abc")
        assert torn.exit_code == 1
        assert "3 bytes after the last whole frame; the 200 bins before it" in torn.stderr
        answered = call(*words, "--json", stdin=FRAMES + b"abc")
        facts = json.loads(answered.stdout)
        assert (answered.exit_code, facts["bins"], facts["torn_bytes"], facts["stopped_by"]) == (1, 200, 3, None)
        assert facts["error"]["type"] == "RecordingError"
        if out is None:
            assert torn.stdout == whole.stdout
            assert len(facts["predictions"]["bin"]) == 200
    assert (tmp_path / "out.csv").read_text() == whole.stdout
    assert json.loads(call("inspect", tmp_path / "out.nwb", "--json").stdout)["path"] == str(tmp_path / "out.nwb")


def test_a_stream_without_a_frame_gives_an_empty_file(bundle: Path, tmp_path: Path) -> None:
    ended = call("run", bundle, "-", "--out", tmp_path / "out.csv", stdin=b"")
    assert ended.exit_code == 0
    assert (tmp_path / "out.csv").read_text().count("\n") == 1


@pytest.mark.parametrize("ignored", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_was_ignored_stays_ignored(ignored: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """`nohup` ignores SIGHUP, and a script ignores SIGINT for what it starts with `&`."""
    reader, writer = os.pipe()
    before = signal.signal(ignored, signal.SIG_IGN)
    try:
        with os.fdopen(reader) as stdin, os.fdopen(writer, "wb", buffering=0) as amplifier:
            monkeypatch.setattr(sys, "stdin", stdin)
            stream = StoppableStdin(lambda: None)
            with stream.listening():
                signal.raise_signal(ignored)
                amplifier.write(b"a frame")
                assert (stream.read1(100), stream.stopped_by) == (b"a frame", None)
                signal.raise_signal(signal.SIGTERM)
                assert (stream.read1(100), stream.stopped_by) == (b"", "SIGTERM")
                assert signal.getsignal(ignored) is signal.SIG_IGN
            assert signal.getsignal(ignored) is signal.SIG_IGN
    finally:
        signal.signal(ignored, before)


def test_closed_stdin_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(RecordingError, match="stdin is closed"):
        StoppableStdin(lambda: None)
