"""Scores a model in the middle of its training, so that a search can end trials that decode little.

A model and a session go in. R² on the validation block comes out, of a ridge on the latents alone. It is fitted on the
last labelled minute of the training block, which takes a small part of the time that a full score takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from edgedistill.data.bins import Split
from edgedistill.models.student import Student
from edgedistill.models.teacher import PatchAutoencoder
from edgedistill.training.batches import MIN_LABELLED_BINS, TrainingSession, find_training_device
from edgedistill.training.evaluate import Array, fit_readout, unscale_behavior
from edgedistill.training.few_labels import find_labelled
from edgedistill.training.pretrain import compute_bidirectional_latents
from edgedistill.training.study import RunningTrial

FITTED_BINS = 6000


def stop_student(trial: RunningTrial, modality: str, session: TrainingSession) -> Callable[[Student, int], bool]:
    """Returns what ends the training of a student, for `train_student`."""

    def stop(student: Student, step: int) -> bool:
        def latents_of(bins: Tensor) -> Tensor:
            return torch.cat([part.cpu() for part in student.stream(session.id, bins)])

        return trial.evaluate(step, score_midway(latents_of, session.inputs(modality), session))

    return stop


def stop_bidirectional(
    trial: RunningTrial, modality: str, session: TrainingSession, segment_bins: int
) -> Callable[[PatchAutoencoder, int], bool]:
    """Returns what ends the training of a teacher or of another bidirectional model."""

    def stop(model: PatchAutoencoder, step: int) -> bool:
        def latents_of(bins: Tensor) -> Tensor:
            return compute_bidirectional_latents(model, session.id, bins, segment_bins)

        return trial.evaluate(step, score_midway(latents_of, session.inputs(modality), session))

    return stop


@torch.no_grad()
def score_midway(latents_of: Callable[[Tensor], Tensor], bins: Tensor, session: TrainingSession) -> float:
    """Returns R² on the validation block of a session; NaN where it has too few labels.

    `latents_of` turns a stretch of `bins` (n, channels) on the training device into latents (n, d). A stretch begins in
    a fresh state.
    """
    labelled, validation = torch.nonzero(find_labelled(session))[:, 0], session.split.validation
    if session.behavior is None or len(labelled) < MIN_LABELLED_BINS:
        return math.nan
    last = int(labelled[-1]) + 1
    fitted = slice(max(int(labelled[0]), last - FITTED_BINS), last)
    behavior = unscale_behavior(session)
    truth = [behavior[block] for block in (fitted, validation)]
    if any(int(np.isfinite(part).all(1).sum()) < MIN_LABELLED_BINS for part in truth):
        return math.nan
    device = find_training_device()
    latents: list[Array] = [latents_of(bins[block].to(device)).double().numpy() for block in (fitted, validation)]
    cut, end = len(truth[0]), len(truth[0]) + len(truth[1])
    split = Split(slice(0, cut), slice(cut, end), slice(end, end))
    return fit_readout(np.concatenate(latents), np.concatenate(truth), split).validation_r2
