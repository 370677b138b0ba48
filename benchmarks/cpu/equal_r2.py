"""Compares how soon students of the presets reach the same R², against one of the `paper` shape.

A table and `equal-r2.json` come out. All students follow one teacher on the same simulated sessions and blocks. At
every evaluation a ridge on latents alone is fitted on a stretch of the training block and scored on the validation
block. Every student is trained with its own schedule, shortened to the steps below. That of `paper` is trained twice,
at its own learning rate and at the one with which `benchmarks/accuracy/paper.py` trains it for a short time. The level
is the highest R² that it reaches. A window is one segment of the preset (5.12 s, or 5 s in paper). Seconds are those of
the processor for optimizer steps alone, at the median of all steps, so that neither evaluations nor other programs
count.

    OMP_NUM_THREADS=1 python -m benchmarks.cpu.equal_r2 [--out benchmarks/results/cpu]
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.harness import RESULTS, describe_conditions, option_parser, say, write_result
from edgedistill.config import load_preset
from edgedistill.data.session_loading import load_sessions
from edgedistill.data.simulation.nwb import simulate_to_nwb
from edgedistill.data.simulation.sessions import SimulationConfig
from edgedistill.models.student import Student
from edgedistill.training.batches import TrainingSession, compute_gap, training_session_from_bins
from edgedistill.training.loop import Verdict
from edgedistill.training.midway import score_student_midway
from edgedistill.training.pretrain import train_teacher
from edgedistill.training.student_tasks import STUDENT_TASKS, train_task
from edgedistill.training.teacher_targets import compute_targets

MODULE = "benchmarks.cpu.equal_r2"
SESSIONS, MINUTES, DATA_SEED = 2, 6.0, 300  # a seed that neither tuning nor benchmarks/accuracy/accuracy.py uses
TEACHER, TEACHER_STEPS = "nano", 150
SHAPE = "paper"

Figures = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One training: `windows` a step, and a learning rate where it is not that of the preset."""

    preset: str
    steps: int
    windows: int
    every: int  # steps from one evaluation to the next
    learning_rate: float | None = None


RUNS = (
    Run("nano", 300, 8, 10),
    Run("edge", 100, 8, 10),
    Run(SHAPE, 48, 4, 12),
    Run(SHAPE, 48, 4, 12, 2e-3),
)


def main() -> None:
    parser = option_parser(__doc__, RESULTS / "cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    sessions, latents = prepare()
    runs = []
    for run in RUNS:
        runs.append(train(run, sessions, latents))
        say(f"{run}: {runs[-1]}")
    result = {
        **describe_conditions(MODULE),
        "threads": 1,
        "torch": torch.__version__,
        "load_before_after": [load, os.getloadavg()[0]],
        "data": f"{SESSIONS} simulated sessions of {MINUTES:g} min, 32 channels, 64 units, seed {DATA_SEED}",
        "teacher": f"preset {TEACHER}, {TEACHER_STEPS} steps, seed 0",
        "r2": "ridge on latents alone, validation block of the last session",
        **compare(runs),
    }
    show(result)
    write_result(options.out, "equal-r2", result)


def prepare() -> tuple[list[TrainingSession], dict[str, Tensor]]:
    """Returns sessions whose blocks lie as far apart as the deepest student needs, and the teacher's latents."""
    preset = load_preset(TEACHER)
    with tempfile.TemporaryDirectory() as folder:
        config = SimulationConfig(sessions=SESSIONS, minutes=MINUTES, seed=DATA_SEED)
        bins = load_sessions(list(simulate_to_nwb(config, Path(folder))), bands=preset.band_power)
    gap = compute_gap(bins, load_preset(SHAPE).student)
    sessions = [training_session_from_bins(one, gap) for one in bins]
    schedule = replace(preset.teacher_training, steps=TEACHER_STEPS, eval_every=TEACHER_STEPS)
    teacher = train_teacher(sessions, preset.teacher, schedule, 0)
    return sessions, dict(compute_targets(teacher, sessions, schedule))


def train(run: Run, sessions: list[TrainingSession], latents: dict[str, Tensor]) -> Figures:
    """Trains one student and returns its windows a second, and R² over windows."""
    preset, marks = load_preset(run.preset), [time.process_time()]
    kept = sessions if preset.band_power.bands else [session.without_bands() for session in sessions]
    config = replace(
        preset.training,
        bins_per_step=run.windows * preset.training.segment_bins,
        learning_rate=run.learning_rate or preset.training.learning_rate,
        steps=run.steps,
        eval_every=run.every,
        patience=run.steps,
    )
    curve: list[tuple[int, float]] = []

    def watch(student: Student, step: int) -> Verdict:
        curve.append((step * run.windows, score_student_midway(student, "lfp", kept[-1])))
        return Verdict(curve[-1][1], ends=False)

    def note(step: int, of: int, loss: float, rate: float) -> None:
        marks.append(time.process_time())

    train_task(STUDENT_TASKS["distilled"], kept, preset, config, 0, latents, progress=note, stop=watch)
    taken = [
        after - before
        for step, (before, after) in enumerate(pairwise(marks), start=1)
        if step > 1 and step % run.every and step < run.steps  # the others hold a start or an evaluation
    ]
    rate = run.windows / median(taken)
    return {
        **asdict(run),
        "learning_rate": config.learning_rate,
        "windows_per_cpu_s": rate,
        "windows_r2": curve,
        "best_r2": max(r2 for _, r2 in curve),
        "cpu_s": run.steps * run.windows / rate,
    }


def compare(runs: list[Figures]) -> Figures:
    """Returns the level, and for every run when it first reached it and how many times as fast as the `paper` shape."""
    shape = max((run for run in runs if run["preset"] == SHAPE), key=lambda run: run["best_r2"])
    level = shape["best_r2"]
    needed = find_windows(shape, level) / shape["windows_per_cpu_s"]
    for run in runs:
        windows = find_windows(run, level)
        seconds = None if windows is None else windows / run["windows_per_cpu_s"]
        run["windows_to_level"], run["cpu_s_to_level"] = windows, seconds
        run["times_windows_per_s"] = run["windows_per_cpu_s"] / shape["windows_per_cpu_s"]
        run["times_to_level"] = None if seconds is None else needed / seconds
    return {"level_r2": level, "runs": runs}


def find_windows(run: Figures, level: float) -> Any:
    """Returns after how many windows a run was first seen at the level, or None."""
    return next((windows for windows, r2 in run["windows_r2"] if r2 >= level), None)


def show(result: Figures) -> None:
    """Prints a row for every run."""
    columns = ("rate", "windows/CPU s", "times paper", "best R²", "after CPU s", "windows to level", "CPU s", "times")
    table = Table("preset", *columns, title=f"{result['device']['cpu']}, to R² {result['level_r2']:.3f}")
    for run in result["runs"]:
        cells = [f"{run['learning_rate']:g}", f"{run['windows_per_cpu_s']:.2f}", f"{run['times_windows_per_s']:.1f}"]
        cells += [f"{run['best_r2']:.3f}", f"{run['cpu_s']:.0f}"]
        reached = (run["windows_to_level"], run["cpu_s_to_level"], run["times_to_level"])
        cells += ["-" if value is None else f"{value:.1f}" for value in reached]
        table.add_row(run["preset"], *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
