"""Starts a process in which NVIDIA's parser and builder run, and asks it questions (`worker` answers)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.tensorrt.libraries import make_builder_environment

WORKER = "benchmarks.tensorrt.worker"


class TensorRTProcess:
    """Runs NVIDIA's parser and builder. A crash of theirs becomes an error here."""

    def __init__(self, folder: Path) -> None:
        """Starts the process. `folder` is empty, and takes the libraries and what the process says."""
        environment = make_builder_environment(folder)
        self._said = folder / "stderr"
        with self._said.open("w") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", WORKER],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Returns the answer to one question. Raises ChildProcessError with what the process said if it ended."""
        assert self._process.stdin
        assert self._process.stdout
        before = self._said.stat().st_size
        try:
            print(json.dumps({"do": do, **arguments}), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise ChildProcessError(f"exit code {self._process.wait()}: {self._said.read_text()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer | {"stderr": self._said.read_text()[before:]}

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
