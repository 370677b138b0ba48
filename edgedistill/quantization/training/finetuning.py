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
from edgedistill.training.alignment import Aligner, SubspaceAligner, make_aligner
from edgedistill.training.batches import TrainingSession, find_training_device
from edgedistill.training.distill import train_student, validate
from edgedistill.training.evaluate import stream_latents
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
    four: Collection[str] = (),
) -> tuple[Student, dict[str, list[float]]]:
    """Returns the fine-tuned student, in evaluation mode, and its ranges. `student` itself does not change.

    `objective` and `config` are those it was trained with, `teacher_latents` the teacher's targets by session. A run
    resumes from `checkpoint` with the same bits. Where no step lowers the validation loss of the integers, the student
    and the ranges come back as they were. Of a student that was aligned layer by layer, only the latents are aligned.
    """
    tuned = FakeQuantStudent(deepcopy(student), ranges, keep, learn_scales=finetune.learn_scales, four=four)
    schedule = shorten_schedule(config, finetune)
    aligner = align_trained(student, sessions, modality, objective, teacher_latents)

    def validation_loss() -> float:
        return compute_mean_loss(tuned, sessions, modality, objective, teacher_latents, schedule, aligner)

    before = {name: tensor.clone() for name, tensor in tuned.state_dict().items()}
    loss_before = validation_loss()
    network = cast(Student, tuned)  # it has the methods of a Student
    train_student(
        network, sessions, modality, objective, schedule, seed, teacher_latents, checkpoint, progress, aligner
    )
    if not validation_loss() < loss_before:
        tuned.load_state_dict(before)
    return tuned.student.cpu().eval(), tuned.compute_ranges()


def align_trained(
    student: Student,
    sessions: Sequence[TrainingSession],
    modality: str,
    objective: Objective,
    teacher_latents: Mapping[str, Tensor] | None,
) -> Aligner:
    """Returns the student's part of the alignment, which was thrown away after the training, found anew."""
    aligner = make_aligner(objective, student.size, sessions, teacher_latents, layers=1)
    if isinstance(aligner, SubspaceAligner) and teacher_latents is not None:
        blocks = [(s, s.split.train) for s in sessions]
        latents = [torch.from_numpy(stream_latents(student, s.id, s.inputs(modality)[at])).float() for s, at in blocks]
        aligner.start_at([torch.cat(latents)], torch.cat([teacher_latents[s.id][at] for s, at in blocks]))
    return aligner


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
    aligner: Aligner,
) -> float:
    """Returns the objective on the validation blocks, computed with the integers."""
    device = find_training_device()
    tuned.to(device).eval()
    aligner.to(device).eval()
    network = cast(Student, tuned)
    losses = [validate(network, s, modality, objective, teacher_latents, config, aligner) for s in sessions]
    return sum(losses) / len(losses)
