"""Trains a model of a preset on random bins, and times each optimizer step.

As a program it is the process that `training_speed.py` asks for one step after another. It then imports `edgedistill`
from wherever PYTHONPATH says, so that two checkouts can be compared, and reads and writes one line for each step.

    PYTHONPATH=CHECKOUT python benchmarks/cpu/training_steps.py SUBJECT
"""

from __future__ import annotations

import json
import resource
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import torch

from edgedistill.config import Preset, TrainingConfig, load_preset
from edgedistill.data.bins import Split
from edgedistill.training.batches import TrainingSession
from edgedistill.training.distill import distill_bidirectional
from edgedistill.training.loop import Progress
from edgedistill.training.pretrain import train_teacher
from edgedistill.training.student_tasks import STUDENT_TASKS, train_task
from edgedistill.training.teacher_targets import TEACHER_COMPONENTS

TASKS = {"student": "distilled", "deployed": "deployed", "supervised": "supervised_lfp"}


@dataclass(frozen=True)
class StepSubject:
    """A model in training, on `segments` windows a step of `inputs` channels or units."""

    preset: str
    model: str  # teacher, a key of TASKS, or patch_student: bidirectional, the published one
    inputs: int
    segments: int | None  # None: as many as the preset says
    steps: int
    warmup: int = 1

    @property
    def name(self) -> str:
        """The name by which its process is told what to measure."""
        return f"{self.preset} {self.model}"


# nano and edge have the simulated 32 channels and 64 units; paper has the published 96 channels and 128 units
STEP_SUBJECTS = (
    StepSubject("nano", "teacher", 64, None, 8, warmup=2),
    StepSubject("nano", "student", 32, None, 8, warmup=2),
    StepSubject("edge", "teacher", 64, None, 5),
    StepSubject("edge", "student", 32, None, 5),
    StepSubject("paper", "teacher", 128, 2, 3),
    StepSubject("paper", "student", 96, 2, 3),
    StepSubject("paper", "patch_student", 96, 1, 3),
)
TASK_SUBJECTS = tuple(
    StepSubject(preset, model, 32, None, 5) for preset in ("nano", "edge") for model in ("deployed", "supervised")
)


class Enough(Exception):
    """Raised by a progress callback to leave the training loop, which has no other way out."""


def train_subject(subject: StepSubject, progress: Progress) -> TrainingConfig:
    """Trains a subject until `progress` has had enough, and returns the schedule of which it took steps."""
    preset = load_preset(subject.preset)
    config = preset.teacher_training if subject.model == "teacher" else preset.training
    segments = subject.segments or config.bins_per_step // config.segment_bins
    config = replace(config, bins_per_step=segments * config.segment_bins, eval_every=config.steps)
    with suppress(Enough):
        train(subject.model, make_random_session(subject.inputs), preset, config, progress)
    return config


def train(model: str, session: TrainingSession, preset: Preset, config: TrainingConfig, progress: Progress) -> None:
    """Runs the stage of `build` that trains `model`."""
    if model == "teacher":
        train_teacher([session], preset.teacher, config, 0, progress=progress)
        return
    random = torch.Generator().manual_seed(1)
    teacher_latents = {session.id: torch.randn(len(session.inputs("lfp")), TEACHER_COMPONENTS, generator=random)}
    if model in TASKS:
        train_task(STUDENT_TASKS[TASKS[model]], [session], preset, config, 0, teacher_latents, progress=progress)
    else:
        distill_bidirectional([session], preset.patch_student, config, 0, teacher_latents, progress=progress)


def make_random_session(inputs: int, bins: int = 12_000) -> TrainingSession:
    """Returns two minutes of noise, because what a step costs does not depend on what the bins hold."""
    random = torch.Generator().manual_seed(0)
    values, counts = torch.randn(bins, inputs, generator=random), torch.rand(bins, inputs, generator=random) < 0.1
    none = (np.zeros(inputs), np.ones(inputs))
    return TrainingSession(
        id="random",
        array="array",
        lfp=values,
        source=None,
        spikes=values,
        counts=counts.float(),
        behavior=torch.randn(bins, 2, generator=random),
        scale=none,
        spike_normalization=none,
        split=Split(slice(0, 8000), slice(8000, 10_000), slice(10_000, bins)),
        settled=0,
        valid=torch.ones(bins, dtype=torch.bool),
    )


class Turns:
    """A progress callback that takes a step for each line of stdin, and prints what the step before it took."""

    def __init__(self) -> None:
        self.started = self.read_clocks()

    def read_clocks(self) -> tuple[float, float, int]:
        """Returns seconds by the clock and of the processor, and how many pages were given to this process."""
        return time.perf_counter(), time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    def __call__(self, step: int, of: int, loss: float, rate: float) -> None:
        """Says what a step took, and waits until it is this process's turn again."""
        took = [after - before for before, after in zip(self.started, self.read_clocks(), strict=True)]
        print(json.dumps({"step_s": took[0], "step_cpu_s": took[1], "page_faults": took[2], "loss": loss}), flush=True)
        if not sys.stdin.readline():
            raise Enough
        self.started = self.read_clocks()


if __name__ == "__main__":
    name = " ".join(sys.argv[1:])
    train_subject(next(s for s in (*STEP_SUBJECTS, *TASK_SUBJECTS) if s.name == name), Turns())
