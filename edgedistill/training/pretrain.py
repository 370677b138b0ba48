"""Trains the spike teacher by masked autoencoding over many sessions, and computes the latents a student follows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from edgedistill.config import TeacherSize, TrainingConfig
from edgedistill.models.teacher import PatchAutoencoder
from edgedistill.training.batches import (
    TrainingSession,
    draw_segments,
    find_training_device,
    make_generator,
    mask_invalid,
    pick_session,
)
from edgedistill.training.loop import Progress, fit

VALIDATION_SEGMENTS = 8
TEACHER_COMPONENTS = 32


def train_teacher(
    sessions: Sequence[TrainingSession],
    size: TeacherSize,
    config: TrainingConfig,
    seed: int,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> PatchAutoencoder:
    """Trains a spike teacher on the training blocks of all `sessions`."""
    return train_autoencoder(sessions, "spikes", size, config, seed, checkpoint, progress)


def train_autoencoder(
    sessions: Sequence[TrainingSession],
    modality: str,
    size: TeacherSize,
    config: TrainingConfig,
    seed: int,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> PatchAutoencoder:
    """Trains a masked autoencoder on `spikes` (the teacher) or `lfp` (the bidirectional baseline)."""
    torch.manual_seed(seed)
    channels = {s.id: s.inputs(modality).shape[1] for s in sessions}
    model = PatchAutoencoder(size, channels, modality == "spikes")
    if modality == "spikes":  # a short training would otherwise be spent on finding the mean rates
        for session in sessions:
            rates = select_truth(session, modality)[session.split.train].nanmean(0)
            model.start_at_mean(session.id, torch.nan_to_num(rates))  # a unit may be observed in other blocks alone

    def step_loss(step: int) -> Tensor:
        random = make_generator(seed, step)
        session = pick_session(sessions, random)
        bins, truth = draw_segments(
            session, [session.inputs(modality), select_truth(session, modality)], config, random
        )
        return model.masked_loss(session.id, bins, truth, random)

    def validation_loss() -> float:
        return sum(validate_masked(model, s, modality, config) for s in sessions) / len(sessions)

    fit(model, step_loss, validation_loss, config, checkpoint, progress)
    return model


def select_truth(session: TrainingSession, modality: str) -> Tensor:
    """Returns what the masked bins are compared with: counts for spikes, the z-scored bins themselves for LFP.

    It is NaN where nothing is known.
    """
    return session.targets(modality) if session.counts is None or modality == "lfp" else session.counts


def validate_masked(model: PatchAutoencoder, session: TrainingSession, modality: str, config: TrainingConfig) -> float:
    """Returns the masked loss on the validation block, with the same masks at every call."""
    block = session.split.validation
    parts = [session.inputs(modality)[block], select_truth(session, modality)[block]]
    length = min(config.segment_bins, len(parts[0]))
    segments = (p.unfold(0, length, length).transpose(1, 2)[:VALIDATION_SEGMENTS] for p in parts)
    bins, truth = (s.to(find_training_device()) for s in segments)
    return model.masked_loss(session.id, bins, truth, make_generator(0, -1)).item()


@torch.no_grad()
def compute_bidirectional_latents(
    model: PatchAutoencoder, session: str, bins: Tensor, segment_bins: int, batch: int = 16
) -> Tensor:
    """Returns latents (T, d) of (T, channels), from segments that overlap by half.

    The middle half of each segment is kept, so that every bin has context on both sides.
    """
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


def compute_teacher_latents(
    teacher: PatchAutoencoder, sessions: Sequence[TrainingSession], config: TrainingConfig
) -> dict[str, Tensor]:
    """Returns what students of these sessions follow: the teacher's latents (T, k), whitened, by session.

    They are centred, because a constant direction makes every cosine high and every gradient small. They are the
    leading `TEACHER_COMPONENTS` principal components over all training blocks, each with unit variance, because what
    moves the hand is a small part of what the population does. No labels are used. Bins that are not valid are NaN.
    """
    length = config.segment_bins
    latents = {s.id: compute_bidirectional_latents(teacher, s.id, s.inputs("spikes"), length) for s in sessions}
    train = torch.cat([latents[s.id][s.split.train][s.valid[s.split.train]] for s in sessions])
    mean = train.mean(0)
    _, spread, directions = torch.linalg.svd(train - mean, full_matrices=False)
    kept = min(TEACHER_COMPONENTS, len(directions))
    scale = (spread[:kept] / len(train) ** 0.5).clamp(min=1e-6)
    whitened = {s.id: (latents[s.id] - mean) @ directions[:kept].T / scale for s in sessions}
    return {s.id: mask_invalid(whitened[s.id], s.valid) for s in sessions}
