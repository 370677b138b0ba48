"""Runs `edgedistill calibrate`, which finds the INT8 ranges of a student that `edgedistill distill` made.

These are the same steps as in `build`. The sessions are read, the ranges are found, the student is fine-tuned if the
recipe says so, and the parts of the step are ranked by the R² that their quantization costs. A session that the student
was not trained on is normalized with its own statistics, if the student knows its array.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic

from edgedistill.config import Preset, StudentSize, load_preset, preset_names
from edgedistill.data.bins import SessionBins
from edgedistill.data.candidates import NO_NAMES, SeriesNames
from edgedistill.data.opening.catalogue import ONE_BY_ONE, ReadingOptions
from edgedistill.files import atomic_write, require_no_input
from edgedistill.models.files import hash_checkpoint
from edgedistill.models.student import Student
from edgedistill.models.teacher import PatchAutoencoder
from edgedistill.pipeline.cache import Cache
from edgedistill.pipeline.early_checks import require_folder, require_labels, require_writable
from edgedistill.pipeline.inputs import read_catalogue
from edgedistill.pipeline.pretrained_student import (
    PretrainedStudent,
    fit_readouts,
    load_pretrained_student,
    save_pretrained_student,
    standardizations_of,
)
from edgedistill.pipeline.ranges import FineTuning, finetune, window_progress
from edgedistill.pipeline.run_context import Progress, Run, provenance_of
from edgedistill.pipeline.teacher import load_known_teacher, targets_from_teacher
from edgedistill.quantization.calibration.range_search import calibrate
from edgedistill.quantization.calibration.ranges import (
    Ranges,
    choose_four_bit_parts,
    require_recipe_fits,
    shape_from_size,
)
from edgedistill.quantization.calibration.recipe import DEFAULT_RECIPE, Recipe, load_recipe, require_teacher
from edgedistill.reserved import reserving, work_folder
from edgedistill.scratch import with_scratch
from edgedistill.training.batches import TrainingSession, compute_gap, find_unlabelled_block, training_session_from_bins
from edgedistill.training.student_tasks import score_student
from edgedistill.training.teacher_targets import TeacherTargets

Ranking = tuple[tuple[str, float], ...]  # name of a part, R² lost when only this part is quantized


@dataclass(frozen=True)
class CalibrationOptions:
    """Holds the options of `edgedistill calibrate`."""

    run: Path
    data: tuple[Path, ...]
    out: Path
    recipe: str = DEFAULT_RECIPE
    teacher: Path | None = None
    seed: int = 0
    names: SeriesNames = NO_NAMES
    line_hz: float = 60
    reading: ReadingOptions = ONE_BY_ONE
    sensitivity: bool = False
    figure: Path | None = None


@dataclass(frozen=True)
class CalibrationResult:
    """Says where the ranges are, and what else was computed or written."""

    out: Path
    ranges: Ranges
    student: Path | None  # the folder of the fine-tuned student
    sensitivity: Ranking | None
    figure: Path | None
    seconds: float
    read: tuple[dict[str, object], ...] = ()  # how each session was read
    skipped: tuple[dict[str, object], ...] = ()  # files that were left out, with the reason

    def to_json(self) -> dict[str, object]:
        """Returns the answer of `edgedistill calibrate --json`, which docs/json.md describes."""
        found = self.ranges.to_json()
        ranking = None if self.sensitivity is None else [{"part": p, "r2_drop": r2} for p, r2 in self.sensitivity]
        return {
            "out": str(self.out),
            "recipe": self.ranges.recipe.name,
            "read": list(self.read),
            "skipped": list(self.skipped),
            **{key: found[key] for key in ("checkpoint_sha256", "sessions", "table", "windows", "left_out")},
            "windows_asked": self.ranges.recipe.windows,
            "student": self.student,
            "sensitivity": ranking,
            "figure": self.figure,
            "seconds": self.seconds,
        }


@dataclass(frozen=True, eq=False)
class CalibrationRequest:
    """Holds the options of `edgedistill calibrate` with all files loaded and checked."""

    options: CalibrationOptions
    recipe: Recipe
    pretrained: PretrainedStudent
    run: Run
    sessions: tuple[TrainingSession, ...]
    teacher: PatchAutoencoder | None  # None where the recipe does not fine-tune
    ranked_on: TrainingSession | None  # the session that --sensitivity scores, None without that option


@reserving(lambda options: (options.out, work_folder(options.out)))
@with_scratch(lambda options: options.out.parent)
def calibrate_run(options: CalibrationOptions, progress: Progress | None = None) -> CalibrationResult:
    """Writes the ranges of the student in `options.run` to `options.out`, and the fine-tuned student beside them.

    Raises an EdgeDistillError for options or files that are misspelt, missing or do not fit together, and OutputError
    for a result that cannot be written.
    """
    start = monotonic()
    request = check_request(options, progress)
    student, ranges = find_ranges(request)
    tuned = None
    if request.teacher is not None:
        tuned = student_of(options)
        targets = targets_from_teacher(request.run, request.teacher, request.sessions)
        student, ranges = finetune_pretrained(request, student, ranges, targets)
        save_pretrained_student(finetuned_student(request, student), tuned)
    ranges.write(options.out)
    ranking = figure = None
    if request.ranked_on is not None:
        ranking, figure = rank_student(student, ranges, request.ranked_on), chart_of(options)
        draw_ranking(ranking, figure)
    origin = request.run.provenance
    seconds = monotonic() - start
    return CalibrationResult(options.out, ranges, tuned, ranking, figure, seconds, origin.readings, origin.skipped)


def check_request(options: CalibrationOptions, progress: Progress | None) -> CalibrationRequest:
    """Returns the request for `options`. Raises here, before the calibration, every error that can be found by then."""
    recipe = load_recipe(options.recipe)
    require_teacher(recipe, options.teacher)
    for path in {options.out, chart_of(options)}:
        require_writable(path)
        require_no_input(path, [*options.run.glob("*"), *options.data])
    if recipe.finetune is not None:
        require_folder(student_of(options))
    pretrained = load_pretrained_student(options.run)
    size = pretrained.student.size
    require_recipe_fits(shape_from_size(size), recipe)
    cache = Cache(work_folder(options.out))
    need = ("lfp", "units") if recipe.finetune else ("lfp",)
    how = (options.names, options.line_hz, pretrained.band_power, options.reading)
    catalogue = read_catalogue(cache, options.data, *how, need=need, also=("behavior",))
    bins = catalogue.sessions
    gap = compute_gap(bins, size)
    sessions = pretrained.as_taught([training_session_from_bins(b, gap) for b in bins])
    ranked_on = last_labelled_session(bins, sessions) if options.sensitivity else None
    run = Run(cache, preset_of(size), options.seed, provenance_of(bins, catalogue.skipped), progress)
    teacher = None
    if recipe.finetune is not None and options.teacher is not None:
        teacher = load_known_teacher(options.teacher, sessions)
    return CalibrationRequest(options, recipe, pretrained, run, sessions, teacher, ranked_on)


def find_ranges(request: CalibrationRequest) -> tuple[Student, Ranges]:
    """Returns the student, adapted to all sessions, and its ranges.

    Labels of sessions that are new to it are not used.
    """
    run, pretrained = request.run, request.pretrained
    student = pretrained.adapted_to_all(request.sessions)
    seen = pretrained.without_new_labels(request.sessions)
    ranges = calibrate(student, seen, "lfp", request.recipe, run.seed, window_progress(run, "calibrate"))
    hashes: dict[str, str | None] = dict(run.provenance.sessions)
    return student, replace(ranges, sessions=hashes, checkpoint_sha256=hash_checkpoint(pretrained.student))


def finetune_pretrained(
    request: CalibrationRequest, student: Student, ranges: Ranges, targets: TeacherTargets
) -> tuple[Student, Ranges]:
    """Returns the fine-tuned student and its ranges. An interrupted fine-tuning continues from its checkpoint."""
    pretrained, sessions = request.pretrained, request.sessions
    tuning = FineTuning(
        student_name=pretrained.task_name,
        task=pretrained.task,
        student=student,
        ranges=ranges,
        calibrated_on=pretrained.without_new_labels(sessions),
        sessions=sessions,
        targets=targets,
    )
    return finetune(request.run, tuning)


def finetuned_student(request: CalibrationRequest, tuned: Student) -> PretrainedStudent:
    """Returns the fine-tuned student with the facts of the student before it, extended by the new sessions."""
    pretrained, sessions = request.pretrained, request.sessions
    return replace(
        pretrained,
        student=tuned,
        arrays=tuned.tokenizer.arrays,
        standardizations={**pretrained.standardizations, **standardizations_of(sessions)},
        readouts=fit_readouts(tuned, sessions) or pretrained.readouts,
        finetuned_from=hash_checkpoint(pretrained.student),
    )


def student_of(options: CalibrationOptions) -> Path:
    """Returns the folder of the fine-tuned student, which is beside the ranges."""
    return options.out.with_suffix(".student")


def chart_of(options: CalibrationOptions) -> Path:
    """Returns the path of the bar chart of --sensitivity, which is beside the ranges unless --figure names another."""
    return options.figure or options.out.with_suffix(".png")


def last_labelled_session(bins: Sequence[SessionBins], sessions: Sequence[TrainingSession]) -> TrainingSession:
    """Returns the latest session with behavior in all blocks. Raises RecordingError where there is none."""
    for session in reversed(sessions):
        if find_unlabelled_block(session) is None:
            return session
    require_labels(sessions[-1], bins[-1])
    raise AssertionError("unreachable")


def preset_of(size: StudentSize) -> Preset:
    """Returns the packaged preset with a student of this size, or `edge` if there is none."""
    presets = (load_preset(name) for name in preset_names())
    return next((preset for preset in presets if preset.student == size), load_preset("edge"))


def rank_student(student: Student, ranges: Ranges, session: TrainingSession) -> Ranking:
    """Returns each part of the step with the R² lost when only it is quantized by the recipe, largest loss first."""
    from edgedistill.quantization.sensitivity import rank_parts

    readout, _ = score_student(student, "deployed", session)
    four = choose_four_bit_parts(shape_from_size(student.size), ranges.recipe)
    return tuple(rank_parts(student, ranges.values, session, "lfp", readout, four))


def draw_ranking(ranking: Ranking, path: Path) -> None:
    """Draws one bar for each part, the largest loss on top. The suffix of `path` is the format. Raises OutputError."""
    from matplotlib.figure import Figure

    parts, lost = zip(*reversed(ranking), strict=True)
    figure = Figure(figsize=(7, 1 + 0.25 * len(parts)), layout="constrained")
    axes = figure.add_subplot(
        xlabel="R² lost on the validation block when this part alone is quantized (below 0: gained)",
        title="What each part costs; a few 0.0001 are noise",
    )
    axes.barh(parts, lost)
    axes.locator_params(axis="x", nbins=5)
    axes.ticklabel_format(axis="x", style="sci", scilimits=(-3, 3))
    axes.axvline(0, color="black", linewidth=0.8)
    with atomic_write(path, "the chart") as partial:
        figure.savefig(partial, dpi=150)
