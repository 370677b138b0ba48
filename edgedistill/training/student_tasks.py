"""Trains and scores the students that tables compare.

The inputs are sessions, a preset and the name of a task. The outputs are the trained student, and a read-out and R² for
each session. `build` and `benchmarks/accuracy/accuracy.py` use the same tasks, so a figure in a table is that of the
student that ships.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from edgedistill.config import Alignment, Preset, TrainingConfig
from edgedistill.models.student import Student
from edgedistill.models.teacher import PatchAutoencoder
from edgedistill.training.batches import TrainingSession
from edgedistill.training.distill import make_student, train_student
from edgedistill.training.evaluate import (
    Readout,
    Score,
    find_calm_bins,
    probe,
    score_decoded,
    stream_latents,
    unscale_behavior,
)
from edgedistill.training.input_whitening import whitened_inputs
from edgedistill.training.lagged_features import Features, LaggedFeatures
from edgedistill.training.loop import Progress, Verdict
from edgedistill.training.losses import (
    DISTILLED,
    DISTILLED_WITH_BEHAVIOR,
    SUPERVISED,
    UNSUPERVISED,
    Objective,
)
from edgedistill.training.output_filter import NONE, fit_output_filter
from edgedistill.training.pretrain import compute_bidirectional_latents, compute_teacher_features


@dataclass(frozen=True)
class StudentTask:
    """Says what a student is trained on."""

    modality: str
    objective: Objective

    def with_alignment(self, alignment: Alignment) -> StudentTask:
        """Returns the same task with another alignment."""
        return replace(self, objective=replace(self.objective, aligned_by=alignment))


STUDENT_TASKS = {
    "unsupervised_lfp": StudentTask("lfp", UNSUPERVISED),
    "supervised_lfp": StudentTask("lfp", SUPERVISED),
    "distilled": StudentTask("lfp", DISTILLED),
    "deployed": StudentTask("lfp", DISTILLED_WITH_BEHAVIOR),
    "spike_student": StudentTask("spikes", DISTILLED_WITH_BEHAVIOR),
}


def train_task(
    task: StudentTask,
    sessions: Sequence[TrainingSession],
    preset: Preset,
    config: TrainingConfig,
    seed: int,
    teacher_latents: Mapping[str, Tensor],
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    stop: Callable[[Student, int], Verdict] | None = None,
) -> Student:
    """Trains a student on `task`. `teacher_latents` holds what it follows in each session, by its id.

    `stop` sees the student at every evaluation, and says whether the training ends.
    """
    teacher_d = next(iter(teacher_latents.values())).shape[1]
    student = make_student(sessions, task.modality, preset.student, teacher_d, seed)
    objective, modality = task.objective, task.modality
    has_labels = any(session.behavior is not None for session in sessions)
    whitens = modality == "lfp" and objective.behavior > 0 and has_labels
    with whitened_inputs(student.tokenizer, sessions) if whitens else nullcontext():
        return train_student(
            student, sessions, modality, objective, config, seed, teacher_latents, checkpoint, progress, stop=stop
        )


def compute_features(
    student: Student, task: StudentTask, session: TrainingSession, tokenizer: str | None = None
) -> LaggedFeatures:
    """Returns what a read-out sees (T, F): streamed latents and the last bins, as on the device."""
    bins = session.inputs(task.modality)
    latents = stream_latents(student, tokenizer or session.id, bins)
    return LaggedFeatures(latents, bins.numpy(), student.size.lags)


def score_student(
    student: Student, name: str, session: TrainingSession, tokenizer: str | None = None
) -> tuple[Readout, Score]:
    """Fits a ridge read-out on the training block and scores it on the test block, streamed from the first bin.

    It is a mean of three ridges, as `fit_readout` says.
    """
    features = compute_features(student, STUDENT_TASKS[name], session, tokenizer)
    return _probe_features(student, name, session, features)


def score_smoothed(student: Student, name: str, session: TrainingSession, smooth: str) -> Score:
    """Scores a student as `score_student` does, with the filter of its outputs that decodes the validation block best.

    `smooth` is one of KINDS. With NONE there is no filter. Students are compared fairly if each has its own.
    """
    return score_raw_and_smoothed(student, name, session, smooth)[2]


def score_raw_and_smoothed(
    student: Student, name: str, session: TrainingSession, smooth: str
) -> tuple[Readout, Score, Score]:
    """Returns what `score_student` does, and the score that `score_smoothed` gives."""
    features = compute_features(student, STUDENT_TASKS[name], session)
    readout, raw = _probe_features(student, name, session, features)
    if smooth == NONE:
        return readout, raw, raw
    decoded, behavior = readout(features), unscale_behavior(session)
    output_filter = fit_output_filter(decoded, behavior, session.split, session.settled)
    return readout, raw, score_decoded(output_filter(decoded), behavior, session.split)


def _probe_features(student: Student, name: str, session: TrainingSession, features: Features) -> tuple[Readout, Score]:
    calm = find_calm_bins(session, STUDENT_TASKS[name].modality, student.size.lags)
    return probe(features, session, calm, student.size.d)


def score_teacher(teacher: PatchAutoencoder, session: TrainingSession, segment_bins: int) -> Score:
    """Scores a teacher on spikes in the same way, by the features that students follow."""
    features = compute_teacher_features(teacher, session.id, session.inputs("spikes"), segment_bins)
    return probe(features.numpy(), session)[1]


def score_latents(model: PatchAutoencoder, session: TrainingSession, segment_bins: int) -> Score:
    """Scores a bidirectional model in the same way, by the latents of its encoder, as published."""
    bins = session.inputs("spikes" if model.counts else "lfp")
    return probe(compute_bidirectional_latents(model, session.id, bins, segment_bins).numpy(), session)[1]
