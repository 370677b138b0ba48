"""What `build` is asked for, and the same after everything was checked that can be refused before the training.

`BuildOptions` go in as the user gave them. A `BuildRequest` comes out: settings loaded, sessions read, a teacher and a
student of earlier runs opened, and all of it known to fit together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgedistill.bundle import refuse_foreign, zip_path
from edgedistill.compile.c.toolchain import find_toolchain
from edgedistill.compile.engines import require_engine_fits
from edgedistill.config import StudentSize, load_preset
from edgedistill.data.bins import SessionBins
from edgedistill.errors import ConfigError, EdgeDistillError, did_you_mean
from edgedistill.models.files import checkpoint_sha256
from edgedistill.models.teacher import PatchAutoencoder
from edgedistill.pipeline.cache import Cache
from edgedistill.pipeline.early_checks import choose_session, require_labels, require_writable
from edgedistill.pipeline.inputs import read_sessions
from edgedistill.pipeline.pretrained_student import PretrainedStudent, load_pretrained_student, outputs_of
from edgedistill.pipeline.ranges import can_read, require_tuning_sessions
from edgedistill.pipeline.run_context import Progress, Run, provenance_of, shorten_preset
from edgedistill.pipeline.teacher import load_known_teacher
from edgedistill.quantization.calibration.ranges import Ranges, plain_shape, read_ranges
from edgedistill.quantization.calibration.recipe import DEFAULT_RECIPE, Recipe, load_recipe, require_teacher
from edgedistill.quantization.integers import require_parts
from edgedistill.target import Target, load_target, require_buildable
from edgedistill.training.adapt import MODES, require_known_array
from edgedistill.training.batches import TrainingSession, gap_for, training_session


@dataclass(frozen=True)
class BuildOptions:
    """What `edgedistill build` was asked for; `steps` caps the optimizer steps of each stage."""

    target: str
    data: tuple[Path, ...]
    out: Path
    preset: str = "edge"
    session: str | None = None
    baselines: bool = False
    steps: int | None = None
    seed: int = 0
    teacher: Path | None = None
    student: Path | None = None
    adapt: str = "stats"
    probe: bool = False
    behavior: str | None = None
    line_hz: float = 60
    work: Path | None = None
    recipe: str = DEFAULT_RECIPE
    ranges: Path | None = None  # of `calibrate`, for the student of `student`
    ship: bool = False  # also as one zip, beside the bundle


@dataclass(frozen=True, eq=False)
class BuildRequest:
    """What `build` was asked for, loaded and checked."""

    options: BuildOptions
    target: Target
    run: Run
    bins: SessionBins  # of the session that the bundle decodes
    session: TrainingSession  # the same for training
    sessions: tuple[TrainingSession, ...]  # all, this one included
    recipe: Recipe
    teacher: PatchAutoencoder | None  # of --teacher
    student: PretrainedStudent | None  # of --student
    ranges: Ranges | None  # of --ranges, for that student

    @property
    def may_use_labels(self) -> bool:
        """Whether the decoder may use labels of the session: a student adapted to a new day needs --probe for it."""
        return self.student is None or self.options.probe or self.student.has_session(self.session)


def checked_request(options: BuildOptions, progress: Progress | None = None) -> BuildRequest:
    """Returns the request for `options`; whatever can be refused before the training is refused here, by its error."""
    target = load_target(options.target)
    require_buildable(target)
    if target.engine == "c" and options.out.suffix != ".zip":
        find_toolchain(target)
    preset = shorten_preset(load_preset(options.preset), options.steps)
    require_free_out(options)
    if options.adapt not in MODES:
        raise ConfigError(f"unknown adaptation '{options.adapt}'", expected=did_you_mean(options.adapt, MODES))
    student = None if options.student is None else load_pretrained_student(options.student)
    ranges = load_ranges_of(student, options.ranges)
    recipe = load_recipe(options.recipe) if ranges is None else ranges.recipe
    if student is not None and ranges is None:  # a teacher trained here is not the one it was distilled from
        require_teacher(recipe, options.teacher)
    sizes = [preset.student] if student is None else [preset.student, student.student.size]
    require_sizes_fit(target, sizes, recipe)
    cache = Cache(options.work or options.out.with_name(options.out.name + ".work"))
    bins = read_sessions(cache, options.data, options.behavior, options.line_hz)
    gap = max(gap_for(bins, size) for size in sizes)
    sessions = tuple(training_session(b, gap) for b in bins)
    session = choose_session(sessions, options.session)
    chosen = bins[sessions.index(session)]
    require_labels(session, chosen.path)
    request = BuildRequest(
        options=options,
        target=target,
        run=Run(cache, preset, options.seed, provenance_of(bins), progress),
        bins=chosen,
        session=session,
        sessions=sessions,
        recipe=recipe,
        teacher=None if options.teacher is None else load_known_teacher(options.teacher, sessions),
        student=student,
        ranges=ranges,
    )
    if student is not None:
        require_student_fits(student, request)
    return request


def require_free_out(options: BuildOptions) -> None:
    """Raises OutputError where the bundle, or its zip, could not be written or would replace something else."""
    require_writable(options.out)
    refuse_foreign(options.out)
    if options.ship:
        refuse_foreign(zip_path(options.out))


def load_ranges_of(student: PretrainedStudent | None, path: Path | None) -> Ranges | None:
    """Returns the ranges in `path`, if that was given; EdgeDistillError unless they are those of `student`."""
    if path is None:
        return None
    if student is None:
        raise EdgeDistillError(
            f"the ranges in {path} belong to a student of an earlier run",
            got="no --student",
            next_step="name the student they were found for with --student",
        )
    ranges = read_ranges(path, student.student.size)
    ranges.require_for(checkpoint_sha256(student.student), str(path))
    return ranges


def require_sizes_fit(target: Target, sizes: Sequence[StudentSize], recipe: Recipe) -> None:
    """Raises an error where a student lacks a part that the recipe keeps, or the target's engine cannot run it."""
    for size in sizes:
        require_parts(plain_shape(size), recipe.keep)
        require_engine_fits(target, size.window, recipe.keep)


def require_student_fits(student: PretrainedStudent, request: BuildRequest) -> None:
    """Raises an error where the student of --student cannot decode the session, or cannot be fine-tuned as asked."""
    session = request.session
    require_known_array(student.student, session)
    if request.may_use_labels:
        return
    student.require_readout(session, outputs_of(request.bins))
    if request.ranges is None:
        others = [s for s in request.sessions if s.id != session.id and can_read(student.student, s, "lfp")]
        require_tuning_sessions(request.recipe, others)
