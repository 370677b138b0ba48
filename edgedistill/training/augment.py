"""Changes training batches as an array changes in use: channels are lost, gains drift, and noise is added."""

from __future__ import annotations

import torch
from torch import Tensor

from edgedistill.config import TrainingConfig


def augment(bins: Tensor, config: TrainingConfig, random: torch.Generator) -> Tensor:
    """Returns z-scored (batch, bins, channels) with losses, gains and noise drawn for each segment."""
    batch, _, channels = bins.shape
    gain = torch.exp(config.gain_drift * torch.randn(batch, 1, channels, generator=random))
    kept = torch.rand(batch, 1, channels, generator=random) >= config.channel_dropout
    noise = config.noise * torch.randn(bins.shape, generator=random)
    return (bins * gain.to(bins) + noise.to(bins)) * kept.to(bins)


def hide_bins(bins: Tensor, share: float, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sets runs of 1 to 20 bins to zero until about `share` is hidden. The mask (batch, bins, 1) is 1 where hidden."""
    batch, length, _ = bins.shape
    start = torch.rand(batch, length, generator=random) < -torch.log1p(torch.tensor(-min(share, 0.99))) / 10.5
    run = torch.randint(1, 21, (batch, length), generator=random)
    ends = torch.where(start, torch.arange(length) + run, torch.zeros(()).long())
    hidden = (ends.cummax(1).values > torch.arange(length)).to(bins)[..., None]
    return bins * (1 - hidden), hidden
