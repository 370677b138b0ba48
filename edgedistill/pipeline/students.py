"""Runs the students' stages, which train the models of the table that follow a teacher or the behavior.

Sessions and the teacher's targets go in. A trained float student comes out. It is kept under a hash of its inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from edgedistill import ranks
from edgedistill.config import Alignment, StudentSize, TeacherSize
from edgedistill.models.files import load_student, load_teacher, save_student, save_teacher
from edgedistill.models.student import Student
from edgedistill.models.teacher import PatchAutoencoder
from edgedistill.pipeline.run_context import Run, session_inputs
from edgedistill.pipeline.teacher import target_inputs
from edgedistill.training.batches import TrainingSession
from edgedistill.training.distill import count_outputs, distill_bidirectional
from edgedistill.training.losses import DISTILLED
from edgedistill.training.midway import watch_bidirectional, watch_student
from edgedistill.training.student_tasks import STUDENT_TASKS, StudentTask, train_task
from edgedistill.training.teacher_targets import TeacherTargets


def student_from_sessions(
    run: Run,
    task_name: str,
    sessions: Sequence[TrainingSession],
    targets: TeacherTargets,
    alignment: Alignment,
) -> Student:
    """Returns a student that is trained on `sessions` for one task, or the one that the cache holds."""
    config, task = run.preset.training, STUDENT_TASKS[task_name].with_alignment(alignment)
    stage = name_stage(task_name, sessions)

    def make(folder: Path) -> None:
        checkpoint = folder / "checkpoint.safetensors"
        shown = run.progress_of(stage)
        teacher_latents = targets.of(task.objective, run.preset.student)
        watch = watch_student(task.modality, sessions)
        student = train_task(task, sessions, run.preset, config, run.seed, teacher_latents, checkpoint, shown, watch)
        if ranks.is_main():
            save_student(student, folder, {"row": task_name})
            checkpoint.unlink(missing_ok=True)

    seen = describe_sessions(sessions, task, targets, run.preset.student)
    inputs = [seen, asdict(task), asdict(run.preset.student), asdict(config), run.seed, run.trained_on]
    return load_student(run.cache.shared_stage(stage.replace("_", "-"), inputs, make))[0]


def patch_student_from_sessions(
    run: Run, sessions: Sequence[TrainingSession], targets: TeacherTargets, alignment: Alignment
) -> PatchAutoencoder:
    """Returns a student of the published, bidirectional shape, distilled without labels on the slow LFP alone."""
    config, size = run.preset.training, run.preset.patch_student
    sessions = [session.without_bands() for session in sessions]
    objective = replace(DISTILLED, aligned_by=alignment)

    def make(folder: Path) -> None:
        checkpoint = folder / "checkpoint.safetensors"
        shown = run.progress_of("bidirectional")
        teacher_latents = targets.of(objective, size)
        watch = watch_bidirectional("lfp", sessions, run.preset.teacher_training.segment_bins)
        model = distill_bidirectional(
            sessions, size, config, run.seed, teacher_latents, checkpoint, shown, objective, watch
        )
        if ranks.is_main():
            save_teacher(model, folder, {"config": asdict(config)})
            checkpoint.unlink(missing_ok=True)

    seen = [session_inputs(s, "lfp") for s in sessions]
    learned = [target_inputs(targets, objective, size), asdict(objective)]
    inputs = [seen, learned, asdict(size), asdict(config), run.seed, run.trained_on]
    return load_teacher(run.cache.shared_stage("bidirectional", inputs, make))[0]


def name_stage(task_name: str, sessions: Sequence[TrainingSession]) -> str:
    """Returns the name of the stage that trains a student for a task on so many sessions."""
    return task_name if len(sessions) > 1 or task_name != "unsupervised_lfp" else "single_session_lfp"


def describe_sessions(
    sessions: Sequence[TrainingSession], task: StudentTask, targets: TeacherTargets, size: StudentSize | TeacherSize
) -> list[object]:
    """Returns what a training for a task uses of its sessions and the teacher, as JSON, for the key of its stage."""
    parts = (task.modality, "behavior") if task.objective.behavior else (task.modality,)
    seen: list[object] = [session_inputs(s, *parts) for s in sessions]
    return [seen, count_outputs(sessions), target_inputs(targets, task.objective, size)]
