"""The spike teacher: masked autoencoding over many sessions, and its latents for the student to follow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from edgedistill.config import TeacherSize, TrainingConfig
from edgedistill.errors import RecordingError
from edgedistill.models.teacher import PatchAutoencoder
from edgedistill.training.batches import (
    TrainingSession,
    draw_segments,
    pick_session,
    random_for,
    standardise,
)
from edgedistill.training.loop import Progress, fit

VALIDATION_SEGMENTS = 8


def train_teacher(
    sessions: Sequence[TrainingSession],
    size: TeacherSize,
    config: TrainingConfig,
    seed: int,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> PatchAutoencoder:
    """A spike teacher trained on the training blocks of all `sessions`."""
    return train_autoencoder(sessions, "counts", size, config, seed, checkpoint, progress)


def train_autoencoder(
    sessions: Sequence[TrainingSession],
    part: str,
    size: TeacherSize,
    config: TrainingConfig,
    seed: int,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> PatchAutoencoder:
    """Masked autoencoder on `counts` (the teacher) or `lfp` (the bidirectional baseline)."""
    torch.manual_seed(seed)
    model = PatchAutoencoder(size, {s.id: part_of(s, part).shape[1] for s in sessions}, part == "counts")

    def step_loss(step: int) -> Tensor:
        random = random_for(seed, step)
        session = pick_session(sessions, random)
        (bins,) = draw_segments(session, [part_of(session, part)], config, random)
        return model.masked_loss(session.id, bins, random)

    def validation_loss() -> float:
        return sum(validate_masked(model, s, part_of(s, part), config) for s in sessions) / len(sessions)

    fit(model, step_loss, validation_loss, config, checkpoint, progress)
    return model


def part_of(session: TrainingSession, part: str) -> Tensor:
    """`counts` or `lfp` of a session; RecordingError when it holds none."""
    value = session.counts if part == "counts" else session.lfp
    if value is None:
        raise RecordingError(
            f"session {session.id} holds no {'units' if part == 'counts' else 'LFP'}",
            next_step="leave it out of this stage",
        )
    return value


def validate_masked(
    model: PatchAutoencoder, session: TrainingSession, bins: Tensor, config: TrainingConfig
) -> float:
    """Masked loss on the validation block, the same masks at every call."""
    block = bins[session.split.validation]
    length = min(config.segment_bins, len(block))
    segments = block.unfold(0, length, length).transpose(1, 2)[:VALIDATION_SEGMENTS]
    return model.masked_loss(session.id, segments, random_for(0, -1)).item()


@torch.no_grad()
def bidirectional_latents(
    model: PatchAutoencoder, session: str, bins: Tensor, segment_bins: int, batch: int = 16
) -> Tensor:
    """(T, channels) -> (T, d): overlapping segments, of each the middle half, so that every bin has context."""
    total, length = len(bins), min(segment_bins, len(bins))
    hop = max(1, length // 2)
    starts = [*range(0, total - length, hop), total - length]
    out = torch.empty(total, model.size.d)
    for i in range(0, len(starts), batch):
        group = starts[i : i + batch]
        latents = model.latents(session, torch.stack([bins[s : s + length] for s in group]))
        for start, latent in zip(group, latents, strict=True):
            first = 0 if start == 0 else length // 4
            out[start + first : start + length] = latent[first:]
    return out


def teacher_targets(
    teacher: PatchAutoencoder, sessions: Sequence[TrainingSession], config: TrainingConfig
) -> dict[str, Tensor]:
    """Latents (T, d) of every session that has units, centred and scaled on its training block.

    Centred, because a constant shared direction would make every cosine high and every gradient small.
    """
    return {
        s.id: standardise(
            bidirectional_latents(teacher, s.id, part_of(s, "counts"), config.segment_bins), s.split.train
        )
        for s in sessions
    }
