"""Compares how many windows a second a training takes here and in another checkout, step by step in turn.

A table and `training-speed.json` come out. Each subject, a stage of a preset, is trained in two processes, one for each
checkout, on random bins of the shape that the preset is meant for. They take steps in turn, so that both see the same
load, and the ratio is the median over these pairs. Seconds of the processor do not count other programs.

A window is one segment of the preset (5.12 s, or 5 s in paper). Paper is measured at one or two windows a step.

    OMP_NUM_THREADS=2 python -m benchmarks.cpu.training_speed --against CHECKOUT [--subject "nano teacher"] [--steps 10]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.cpu.training_steps import STEP_SUBJECTS, TASK_SUBJECTS, StepSubject
from benchmarks.harness import RESULTS, ROOT, describe_conditions, option_parser, say, write_result
from edgedistill.config import load_preset

MODULE = "benchmarks.cpu.training_speed"
WORKER = Path(__file__).with_name("training_steps.py")
SUBJECTS = {subject.name: subject for subject in (*STEP_SUBJECTS, *TASK_SUBJECTS)}

Figures = dict[str, Any]


class Worker:
    """A process that trains one subject with one checkout, a step for each call."""

    def __init__(self, checkout: Path, subject: StepSubject) -> None:
        environment = {**os.environ, "PYTHONPATH": str(checkout), "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, str(WORKER), *subject.name.split()]
        self.process = subprocess.Popen(
            command, env=environment, cwd=checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.read()  # the first step

    def read(self) -> Figures:
        """Returns what the process says of its last step."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a process that trains has ended early; its error is above")
        return dict(json.loads(line))

    def step(self) -> Figures:
        """Takes a step and returns its figures."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.read()

    def end(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def main() -> None:
    parser = option_parser(__doc__, RESULTS / "cpu")
    parser.add_argument("--against", type=Path, required=True, help="root of the other checkout")
    parser.add_argument("--subject", action="append", choices=SUBJECTS, help="one of them alone; may be repeated")
    parser.add_argument("--steps", type=int, default=10, help="pairs of steps of each subject")
    parser.add_argument("--name", default="training-speed", help=argparse.SUPPRESS)
    options = parser.parse_args()
    load = os.getloadavg()
    subjects = [SUBJECTS[name] for name in options.subject or SUBJECTS]
    rows = [compare(subject, options.against.absolute(), options.steps) for subject in subjects]
    result = {
        **describe_conditions(MODULE),
        "threads": int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())),
        "torch": torch.__version__,
        "timed": "optimizer step: segments drawn, augmented, forward, loss, backward, clipping, AdamW",
        "load_before_after": [load[0], os.getloadavg()[0]],
        "rows": rows,
    }
    show(result)
    write_result(options.out, options.name, result)


def compare(subject: StepSubject, other: Path, steps: int) -> Figures:
    """Measures one subject here and in the other checkout, in turn, after one more step that is not counted."""
    say(f"measuring {subject.name}")
    workers = {"before": Worker(other, subject), "now": Worker(ROOT, subject)}
    taken: dict[str, list[Figures]] = {name: [] for name in workers}
    for _ in range(steps + 1):
        for name, worker in workers.items():
            taken[name].append(worker.step())
    for worker in workers.values():
        worker.end()
    preset = load_preset(subject.preset)
    config = preset.teacher_training if subject.model == "teacher" else preset.training
    segments = subject.segments or config.bins_per_step // config.segment_bins
    figures: Figures = {"subject": subject.name, "segments": segments, "segment_bins": config.segment_bins}
    for name, found in taken.items():
        counted = found[1:]
        for clock in ("step_s", "step_cpu_s"):
            figures[f"{clock}_{name}"] = median(step[clock] for step in counted)
            figures[f"{clock}_{name}_each"] = [step[clock] for step in counted]
        figures[f"windows_per_s_{name}"] = segments / figures[f"step_s_{name}"]
        figures[f"windows_per_cpu_s_{name}"] = segments / figures[f"step_cpu_s_{name}"]
        figures[f"page_faults_{name}"] = median(step["page_faults"] for step in counted)
    pairs = list(zip(taken["before"][1:], taken["now"][1:], strict=True))
    for clock in ("step_s", "step_cpu_s"):
        figures[f"{clock}_ratio"] = median(before[clock] / now[clock] for before, now in pairs)
    figures["largest_difference_of_losses"] = max(abs(before["loss"] - now["loss"]) for before, now in pairs)
    return figures


def show(result: Figures) -> None:
    """Prints what a reader asks first: windows a second of both, and how many times as many these are."""
    table = Table(
        *(
            "subject",
            "windows/s before",
            "now",
            "times",
            "per CPU s before",
            "now",
            "times",
            "page faults before",
            "now",
        ),
        title=f"{result['device']['cpu']}, {result['threads']} threads, load {result['load_before_after']}",
    )
    for row in result["rows"]:
        cells = [row["subject"]]
        for clock, unit in (("step_s", "windows_per_s"), ("step_cpu_s", "windows_per_cpu_s")):
            cells += [f"{row[f'{unit}_{name}']:.2f}" for name in ("before", "now")] + [f"{row[f'{clock}_ratio']:.2f}"]
        table.add_row(*cells, *(f"{row[f'page_faults_{name}']:.0f}" for name in ("before", "now")))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
