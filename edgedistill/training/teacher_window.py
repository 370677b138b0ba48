"""Computes the teacher's latent of the last bin of a window, and fits a read-out on that latent.

A probe on features that see both sides says how much of a movement the spikes hold. A closed loop knows no future, so
there the teacher can decode only the last bin of a window. Windows before the start of a recording are filled with
zeros, which is the mean count.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgedistill.data.bins import Split
from edgedistill.models.teacher import PatchAutoencoder
from edgedistill.scratch import release_pages
from edgedistill.training.batches import TrainingSession
from edgedistill.training.evaluate import Readout, fit_readout, unscale_behavior

WINDOWS = 1500  # windows that the read-out is fitted on, spread evenly over the labels of both blocks
BATCH = 32


@torch.no_grad()
def compute_window_latents(
    teacher: PatchAutoencoder, session: str, bins: Tensor, ends: Sequence[int] | npt.NDArray[np.int64], window: int
) -> Tensor:
    """Returns latents (len(ends), d) of each bin in `ends`, the last of a window of `window` bins of (T, U)."""
    device = next(teacher.parameters()).device
    at = torch.as_tensor(np.asarray(ends))[:, None] + torch.arange(1 - window, 1)
    found = []
    for part in at.split(BATCH):
        batch = bins[part.clamp(min=0)].masked_fill((part < 0)[..., None], 0.0)
        found.append(teacher.latents(session, batch.to(device))[:, -1].clone().cpu())  # a view would keep all bins
        release_pages()
    return torch.cat(found)


def fit_last_bin_readout(teacher: PatchAutoencoder, session: TrainingSession, window: int) -> Readout:
    """Fits a read-out of kinematics from the latent of a window's last bin: ridge, penalty chosen on validation."""
    behavior, validation = unscale_behavior(session), session.split.validation
    bins = session.inputs("spikes" if teacher.counts else "lfp")
    ends = spread_ends(behavior, (slice(session.settled, session.split.train.stop), validation))
    latents = compute_window_latents(teacher, session.id, bins, np.concatenate(ends), window).double().numpy()
    count = len(latents)
    split = Split(slice(0, len(ends[0])), slice(len(ends[0]), count), slice(count, count))
    return fit_readout(latents, behavior[np.concatenate(ends)], split)


def spread_ends(behavior: npt.NDArray[np.float64], blocks: Sequence[slice]) -> list[npt.NDArray[np.int64]]:
    """Returns bins of each block that are evenly spread over those with known behavior (T, K), about WINDOWS in all.

    Each block has a part of them by its length, so that few labels of one are all used beside many of the other.
    """
    known = np.asarray(np.isfinite(behavior).all(1))
    total = sum(block.stop - block.start for block in blocks)
    ends = []
    for block in blocks:
        labelled = block.start + np.flatnonzero(known[block])
        part = WINDOWS * (block.stop - block.start) / total
        ends.append(labelled[:: max(1, round(len(labelled) / part))])
    return ends
