"""`edgedistill calibrate`: a student of `edgedistill distill` and sessions in, a file of INT8 ranges out.

The same steps as in `build`, by themselves: read the sessions, find the ranges, fine-tune where the recipe says so,
rank the parts of the step by what their quantization costs. A session that is new to the student is read with fresh
statistics, where the student knows its array.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

from edgedistill.config import Preset, StudentSize, TrainingConfig, load_preset, preset_names
from edgedistill.data.bins import SessionBins
from edgedistill.models.files import load_student, save_student
from edgedistill.models.student import Student
from edgedistill.pipeline.cache import Cache
from edgedistill.pipeline.inputs import provenance, read_sessions, require_labels, require_writable
from edgedistill.pipeline.pretrained_student import knows, last_statistics, readouts, taught_by, without_labels
from edgedistill.pipeline.request import Progress
from edgedistill.pipeline.trained import Run, normalizations
from edgedistill.quantization.calibration.range_search import calibrate
from edgedistill.quantization.calibration.ranges import Ranges, hash_checkpoint, shape_from_size
from edgedistill.quantization.calibration.recipe import DEFAULT_RECIPE, load_recipe, require_teacher
from edgedistill.quantization.integers import require_parts
from edgedistill.training.adapt import adapt
from edgedistill.training.batches import TrainingSession, compute_gap, find_unlabelled_block, training_session_from_bins
from edgedistill.training.student_tasks import score_student

OF_THE_MODEL = ("kind", "size", "channels", "arrays", "teacher_d", "outputs")  # facts that save_student knows better
Ranking = tuple[tuple[str, float], ...]  # part, R² lost when it alone is quantized


@dataclass(frozen=True)
class CalibrationOptions:
    """What `edgedistill calibrate` was asked for."""

    run: Path
    data: tuple[Path, ...]
    out: Path
    recipe: str = DEFAULT_RECIPE
    teacher: Path | None = None
    seed: int = 0
    behavior: str | None = None
    line_hz: float = 60
    sensitivity: bool = False
    figure: Path | None = None


@dataclass(frozen=True)
class CalibrationResult:
    """Where the ranges are, and what was found on the way."""

    out: Path
    ranges: Ranges
    student: Path | None  # the fine-tuned one
    sensitivity: Ranking | None
    figure: Path | None
    seconds: float

    def to_json(self) -> dict[str, object]:
        """As documented in the README."""
        found = self.ranges.to_json()
        ranking = None if self.sensitivity is None else [{"part": p, "r2_drop": r2} for p, r2 in self.sensitivity]
        return {
            "out": str(self.out),
            "recipe": self.ranges.recipe.name,
            **{key: found[key] for key in ("checkpoint_sha256", "sessions", "table", "windows", "left_out")},
            "windows_asked": self.ranges.recipe.windows,
            "student": self.student,
            "sensitivity": ranking,
            "figure": self.figure,
            "seconds": self.seconds,
        }


def calibrate_run(options: CalibrationOptions, progress: Progress | None = None) -> CalibrationResult:
    """The ranges of the student in `options.run`, written to `options.out`."""
    start = monotonic()
    recipe = load_recipe(options.recipe)
    require_teacher(recipe, options.teacher)
    for path in {options.out, chart_of(options)}:
        require_writable(path)
    student, facts = load_student(options.run)
    require_parts(shape_from_size(student.size), recipe.keep)
    cache = Cache(options.out.with_name(options.out.name + ".work"))
    need = ("lfp", "units") if recipe.finetune else ("lfp",)
    bins = read_sessions(cache, options.data, options.behavior, options.line_hz, need=need, also=("behavior",))
    sessions = [training_session_from_bins(b, compute_gap(bins, student.size)) for b in bins]
    labelled = labelled_session(bins, sessions) if options.sensitivity else None
    sha256 = hash_checkpoint(student)
    adapted = adapted_to(student, facts, sessions)
    report = None if progress is None else lambda n, of: progress("calibrate", n, of, float("nan"), float("nan"))
    seen = [session if knows(student, session) else without_labels(session) for session in sessions]
    ranges = calibrate(adapted, seen, "lfp", recipe, options.seed, report)
    files: dict[str, str | None] = {b.session_id: b.sha256 for b in bins}
    ranges = replace(ranges, sessions=files, checkpoint_sha256=sha256)
    tuned = None
    if options.teacher is not None and recipe.finetune is not None:
        tuned = options.out.with_suffix(".student")
        run = Run(cache, preset_of(student.size), options.seed, provenance(bins), progress)
        adapted, ranges = tuned_student(run, facts, adapted, ranges, sessions, seen, options.teacher, tuned)
    ranges.write(options.out)
    ranking = None if labelled is None else ranked(adapted, ranges, labelled)
    figure = None
    if ranking is not None:
        figure = chart_of(options)
        draw_ranking(ranking, figure)
    return CalibrationResult(options.out, ranges, tuned, ranking, figure, monotonic() - start)


def chart_of(options: CalibrationOptions) -> Path:
    """Where the bar chart of --sensitivity goes: beside the ranges unless told otherwise."""
    return options.figure or options.out.with_suffix(".png")


def labelled_session(bins: Sequence[SessionBins], sessions: Sequence[TrainingSession]) -> TrainingSession:
    """The latest session with behavior, whose R² the ranking is of; RecordingError where none has any."""
    for session in reversed(sessions):
        if find_unlabelled_block(session) is None:
            return session
    require_labels(sessions[-1], bins[-1].path)
    raise AssertionError("unreachable")


def adapted_to(student: Student, facts: dict[str, Any], sessions: Sequence[TrainingSession]) -> Student:
    """`student`, with the tokenizer of their array for sessions that are new to it; RecordingError for a new array.

    Another student where there are any: the checkpoint stays what it was.
    """
    new = [session for session in sessions if not knows(student, session)]
    if not new:
        return student
    adapted = deepcopy(student)
    for session in new:
        adapt(adapted, session, "stats", last_statistics_of(facts, session), TrainingConfig())
    return adapted


def last_statistics_of(facts: dict[str, Any], session: TrainingSession) -> Any:
    """What `adapt` asks for; an array nobody knows is its own error."""
    return last_statistics(facts, session.array) if session.array in facts["arrays"].values() else None


def tuned_student(
    run: Run,
    facts: dict[str, Any],
    student: Student,
    ranges: Ranges,
    sessions: Sequence[TrainingSession],
    seen: Sequence[TrainingSession],
    teacher: Path,
    out: Path,
) -> tuple[Student, Ranges]:
    """The fine-tuned student, written to the folder `out`, and its ranges, which were found on `seen`.

    Stopped, it goes on from a checkpoint.
    """
    from edgedistill.pipeline.quantized import finetuned

    targets = run.targets(run.teacher(sessions, teacher), sessions)
    row = facts.get("row", "distilled")
    tuned, after = finetuned(run, row, student, ranges, sessions, targets, seen, taught_by(facts))
    kept = {key: value for key, value in facts.items() if key not in OF_THE_MODEL}
    kept["normalization"] = {**facts.get("normalization", {}), **normalizations(sessions)}
    kept["readouts"] = readouts(tuned, sessions) or facts.get("readouts", {})
    save_student(tuned, out, {**kept, "finetuned_from": ranges.checkpoint_sha256})
    return tuned, after


def preset_of(size: StudentSize) -> Preset:
    """How a student of this size is trained: by the packaged preset of that size, else as `edge`."""
    presets = (load_preset(name) for name in preset_names())
    return next((preset for preset in presets if preset.student == size), load_preset("edge"))


def ranked(student: Student, ranges: Ranges, session: TrainingSession) -> Ranking:
    """Parts of the step and the R² lost on a session when each alone is quantized, largest first."""
    from edgedistill.quantization.sensitivity import rank_parts

    readout, _ = score_student(student, "deployed", session)
    return tuple(rank_parts(student, ranges.values, session, "lfp", readout))


def draw_ranking(ranking: Ranking, path: Path) -> None:
    """A bar a part, the costliest on top; the format by the ending of `path`."""
    from matplotlib.figure import Figure

    parts, lost = zip(*reversed(ranking), strict=True)
    figure = Figure(figsize=(7, 1 + 0.25 * len(parts)), layout="constrained")
    axes = figure.add_subplot(
        xlabel="R² lost on the validation block when this part alone is INT8 (below 0: gained)",
        title="What each part costs; a few 0.0001 are noise",
    )
    axes.barh(parts, lost)
    axes.locator_params(axis="x", nbins=5)
    axes.ticklabel_format(axis="x", style="sci", scilimits=(-3, 3))
    axes.axvline(0, color="black", linewidth=0.8)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        figure.savefig(partial, dpi=150)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
