"""The INT8 stages of a run: calibrate, fine-tune where the recipe says so, quantize."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

from torch import Tensor

from edgedistill.errors import EdgeDistillError
from edgedistill.models.files import load_student, save_student
from edgedistill.models.student import Student
from edgedistill.pipeline.pretrained_student import require_width, without_labels
from edgedistill.pipeline.trained import Run, contents
from edgedistill.quantization.calibration.range_search import calibrate, measure_table
from edgedistill.quantization.calibration.ranges import Ranges, hash_checkpoint, read_ranges
from edgedistill.quantization.calibration.recipe import Recipe
from edgedistill.quantization.deployment import QuantizedStudent, choose_better, quantize_for_session
from edgedistill.quantization.training.finetuning import finetune_student
from edgedistill.training.batches import TrainingSession
from edgedistill.training.evaluate import Readout
from edgedistill.training.student_tasks import STUDENT_TASKS, StudentTask

RANGES = "ranges.json"


@dataclass(frozen=True, eq=False)
class Int8Student:
    """A student in INT8 beside the float one it came from, and the ranges it was made with."""

    ranges: Ranges
    quantized: QuantizedStudent


def int8_student(
    run: Run,
    row: str,
    student: Student,
    session: TrainingSession,
    readout: Readout,
    recipe: Recipe,
    trained: Sequence[TrainingSession],
    targets: dict[str, Tensor],
    given: Ranges | None = None,
    labelled: bool = True,
    taught: StudentTask | None = None,
) -> Int8Student:
    """The student of row `row` in INT8 for `session`, by `recipe` or with ranges that were `given`.

    `trained` are the sessions at hand; those the student can read serve the fine-tuning, whose result is taken where
    it decodes the validation block no worse. Without `labelled` no label of `session` is used: the read-out stays as
    it is, and windows are drawn by chance. `taught` is what a given student was trained by, where that is not `row`.
    """
    seen = session if labelled else without_labels(session)
    ranges = calibrated(run, row, student, seen, recipe) if given is None else given
    if not labelled:
        ranges = replace(ranges, recipe=replace(ranges.recipe, refit_readout=False))
    modality, start = STUDENT_TASKS[row].modality, monotonic()
    int8 = Int8Student(ranges, quantize_for_session(student, session, modality, readout, ranges))
    run.cache.note(named("quantize", row), start)
    if ranges.recipe.finetune is None or given is not None:
        return int8
    others = [s for s in trained if s.id != session.id and reads(student, s, modality)]
    own = [*others, session] if labelled else others
    student, after = finetuned(run, row, student, ranges, own, targets, [seen], taught or STUDENT_TASKS[row])
    tuned = Int8Student(after, quantize_for_session(student, session, modality, readout, after))
    # without labels there is no way to compare the two
    worse = labelled and choose_better(int8.quantized, tuned.quantized) is int8.quantized
    return int8 if worse else tuned


def reads(student: Student, session: TrainingSession, modality: str) -> bool:
    """Whether `student` has a tokenizer for the session."""
    return student.tokenizer.channels.get(session.id) == session.inputs(modality).shape[1]


def given_ranges(path: Path | None, student: tuple[Student, dict[str, Any]] | None) -> Ranges | None:
    """The ranges in `path`, which must be those of the given `student`."""
    if path is None:
        return None
    if student is None:
        raise EdgeDistillError(
            f"the ranges in {path} belong to a student that was made before",
            got="no --student",
            next_step="name the student they were made for with --student",
        )
    ranges = read_ranges(path, student[0].size)
    ranges.require_for(hash_checkpoint(student[0]), str(path))
    return ranges


def calibrated(run: Run, row: str, student: Student, session: TrainingSession, recipe: Recipe) -> Ranges:
    """The ranges of `student` on the training block of `session`."""
    name, modality = named("calibrate", row), STUDENT_TASKS[row].modality

    def make(folder: Path) -> None:
        found = calibrate(student, [session], modality, recipe, run.seed, counted(run, name))
        files = {id_: run.inputs["sessions"].get(id_) for id_ in found.sessions}
        replace(found, sessions=files).write(folder / RANGES)

    seen = contents(session, session.inputs(modality), session.behavior)  # windows are drawn by speed
    inputs = [seen, hash_checkpoint(student), asdict(recipe), run.seed]
    return read_ranges(run.cache.stage(name, inputs, make) / RANGES, student.size)


def finetuned(
    run: Run,
    row: str,
    student: Student,
    ranges: Ranges,
    sessions: Sequence[TrainingSession],
    targets: dict[str, Tensor],
    calibrated_on: Sequence[TrainingSession],
    taught: StudentTask,
) -> tuple[Student, Ranges]:
    """Student and ranges after quantization-aware distillation on `sessions` by the objective of `taught`.

    The table of the ranges is then that of the fine-tuned student, on the windows it was `calibrated_on`.
    """
    finetune = ranges.recipe.finetune
    assert finetune is not None
    if not sessions:
        raise EdgeDistillError(
            f"recipe '{ranges.recipe.name}' fine-tunes the student, and none of its sessions is here",
            next_step="add the sessions it was distilled on to --data, or take a recipe without fine-tuning",
        )
    require_width(student, targets)
    finetune = replace(finetune, steps=min(finetune.steps, run.preset.training.steps))  # --steps caps this stage too
    name, modality, config = named("finetune", row), taught.modality, run.preset.training

    def make(folder: Path) -> None:
        checkpoint = folder / "checkpoint.safetensors"
        tuned, values = finetune_student(
            student, ranges.values, sessions, modality, taught.objective, config, finetune, run.seed, targets,
            checkpoint, run.report(name), ranges.recipe.keep,
        )  # fmt: skip
        save_student(tuned, folder, {"row": row})
        after = {name: list(map(float, numbers)) for name, numbers in values.items()}
        found = replace(ranges, values=after, checkpoint_sha256=hash_checkpoint(tuned))
        table = measure_table(tuned, calibrated_on, modality, found)
        replace(found, table=table).write(folder / RANGES)
        checkpoint.unlink(missing_ok=True)

    seen = [contents(s, s.inputs(modality), targets[s.id], s.behavior) for s in sessions]
    inputs = [seen, hash_checkpoint(student), ranges.to_json(), asdict(taught), asdict(config), run.seed]
    folder = run.cache.stage(name, inputs, make)
    return load_student(folder)[0], read_ranges(folder / RANGES, student.size)


def named(stage: str, row: str) -> str:
    """Stage names: those of the student that ships are plain."""
    return stage if row == "deployed" else f"{stage}-{row.replace('_', '-')}"


def counted(run: Run, name: str) -> Callable[[int, int], None] | None:
    """Progress of a stage that counts windows instead of optimizer steps."""
    report = run.report(name)
    return None if report is None else lambda seen, windows: report(seen, windows, float("nan"), float("nan"))
