"""Trains the spike teacher by masked autoencoding over many sessions, and computes its latents of whole sessions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgedistill import ranks
from edgedistill.config import TeacherSize, TrainingConfig
from edgedistill.models.batch_rows import draws_of_all, draws_of_share
from edgedistill.models.teacher import PatchAutoencoder
from edgedistill.scratch import allocate, release_pages
from edgedistill.training.batches import (
    TrainingSession,
    count_segments,
    draw_segments,
    find_training_device,
    make_generator,
    pick_session,
)
from edgedistill.training.loop import Progress, Verdict, fit

VALIDATION_SEGMENTS = 8
LAST = (-1,)


def train_teacher(
    sessions: Sequence[TrainingSession],
    size: TeacherSize,
    config: TrainingConfig,
    seed: int,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    stop: Callable[[PatchAutoencoder, int], Verdict] | None = None,
) -> PatchAutoencoder:
    """Trains a spike teacher on the training blocks of all `sessions`."""
    return train_autoencoder(sessions, "spikes", size, config, seed, checkpoint, progress, stop)


def train_autoencoder(
    sessions: Sequence[TrainingSession],
    modality: str,
    size: TeacherSize,
    config: TrainingConfig,
    seed: int,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    stop: Callable[[PatchAutoencoder, int], Verdict] | None = None,
) -> PatchAutoencoder:
    """Trains a masked autoencoder on `spikes` (the teacher) or `lfp` (the bidirectional baseline).

    `stop` sees the model at every evaluation, and says what it decodes and whether the training ends.
    """
    torch.manual_seed(seed)
    channels = {s.id: s.inputs(modality).shape[1] for s in sessions}
    model = PatchAutoencoder(size, channels, modality == "spikes")
    if modality == "spikes":  # a short training would otherwise be spent on finding the mean rates
        for session in sessions:
            rates = select_truth(session, modality)[session.split.train].nanmean(0)
            model.start_at_mean(session.id, torch.nan_to_num(rates))  # a unit may be observed in other blocks alone
            release_pages()

    def step_loss(step: int) -> Tensor:
        random = make_generator(seed, step)
        session = pick_session(sessions, random)
        bins, truth = draw_segments(
            session, [session.inputs(modality), select_truth(session, modality)], config, random
        )
        return model.masked_loss(session.id, bins, truth, draws_of_share(random, count_segments(session, config)))

    def validation_loss() -> float:
        return ranks.mean_over(sessions, lambda session: validate_masked(model, session, modality, config))

    ends = None if stop is None else lambda step: stop(model, step)
    fit(model, step_loss, validation_loss, config, checkpoint, progress, ends)
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
    loss = model.masked_loss(session.id, bins, truth, draws_of_all(make_generator(0, -1), len(bins))).item()
    release_pages()
    return loss


def compute_bidirectional_latents(
    model: PatchAutoencoder, session: str, bins: Tensor, segment_bins: int, *, depths: Sequence[int] = LAST
) -> Tensor:
    """Returns latents (T, d) of (T, channels), see `compute_over_segments`.

    Of several layers, `depths`, the latents stand side by side (T, layers * d).
    """

    def read(segments: Tensor) -> Tensor:
        layers = model.layer_latents(session, segments)
        return torch.cat([layers[depth] for depth in depths], -1)

    return compute_over_segments(read, bins, segment_bins, len(depths) * model.size.d)


def compute_teacher_features(teacher: PatchAutoencoder, session: str, bins: Tensor, segment_bins: int) -> Tensor:
    """Returns the predictor's features (T, predictor_d) of (T, units), see `compute_over_segments`.

    A student follows them, and a teacher is scored by them, because they decode more than its latents do
    (docs/decisions.md, 103).
    """
    return compute_over_segments(
        lambda segments: teacher.features(session, segments), bins, segment_bins, teacher.size.predictor_d
    )


@torch.no_grad()
def compute_over_segments(
    read: Callable[[Tensor], Tensor], bins: Tensor, segment_bins: int, width: int, *, batch: int = 16
) -> Tensor:
    """Returns (T, width) of (T, channels), where `read` turns segments (batch, n, channels) into (batch, n, width).

    The segments overlap by half, and the middle half of each is kept, so that every bin has context on both sides.
    """
    total, length = len(bins), min(segment_bins, len(bins))
    hop = max(1, length // 2)
    starts = [*range(0, total - length, hop), total - length]
    out = torch.from_numpy(allocate((total, width), np.float32))
    for i in range(0, len(starts), batch):
        group = starts[i : i + batch]
        found = read(torch.stack([bins[s : s + length] for s in group]))
        for start, rows in zip(group, found, strict=True):
            first = 0 if start == 0 else length // 4
            out[start + first : start + length] = rows[first:]
        release_pages()
    return out
