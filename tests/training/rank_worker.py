"""Is one of the processes that `test_ranks.py` starts: python -m torch.distributed.run … rank_worker.py FOLDER END.

It trains small models with whatever processes take part, writes what came out to FOLDER, and ends as END says. It runs
as a command of the command line, so that errors become messages as they do there.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import torch

from edgedistill import ranks
from edgedistill.cli import main
from edgedistill.config import Alignment
from edgedistill.models.student import Student
from edgedistill.training.distill import make_student, train_student
from edgedistill.training.loop import Progress
from edgedistill.training.losses import DISTILLED, DISTILLED_WITH_BEHAVIOR, UNSUPERVISED, Objective
from edgedistill.training.midway import score_midway
from edgedistill.training.pretrain import compute_teacher_features, train_teacher
from tests.training.sessions import STUDENT, TEACHER, TRAINING, T, session

# an odd number of segments, so that the processes have shares of different sizes
CONFIG = replace(TRAINING, bins_per_step=5 * 64, steps=50, eval_every=10, gain_drift=0.2)
KILLED_AT = 33
DAYS = [session("a", 0), session("b", 1), session("c", 2, channels=4)]
DAYS[1] = replace(DAYS[1], behavior=None)
HALF = torch.rand(T, generator=torch.Generator().manual_seed(5)) < 0.5  # so that shares have other counts of labels
LATENTS = {day.id: torch.randn(T, 8, generator=torch.Generator().manual_seed(3)) for day in DAYS}
LATENTS["a"][HALF] = torch.nan
DAYS[0].behavior[HALF] = torch.nan
SUBSPACE = replace(DISTILLED, aligned_by=Alignment("subspace", "standardized"))

Losses = list[float]


def remember(losses: Losses) -> Progress:
    return lambda step, steps, loss, rate: losses.append(loss)


def train_one_student(objective: Objective, progress: Progress, checkpoint: Path | None = None) -> Student:
    student = make_student(DAYS, "lfp", STUDENT, 8, seed=4)
    return train_student(student, DAYS, "lfp", objective, CONFIG, 4, LATENTS, checkpoint, progress)


def score_student(student: Student) -> float:
    bins = DAYS[2].inputs("lfp")
    return score_midway(lambda part: torch.cat(list(student.stream("c", part))), bins, DAYS[2])


def train_all() -> dict[str, tuple[Losses, float]]:
    """Returns the losses of every step, and R² on a validation block, for each kind of training."""
    found: dict[str, tuple[Losses, float]] = {}
    losses: Losses = []
    teacher = train_teacher(DAYS, TEACHER, CONFIG, 0, progress=remember(losses))
    features: Callable[[torch.Tensor], torch.Tensor] = lambda part: compute_teacher_features(teacher, "c", part, 64)  # noqa: E731
    found["teacher"] = losses, score_midway(features, DAYS[2].inputs("spikes"), DAYS[2])
    for name, objective in (
        ("unsupervised", UNSUPERVISED),
        ("deployed", DISTILLED_WITH_BEHAVIOR),
        ("subspace", SUBSPACE),
    ):
        losses = []
        found[name] = losses, score_student(train_one_student(objective, remember(losses)))
    return found


def die(step: int, steps: int, loss: float, rate: float) -> None:
    if step == KILLED_AT and not ranks.is_main():
        os.kill(os.getpid(), signal.SIGKILL)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("end")
def work(folder: Path, end: str) -> None:
    if end == "raise":
        if not ranks.is_main():
            raise ValueError("a defect of one process")
        train_one_student(UNSUPERVISED, lambda *_: None)
    found = train_all()
    if ranks.is_main():
        (folder / f"{ranks.size()}.json").write_text(json.dumps(found))
    train_one_student(DISTILLED_WITH_BEHAVIOR, die, folder / "killed.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main.commands["pretrain"] = work
    main(["pretrain", *sys.argv[1:]])
