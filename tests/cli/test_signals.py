"""A command that a signal ends leaves nothing half-written, and whoever sent the signal sees that it was heard."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from pathlib import Path
from edgedistill.cli.app import main
from edgedistill.files import atomic_write

@main.command()
def write():
    with atomic_write(Path(sys.argv[1]), "the bundle") as hidden:
        hidden.mkdir()
        print("writes", flush=True)
        sys.stdin.read()

main(["write"])
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGHUP, -signal.SIGHUP), (signal.SIGINT, 1)]
)
def test_a_signal_leaves_nothing_half_written(tmp_path: Path, number: int, code: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "out/a.edge")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writes\n"
    process.send_signal(number)
    _, told = process.communicate(timeout=240)
    assert process.returncode == code
    assert "interrupted. Nothing half-written was left" in told
    assert not list((tmp_path / "out").iterdir())
