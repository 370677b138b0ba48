"""The models a table compares: what each is trained on, and how well its session's kinematics can be read.

Comes in: sessions, a preset, a row's name. Goes out: the trained model with a read-out and R² a session. `build`
and `benchmarks/accuracy/accuracy.py` use the same rows, so a figure in a table is the figure of what ships.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from edgedistill.config import Preset, TrainingConfig
from edgedistill.models.student import Student
from edgedistill.models.teacher import PatchAutoencoder
from edgedistill.training.batches import TrainingSession
from edgedistill.training.distill import new_student, train_student
from edgedistill.training.evaluate import (
    Array,
    Readout,
    Score,
    calm_bins,
    lagged_features,
    probe,
    streamed_latents,
)
from edgedistill.training.loop import Progress
from edgedistill.training.losses import (
    DISTILLED,
    DISTILLED_WITH_BEHAVIOR,
    SUPERVISED,
    UNSUPERVISED,
    Objective,
)
from edgedistill.training.pretrain import bidirectional_latents


@dataclass(frozen=True)
class Row:
    """A student's recipe: input, objective, and whether its read-out sees the lagged bins as on the device."""

    modality: str
    objective: Objective
    lagged_readout: bool = False

    def aligned_by(self, kind: str) -> Row:
        """The same row with another alignment loss."""
        return replace(self, objective=replace(self.objective, alignment_kind=kind))


ROWS = {
    "unsupervised_lfp": Row("lfp", UNSUPERVISED),
    "supervised_lfp": Row("lfp", SUPERVISED, lagged_readout=True),
    "distilled": Row("lfp", DISTILLED),
    "deployed": Row("lfp", DISTILLED_WITH_BEHAVIOR, lagged_readout=True),
    "spike_student": Row("spikes", DISTILLED_WITH_BEHAVIOR, lagged_readout=True),
}


def train_row(
    row: Row,
    sessions: Sequence[TrainingSession],
    preset: Preset,
    config: TrainingConfig,
    seed: int,
    targets: Mapping[str, Tensor],
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> Student:
    """A student by the recipe of `row`."""
    teacher_d = next(iter(targets.values())).shape[1]
    student = new_student(sessions, row.modality, preset.student, teacher_d, seed)
    objective, modality = row.objective, row.modality
    return train_student(student, sessions, modality, objective, config, seed, targets, checkpoint, progress)


def student_features(student: Student, row: Row, session: TrainingSession, tokenizer: str | None = None) -> Array:
    """(T, F) what the row's read-out sees: streamed latents, and the last bins where the row has them."""
    bins = session.inputs(row.modality)
    latents = streamed_latents(student, tokenizer or session.id, bins)
    if not row.lagged_readout:
        return latents
    return np.hstack([latents, lagged_features(bins.double().numpy(), student.size.lags)])


def score_student(
    student: Student, name: str, session: TrainingSession, tokenizer: str | None = None
) -> tuple[Readout, Score]:
    """Ridge read-out on the training block, R² on the test block, streamed from the session's first bin."""
    row = ROWS[name]
    calm = calm_bins(session, row.modality, student.size.lags if row.lagged_readout else 0)
    return probe(student_features(student, row, session, tokenizer), session, calm)


def score_teacher(teacher: PatchAutoencoder, session: TrainingSession, segment_bins: int) -> Score:
    """The same for the bidirectional teacher's latents, or for a bidirectional model on LFP."""
    bins = session.inputs("spikes" if teacher.counts else "lfp")
    return probe(bidirectional_latents(teacher, session.id, bins, segment_bins).double().numpy(), session)[1]
