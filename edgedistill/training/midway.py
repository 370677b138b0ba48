"""Scores a model in the middle of its training, for the log of the training and to end trials that decode little.

A model and a session go in. R² on the validation block comes out, of a ridge on the latents alone. It is fitted on the
last labelled minute of the training block, which takes a small part of the time that a full score takes. A training
that is not part of a search is scored on less, and never ended.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from edgedistill.data.bins import Split
from edgedistill.models.student import Student
from edgedistill.models.teacher import PatchAutoencoder
from edgedistill.training.batches import MIN_LABELLED_BINS, TrainingSession, find_training_device
from edgedistill.training.evaluate import Array, fit_readout, unscale_behavior
from edgedistill.training.few_labels import find_labelled
from edgedistill.training.loop import Verdict
from edgedistill.training.pretrain import compute_bidirectional_latents, compute_teacher_features

FITTED_BINS = 6000
WATCHED_BINS = 3000  # of each block, where a training is only watched


class Judge(Protocol):
    """Decides in a search whether a training goes on, as `study.RunningTrial` does. Trainings need no optuna."""

    def evaluate(self, step: int, r2: float) -> bool:
        """Returns whether the training ends at a step with this R²."""


def stop_student(trial: Judge, modality: str, session: TrainingSession) -> Callable[[Student, int], Verdict]:
    """Returns what ends the training of a student in a search, for `train_student`."""

    def stop(student: Student, step: int) -> Verdict:
        r2 = score_student_midway(student, modality, session)
        return Verdict(r2, trial.evaluate(step, r2))

    return stop


def stop_bidirectional(
    trial: Judge, modality: str, session: TrainingSession, segment_bins: int
) -> Callable[[PatchAutoencoder, int], Verdict]:
    """Returns what ends the training of a teacher or of another bidirectional model in a search."""

    def stop(model: PatchAutoencoder, step: int) -> Verdict:
        r2 = score_bidirectional_midway(model, modality, session, segment_bins)
        return Verdict(r2, trial.evaluate(step, r2))

    return stop


def watch_student(modality: str, sessions: Sequence[TrainingSession]) -> Callable[[Student, int], Verdict] | None:
    """Returns what scores a student in its training, on the last session with labels; None where no session has any."""
    if (session := find_last_labelled(sessions)) is None:
        return None
    return lambda student, step: Verdict(score_student_midway(student, modality, session, WATCHED_BINS), ends=False)


def watch_bidirectional(
    modality: str, sessions: Sequence[TrainingSession], segment_bins: int
) -> Callable[[PatchAutoencoder, int], Verdict] | None:
    """Returns what scores a teacher or another bidirectional model in its training, as `watch_student` does."""
    if (session := find_last_labelled(sessions)) is None:
        return None

    def watch(model: PatchAutoencoder, step: int) -> Verdict:
        return Verdict(score_bidirectional_midway(model, modality, session, segment_bins, WATCHED_BINS), ends=False)

    return watch


def find_last_labelled(sessions: Sequence[TrainingSession]) -> TrainingSession | None:
    """Returns the last session with labels in its training block."""
    return next((s for s in reversed(sessions) if int(find_labelled(s).sum()) >= MIN_LABELLED_BINS), None)


def score_student_midway(student: Student, modality: str, session: TrainingSession, most: int | None = None) -> float:
    """Returns R² of a student that is still trained, see `score_midway`."""

    def latents_of(bins: Tensor) -> Tensor:
        return torch.cat([part.cpu() for part in student.stream(session.id, bins)])

    return score_midway(latents_of, session.inputs(modality), session, most)


def score_bidirectional_midway(
    model: PatchAutoencoder, modality: str, session: TrainingSession, segment_bins: int, most: int | None = None
) -> float:
    """Returns R² of a bidirectional model that is still trained, see `score_midway`.

    A teacher is read by its features, and another model by its latents.
    """
    compute = compute_teacher_features if modality == "spikes" else compute_bidirectional_latents

    def latents_of(bins: Tensor) -> Tensor:
        return compute(model, session.id, bins, segment_bins)

    return score_midway(latents_of, session.inputs(modality), session, most)


@torch.no_grad()
def score_midway(
    latents_of: Callable[[Tensor], Tensor], bins: Tensor, session: TrainingSession, most: int | None = None
) -> float:
    """Returns R² on the validation block of a session; NaN where it has too few labels.

    `latents_of` turns a stretch of `bins` (n, channels) on the training device into latents (n, d). A stretch begins in
    a fresh state. With `most` only so many bins of each block are used.
    """
    labelled, validation = torch.nonzero(find_labelled(session))[:, 0], session.split.validation
    if session.behavior is None or len(labelled) < MIN_LABELLED_BINS:
        return math.nan
    last = int(labelled[-1]) + 1
    fitted = slice(max(int(labelled[0]), last - (most or FITTED_BINS)), last)
    if most is not None:
        validation = slice(validation.start, min(validation.stop, validation.start + most))
    behavior = unscale_behavior(session)
    truth = [behavior[block] for block in (fitted, validation)]
    if any(int(np.isfinite(part).all(1).sum()) < MIN_LABELLED_BINS for part in truth):
        return math.nan
    device = find_training_device()
    latents: list[Array] = [latents_of(bins[block].to(device)).double().numpy() for block in (fitted, validation)]
    cut, end = len(truth[0]), len(truth[0]) + len(truth[1])
    split = Split(slice(0, cut), slice(cut, end), slice(end, end))
    return fit_readout(np.concatenate(latents), np.concatenate(truth), split).validation_r2
