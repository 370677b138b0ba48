"""Runs the INT8 stages whose results are kept: finding ranges by calibration, and fine-tuning a student with them.

A float student and the sessions it reads go in. Ranges come out, and the second stage returns another student too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from edgedistill.errors import EdgeDistillError
from edgedistill.models.files import hash_checkpoint, load_student, save_student
from edgedistill.models.student import Student
from edgedistill.pipeline.run_context import Run, session_inputs
from edgedistill.pipeline.teacher import describe_model, target_inputs
from edgedistill.quantization.calibration.range_search import Progress as WindowProgress
from edgedistill.quantization.calibration.range_search import calibrate, measure_table
from edgedistill.quantization.calibration.ranges import Ranges, choose_four_bit_parts, read_ranges, shape_from_size
from edgedistill.quantization.calibration.recipe import Recipe
from edgedistill.quantization.training.finetuning import finetune_student
from edgedistill.training.batches import TrainingSession
from edgedistill.training.student_tasks import StudentTask
from edgedistill.training.teacher_targets import Targets, TeacherTargets

RANGES = "ranges.json"


@dataclass(frozen=True, eq=False)
class FineTuning:
    """Holds what a fine-tuning starts from and learns from."""

    student_name: str  # "deployed" or "spike_student", as in the name of the stage
    task: StudentTask  # what the student was trained for
    student: Student
    ranges: Ranges  # of the student, found by a recipe that fine-tunes
    calibrated_on: Sequence[TrainingSession]  # the sessions that the ranges were found on
    sessions: Sequence[TrainingSession]  # the sessions to train on, which the student must be able to read
    targets: TeacherTargets  # of the teacher that the student was trained to follow


def ranges_from_student(
    run: Run, student_name: str, student: Student, session: TrainingSession, modality: str, recipe: Recipe
) -> Ranges:
    """Returns the ranges of `student` by `recipe`, found on the training block of `session`."""
    stage = stage_name("calibrate", student_name)

    def make(folder: Path) -> None:
        found = calibrate(student, [session], modality, recipe, run.seed, window_progress(run, stage))
        hashes = {name: run.provenance.sessions.get(name) for name in found.sessions}
        replace(found, sessions=hashes).write(folder / RANGES)

    seen = session_inputs(session, modality, "behavior")  # windows are drawn by speed
    file = run.provenance.sessions.get(session.id)  # stands in the ranges
    inputs = [seen, file, describe_model(student), asdict(recipe), run.seed, run.trained_on]
    return read_ranges(run.cache.stage(stage, inputs, make) / RANGES, student.size)


def finetune(run: Run, tuning: FineTuning) -> tuple[Student, Ranges]:
    """Returns the student and its ranges after fine-tuning with simulated quantization.

    The objective is the one that the student was trained with. The table of the new ranges is measured with the new
    student on the sessions that the old ranges were found on. Raises EdgeDistillError where there is no session to
    train on, or where the student was distilled from another teacher.
    """
    student, ranges, task = tuning.student, tuning.ranges, tuning.task
    schedule = ranges.recipe.finetune
    assert schedule is not None
    require_tuning_sessions(ranges.recipe, tuning.sessions)
    schedule = replace(schedule, steps=min(schedule.steps, run.preset.training.steps))  # --steps caps this stage too
    stage, config = stage_name("finetune", tuning.student_name), run.preset.training

    def make(folder: Path) -> None:
        checkpoint = folder / "checkpoint.safetensors"
        teacher_latents = tuning.targets.of(task.objective, student.size)
        require_width(student, teacher_latents)
        four = choose_four_bit_parts(shape_from_size(student.size), ranges.recipe)
        tuned, values = finetune_student(
            student, ranges.values, tuning.sessions, task.modality, task.objective, config, schedule, run.seed,
            teacher_latents, checkpoint, run.progress_of(stage), ranges.recipe.keep, four,
        )  # fmt: skip
        save_student(tuned, folder, {"row": tuning.student_name})
        after = {name: list(map(float, numbers)) for name, numbers in values.items()}
        recipe = ranges.recipe.after_finetuning()
        found = replace(ranges, values=after, recipe=recipe, checkpoint_sha256=hash_checkpoint(tuned))
        table = measure_table(tuned, tuning.calibrated_on, task.modality, found)
        replace(found, table=table).write(folder / RANGES)
        checkpoint.unlink(missing_ok=True)

    used = [tuning.sessions, tuning.calibrated_on]
    inputs = [
        [[session_inputs(s, task.modality, "behavior") for s in sessions] for sessions in used],
        target_inputs(tuning.targets, task.objective, student.size),
        describe_model(student),
        ranges.to_json(),
        asdict(task),
        asdict(config),
        run.seed,
        run.trained_on,
    ]
    folder = run.cache.stage(stage, inputs, make)
    return load_student(folder)[0], read_ranges(folder / RANGES, student.size)


def can_read(student: Student, session: TrainingSession, modality: str) -> bool:
    """Tells whether `student` has a tokenizer for the session."""
    return student.tokenizer.channels.get(session.id) == session.inputs(modality).shape[1]


def require_tuning_sessions(recipe: Recipe, sessions: Sequence[TrainingSession]) -> None:
    """Raises EdgeDistillError where a recipe fine-tunes and there is no session to fine-tune on."""
    if recipe.finetune is not None and not sessions:
        raise EdgeDistillError(
            f"recipe '{recipe.name}' fine-tunes the student, and none of its sessions is here",
            next_step="add the sessions it was distilled on to --data, or take a recipe without fine-tuning",
        )


def require_width(student: Student, teacher_latents: Targets) -> None:
    """Raises EdgeDistillError where the student was not trained to follow so many numbers a bin.

    It catches students of earlier versions, which followed 32, and teachers of another width.
    """
    expected, found = student.to_teacher.teacher_d, next(iter(teacher_latents.values())).shape[1]
    if found != expected:
        raise EdgeDistillError(
            "the student was distilled from another teacher than that of --teacher, or by an earlier version",
            got=f"{found} numbers a bin to follow",
            expected=f"{expected} numbers a bin",
            next_step="name the teacher that the student was distilled from, or distill it again with this version",
        )


def stage_name(stage: str, student_name: str) -> str:
    """Returns the name of a student's stage. For the student that ships, this is the name of the stage alone."""
    return stage if student_name == "deployed" else f"{stage}-{student_name.replace('_', '-')}"


def window_progress(run: Run, stage: str) -> WindowProgress | None:
    """Returns a progress callback that takes windows done and windows in all, or None where nobody watches.

    Loss and learning rate are passed on as NaN, because the stage has neither.
    """
    show = run.progress_of(stage)
    return None if show is None else lambda seen, windows: show(seen, windows, float("nan"), float("nan"))
