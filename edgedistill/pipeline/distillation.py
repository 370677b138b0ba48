"""Runs `edgedistill distill`, which trains an LFP student on sessions to follow a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from edgedistill import ranks
from edgedistill.config import DEFAULT_ALIGNMENT, Alignment
from edgedistill.data.candidates import NO_NAMES, SeriesNames
from edgedistill.data.opening.catalogue import ONE_BY_ONE, ReadingOptions
from edgedistill.errors import ConfigError, RecordingError
from edgedistill.pipeline.cache import Cache
from edgedistill.pipeline.early_checks import require_folder, require_label_minutes, require_labels
from edgedistill.pipeline.inputs import read_catalogue
from edgedistill.pipeline.pretrained_student import (
    PretrainedStudent,
    fit_readouts,
    outputs_of,
    save_pretrained_student,
    standardizations_of,
)
from edgedistill.pipeline.result import TrainingSummary, mean_or_none
from edgedistill.pipeline.run_context import Progress, Run, choose_preset, provenance_of
from edgedistill.pipeline.searched_students import Judging, choose_student, trials_to_json
from edgedistill.pipeline.spike_labels import label_from_spikes
from edgedistill.pipeline.teacher import load_known_teacher, targets_from_teacher
from edgedistill.reserved import reserving, work_folder
from edgedistill.scratch import with_scratch
from edgedistill.training.batches import (
    TrainingSession,
    compute_gap,
    find_unlabelled_block,
    training_session_from_bins,
)
from edgedistill.training.few_labels import FewLabels, withhold_labels
from edgedistill.training.output_filter import KALMAN
from edgedistill.training.student_tasks import score_student
from edgedistill.training.study import require_trials


@dataclass(frozen=True)
class DistillOptions:
    """Holds the options of `edgedistill distill`. With `supervised`, behavior is part of the objective.

    With `label_minutes`, the labels that are learned from are those of the latest session.
    """

    data: tuple[Path, ...]
    teacher: Path
    out: Path
    preset: str = "edge"
    steps: int | None = None
    seed: int = 0
    names: SeriesNames = NO_NAMES
    line_hz: float = 60
    reading: ReadingOptions = ONE_BY_ONE
    supervised: bool = False
    alignment: Alignment | None = None  # None: DEFAULT_ALIGNMENT
    bands: str = "preset"  # what the student sees beside the slow LFP: that of the preset, or "none"
    label_minutes: float | None = None  # of behavior that is learned from; None: all of all sessions
    trials: int = 1  # settings that are tried; 1: those of the preset


@reserving(lambda options: (options.out, work_folder(options.out)))
@with_scratch(lambda options: options.out.parent)
def distill(options: DistillOptions, progress: Progress | None = None) -> TrainingSummary:
    """Trains the LFP student of the sessions and writes it to the folder `options.out`.

    Raises RecordingError for a session without LFP, units or, if supervised, behavior. Raises EdgeDistillError for a
    teacher that was not trained on every session, and OutputError.
    """
    start, out = monotonic(), options.out
    preset = choose_preset(options.preset, options.steps, options.bands)
    ranks.lead(lambda: require_folder(out))
    if options.label_minutes is not None and not options.supervised:
        raise ConfigError(
            "--label-minutes says how much behavior a training sees",
            got="no --supervised, so this training sees none",
            next_step="add --supervised, or leave --label-minutes out",
        )
    require_label_minutes(options.label_minutes)
    require_trials(options.trials)
    cache = Cache(work_folder(out))
    need = ("lfp", "units", "behavior") if options.supervised else ("lfp", "units")
    how = (options.names, options.line_hz, preset.band_power, options.reading)
    catalogue = read_catalogue(cache, options.data, *how, need=need, also=("behavior",))
    bins = catalogue.sessions
    gap = compute_gap(bins, preset.student)
    sessions = [training_session_from_bins(b, gap) for b in bins]
    if options.label_minutes is not None:
        require_labels(sessions[-1], bins[-1])
    few = None if options.label_minutes is None else FewLabels(sessions[-1].id, options.label_minutes)
    sessions = list(withhold_labels(sessions, sessions[-1], options.label_minutes))
    run = Run(cache, preset, options.seed, provenance_of(bins, catalogue.skipped), progress, options.trials)
    if few is not None:
        sessions[-1] = label_from_spikes(run, sessions[-1]).session
    labelled = tuple(session for session in sessions if find_unlabelled_block(session) is None)
    if options.trials > 1:
        require_judges(labelled)
    targets = targets_from_teacher(run, load_known_teacher(options.teacher, sessions), sessions)
    task_name = "deployed" if options.supervised else "distilled"
    judging = Judging(labelled, KALMAN)
    alignment = options.alignment or DEFAULT_ALIGNMENT
    chosen = choose_student(run, task_name, sessions, targets, alignment, judging)
    ranks.release()
    student = chosen.student
    with_behavior = [b for b in bins if b.behavior is not None]
    pretrained = PretrainedStudent(
        student=student,
        task_name=task_name,
        task=chosen.task,
        arrays=student.tokenizer.arrays,
        standardizations=standardizations_of(sessions),
        readouts=fit_readouts(student, sessions),
        outputs=outputs_of(with_behavior[-1]) if with_behavior else None,
        provenance=run.provenance,
        band_power=preset.band_power,
        few_labels=few,
        trials=chosen.trials,
    )
    save_pretrained_student(pretrained, out)
    return TrainingSummary(
        out=out,
        sessions=tuple(session.id for session in sessions),
        steps=preset.training.steps,
        probe_r2=mean_or_none([score_student(student, task_name, session)[1].r2 for session in labelled]),
        seconds=monotonic() - start,
        read=run.provenance.readings,
        skipped=run.provenance.skipped,
        search=trials_to_json({task_name: chosen.trials}),
    )


def require_judges(labelled: Sequence[TrainingSession]) -> None:
    """Raises RecordingError where no session has labels on which a search could be judged."""
    if not labelled:
        raise RecordingError(
            "--trials chooses settings by what is decoded on validation blocks",
            got="no session with known behavior in all three of its blocks",
            next_step="leave out --trials, or name the behavior with --behavior",
        )
