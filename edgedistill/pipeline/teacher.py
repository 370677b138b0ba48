"""Runs the spike teacher's stages: training, and a read-out for streaming.

Sessions and a run go in. A trained teacher comes out, with what later stages need of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from edgedistill import ranks
from edgedistill.config import StudentSize, TeacherSize
from edgedistill.errors import EdgeDistillError
from edgedistill.models.files import hash_checkpoint, load_teacher, save_teacher
from edgedistill.models.student import Student
from edgedistill.models.teacher import PatchAutoencoder
from edgedistill.pipeline.run_context import Run, session_inputs
from edgedistill.training.batches import TrainingSession
from edgedistill.training.evaluate import Readout
from edgedistill.training.losses import Objective
from edgedistill.training.midway import watch_bidirectional
from edgedistill.training.pretrain import train_teacher
from edgedistill.training.teacher_targets import TeacherTargets, form_of_targets
from edgedistill.training.teacher_window import fit_last_bin_readout


@dataclass(frozen=True, eq=False)
class TeacherSubject:
    """Holds the spike teacher in the form a closed loop would need, which sees only a window of past bins."""

    model: PatchAutoencoder
    readout: Readout  # from the latent of a window's last bin
    window: int  # bins


def teacher_from_sessions(run: Run, sessions: Sequence[TrainingSession]) -> PatchAutoencoder:
    """Returns a teacher that is trained on these sessions, or the one that the cache holds."""
    config = run.preset.teacher_training

    def make(folder: Path) -> None:
        size, checkpoint = run.preset.teacher, folder / "checkpoint.safetensors"
        watch = watch_bidirectional("spikes", sessions, config.segment_bins)
        model = train_teacher(sessions, size, config, run.seed, checkpoint, run.progress_of("teacher"), watch)
        if ranks.is_main():
            save_teacher(model, folder, {"config": asdict(config)})
            checkpoint.unlink(missing_ok=True)

    seen = [session_inputs(s, "counts") for s in sessions]
    inputs = [seen, asdict(run.preset.teacher), asdict(config), run.seed, run.trained_on]
    return load_teacher(run.cache.shared_stage("teacher", inputs, make))[0]


def load_known_teacher(folder: Path, sessions: Sequence[TrainingSession]) -> PatchAutoencoder:
    """Returns the teacher in `folder`. Raises EdgeDistillError unless it was trained on each session."""
    teacher, _ = load_teacher(folder)
    missing = [s.id for s in sessions if teacher.channels.get(s.id) != s.inputs("spikes").shape[1]]
    if missing:
        raise EdgeDistillError(
            f"the teacher in {folder} was not trained on every session",
            got=f"unknown, or with other units: {', '.join(missing)}",
            expected=f"some of {', '.join(teacher.channels)}",
            next_step="edgedistill pretrain with these sessions, or leave them out",
        )
    return teacher


def targets_from_teacher(run: Run, teacher: PatchAutoencoder, sessions: Sequence[TrainingSession]) -> TeacherTargets:
    """Returns what students of these sessions can be aligned to, which is computed when it is first asked for."""
    return TeacherTargets(teacher, sessions, run.preset.teacher_training, partial(run.cache.note, "teacher latents"))


def target_inputs(targets: TeacherTargets, objective: Objective, size: StudentSize | TeacherSize) -> list[object]:
    """Returns what targets are computed from, as JSON, for the key of a stage that learns from them.

    The key holds what goes in and no hash of the targets, because a GPU computes other last bits every time. A search
    may choose a form that uses the labels, so they count wherever the objective has any.
    """
    parts = ("counts", "behavior") if objective.behavior else ("counts",)
    seen = [session_inputs(s, *parts) for s in targets.sessions]
    form = asdict(form_of_targets(objective, size))
    return [form, describe_model(targets.teacher), targets.config.segment_bins, seen]


def describe_model(model: Student | PatchAutoencoder) -> list[object]:
    """Returns the hash of a model's weights and the size that they are used with, for the key of a stage."""
    return [hash_checkpoint(model), asdict(model.size)]


def fit_window_readout(run: Run, teacher: PatchAutoencoder, session: TrainingSession) -> TeacherSubject:
    """Returns the teacher with a read-out for streaming, where it runs over its whole window at every bin."""
    segment = run.preset.teacher_training.segment_bins
    window = segment - segment % teacher.size.span

    def make(folder: Path) -> None:
        readout = fit_last_bin_readout(teacher, session, window)
        np.savez(folder / "readout.npz", **asdict(readout))

    inputs = [session_inputs(session, "spikes", "behavior"), describe_model(teacher), window]
    with np.load(run.cache.stage("teacher-readout", inputs, make) / "readout.npz") as kept:
        readout = Readout(kept["weight"], kept["bias"], float(kept["penalty"]), float(kept["validation_r2"]))
    return TeacherSubject(teacher, readout, window)
