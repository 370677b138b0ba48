"""Fine-tunes a trained student while it rounds as the device does (quantization-aware distillation).

The inputs are a float student, the ranges of its activations, and what it was distilled with. The outputs are a float
student whose weights allow for the rounding, and its ranges, both for `quantize_student`. Validation runs the integers
themselves, so a student that is worse in INT8 than before is never returned.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy.typing as npt
import torch
from torch import Tensor

from edgedistill.config import TrainingConfig
from edgedistill.models.student import Student
from edgedistill.quantization.calibration.recipe import FineTune
from edgedistill.quantization.training.fake_quant import FakeQuantStudent
from edgedistill.training.batches import TrainingSession, find_training_device
from edgedistill.training.distill import train_student, validate
from edgedistill.training.loop import Progress
from edgedistill.training.losses import Objective

EVALUATIONS = 5  # evaluations of the validation loss over the whole schedule


def finetune_student(
    student: Student,
    ranges: Mapping[str, npt.ArrayLike],
    sessions: Sequence[TrainingSession],
    modality: str,
    objective: Objective,
    config: TrainingConfig,
    finetune: FineTune,
    seed: int,
    teacher_latents: Mapping[str, Tensor] | None = None,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    keep: Collection[str] = (),
) -> tuple[Student, dict[str, list[float]]]:
    """Returns the fine-tuned student, in evaluation mode, and its ranges. `student` itself does not change.

    `objective` and `config` are those it was trained with, `teacher_latents` the teacher's latents by session. A run
    resumes from `checkpoint` with the same bits. Where no step lowers the validation loss of the integers, the student
    and the ranges come back as they were.
    """
    tuned = FakeQuantStudent(deepcopy(student), ranges, keep, learn_scales=finetune.learn_scales)
    schedule = shorten_schedule(config, finetune)

    def validation_loss() -> float:
        return compute_mean_loss(tuned, sessions, modality, objective, teacher_latents, schedule)

    before = {name: tensor.clone() for name, tensor in tuned.state_dict().items()}
    loss_before = validation_loss()
    network = cast(Student, tuned)  # it has the methods of a Student
    train_student(network, sessions, modality, objective, schedule, seed, teacher_latents, checkpoint, progress)
    if not validation_loss() < loss_before:
        tuned.load_state_dict(before)
    return tuned.student.cpu().eval(), tuned.compute_ranges()


def shorten_schedule(config: TrainingConfig, finetune: FineTune) -> TrainingConfig:
    """Returns `config` with the steps and peak rate of `finetune`, no weight decay, and no early stop."""
    return replace(
        config,
        steps=finetune.steps,
        learning_rate=finetune.learning_rate,
        weight_decay=0.0,  # the weights are near where they should be, and scales cover their size
        eval_every=max(1, finetune.steps // EVALUATIONS),
        patience=EVALUATIONS + 1,
    )


@torch.no_grad()
def compute_mean_loss(
    tuned: FakeQuantStudent,
    sessions: Sequence[TrainingSession],
    modality: str,
    objective: Objective,
    teacher_latents: Mapping[str, Tensor] | None,
    config: TrainingConfig,
) -> float:
    """Returns the objective on the validation blocks, computed with the integers."""
    tuned.to(find_training_device()).eval()
    network = cast(Student, tuned)
    losses = [validate(network, session, modality, objective, teacher_latents, config) for session in sessions]
    return sum(losses) / len(losses)
