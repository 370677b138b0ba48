"""Measures the INT8 rows of `accuracy.py`: every recipe on the students of the rows `deployed` and `spike_student`.

A row quantizes one student once for each session that it decodes, as `build` does. The ranges come from that session's
training block, and the read-out is refitted on it. R² is that of its test block, where the oracle streams from the
session's first bin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from edgedistill.config import TrainingConfig
from edgedistill.models.files import load_student
from edgedistill.models.student import Student
from edgedistill.quantization.calibration.range_search import calibrate
from edgedistill.quantization.calibration.recipe import DEFAULT_RECIPE, Recipe, list_recipes, load_recipe
from edgedistill.quantization.deployment import QuantizedStudent, choose_better, quantize_for_session
from edgedistill.quantization.exact_torch import run_exact_stream
from edgedistill.quantization.training.finetuning import finetune_student
from edgedistill.training.batches import TrainingSession
from edgedistill.training.evaluate import Score, score_decoded, unscale_behavior
from edgedistill.training.output_filter import KALMAN, fit_output_filter
from edgedistill.training.student_tasks import StudentTask, score_smoothed, score_student
from edgedistill.training.teacher_targets import Targets

ARTEFACT_BINS, ARTEFACT = slice(5000, 5010), 1000.0  # 100 ms of a thousand standard deviations on all channels
Measure = Callable[[], dict[str, Any]]


def list_int8_rows(
    folder: Path,
    trials: dict[str, float],
    tasks: dict[str, StudentTask],
    sessions: Sequence[TrainingSession],
    followed: dict[str, Targets],
    seed: int,
    config: TrainingConfig,
) -> dict[str, Measure]:
    """Returns, by row, the function that measures it.

    `trials` tells the folder of each float student, `tasks` what it was trained on, and `followed` what it followed.
    """
    rows: dict[str, Measure] = {}

    def measure(row: str, recipe: Recipe, sessions: Sequence[TrainingSession] = sessions) -> dict[str, Any]:
        student = folder / f"{row}-{trials[row]:g}"
        return measure_quantized_row(student, row, tasks[row], recipe, sessions, followed[row], seed, config)

    for row, recipes in (("deployed", list_recipes()), ("spike_student", (DEFAULT_RECIPE,))):
        for name in recipes:
            rows[f"{row}, int8, {name}"] = partial(measure, row, load_recipe(name))
    unfitted = replace(load_recipe(DEFAULT_RECIPE), refit_readout=False)
    rows[f"deployed, int8, {DEFAULT_RECIPE}, read-out of the float student"] = partial(measure, "deployed", unfitted)
    struck = [add_artefact(session) for session in sessions]
    for name in (DEFAULT_RECIPE, "minmax"):
        rows[f"deployed, int8, {name}, an artefact in the calibration data"] = partial(
            measure, "deployed", load_recipe(name), struck
        )
    raw = replace(load_recipe("minmax"), artefact_factor=1e9)  # without rejection of artefacts
    rows["deployed, int8, minmax, an artefact and no rejection"] = partial(measure, "deployed", raw, struck)
    return rows


def measure_quantized_row(
    folder: Path,
    row: str,
    task: StudentTask,
    recipe: Recipe,
    sessions: Sequence[TrainingSession],
    teacher_latents: Targets,
    seed: int,
    config: TrainingConfig,
) -> dict[str, Any]:
    """Measures one row: R² of each session, and the bytes that the device holds."""
    student, modality = load_student(folder)[0], task.modality
    readouts = {s.id: score_student(student, row, s)[0] for s in sessions}
    found: dict[str, Any] = {"r2": {}, "validation": {}, "per_output": {}}
    whole = student
    if recipe.finetune is not None:
        student, after = finetune(
            student, task, recipe, sessions, teacher_latents, seed, config, folder / "finetune.safetensors"
        )
        # the control of this row: what the longer training is worth without any rounding
        found["float_r2"] = {s.id: score_smoothed(student, row, s, KALMAN).r2 for s in sessions}
    for session in sessions:
        ranges = calibrate(whole, [session], modality, recipe, seed)
        quantized = quantize_for_session(whole, session, modality, readouts[session.id], ranges)
        if recipe.finetune is not None:
            ranges = replace(ranges, values=after)
            longer = quantize_for_session(student, session, modality, readouts[session.id], ranges)
            # The score is kept for the record even if the student before finetuning is better.
            found.setdefault("tuned_r2", {})[session.id] = smooth(longer, session, modality).r2
            quantized = choose_better(quantized, longer)
        score = smooth(quantized, session, modality)
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
    )
    return student, {name: list(map(float, numbers)) for name, numbers in values.items()}


def add_artefact(session: TrainingSession) -> TrainingSession:
    """Returns the session with one artefact in its training block."""
    lfp = session.inputs("lfp").clone()
    lfp[ARTEFACT_BINS] = ARTEFACT
    return replace(session, lfp=lfp)
