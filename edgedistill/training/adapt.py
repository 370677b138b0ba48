"""Adapts a student to another day of a known array, without labels.

Mode `none` uses the standardization and the tokenizer of the student's last session. Mode `stats` uses the mean and
deviation of each channel over the day's own training block, and how the channels go together there. A channel that the
block does not show keeps what is known of it from the student's last session. Mode `tokenizer` does so too, and learns
a deviation of the array's tokenizer by filling in hidden bins.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from edgedistill.config import TrainingConfig
from edgedistill.data.session import Floats, Mask
from edgedistill.data.spatial_fit import join_standardizations
from edgedistill.errors import ConfigError, RecordingError, did_you_mean
from edgedistill.frontend import Standardization
from edgedistill.models.student import Student
from edgedistill.models.tokenizer import name_parameter
from edgedistill.scratch import allocate, split_rows
from edgedistill.training.batches import TrainingSession, make_inputs, make_source
from edgedistill.training.distill import train_student
from edgedistill.training.fill_in import LfpSource
from edgedistill.training.losses import UNSUPERVISED

MODES = ("none", "stats", "tokenizer")
STEPS = 100  # training steps of `tokenizer`, which is a small correction and not a new training


def adapt(
    student: Student,
    session: TrainingSession,
    mode: str,
    old: Standardization | None,
    config: TrainingConfig,
    seed: int = 0,
) -> TrainingSession:
    """Gives `student` a tokenizer for `session`, in place, and returns the session as that tokenizer reads it.

    `old` is the standardization of the student's last session, without which mode `none` is refused. Raises
    RecordingError when the student was never trained on the array.
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
    student.to_teacher.add(session.id)
    if mode == "none":
        return restandardize(session, old)
    if old is not None:
        session = keep_unseen_channels(session, old)
    if mode == "tokenizer":
        learn_deviation(student, session, config, seed)
    return session


def require_known_array(student: Student, session: TrainingSession) -> None:
    """Raises RecordingError when `student` was never trained on the array of `session`."""
    if name_parameter(session.array) not in student.tokenizer.base:
        raise RecordingError(
            f"session {session.id} is of an array the student has not seen",
            got=describe_array(session),
            expected="the subject, channels (number and ids) and bands of a session it was trained on",
            causes=["the file is of another subject, or names it in another way"],
            next_step="distill a student on data that hold a session of this array",
        )


def describe_array(session: TrainingSession) -> str:
    """Returns how many channels a session has, and how many bands of each are read."""
    spatial = session.standardization.spatial
    return f"{spatial.channels} channels, {spatial.features - 1} bands of each"


def restandardize(session: TrainingSession, old: Standardization | None) -> TrainingSession:
    """Returns the session as the standardization of another day reads it."""
    if old is None:
        raise RecordingError(
            f"session {session.id} cannot be read as another day",
            got="a student of a version that kept no model of the array",
            next_step="use --adapt stats, or distill the student again",
        )
    source = session.source
    assert source is not None
    values, bad = read_values(source, slice(0, len(source.present)))
    again = make_source(old, values, bad)
    return replace(session, lfp=make_inputs(again), source=again)


def read_values(source: LfpSource, block: slice) -> tuple[Floats, Mask]:
    """Returns what the front end gave in a block of bins (n, I), and which channels are bad (n, C)."""
    own, present, there = source.standardization, source.present[block].numpy(), source.there[block].numpy()
    values, bad = allocate(present.shape, np.float64), allocate(there.shape, np.bool_)
    for part in split_rows(slice(0, len(values)), values.shape[1]):
        values[part], bad[part] = present[part].astype(np.float64) * own.std + own.mean, ~there[part]
    return values, bad


def keep_unseen_channels(session: TrainingSession, old: Standardization) -> TrainingSession:
    """Returns the session with what `old` says of the channels that the training block does not show."""
    own, source, block = session.standardization, session.source, session.split.train
    assert source is not None
    if np.array_equal(own.spatial.gain > 0, old.spatial.gain > 0):
        return session
    values, bad = read_values(source, block)
    joint = join_standardizations((own.mean, own.std), values, bad, old)
    return session if joint is None else restandardize(session, joint.standardization)


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
