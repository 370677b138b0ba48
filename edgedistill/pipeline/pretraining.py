"""Runs `edgedistill pretrain`, which trains a spike teacher on sessions."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic

from edgedistill.data.candidates import NO_NAMES, SeriesNames
from edgedistill.models.files import replace_model, save_teacher
from edgedistill.pipeline.cache import Cache
from edgedistill.pipeline.early_checks import require_folder
from edgedistill.pipeline.inputs import read_sessions
from edgedistill.pipeline.result import TrainingSummary, mean_or_none
from edgedistill.pipeline.run_context import Progress, Run, choose_preset, provenance_of
from edgedistill.pipeline.teacher import teacher_from_sessions
from edgedistill.reserved import reserving, work_folder
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


@reserving(lambda options: (options.out, work_folder(options.out)))
def pretrain(options: PretrainOptions, progress: Progress | None = None) -> TrainingSummary:
    """Trains the spike teacher of the sessions and writes it to the folder `options.out`.

    The sessions need units, but neither LFP nor behavior. Raises RecordingError for a session without units, and
    OutputError.
    """
    start, out = monotonic(), options.out
    preset = choose_preset(options.preset, options.steps)
    require_folder(out)
    cache = Cache(work_folder(out))
    reading = (options.names, options.line_hz)
    bins = read_sessions(cache, options.data, *reading, need=("units",), also=("lfp", "behavior"))
    gap = compute_gap(bins, preset.student)
    sessions = [training_session_from_bins(b, gap) for b in bins]
    run = Run(cache, preset, options.seed, provenance_of(bins), progress)
    teacher = teacher_from_sessions(run, sessions)
    config = preset.teacher_training
    with replace_model(out) as hidden:
        save_teacher(teacher, hidden, {"config": asdict(config), **run.provenance.to_json()})
    labelled = [session for session in sessions if find_unlabelled_block(session) is None]
    return TrainingSummary(
        out=out,
        sessions=tuple(session.id for session in sessions),
        steps=config.steps,
        probe_r2=mean_or_none([score_teacher(teacher, session, config.segment_bins).r2 for session in labelled]),
        seconds=monotonic() - start,
        read=run.provenance.readings,
        units=tuple(session.inputs("spikes").shape[1] for session in sessions),
    )
