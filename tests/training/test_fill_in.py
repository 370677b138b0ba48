"""Training fills in lost channels as the engines do, by solving for what their steps come close to."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from edgedistill.data.spatial_fit import fit_spatial_model
from edgedistill.frontend import FrontEndConfig, Standardization
from edgedistill.training.fill_in import LfpSource, complete

SEGMENTS, BINS = 6, 50


def source_of(channels: int, common_average: bool = True, unknown: tuple[int, ...] = ()) -> LfpSource:
    """Returns the standardized channels of an array that shares a background, whose `unknown` channels are dead."""
    rng = np.random.default_rng(channels)
    values = rng.standard_normal((3000, 2)) @ rng.standard_normal((2, channels)) * 40
    values += rng.standard_normal((3000, channels)) * 15
    values[:, list(unknown)] = 0
    mean, std, bad = values.mean(axis=0), values.std(axis=0), np.zeros(values.shape, np.bool_)
    config = FrontEndConfig(rate=Fraction(250), channels=channels, fill_sweeps=64, common_average=common_average)
    found = Standardization(mean, std, fit_spatial_model(config, values, bad, mean, std))
    present, there = found.standardize(values, bad)
    return LfpSource(found, torch.from_numpy(present), torch.from_numpy(there))


@pytest.mark.parametrize("common_average", [False, True])
@pytest.mark.parametrize(("channels", "unknown"), [(1, ()), (2, ()), (7, (3,)), (20, (0, 19))])
def test_it_is_what_many_steps_of_an_engine_come_to(
    channels: int, unknown: tuple[int, ...], common_average: bool
) -> None:
    source = source_of(channels, common_average, unknown)
    segments = source.present[: SEGMENTS * BINS].reshape(SEGMENTS, BINS, channels)
    there = torch.rand(SEGMENTS, channels, generator=torch.Generator().manual_seed(0)) < 0.6
    there[0], there[1] = True, False  # nothing is lost, and everything
    found = complete(source, segments, there)
    for segment, kept, mine in zip(segments, there, found, strict=True):
        spatial = source.standardization.spatial
        each = np.broadcast_to(kept.numpy() & spatial.known, segment.shape)
        np.testing.assert_allclose(mine.numpy(), spatial.complete(segment.numpy(), each), atol=1e-4)
    assert not found[1].any()
    assert not found[..., list(unknown)].any()


def test_every_segment_has_losses_of_its_own() -> None:
    source = source_of(7)
    segment = source.present[:BINS]
    there = torch.ones(7, 7, dtype=torch.bool).fill_diagonal_(False)
    together = complete(source, segment.expand(7, -1, -1), there)
    for lost in range(7):
        alone = complete(source, segment[None], there[lost][None])
        torch.testing.assert_close(together[lost], alone[0], atol=1e-5, rtol=0)
        assert not torch.allclose(together[lost], together[lost - 1], atol=0.01)


def test_what_a_lost_channel_holds_plays_no_part() -> None:
    source = source_of(7)
    segments, there = source.present[None, :BINS].clone(), torch.ones(1, 7, dtype=torch.bool)
    there[0, 2] = False
    before = complete(source, segments, there)
    segments[..., 2] = 1e6
    assert torch.equal(complete(source, segments, there), before)
