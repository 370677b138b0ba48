"""Runs `edgedistill pretrain`, which trains a spike teacher on sessions."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic

from edgedistill import ranks
from edgedistill.config import NO_BANDS
from edgedistill.data.candidates import NO_NAMES, SeriesNames
from edgedistill.data.opening.catalogue import ONE_BY_ONE, ReadingOptions
from edgedistill.models.files import replace_model, save_teacher
from edgedistill.pipeline.cache import Cache
from edgedistill.pipeline.early_checks import require_folder
from edgedistill.pipeline.inputs import read_catalogue
from edgedistill.pipeline.result import TrainingSummary, mean_or_none
from edgedistill.pipeline.run_context import Progress, Run, choose_preset, provenance_of
from edgedistill.pipeline.teacher import teacher_from_sessions
from edgedistill.reserved import reserving, work_folder
from edgedistill.scratch import with_scratch
from edgedistill.training.batches import compute_gap, find_unlabelled_block, training_session_from_bins
from edgedistill.training.student_tasks import score_teacher


@dataclass(frozen=True)
class PretrainOptions:
    """Holds the options of `edgedistill pretrain`."""

    data: tuple[Path, ...]
    out: Path
    preset: str = "edge"
    steps: int | None = None
    seed: int = 0
    names: SeriesNames = NO_NAMES
    line_hz: float = 60
    reading: ReadingOptions = ONE_BY_ONE


@reserving(lambda options: (options.out, work_folder(options.out)))
@with_scratch(lambda options: options.out.parent)
def pretrain(options: PretrainOptions, progress: Progress | None = None) -> TrainingSummary:
    """Trains the spike teacher of the sessions and writes it to the folder `options.out`.

    The sessions need units, but neither LFP nor behavior. Raises RecordingError for a session without units, and
    OutputError.
    """
    start, out = monotonic(), options.out
    preset = choose_preset(options.preset, options.steps)
    ranks.lead(lambda: require_folder(out))
    cache = Cache(work_folder(out))
    how = (options.names, options.line_hz, NO_BANDS, options.reading)
    catalogue = read_catalogue(cache, options.data, *how, need=("units",), also=("lfp", "behavior"))
    bins = catalogue.sessions
    gap = compute_gap(bins, preset.student)
    sessions = [training_session_from_bins(b, gap) for b in bins]
    run = Run(cache, preset, options.seed, provenance_of(bins, catalogue.skipped), progress)
    teacher = teacher_from_sessions(run, sessions)
    ranks.release()
    config = preset.teacher_training
    with replace_model(out) as hidden:
        save_teacher(teacher, hidden, {"config": asdict(config), "gap_bins": gap, **run.provenance.to_json()})
    labelled = [session for session in sessions if find_unlabelled_block(session) is None]
    return TrainingSummary(
        out=out,
        sessions=tuple(session.id for session in sessions),
        steps=config.steps,
        probe_r2=mean_or_none([score_teacher(teacher, session, config.segment_bins).r2 for session in labelled]),
        seconds=monotonic() - start,
        read=run.provenance.readings,
        skipped=run.provenance.skipped,
        units=tuple(session.inputs("spikes").shape[1] for session in sessions),
    )
