"""The teacher without a future: its latent of the last bin of a window, and a read-out fitted on just that.

A probe on bidirectional latents says how much of movement spikes hold; in a closed loop the last bin of the window is
all there is. Windows before the start of a recording are filled with zeros: the mean count.
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
from edgedistill.training.evaluate import Readout, behavior_of, fit_readout

WINDOWS = 1500  # that the read-out is fitted on, evenly over training and validation block
BATCH = 32


@torch.no_grad()
def window_latents(
    teacher: PatchAutoencoder, session: str, bins: Tensor, ends: Sequence[int] | npt.NDArray[np.int64], window: int
) -> Tensor:
    """(len(ends), d): of each bin in `ends`, the last of a window of `window` bins (T, U)."""
    device = next(teacher.parameters()).device
    padded = torch.cat([torch.zeros(window - 1, bins.shape[1]), bins])
    at = torch.as_tensor(np.asarray(ends))[:, None] + torch.arange(window)
    batches = [padded[part].to(device) for part in at.split(BATCH)]
    return torch.cat([teacher.latents(session, batch)[:, -1].cpu() for batch in batches])


def last_bin_readout(teacher: PatchAutoencoder, session: TrainingSession, window: int) -> Readout:
    """Kinematics from the latent of a window's last bin: ridge, penalty by the validation block."""
    train, validation = session.split.train, session.split.validation
    bins = session.inputs("spikes" if teacher.counts else "lfp")
    share = WINDOWS / (train.stop - session.settled + validation.stop - validation.start)
    every = max(1, round(1 / share))
    ends = [np.arange(session.settled, train.stop, every), np.arange(validation.start, validation.stop, every)]
    features = window_latents(teacher, session.id, bins, np.concatenate(ends), window).double().numpy()
    count = len(features)
    split = Split(slice(0, len(ends[0])), slice(len(ends[0]), count), slice(count, count))
    return fit_readout(features, behavior_of(session)[np.concatenate(ends)], split)
