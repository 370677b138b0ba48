"""Trains students with the settings of the preset, or with `--trials` searches for better ones on validation.

Sessions, the teacher's targets and a task go in. A trained student comes out, with the task it was trained on and every
trial of its search. The trials of one search share a folder in the cache, which a later run with more trials goes on
from. A trial whose files have changed is trained again with the same settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from edgedistill import ranks
from edgedistill.config import Alignment
from edgedistill.files import remove
from edgedistill.models.files import load_student, load_teacher, save_student, save_teacher
from edgedistill.models.student import Student
from edgedistill.models.teacher import PatchAutoencoder
from edgedistill.pipeline.cache import warn_of_damage
from edgedistill.pipeline.run_context import Run, session_inputs
from edgedistill.pipeline.stage_record import find_damage, write_record
from edgedistill.pipeline.students import (
    describe_sessions,
    name_stage,
    patch_student_from_sessions,
    student_from_sessions,
)
from edgedistill.training.batches import TrainingSession
from edgedistill.training.distill import distill_bidirectional
from edgedistill.training.loop import DivergedError
from edgedistill.training.losses import DISTILLED
from edgedistill.training.midway import stop_bidirectional, stop_student
from edgedistill.training.search_space import objective_with, plan_search, training_with
from edgedistill.training.student_tasks import STUDENT_TASKS, StudentTask, score_latents, score_smoothed, train_task
from edgedistill.training.study import (
    DamagedStudyError,
    RunningTrial,
    Settings,
    StudyDesign,
    Trial,
    find_best,
    run_study,
)
from edgedistill.training.teacher_targets import TeacherTargets

CHECKPOINT, STUDY = "checkpoint.safetensors", "study.json"
END_OF_SEARCH: tuple[int, Settings] | None = None

Model = TypeVar("Model", Student, PatchAutoencoder)

Trials = Mapping[str, tuple[Trial, ...]]  # name of a student -> the trials of its search


@dataclass(frozen=True)
class Judging:
    """Says on which sessions the trials of a search are judged, with which output filter. The last one is watched."""

    sessions: tuple[TrainingSession, ...]
    smooth: str  # one of KINDS


@dataclass(frozen=True, eq=False)
class ChosenStudent:
    """Holds a trained student, and the search that it came out of."""

    student: Student
    task: StudentTask
    trials: tuple[Trial, ...] = ()  # none where nothing was searched


def choose_student(
    run: Run,
    task_name: str,
    sessions: Sequence[TrainingSession],
    targets: TeacherTargets,
    alignment: Alignment,
    judging: Judging,
) -> ChosenStudent:
    """Returns a student that is trained on `sessions` for one task, the best of its trials on validation."""
    task, size = STUDENT_TASKS[task_name].with_alignment(alignment), run.preset.student
    if run.trials == 1:
        return ChosenStudent(student_from_sessions(run, task_name, sessions, targets, alignment), task)
    plan, stage = plan_search(run.preset.training, task.objective, seed=run.seed), name_stage(task_name, sessions)

    def task_of(trial: RunningTrial | Trial) -> StudentTask:
        return replace(task, objective=objective_with(task.objective, trial.settings))

    def train(trial: RunningTrial) -> Student:
        chosen, config = task_of(trial), training_with(run.preset.training, trial.settings)
        return train_task(
            chosen,
            sessions,
            run.preset,
            config,
            run.seed,
            targets.of(chosen.objective, size),
            trial.folder / CHECKPOINT,
            run.progress_of(name_trial(run, stage, trial)),
            stop_student(trial, task.modality, judging.sessions[-1]),
        )

    def judge(trial: RunningTrial, student: Student) -> float:
        save_student(student, trial.folder, {"row": task_name})
        return average([score_smoothed(student, task_name, s, judging.smooth).validation_r2 for s in judging.sessions])

    seen = describe_sessions(sessions, task, targets, size)
    trials, folder = search(run, stage, [seen, asdict(task), asdict(size)], judging, plan, train, judge)
    best = find_best(trials)
    return ChosenStudent(load_student(folder(best.number))[0], task_of(best), trials)


def choose_patch_student(
    run: Run, sessions: Sequence[TrainingSession], targets: TeacherTargets, alignment: Alignment, judging: Judging
) -> tuple[PatchAutoencoder, tuple[Trial, ...]]:
    """Returns a student of the published, bidirectional shape, the best of its trials on validation, and the trials."""
    if run.trials == 1:
        return patch_student_from_sessions(run, sessions, targets, alignment), ()
    config, size = run.preset.training, run.preset.patch_student
    objective = replace(DISTILLED, aligned_by=alignment, reconstruction=0.0)
    slow = [session.without_bands() for session in sessions]
    judging = replace(judging, sessions=tuple(session.without_bands() for session in judging.sessions))
    segment = run.preset.teacher_training.segment_bins

    def train(trial: RunningTrial) -> PatchAutoencoder:
        aligned = objective_with(objective, trial.settings)
        return distill_bidirectional(
            slow,
            size,
            training_with(config, trial.settings),
            run.seed,
            targets.of(aligned, size),
            trial.folder / CHECKPOINT,
            run.progress_of(name_trial(run, "bidirectional", trial)),
            aligned,
            stop_bidirectional(trial, "lfp", judging.sessions[-1], segment),
        )

    def judge(trial: RunningTrial, model: PatchAutoencoder) -> float:
        save_teacher(model, trial.folder, {})
        return average([score_latents(model, session, segment).validation_r2 for session in judging.sessions])

    task = StudentTask("lfp", objective)
    seen = describe_sessions(slow, task, targets, size)
    plan = plan_search(config, objective, seed=run.seed)
    trials, folder = search(run, "bidirectional", [seen, asdict(task), asdict(size)], judging, plan, train, judge)
    return load_teacher(folder(find_best(trials).number))[0], trials


def search(
    run: Run,
    stage: str,
    inputs: Sequence[object],
    judging: Judging,
    plan: StudyDesign,
    train: Callable[[RunningTrial], Model],
    judge: Callable[[RunningTrial, Model], float],
) -> tuple[tuple[Trial, ...], Callable[[int], Path]]:
    """Returns the trials of one search, and the folder of each by its number. `inputs` are those of the training.

    Several processes `train` each trial together. The main one decides on the settings, and `judge`s what came out.
    """
    seconds, name = run.cache.start_clock(), f"search-{stage.replace('_', '-')}"
    judged = [session_inputs(session, "behavior") for session in judging.sessions]
    facts = [*inputs, judged, judging.smooth, asdict(plan), asdict(run.preset.training), run.seed, run.trained_on]
    root, key = ranks.lead(lambda: run.cache.open_folder(name, facts, __name__))
    trained: list[int] = []

    def folder_of(number: int) -> Path:
        return root / f"trial-{number}"

    def train_and_keep(trial: RunningTrial) -> float:
        trained.append(trial.number)
        ranks.lead(lambda: (trial.number, trial.settings))  # to `follow`
        model = train(trial)
        r2 = np.nan if trial.is_stopped else judge(trial, model)
        (trial.folder / CHECKPOINT).unlink(missing_ok=True)
        write_record(trial.folder, f"{key} {trial.number}")
        return r2

    def is_whole(number: int) -> bool:
        if (damage := find_damage(folder_of(number), f"{key} {number}")) is not None:
            warn_of_damage(folder_of(number), damage)
            remove(folder_of(number))
        return damage is None

    def go_on() -> tuple[Trial, ...]:
        if not (root / STUDY).exists():  # what was judged in the middle of a training is lost, so it cannot go on
            for old in root.glob("trial-*"):
                remove(old)
        return run_study(root / STUDY, plan, run.trials, train_and_keep, folder_of, key, is_whole)

    def lead_search() -> tuple[Trial, ...]:
        try:
            found = go_on()
        except DamagedStudyError as error:
            warn_of_damage(root / STUDY, str(error.got))
            remove(root / STUDY)
            found = go_on()
        for trial in found:
            (folder_of(trial.number) / CHECKPOINT).unlink(missing_ok=True)
        return found

    def follow() -> None:
        while (told := ranks.lead(lambda: END_OF_SEARCH)) is not None:
            number, settings = told
            with suppress(DivergedError):  # the main process notes it
                train(RunningTrial(number, settings, folder_of(number), None))

    found = lead_search() if ranks.is_main() else ()
    follow()
    trials = ranks.lead(lambda: found)
    run.cache.note(name, seconds(), cached=not trained)
    return trials, folder_of


def average(validation_r2: Sequence[float]) -> float:
    """Returns the mean R² over sessions."""
    return float(np.mean(validation_r2))


def name_trial(run: Run, stage: str, trial: RunningTrial) -> str:
    """Returns what the progress of a trial is called."""
    return f"{stage}, trial {trial.number + 1} of {run.trials}"


def trials_to_json(trials: Trials) -> dict[str, object]:
    """Returns the searches of a run as bundles and answers keep them: every trial, and which one was chosen."""
    return {
        name: [{**one.to_json(), "chosen": one.number == find_best(found).number} for one in found]
        for name, found in trials.items()
        if found
    }
