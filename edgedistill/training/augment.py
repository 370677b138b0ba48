"""Changes training batches as an array changes in use: channels and whole banks are lost, gains drift, noise is added.

It is done to standardized channels, before lost channels are filled in and the common average is subtracted, so a
student is trained on what it will see.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgedistill.config import TrainingConfig
from edgedistill.models.batch_rows import RowDraws, draws_of_share
from edgedistill.training.batches import TrainingSession, count_segments, draw_segments
from edgedistill.training.fill_in import complete

CONNECTORS = (16, 32)  # channels on one connector


def draw_augmented(
    session: TrainingSession,
    modality: str,
    parts: Sequence[Tensor],
    config: TrainingConfig,
    random: torch.Generator,
) -> list[Tensor]:
    """Draws segments of the input (batch, bins, channels) and of `parts`, with the input changed as `config` says.

    Segments that are not damaged are those of `session.inputs`. In a damaged one, a channel that is lost for a while is
    lost for the whole segment. A bin without any channel stays 0.
    """
    draws = draws_of_share(random, count_segments(session, config))
    if modality == "lfp" and (source := session.source) is not None:
        held = [session.inputs(modality), source.present, source.there, *parts]
        bins, present, there, *rest = draw_segments(session, held, config, random)
        unit = torch.where(source.gain > 0, 1 / source.gain.clamp(min=1e-6), 0).to(present)
        loudness = torch.from_numpy(source.standardization.loudness).to(present)
        changed, kept, damaged = damage(present, unit, loudness, config, draws)
        recorded = there.any(dim=2, keepdim=True)
        kept &= (there | ~recorded).all(dim=1)
        bins[damaged] = complete(source, changed[damaged], kept[damaged]) * recorded[damaged]
        return [bins, *rest]
    bins, *rest = draw_segments(session, [session.inputs(modality), *parts], config, random)
    ones = torch.ones(bins.shape[-1]).to(bins)
    changed, kept, _ = damage(bins, ones, ones[:0], config, draws)
    return [changed * kept[:, None], *rest]


def damage(
    bins: Tensor, unit: Tensor, loudness: Tensor, config: TrainingConfig, draws: RowDraws
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns bins (batch, bins, I) with drifted gains and noise, kept channels (batch, C), and damaged segments.

    A share of the segments is `damaged` (batch,), each by its own amount. `unit` (I,) is the noise of one deviation. A
    gain multiplies the slow LFP, and shifts the standardized log power of bands by `loudness` (I - C,) times its log.
    """
    channels = bins.shape[-1] - len(loudness)
    damaged = (draws.rand() < config.damaged_share).to(bins.device)
    log_gain = config.gain_drift * draws.randn(1, channels).to(bins)
    size = config.noise * draws.rand(1, 1).to(bins)
    noise = size * unit * draws.randn(*bins.shape[1:]).to(bins)
    slow, power = bins[..., :channels] * torch.exp(log_gain), bins[..., channels:]
    power = power + loudness * log_gain.repeat(1, 1, len(loudness) // channels)
    changed = torch.where(damaged[:, None, None], torch.cat([slow, power], -1) + noise, bins)
    kept = draw_kept(draws.batch, channels, config, draws.random)[draws.rows].to(bins.device) | ~damaged[:, None]
    return changed, kept, damaged


def draw_kept(batch: int, channels: int, config: TrainingConfig, random: torch.Generator) -> Tensor:
    """Draws the channels that are kept (batch, channels): single ones are lost, or a bank on one connector.

    An array of one channel has no bank.
    """
    share = config.channel_dropout * torch.rand(batch, 1, generator=random)
    kept = torch.rand(batch, channels, generator=random) >= share
    if channels == 1:
        return kept
    sizes = [size for size in sorted({channels // 4, *CONNECTORS}) if 0 < size <= channels // 2] or [1]
    for row in torch.nonzero(torch.rand(batch, generator=random) < config.bank_loss)[:, 0].tolist():
        size = sizes[int(torch.randint(len(sizes), (), generator=random))]
        start = size * int(torch.randint(channels // size, (), generator=random))
        kept[row] = True
        kept[row, start : start + size] = False
    return kept


def hide_bins(bins: Tensor, share: float, draws: RowDraws) -> tuple[Tensor, Tensor]:
    """Sets runs of 1 to 20 bins to zero until about `share` is hidden. The mask (batch, bins, 1) is 1 where hidden."""
    length = bins.shape[1]
    start = draws.rand(length) < -torch.log1p(torch.tensor(-min(share, 0.99))) / 10.5
    run = draws.randint(1, 21, length)
    ends = torch.where(start, torch.arange(length) + run, torch.zeros(()).long())
    hidden = (ends.cummax(1).values > torch.arange(length)).to(bins)[..., None]
    return bins * (1 - hidden), hidden
