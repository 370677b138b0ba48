"""Adapts a student to another day of a known array, without labels.

Mode `none` uses the statistics and the tokenizer of the student's last session. Mode `stats` uses the mean and
deviation of each channel over the day's own training block. Mode `tokenizer` does so too, and learns a deviation of the
array's tokenizer by filling in hidden bins.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from edgedistill.config import TrainingConfig
from edgedistill.errors import ConfigError, RecordingError, did_you_mean
from edgedistill.models.student import Student
from edgedistill.models.tokenizer import name_parameter
from edgedistill.training.batches import TrainingSession
from edgedistill.training.distill import train_student
from edgedistill.training.losses import UNSUPERVISED

MODES = ("none", "stats", "tokenizer")
STEPS = 100  # training steps of `tokenizer`, which is a small correction and not a new training

Statistics = tuple[np.ndarray, np.ndarray]


def adapt(
    student: Student,
    session: TrainingSession,
    mode: str,
    old: Statistics,
    config: TrainingConfig,
    seed: int = 0,
) -> TrainingSession:
    """Gives `student` a tokenizer for `session`, in place, and returns the session as that tokenizer reads it.

    `old` is the mean and deviation (uV) of the student's last session. Raises RecordingError when the student was never
    trained on the array.
    """
    if mode not in MODES:
        raise ConfigError(f"unknown adaptation '{mode}'", expected=did_you_mean(mode, MODES))
    require_known_array(student, session)
    tokenizer = student.tokenizer
    tokenizer.channels[session.id] = session.inputs("lfp").shape[1]
    tokenizer.arrays[session.id] = session.array
    tokenizer.deviation[name_parameter(session.id)] = nn.Parameter(
        torch.zeros_like(tokenizer.base[name_parameter(session.array)])
    )
    if mode == "none":
        return replace(session, lfp=rescale(session.inputs("lfp"), session.normalization, old), normalization=old)
    if mode == "tokenizer":
        learn_deviation(student, session, config, seed)
    return session


def require_known_array(student: Student, session: TrainingSession) -> None:
    """Raises RecordingError when `student` was never trained on the array of `session`."""
    if name_parameter(session.array) not in student.tokenizer.base:
        raise RecordingError(
            f"session {session.id} is of an array the student has not seen",
            got=f"{session.inputs('lfp').shape[1]} channels",
            expected="the channels (number and ids) of a session it was trained on",
            next_step="distill a student on data that hold a session of this array",
        )


def rescale(bins: Tensor, new: Statistics, old: Statistics) -> Tensor:
    """Turns z-scores by the `new` statistics into z-scores by the `old` ones. Bins that were masked (0) stay 0."""
    mean, std = (torch.from_numpy(s.astype(np.float32)) for s in new)
    old_mean, old_std = (torch.from_numpy(s.astype(np.float32)) for s in old)
    scaled = (bins * std + mean - old_mean) / old_std.clamp(min=1e-6)
    return torch.where((bins == 0) | (old_std == 0), torch.zeros(()), scaled)


def learn_deviation(student: Student, session: TrainingSession, config: TrainingConfig, seed: int) -> None:
    """Trains the deviation of the session alone. Everything else in the student is frozen."""
    own = student.tokenizer.deviation[name_parameter(session.id)]
    trainable = {p: p.requires_grad for p in student.parameters()}
    for parameter in student.parameters():
        parameter.requires_grad_(parameter is own)
    short = replace(config, steps=STEPS, learning_rate=config.learning_rate / 10, weight_decay=0.0)
    train_student(student, [session], "lfp", UNSUPERVISED, short, seed)
    for parameter, before in trainable.items():
        parameter.requires_grad_(before)
