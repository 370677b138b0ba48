"""Checks the options of `build`, so that everything that can be refused is refused before the training.

`BuildOptions` go in as the user gave them. A `BuildRequest` comes out, with settings loaded, sessions read, and the
teacher and student of earlier runs opened. All of these are known to fit together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgedistill import ranks
from edgedistill.bundle import load_signing_key, refuse_foreign, zip_path
from edgedistill.compile.c.toolchain import find_toolchain
from edgedistill.compile.engines import require_engine_fits
from edgedistill.config import DEFAULT_ALIGNMENT, Alignment, BandPower, StudentSize
from edgedistill.data.bins import SessionBins
from edgedistill.data.candidates import NO_NAMES, SeriesNames
from edgedistill.data.opening.catalogue import ONE_BY_ONE, ReadingOptions
from edgedistill.errors import ConfigError, EdgeDistillError, did_you_mean
from edgedistill.frontend import require_follow
from edgedistill.models.files import hash_checkpoint
from edgedistill.models.teacher import PatchAutoencoder
from edgedistill.pipeline.cache import Cache
from edgedistill.pipeline.decoder_source import EarlierStudent, NewStudent
from edgedistill.pipeline.early_checks import (
    choose_session,
    require_label_minutes,
    require_labels,
    require_writable,
)
from edgedistill.pipeline.inputs import Catalogue, read_catalogue
from edgedistill.pipeline.pretrained_student import load_pretrained_student
from edgedistill.pipeline.run_context import Progress, Run, choose_preset, provenance_of
from edgedistill.pipeline.teacher import load_known_teacher
from edgedistill.quantization.calibration.ranges import read_ranges, require_recipe_fits, shape_from_size
from edgedistill.quantization.calibration.recipe import DEFAULT_RECIPE, Recipe, load_recipe
from edgedistill.reserved import work_folder
from edgedistill.target import Target, load_target, require_buildable
from edgedistill.training.adapt import MODES
from edgedistill.training.batches import TrainingSession, compute_gap, training_session_from_bins
from edgedistill.training.few_labels import withhold_labels
from edgedistill.training.output_filter import KALMAN, KINDS
from edgedistill.training.study import require_trials

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


@dataclass(frozen=True)
class BuildOptions:
    """Holds the options of `edgedistill build`. `steps` limits the optimizer steps of each stage."""

    target: str
    data: tuple[Path, ...]
    out: Path
    preset: str = "edge"
    session: str | None = None
    baselines: bool = False
    spikes: bool = False  # whether to train models on spikes although `student` is given
    steps: int | None = None
    seed: int = 0
    teacher: Path | None = None
    student: Path | None = None
    adapt: str = "stats"
    probe: bool = False
    names: SeriesNames = NO_NAMES
    line_hz: float = 60
    reading: ReadingOptions = ONE_BY_ONE
    bands: str = "preset"  # what a new student sees beside the slow LFP: that of the preset, or "none"
    work: Path | None = None
    recipe: str = DEFAULT_RECIPE
    ranges: Path | None = None  # the file that `calibrate` wrote for `student`
    follow_s: float = 0.0  # time constant with which statistics follow the signal; 0: they stay
    alignment: Alignment | None = None  # of the students that are trained; None: DEFAULT_ALIGNMENT
    ship: bool = False  # whether to write the bundle as a zip too
    sign: Path | None = None  # the private key that signs the bundle
    smooth: str = KALMAN  # one of KINDS: how the outputs are smoothed
    label_minutes: float | None = None  # of behavior that is learned from; None: all of all sessions
    trials: int = 1  # settings that are tried for each student; 1: those of the preset

    @property
    def has_spike_models(self) -> bool:
        """Returns whether a teacher and a spike student are trained: for a new student, and where the user asks."""
        return self.student is None or self.spikes or self.baselines

    @property
    def aligned_by(self) -> Alignment:
        """Returns the alignment of the students that are trained, unless a search finds another."""
        return self.alignment or DEFAULT_ALIGNMENT


@dataclass(frozen=True, eq=False)
class BuildRequest:
    """Holds the options of `build` with all files loaded and checked."""

    options: BuildOptions
    target: Target
    run: Run
    bins: SessionBins  # the session that the bundle decodes
    session: TrainingSession  # the same session, ready for training
    sessions: tuple[TrainingSession, ...]  # all sessions, including this one; with --label-minutes, few labels
    recipe: Recipe
    teacher: PatchAutoencoder | None  # from --teacher
    decoder: NewStudent | EarlierStudent  # the student that ships
    signing_key: Ed25519PrivateKey | None  # from --sign, in memory since before the training


def check_request(options: BuildOptions, progress: Progress | None = None) -> BuildRequest:
    """Returns the request for `options`. Raises here, before the training, every error that can be found by then."""
    target = load_target(options.target)
    require_buildable(target)
    if target.engine == "c" and options.out.suffix != ".zip" and ranks.is_main():
        find_toolchain(target)
    require_follow(options.follow_s)
    require_label_minutes(options.label_minutes)
    require_trials(options.trials)
    preset = choose_preset(options.preset, options.steps, options.bands)
    ranks.lead(lambda: require_free_out(options))
    signing_key = None if options.sign is None or not ranks.is_main() else load_signing_key(options.sign)
    if options.adapt not in MODES:
        raise ConfigError(f"unknown adaptation '{options.adapt}'", expected=did_you_mean(options.adapt, MODES))
    if options.smooth not in KINDS:
        raise ConfigError(f"unknown smoothing '{options.smooth}'", expected=did_you_mean(options.smooth, KINDS))
    decoder = load_decoder_source(options)
    recipe = load_recipe(options.recipe) if decoder.ranges is None else decoder.ranges.recipe
    decoder.require_teacher(recipe, options.teacher)
    require_sizes_fit(target, decoder.sizes(preset), recipe)
    cache = Cache(work_folder(options.out, options.work))
    catalogue = read_build_sessions(cache, options, decoder.band_power(preset))
    bins = catalogue.sessions
    gap = max(compute_gap(bins, size) for size in decoder.sizes(preset))
    sessions = tuple(training_session_from_bins(b, gap) for b in bins)
    at = sessions.index(choose_session(sessions, options.session))
    require_labels(sessions[at], bins[at])
    sessions = decoder.as_taught(sessions, sessions[at])
    sessions = withhold_labels(sessions, sessions[at], options.label_minutes)
    session, chosen = sessions[at], bins[at]
    decoder.require_session(session, chosen, sessions, recipe)
    return BuildRequest(
        options=options,
        target=target,
        run=Run(cache, preset, options.seed, provenance_of(bins, catalogue.skipped), progress, options.trials),
        bins=chosen,
        session=session,
        sessions=sessions,
        recipe=recipe,
        teacher=None if options.teacher is None else load_known_teacher(options.teacher, sessions),
        decoder=decoder,
        signing_key=signing_key,
    )


def read_build_sessions(cache: Cache, options: BuildOptions, bands: BandPower) -> Catalogue:
    """Returns the bins of all sessions. Units that no model needs are read where a file has them.

    The bins of a file are then the same as in the training of the student, and so is its test block.
    """
    needs_units = options.has_spike_models or options.teacher is not None
    need, also = (("lfp", "units", "behavior"), ()) if needs_units else (("lfp", "behavior"), ("units",))
    how = (options.names, options.line_hz, bands, options.reading)
    return read_catalogue(cache, options.data, *how, need=need, also=also)


def require_free_out(options: BuildOptions) -> None:
    """Raises OutputError where the bundle or its zip could not be written, or would replace something else."""
    require_writable(options.out)
    refuse_foreign(options.out)
    if options.ship:
        refuse_foreign(zip_path(options.out))


def load_decoder_source(options: BuildOptions) -> NewStudent | EarlierStudent:
    """Returns the source of the student that ships.

    Raises EdgeDistillError where --ranges is given without --student, or where the ranges belong to another student.
    """
    if options.student is None:
        if options.ranges is not None:
            raise EdgeDistillError(
                f"the ranges in {options.ranges} belong to a student of an earlier run",
                got="no --student",
                next_step="name the student they were found for with --student",
            )
        return NewStudent(options.aligned_by)
    refuse_training_options(options)
    pretrained, ranges = load_pretrained_student(options.student), None
    if options.bands == "none" and pretrained.band_power.bands:
        raise ConfigError(
            "the student of an earlier run keeps the bands that it was trained with",
            got=f"--bands none, and {len(pretrained.band_power.bands)} bands in {options.student}",
            next_step="leave out --bands, or distill another student with --bands none",
        )
    if options.ranges is not None:
        ranges = read_ranges(options.ranges, pretrained.student.size)
        ranges.require_for(hash_checkpoint(pretrained.student), str(options.ranges))
    return EarlierStudent(pretrained, ranges, options.adapt, options.probe)


def refuse_training_options(options: BuildOptions) -> None:
    """Raises ConfigError for an option of a training where nothing is trained: --student without models on spikes."""
    if options.has_spike_models:
        return
    named = {"--alignment": options.alignment is not None, f"--trials {options.trials}": options.trials > 1}
    if asked := [name for name, given in named.items() if given]:
        raise ConfigError(
            f"{' and '.join(asked)}: this build trains no student",
            got=f"--student {options.student}, which was trained before, without --spikes and --baselines",
            next_step="give this to `edgedistill distill`, or add --spikes or --baselines",
        )


def require_sizes_fit(target: Target, sizes: Sequence[StudentSize], recipe: Recipe) -> None:
    """Raises an error where a student lacks a part that the recipe keeps in float32, or the target cannot run it."""
    for size in sizes:
        require_recipe_fits(shape_from_size(size), recipe)
        require_engine_fits(target, size.window, recipe.keep)
