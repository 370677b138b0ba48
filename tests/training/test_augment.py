"""Segments are damaged as an array is in use: before lost channels are filled in, and only as the settings say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from edgedistill.config import TrainingConfig
from edgedistill.models.batch_rows import draws_of_all
from edgedistill.training import augment
from edgedistill.training.augment import damage, draw_augmented, draw_kept
from edgedistill.training.batches import TrainingSession, draw_segments, make_generator, training_session_from_bins

from .sessions import GAP, TRAINING, session, session_bins, with_bands

CHANNELS = 8
DAY = session(channels=CHANNELS)
NO_BANDS = torch.zeros(0)
QUIET = replace(TRAINING, damaged_share=1.0, channel_dropout=0.0, bank_loss=0.0, gain_drift=0.0, noise=0.0)
STRONG = replace(TRAINING, damaged_share=1.0, channel_dropout=0.9, bank_loss=0.5, gain_drift=1.0, noise=3.0)


def drawn(made: TrainingSession, config: TrainingConfig, modality: str = "lfp", step: int = 0) -> torch.Tensor:
    return draw_augmented(made, modality, [], config, make_generator(0, step))[0]


def inputs(made: TrainingSession, config: TrainingConfig, modality: str = "lfp", step: int = 0) -> torch.Tensor:
    """Returns the same segments as they are."""
    return draw_segments(made, [made.inputs(modality)], config, make_generator(0, step))[0]


def keep(monkeypatch: pytest.MonkeyPatch, lost: list[int], channels: int = CHANNELS) -> None:
    """Lets every damaged segment lose the same channels."""

    def kept(batch: int, *_: Any) -> torch.Tensor:
        return torch.tensor([channel not in lost for channel in range(channels)]).repeat(batch, 1)

    monkeypatch.setattr(augment, "draw_kept", kept)


@pytest.mark.parametrize("modality", ["lfp", "spikes"])
def test_segments_that_are_not_damaged_are_the_sessions_inputs(modality: str) -> None:
    config = replace(STRONG, damaged_share=0.0)
    assert torch.equal(drawn(DAY, config, modality), inputs(DAY, config, modality))


def test_losses_of_the_recording_stay_as_a_stream_sees_them_where_nothing_is_damaged() -> None:
    bins = session_bins(channels=CHANNELS)
    bad = bins.bad.copy()
    bad[1000:9000:7, 3] = True
    bad[2000:2100] = True
    made, config = training_session_from_bins(replace(bins, bad=bad), GAP), replace(STRONG, damaged_share=0.0)
    assert torch.equal(drawn(made, config), inputs(made, config))


def test_damage_of_strength_zero_changes_nothing() -> None:
    torch.testing.assert_close(drawn(DAY, QUIET), inputs(DAY, QUIET), atol=1e-4, rtol=0)
    assert torch.equal(drawn(DAY, QUIET, "spikes"), inputs(DAY, QUIET, "spikes"))


def test_the_other_parts_are_those_of_the_same_bins() -> None:
    at = torch.arange(len(DAY.valid))
    _, found = draw_augmented(DAY, "lfp", [at], STRONG, make_generator(0, 5))
    assert torch.equal(found, draw_segments(DAY, [at], STRONG, make_generator(0, 5))[0])


def test_the_share_of_the_segments_is_damaged() -> None:
    config = replace(STRONG, damaged_share=0.3, bins_per_step=400 * STRONG.segment_bins)
    changed = (drawn(DAY, config) != inputs(DAY, config)).any(2).any(1)
    assert changed.float().mean() == pytest.approx(0.3, abs=0.06)


def test_lost_channels_are_filled_in_as_a_stream_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    keep(monkeypatch, [2, 5, 6])
    assert DAY.source is not None
    present, there = draw_segments(DAY, [DAY.source.present, DAY.source.there], QUIET, make_generator(0, 0))
    there[..., [2, 5, 6]] = False
    spatial = replace(DAY.standardization.spatial, sweeps=64)
    wanted = [spatial.complete(p.numpy(), t.numpy()) for p, t in zip(present, there, strict=True)]
    np.testing.assert_allclose(drawn(DAY, QUIET).numpy(), wanted, atol=1e-3)
    assert (drawn(DAY, QUIET) - inputs(DAY, QUIET)).abs().max() > 0.1


def test_lost_units_are_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    keep(monkeypatch, [1], channels=DAY.inputs("spikes").shape[1])
    found, plain = drawn(DAY, QUIET, "spikes"), inputs(DAY, QUIET, "spikes")
    assert not found[..., 1].any()
    assert torch.equal(found[..., 2:], plain[..., 2:])


def test_single_channels_are_lost_up_to_the_share() -> None:
    kept = draw_kept(4000, 50, replace(QUIET, channel_dropout=0.6), make_generator(0, 0))
    lost = 1 - kept.float().mean(1)
    assert lost.mean() == pytest.approx(0.3, abs=0.02)  # the share is drawn from 0 to 0.6
    assert lost.min() == 0
    assert 0.6 < lost.max() < 0.9
    assert draw_kept(100, 50, QUIET, make_generator(0, 0)).all()


@pytest.mark.parametrize(("channels", "sizes"), [(2, {1}), (8, {2}), (32, {8, 16}), (96, {16, 24, 32})])
def test_a_bank_is_a_quarter_or_a_connector_in_its_place(channels: int, sizes: set[int]) -> None:
    kept = draw_kept(300, channels, replace(QUIET, channel_dropout=0.9, bank_loss=1.0), make_generator(0, 0))
    found = set()
    for row in kept:
        lost = torch.nonzero(~row)[:, 0]
        first, size = int(lost[0]), len(lost)
        assert lost.tolist() == list(range(first, first + size))
        assert first % size == 0
        found.add(size)
    assert found == sizes
    assert not kept.all(0).any()  # every channel is lost now and then


def test_an_array_of_one_channel_has_no_bank() -> None:
    assert draw_kept(50, 1, replace(QUIET, bank_loss=1.0), make_generator(0, 0)).all()


def test_each_channel_of_a_damaged_segment_has_one_gain() -> None:
    bins = torch.randn(600, 20, 10, generator=make_generator(1, 0))
    config = replace(QUIET, gain_drift=0.2, damaged_share=0.5)
    changed, kept, damaged = damage(
        bins, torch.ones(10), NO_BANDS, config, draws_of_all(make_generator(0, 0), len(bins))
    )
    gain = changed / bins
    assert gain.std(1).max() < 1e-4
    assert gain[damaged, 0].log().std().item() == pytest.approx(0.2, abs=0.01)
    assert torch.equal(changed[~damaged], bins[~damaged])
    assert kept.all()


def test_a_gain_shifts_the_log_power_of_a_band_by_twice_its_logarithm() -> None:
    bins, std = torch.randn(300, 20, 12, generator=make_generator(1, 0)), torch.tensor([0.5, 2.0]).repeat_interleave(4)
    loudness = 2 / std  # of two bands of four channels
    changed, _, _ = damage(
        bins, torch.ones(12), loudness, replace(QUIET, gain_drift=0.2), draws_of_all(make_generator(0, 0), len(bins))
    )
    log_gain = (changed[..., :4] / bins[..., :4]).log()
    for band, deviation in ((changed[..., 4:8] - bins[..., 4:8], 0.5), (changed[..., 8:] - bins[..., 8:], 2.0)):
        torch.testing.assert_close(band, 2 * log_gain / deviation, atol=1e-4, rtol=0)
    assert log_gain.std().item() == pytest.approx(0.2, abs=0.02)


def test_a_segment_with_bands_is_what_a_stream_would_see_with_another_gain_and_channels_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bins = with_bands(session_bins(channels=CHANNELS), 2)
    made = training_session_from_bins(bins, GAP)
    assert made.source is not None
    assert made.inputs("lfp").shape[1] == 3 * CHANNELS
    torch.testing.assert_close(drawn(made, QUIET), inputs(made, QUIET), atol=1e-4, rtol=0)
    keep(monkeypatch, [2, 5])
    present, there = draw_segments(made, [made.source.present, made.source.there], QUIET, make_generator(0, 0))
    there[..., [2, 5]] = False
    spatial = replace(made.standardization.spatial, sweeps=64)
    wanted = [spatial.complete(p.numpy(), t.numpy()) for p, t in zip(present, there, strict=True)]
    np.testing.assert_allclose(drawn(made, QUIET).numpy(), wanted, atol=2e-3)


def test_noise_is_up_to_so_many_deviations_of_each_channel() -> None:
    bins, unit = torch.zeros(2000, 60, 3), torch.tensor([1.0, 0.1, 0.0])
    changed, _, _ = damage(
        bins, unit, NO_BANDS, replace(QUIET, noise=0.5), draws_of_all(make_generator(0, 0), len(bins))
    )
    size = changed.std(1)
    assert size[:, 0].mean() == pytest.approx(0.25, abs=0.01)
    assert 0.45 < size[:, 0].max() < 0.65
    torch.testing.assert_close(size[:, 1].mean(), 0.1 * size[:, 0].mean(), rtol=0.02, atol=0)
    assert not changed[..., 2].any()


@pytest.mark.parametrize("common_average", [False, True])
def test_noise_is_measured_in_deviations_of_the_models_input(common_average: bool) -> None:
    bins = session_bins(channels=CHANNELS)
    assert bins.frontend is not None
    assert bins.lfp is not None
    shared = 200 * np.random.default_rng(1).standard_normal((bins.bins, 1))
    frontend = replace(bins.frontend, common_average=common_average)
    made = training_session_from_bins(replace(bins, frontend=frontend, lfp=bins.lfp + shared), GAP)
    config = replace(QUIET, noise=1.0, bins_per_step=300 * QUIET.segment_bins)
    added = drawn(made, config) - inputs(made, config)
    share = np.sqrt(1 - common_average / CHANNELS)  # the average takes its part of the noise away too
    assert added.std(1).mean() == pytest.approx(0.5 * share, rel=0.1)


def test_gains_and_noise_come_before_the_fill_in(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def completed(source: object, segments: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        seen.append(segments)
        return segments

    monkeypatch.setattr(augment, "complete", completed)
    config = replace(QUIET, gain_drift=0.3)
    found = drawn(DAY, config)
    assert DAY.source is not None
    (present,) = draw_segments(DAY, [DAY.source.present], config, make_generator(0, 0))
    assert (seen[0] / present).std(1).max() < 1e-3
    assert (seen[0] - present).abs().max() > 0.1
    assert torch.equal(found, seen[0])


def one_segment(bad: np.ndarray) -> tuple[TrainingSession, TrainingConfig]:
    """Returns a session with these bad bins, and settings with which every segment is its whole training block."""
    made = training_session_from_bins(replace(session_bins(channels=CHANNELS), bad=bad), GAP)
    length = made.split.train.stop - made.settled
    return made, replace(QUIET, segment_bins=length, bins_per_step=length, burn_in=0)


def test_a_gap_in_a_segment_stays_zero_and_costs_nothing_else() -> None:
    bad = np.zeros((12_000, CHANNELS), np.bool_)
    bad[4000:4100] = True
    made, config = one_segment(bad)
    found = drawn(made, replace(config, noise=0.3))[0]
    gap = slice(4000 - made.settled, 4100 - made.settled)
    assert not found[gap].any()
    assert not (torch.cat([found[: gap.start], found[gap.stop :]]) == 0).all(1).any()
    torch.testing.assert_close(drawn(made, config), inputs(made, config), atol=1e-4, rtol=0)


def test_a_channel_that_is_lost_for_a_while_is_lost_for_its_whole_damaged_segment() -> None:
    bad = np.zeros((12_000, CHANNELS), np.bool_)
    bad[4000:4100, 3] = True
    made, config = one_segment(bad)
    found = drawn(made, config)[0]
    assert made.source is not None
    there = made.source.there.numpy()[made.settled : made.split.train.stop].copy()
    there[:, 3] = False
    spatial = replace(made.standardization.spatial, sweeps=64)
    present = made.source.present.numpy()[made.settled : made.split.train.stop]
    np.testing.assert_allclose(found.numpy(), spatial.complete(present, there), atol=1e-3)


def test_the_same_step_draws_the_same() -> None:
    assert torch.equal(drawn(DAY, STRONG, step=3), drawn(DAY, STRONG, step=3))
    assert not torch.equal(drawn(DAY, STRONG, step=3), drawn(DAY, STRONG, step=4))
