"""`stream` decodes stdin, a socket or a replay as `run` does, says how it ended, and refuses what cannot work."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ..bundles import CHANNELS
from ..waiting import LONGEST_S, wait_until
from .calling import call

CODE = "from edgedistill.cli import main; main()"
# Less than the second of frames that may wait, because a pipe is filled at once.
FRAMES = (60 * np.random.default_rng(0).normal(size=(200, CHANNELS))).astype("<f4")
HEADER = {"rate": 250, "channels": CHANNELS, "type": "float32", "unit": "uV", "byte_order": "little"}
QUIET = ("--no-real-time", "--patience", 60_000)


def piped(bundle: Path, data: bytes, *words: object, **changes: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", CODE, "stream", str(bundle), "--from", "-", *map(str, (*words, *QUIET))]
    line = json.dumps(HEADER | changes).encode() + b"\n"
    return subprocess.run(command, input=line + data, capture_output=True, timeout=LONGEST_S)


def test_a_pipe_is_decoded_as_run_decodes_it(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    done = piped(bundle, FRAMES.tobytes(), "--to", f"csv:{out}", "--to", "csv:-")
    assert done.returncode == 0, done.stderr
    whole = call("run", bundle, "-", stdin=FRAMES.tobytes()).stdout
    assert done.stdout.decode() == whole
    assert out.read_text() == whole
    said = done.stderr.decode()
    assert "does not name its channels" in said
    assert "200 decoded, 0 lost in 0 gaps" in said
    assert "usual turns with other programs" in said  # what is in force, since QUIET asks for nothing
    assert "real-time manners were switched off" in said


def test_json_holds_the_counters_and_a_signal_ends_a_stream(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    words = ["stream", str(bundle), "--from", "-", "--to", f"csv:{out}", "--json", *map(str, QUIET)]
    with subprocess.Popen(
        [sys.executable, "-c", CODE, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        assert run.stdin is not None
        assert run.stderr is not None
        run.stdin.write(json.dumps(HEADER).encode() + b"\n" + FRAMES.tobytes())
        run.stdin.flush()
        while b"decoding" not in run.stderr.readline():
            pass
        wait_until(lambda: run.poll() is not None or (out.exists() and out.read_bytes().count(b"\n") >= 81))
        run.send_signal(signal.SIGTERM)
        stdout, stderr = run.communicate(timeout=LONGEST_S)
    facts = json.loads(stdout)
    assert run.returncode == 0, stderr
    assert facts["stopped_by"] == "SIGTERM"
    assert facts["counters"]["bins"] == 80
    assert facts["counters"]["state"] == "ended"
    assert [(sink["name"], sink["failure"]) for sink in facts["sinks"]] == [(f"csv:{out}", None)]
    assert facts["real_time"]["policy"] == "other"
    assert facts["outputs"][0] == {"name": "cursor_vel_x", "unit": "cm/s"}


def test_a_replay_ends_after_the_seconds_that_were_asked_for(bundle: Path, session: Path, tmp_path: Path) -> None:
    words = ("--from", f"replay:{session}", "--speed", 5, "--seconds", 5, "--to", f"csv:{tmp_path / 'live.csv'}")
    done = call("stream", bundle, *words, *QUIET, "--json")
    assert done.exit_code == 0, done.stderr
    counters = json.loads(done.stdout)["counters"]
    assert counters["reason"] == "5 s were decoded"
    assert counters["frames"] + counters["lost_frames"] >= 1250
    assert (tmp_path / "live.csv").read_text().count("\n") == counters["bins"] + 1


def test_a_sink_that_fails_is_a_failure_after_the_stream_ended(bundle: Path, tmp_path: Path) -> None:
    full, out = tmp_path / "full.csv", tmp_path / "out.csv"
    full.symlink_to("/dev/full")
    refused = piped(bundle, FRAMES.tobytes(), "--to", f"csv:{full}", "--to", f"csv:{out}", "--json")
    assert refused.returncode == 1
    assert json.loads(refused.stdout)["error"]["type"] == "OutputError"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--from", "amplifier", "--to", "csv:-"), 1, "is no source"),
        (("--from", "lls:x", "--to", "csv:-"), 1, "did you mean 'lsl'"),
        (("--from", "-", "--to", "csv"), 1, "is no sink"),
        (("--from", "-", "--to", "cvs:x.csv"), 1, "did you mean 'csv'"),
        (("--from", "-", "--to", "csv:x.nwb"), 1, "no CSV file"),
        (("--from", "-", "--to", "csv:-", "--speed", "2"), 1, "belong to a recording"),
        (("--from", "tcp:nowhere", "--to", "csv:-"), 1, "is no address"),
        (("--from", "-", "--to", "csv:-", "--to", "csv:-"), 2, "must be another one"),
        (("--from", "-", "--to", "csv:-", "--json"), 2, "both want stdout"),
        (("--from", "replay:a.nwb", "--to", "nwb:a.nwb"), 2, "cannot be written to"),
        (("--from", "replay:a.nwb", "--to", "nwb:b/../a.nwb"), 2, "cannot be written to"),
        (("--from", "-", "--to", "nwb:a.nwb", "--to", "nwb:./a.nwb"), 2, "must be another one"),
        (("--from", "lsl:x", "--to", "lsl:x"), 2, "would read what it sends"),
        (("--from", "-", "--to", "nwb:missing/a.nwb"), 1, "missing cannot be written to"),
        (("--from", "replay:missing.nwb", "--to", "csv:-"), 1, "missing.nwb"),
        (("--from", "-", "--to", "page:door"), 1, "page:PORT"),
        (("--from", "-"), 2, "Missing option '--to'"),
    ],
)
def test_what_cannot_work_is_refused(bundle: Path, words: tuple[str, ...], code: int, said: str) -> None:
    done = call("stream", bundle, *words)
    assert done.exit_code == code
    assert said in done.stderr


def test_a_header_that_does_not_fit_the_bundle_is_refused(bundle: Path) -> None:
    done = piped(bundle, FRAMES.tobytes(), "--to", "csv:-", rate=500)
    assert done.returncode == 1
    assert b"the rate is not that of the bundle" in done.stderr
