"""Measures the INT8 rows of `accuracy.py`: students that were trained in float32, quantized by a recipe.

A row quantizes one student once for each session that it decodes, as `build` does. The ranges come from that session's
training block, and the read-out is refitted on it. R² is that of its test block, where the oracle streams from the
session's first bin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.harness import digest_settings
from edgedistill.config import TrainingConfig
from edgedistill.models.files import load_student
from edgedistill.models.student import Student
from edgedistill.quantization.calibration.range_search import calibrate
from edgedistill.quantization.calibration.ranges import choose_four_bit_parts, shape_from_size
from edgedistill.quantization.calibration.recipe import DEFAULT_RECIPE, Recipe, list_recipes, load_recipe
from edgedistill.quantization.deployment import QuantizedStudent, choose_better, quantize_for_session
from edgedistill.quantization.exact_torch import run_exact_stream
from edgedistill.quantization.training.finetuning import finetune_student
from edgedistill.training.batches import TrainingSession
from edgedistill.training.evaluate import Score, score_decoded, unscale_behavior
from edgedistill.training.output_filter import KALMAN, fit_output_filter
from edgedistill.training.student_tasks import StudentTask, score_smoothed, score_student
from edgedistill.training.teacher_targets import Targets

FOUR_BIT = "four-bit"  # the recipe with four-bit weights
ARTEFACT_BINS, ARTEFACT = slice(5000, 5010), 1000.0  # 100 ms of a thousand standard deviations on all channels


@dataclass(frozen=True)
class FloatStudent:
    """Names a trained student: its folder, the name of its task in STUDENT_TASKS, and the task as it was trained."""

    folder: Path
    name: str
    task: StudentTask


@dataclass(frozen=True)
class Int8Row:
    """Says how one student is quantized for a table, and on which sessions its ranges are found."""

    student: FloatStudent
    recipe: Recipe
    struck: bool = False  # whether there is an artefact in the data of the calibration

    def measure(
        self,
        sessions: Sequence[TrainingSession],
        follow: Callable[[StudentTask], Targets],
        seed: int,
        config: TrainingConfig,
    ) -> dict[str, Any]:
        """Returns R² of each session. `follow` returns what a student of a task is aligned to."""
        sessions = [add_artefact(session) for session in sessions] if self.struck else sessions
        student, recipe = load_student(self.student.folder)[0], self.recipe
        if recipe.finetune is None:
            return measure_quantized(student, self.student.name, self.student.task, recipe, sessions, seed)
        checkpoint = self.student.folder / f"finetune-{digest_settings(recipe)}.safetensors"
        followed = follow(self.student.task)
        tuned = finetune(student, self.student.task, recipe, sessions, followed, seed, config, checkpoint)
        return measure_quantized(student, self.student.name, self.student.task, recipe, sessions, seed, tuned)


def list_int8_rows(students: Mapping[str, FloatStudent], name: str = DEFAULT_RECIPE) -> dict[str, Int8Row]:
    """Returns the row of each student with the recipe that ships, or with another one."""
    recipe = load_recipe(name)
    return {f"{row}, int8, {name}": Int8Row(student, recipe) for row, student in students.items()}


def list_recipe_rows(row: str, student: FloatStudent) -> dict[str, Int8Row]:
    """Returns the rows that compare recipes on one student, with and without an artefact in the calibration data."""
    default, minmax, four = load_recipe(DEFAULT_RECIPE), load_recipe("minmax"), load_recipe(FOUR_BIT)
    rows = {f"{row}, int8, {name}": Int8Row(student, load_recipe(name)) for name in list_recipes()}
    unfitted, raw = replace(default, refit_readout=False), replace(minmax, artefact_factor=1e9)
    rows[f"{row}, int8, {DEFAULT_RECIPE}, read-out of the float student"] = Int8Row(student, unfitted)
    rows[f"{row}, int8, {four.name}, rounded to nearest"] = Int8Row(student, replace(four, rounding="nearest"))
    for recipe in (default, minmax):
        rows[f"{row}, int8, {recipe.name}, an artefact in the calibration data"] = Int8Row(student, recipe, True)
    rows[f"{row}, int8, minmax, an artefact and no rejection"] = Int8Row(student, raw, True)
    return rows


def measure_quantized(
    student: Student,
    name: str,
    task: StudentTask,
    recipe: Recipe,
    sessions: Sequence[TrainingSession],
    seed: int,
    tuned: tuple[Student, dict[str, list[float]]] | None = None,
) -> dict[str, Any]:
    """Returns R² of each session and the bytes that the device holds. `tuned` is a finetuned student with its ranges.

    `name` is that of the student's task in STUDENT_TASKS.
    """
    readouts = {s.id: score_student(student, name, s)[0] for s in sessions}
    found: dict[str, Any] = {"r2": {}, "validation": {}, "per_output": {}}
    if tuned is not None:  # the control of this row: what the longer training is worth without any rounding
        found["float_r2"] = {s.id: score_smoothed(tuned[0], name, s, KALMAN).r2 for s in sessions}
    for session in sessions:
        ranges = calibrate(student, [session], task.modality, recipe, seed)
        quantized = quantize_for_session(student, session, task.modality, readouts[session.id], ranges)
        if tuned is not None:
            ranges = replace(ranges, values=tuned[1], recipe=recipe.after_finetuning())
            longer = quantize_for_session(tuned[0], session, task.modality, readouts[session.id], ranges)
            # The score is kept for the record even if the student before finetuning is better.
            found.setdefault("tuned_r2", {})[session.id] = smooth(longer, session, task.modality).r2
            quantized = choose_better(quantized, longer)
        score = smooth(quantized, session, task.modality)
        found["r2"][session.id] = score.r2
        found["validation"][session.id] = score.validation_r2
        found["per_output"][session.id] = list(score.r2_per_output)
        found |= {"weight_bytes": quantized.model.weight_bytes, "state_bytes": quantized.state_bytes}
    return found


def smooth(quantized: QuantizedStudent, session: TrainingSession, modality: str) -> Score:
    """Scores a student in INT8 with the filter of its outputs that decodes the validation block best, as it ships."""
    model, behavior = quantized.model, unscale_behavior(session)
    decoded = run_exact_stream(model.shape, model.tensors, session.inputs(modality))[1].double().numpy()
    return score_decoded(
        fit_output_filter(decoded, behavior, session.split, session.settled)(decoded), behavior, session.split
    )


def finetune(
    student: Student,
    task: StudentTask,
    recipe: Recipe,
    sessions: Sequence[TrainingSession],
    teacher_latents: Targets,
    seed: int,
    config: TrainingConfig,
    checkpoint: Path,
) -> tuple[Student, dict[str, list[float]]]:
    """Finetunes the student by quantization-aware distillation on all its sessions. Returns it with its ranges."""
    assert recipe.finetune is not None
    modality, objective = task.modality, task.objective
    ranges = calibrate(student, sessions, modality, recipe, seed)
    student, values = finetune_student(
        student,
        ranges.values,
        sessions,
        modality,
        objective,
        config,
        recipe.finetune,
        seed,
        teacher_latents,
        checkpoint,
        None,
        recipe.keep,
        choose_four_bit_parts(shape_from_size(student.size), recipe),
    )
    return student, {name: list(map(float, numbers)) for name, numbers in values.items()}


def add_artefact(session: TrainingSession) -> TrainingSession:
    """Returns the session with one artefact in its training block."""
    lfp = session.inputs("lfp").clone()
    lfp[ARTEFACT_BINS] = ARTEFACT
    return replace(session, lfp=lfp)
