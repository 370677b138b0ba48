"""A student of an earlier run: what it knows and was taught, and the read-out it brings along to another day."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from edgedistill.data.bins import SessionBins
from edgedistill.errors import EdgeDistillError
from edgedistill.models.student import Student
from edgedistill.training.adapt import Statistics
from edgedistill.training.batches import TrainingSession, find_unlabelled_block
from edgedistill.training.evaluate import Readout
from edgedistill.training.student_tasks import STUDENT_TASKS, StudentTask, score_student


def knows(student: Student, session: TrainingSession) -> bool:
    """Whether `student` was trained on this session; the same id on another array is another session."""
    return student.tokenizer.arrays.get(session.id) == session.array


def taught_by(facts: dict[str, Any]) -> StudentTask:
    """What `edgedistill distill` trained the student by: fine-tuning goes on with the same objective."""
    return STUDENT_TASKS[facts.get("row", "distilled")].with_alignment(facts.get("alignment", "cosine"))


def without_labels(session: TrainingSession) -> TrainingSession:
    """The session as a student sees it that may use no label of that day."""
    return replace(session, behavior=None)


def require_width(student: Student, targets: dict[str, Tensor]) -> None:
    """EdgeDistillError where the student was not made to follow latents of this width."""
    expected, found = student.to_teacher.out_features, next(iter(targets.values())).shape[1]
    if found != expected:
        raise EdgeDistillError(
            "the student was distilled from another teacher than the one given",
            got=f"{found} latent components",
            expected=expected,
            next_step="name the teacher that `edgedistill distill` was given",
        )


def require_readout(
    facts: dict[str, Any], session: TrainingSession, behavior: list[list[str]], folder: Path | None
) -> None:
    """EdgeDistillError unless the student holds a read-out of the session's array and of its `behavior`."""
    if not readouts_of(facts, session.array):
        raise EdgeDistillError(
            f"the student in {folder} has no read-out",
            got="it was distilled on sessions without behavior",
            next_step="add --probe, which fits one on the labels of this session",
        )
    if facts.get("behavior", behavior) != behavior:
        raise EdgeDistillError(
            f"the student in {folder} decodes another behavior than that of session {session.id}",
            got=facts["behavior"],
            expected=behavior,
            next_step="name the series it was distilled with by --behavior, or add --probe",
        )


def outputs_of(bins: SessionBins) -> list[list[str]]:
    """Names and units of the behavior, as JSON."""
    return [list(bins.output_names), list(bins.output_units)]


def stored_readout(facts: dict[str, Any], array: str) -> Readout:
    """The read-out of the student's last labelled session of `array`: on another day, no label of that day is used."""
    last = readouts_of(facts, array)[-1]
    return Readout(np.array(last["weight"]), np.array(last["bias"]), last["penalty"], last["validation_r2"])


def readouts_of(facts: dict[str, Any], array: str) -> list[dict[str, Any]]:
    """The stored read-outs of an array's sessions; lagged bins are those of its channels."""
    stored: dict[str, dict[str, Any]] = facts.get("readouts", {})
    return [readout for session, readout in stored.items() if facts["arrays"][session] == array]


def readouts(student: Student, sessions: Sequence[TrainingSession]) -> dict[str, Any]:
    """Each labelled session's read-out of latents and lagged bins, as JSON."""
    found = {s.id: score_student(student, "deployed", s)[0] for s in sessions if find_unlabelled_block(s) is None}
    return {
        name: {
            "weight": r.weight.tolist(),
            "bias": r.bias.tolist(),
            "penalty": r.penalty,
            "validation_r2": r.validation_r2,
        }
        for name, r in found.items()
    }


def last_statistics(facts: dict[str, Any], array: str) -> Statistics:
    """Mean and std (uV) of the last session of `array` that a student was trained on."""
    last = [session for session, of in facts["arrays"].items() if of == array][-1]
    mean, std = facts["normalization"][last]
    return np.array(mean), np.array(std)
