"""Holds what every benchmark shares: the conditions of a run, the writing of results, and runs in their own process.

Every benchmark is a module that is run from the repository root, such as `python -m benchmarks.cpu.latency`. It writes
one JSON file to benchmarks/results/DEVICE/, which says the command, the date and the machine beside the figures.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from edgedistill.files import atomic_write_text
from edgedistill.machine.description import describe_machine

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

Result = dict[str, Any]


def option_parser(doc: str | None, results: Path) -> argparse.ArgumentParser:
    """Returns a parser with the first line of a module's docstring as its text, and `--out` for the results' folder."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=results, help="folder of the result")
    return parser


def describe_conditions(module: str, **device: object) -> Result:
    """Returns what a figure depends on besides its subject: the command, the date (UTC) and the machine.

    `module` is the benchmark's `__spec__.name`; `device` adds facts to the description of the machine.
    """
    return {
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": {**describe_machine(), **device},
    }


def write_result(folder: Path, name: str, result: Mapping[str, object]) -> Path:
    """Writes `NAME.json` in `folder`, whole or not at all, and returns its path."""
    path = folder / f"{name}.json"
    atomic_write_text(path, json.dumps(result, indent=1) + "\n", "the result of the benchmark")
    return path


def digest_settings(*settings: object) -> str:
    """Returns eight hexadecimal digits that follow from settings: dataclasses, or what JSON can hold."""
    return hashlib.sha256(json.dumps(settings, default=asdict, sort_keys=True).encode()).hexdigest()[:8]


def run_isolated(
    module: str,
    arguments: Iterable[str],
    *,
    core: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Result:
    """Runs a benchmark's module in a process of its own and returns the JSON object that it prints.

    The process computes with one thread, on the processor core `core` if one is given. Its peak memory (`peak_mb`)
    and its caches are then its own.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, **ONE_THREAD, **(environment or {})},
        preexec_fn=None if core is None else lambda: os.sched_setaffinity(0, {core}),
        stdout=subprocess.PIPE,
        check=True,
    )
    return dict(json.loads(done.stdout))


def read_peak_mb() -> float:
    """Returns the largest resident memory of this process in MB.

    `getrusage` would also count the memory that the parent held before exec.
    """
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in status if line.startswith("VmHWM"))


def read_first_line(*command: str) -> str:
    """Returns the first line that a program prints, such as the version of a compiler. It must be installed."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]


def say(text: str) -> None:
    """Prints progress on stderr."""
    print(text, file=sys.stderr, flush=True)


def show_subjects(result: dict[str, Any], what: str, columns: dict[str, str]) -> None:
    """Prints a table of subjects, called `what`, with the figures in `columns` (key -> heading), and the gates."""
    table = Table(what, *columns.values(), title=str(result["device"]["cpu"]))
    for name, figures in result["subjects"].items():
        table.add_row(name, *(f"{figures[column]:.1f}" for column in columns))
    console = Console()
    console.print(table)
    for gate in result["gates"]:
        verdict = "met   " if gate["ok"] else "MISSED"
        console.print(f"{verdict} {gate['name']}: {gate['value']:.1f}, limit {gate['limit']:g}")
