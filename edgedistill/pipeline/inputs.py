"""What a build begins with: settings, a place to write to, sessions read once, a teacher from an earlier run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from edgedistill.config import Preset, TrainingConfig
from edgedistill.data.bins import (
    SessionBins,
    bins_from_recording,
    file_sha256,
    load_session_bins,
    save_session_bins,
)
from edgedistill.data.recording import open_recording
from edgedistill.data.session_files import find_session_files
from edgedistill.data.session_loading import combine_sessions
from edgedistill.errors import EdgeDistillError, OutputError, RecordingError, did_you_mean
from edgedistill.models.files import load_teacher
from edgedistill.models.teacher import PatchAutoencoder
from edgedistill.pipeline.cache import Cache
from edgedistill.training.batches import TrainingSession, find_unlabelled_block


def shortened(preset: Preset, steps: int | None) -> Preset:
    """The preset with every stage capped at `steps` optimizer steps."""
    if steps is None:
        return preset

    def capped(config: TrainingConfig) -> TrainingConfig:
        few = min(steps, config.steps)
        return replace(config, steps=few, eval_every=max(1, min(config.eval_every, few // 4)))

    return replace(preset, training=capped(preset.training), teacher_training=capped(preset.teacher_training))


def require_writable(out: Path) -> None:
    """Found out before the training, not after it."""
    if not out.name:
        raise OutputError(f"{out}: not a name for a result", next_step="choose another --out, such as decoder.edge")
    probe = out.with_name(f".{out.name}.probe")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(
            f"cannot write to {out.parent}",
            got=error.strerror or str(error),
            causes=["the folder is read-only", "the disk is full"],
            next_step="choose another --out",
        ) from error


def require_folder(out: Path) -> None:
    """`require_writable` for a model, which is a folder."""
    require_writable(out)
    if out.exists() and not out.is_dir():
        raise OutputError(
            f"{out}: there is a file here",
            expected="a path that is free, or the folder of a model to replace",
            next_step="choose another --out",
        )


def read_sessions(
    cache: Cache,
    data: Sequence[Path],
    behavior: str | None,
    line_hz: float,
    need: tuple[str, ...] = ("lfp", "units", "behavior"),
    also: tuple[str, ...] = (),
) -> list[SessionBins]:
    """Every NWB file of `data` on the bin clock; a file that was read before is not read again."""
    sessions = []
    for path in find_session_files(list(data)):

        def make(folder: Path, path: Path = path) -> None:
            with open_recording(path, behavior=behavior) as recording:
                bins = bins_from_recording(recording, need=need, also=also, line_hz=line_hz)
            save_session_bins(bins, folder / "bins.npz")

        recipe = [file_sha256(path), behavior, line_hz, need, also]
        kept = load_session_bins(cache.stage(f"read-{path.stem}", recipe, make) / "bins.npz")
        sessions.append(replace(kept, path=str(path)))
    return combine_sessions(sessions)


def choose_session(sessions: Sequence[TrainingSession], wanted: str | None) -> TrainingSession:
    """The session the bundle decodes: `wanted`, or the latest."""
    if wanted is None:
        return sessions[-1]
    known = {session.id: session for session in sessions}
    if wanted not in known:
        raise RecordingError(f"unknown session '{wanted}'", expected=did_you_mean(wanted, known))
    return known[wanted]


def require_labels(session: TrainingSession, path: str) -> None:
    """RecordingError, before the training, where no read-out of `session` could be fitted and scored."""
    if block := find_unlabelled_block(session):
        raise RecordingError(
            f"{path}: no known behavior in the {block} block",
            got="less than one second of it without NaN",
            expected="known behavior over the whole session: its training, validation and test blocks",
            causes=["tracking began late or was lost", "the behavior is that of a part of the recording"],
            next_step="choose another session with --session, or another series with --behavior",
        )


def provenance(bins: Sequence[SessionBins]) -> dict[str, Any]:
    """Which files the run saw, and the versions of what computed on them."""
    versions = {package: metadata.version(package) for package in ("torch", "numpy", "scipy", "onnx", "onnxruntime")}
    return {"sessions": {b.session_id: b.sha256 for b in bins}, "versions": versions}


def known_teacher(folder: Path, sessions: Sequence[TrainingSession]) -> PatchAutoencoder:
    """The teacher in `folder`, which must have a tokenizer for each session."""
    teacher, _ = load_teacher(folder)
    missing = [s.id for s in sessions if teacher.channels.get(s.id) != s.inputs("spikes").shape[1]]
    if missing:
        raise EdgeDistillError(
            f"the teacher in {folder} does not know every session",
            got=f"unknown, or with other units: {', '.join(missing)}",
            expected=f"some of {', '.join(teacher.channels)}",
            next_step="edgedistill pretrain with these sessions, or leave them out",
        )
    return teacher
