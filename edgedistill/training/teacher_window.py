"""Computes the teacher's latent of the last bin of a window, and fits a read-out on that latent.

A probe on bidirectional latents says how much of a movement the spikes hold. A closed loop knows no future, so there
the teacher can decode only the last bin of a window. Windows before the start of a recording are filled with zeros,
which is the mean count.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgedistill.data.bins import Split
from edgedistill.models.teacher import PatchAutoencoder
from edgedistill.training.batches import TrainingSession
from edgedistill.training.evaluate import Readout, fit_readout, unscale_behavior

WINDOWS = 1500  # windows that the read-out is fitted on, spread evenly over training and validation block
BATCH = 32


@torch.no_grad()
def compute_window_latents(
    teacher: PatchAutoencoder, session: str, bins: Tensor, ends: Sequence[int] | npt.NDArray[np.int64], window: int
) -> Tensor:
    """Returns latents (len(ends), d) of each bin in `ends`, the last of a window of `window` bins of (T, U)."""
    device = next(teacher.parameters()).device
    padded = torch.cat([torch.zeros(window - 1, bins.shape[1]), bins])
    at = torch.as_tensor(np.asarray(ends))[:, None] + torch.arange(window)
    batches = [padded[part].to(device) for part in at.split(BATCH)]
    return torch.cat([teacher.latents(session, batch)[:, -1].cpu() for batch in batches])


def fit_last_bin_readout(teacher: PatchAutoencoder, session: TrainingSession, window: int) -> Readout:
    """Fits a read-out of kinematics from the latent of a window's last bin: ridge, penalty chosen on validation."""
    train, validation = session.split.train, session.split.validation
    bins = session.inputs("spikes" if teacher.counts else "lfp")
    share = WINDOWS / (train.stop - session.settled + validation.stop - validation.start)
    every = max(1, round(1 / share))
    ends = [np.arange(session.settled, train.stop, every), np.arange(validation.start, validation.stop, every)]
    features = compute_window_latents(teacher, session.id, bins, np.concatenate(ends), window).double().numpy()
    count = len(features)
    split = Split(slice(0, len(ends[0])), slice(len(ends[0]), count), slice(count, count))
    return fit_readout(features, unscale_behavior(session)[np.concatenate(ends)], split)
