"""Another day of an array: what it shows of the channels is learned, and the others stay as they were."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from edgedistill.data.session import SessionBins
from edgedistill.data.spatial_fit import fit_standardization, join_precisions, update_standardization
from edgedistill.errors import RecordingError
from edgedistill.frontend import FrontEndConfig, SpatialModel, Standardization

from ..training.sessions import session_bins

CHANNELS, T = 7, 6000
WHOLE = slice(0, T)


def day(seed: int, dead: tuple[int, ...] = (), bands: int = 0) -> SessionBins:
    """Returns bins of an array whose channels go together, each with its own offset and amplitude on each day."""
    rng, parts = np.random.default_rng(seed), []
    for feature in range(1 + bands):
        mixing = np.random.default_rng(100 + feature).normal(size=(CHANNELS, CHANNELS))
        values = rng.normal(size=(T, CHANNELS)) @ (mixing + 0.3 * rng.normal(size=mixing.shape))
        parts.append(values * rng.uniform(20, 200, CHANNELS) + rng.normal(size=CHANNELS))
        parts[-1][:, list(dead)] = 0.0
    values, bad = np.concatenate(parts, axis=1), np.zeros((T, CHANNELS), np.bool_)
    bad[:, list(dead)] = True
    edges = ((12.0, 30.0), (30.0, 60.0))[:bands]
    config = FrontEndConfig(rate=Fraction(250), channels=CHANNELS, highpass_hz=1, bands=edges)
    names = tuple(map(str, range(CHANNELS)))
    changes = {"lfp": values, "bad": bad, "frontend": config, "channel_ids": names, "bins": T}
    return replace(session_bins(), behavior=None, counts=None, **changes)  # type: ignore[arg-type]


def old_day(dead: tuple[int, ...] = (), bands: int = 0) -> Standardization:
    return fit_standardization(day(0, dead, bands), WHOLE)


def fill_in(model: SpatialModel, standardized: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Returns the channels with the lost ones filled in, before the common average and the gain."""
    ones = np.where(model.known, np.float32(1), np.float32(0))
    return replace(model, gain=ones, common_average=False, sweeps=40).complete(standardized, there)


def precision_of(model: SpatialModel) -> np.ndarray:
    slow, known = model.parts[0], model.known
    scale = slow.scale[known].astype(np.float64)
    return slow.coupling[np.ix_(known, known)] * np.outer(scale, scale)


def test_the_same_block_again_gives_the_same_bits() -> None:
    old = old_day()
    found = update_standardization(day(0), WHOLE, old)
    new = found.standardization
    assert not found.kept.any()
    assert np.array_equal(new.mean, old.mean)
    assert np.array_equal(new.std, old.std)
    for name in ("coupling", "scale", "inverse_scale", "gain"):
        assert np.array_equal(getattr(new.spatial, name), getattr(old.spatial, name)), name


def test_another_day_without_losses_is_what_a_build_would_fit() -> None:
    new = update_standardization(day(1), WHOLE, old_day()).standardization
    fresh = fit_standardization(day(1), WHOLE)
    assert np.array_equal(new.std, fresh.std)
    assert np.array_equal(new.spatial.coupling, fresh.spatial.coupling)
    assert not np.allclose(new.spatial.coupling, old_day().spatial.coupling, atol=0.01)


@pytest.mark.parametrize("dead", [(2,), (0, 3, 6)])
def test_a_dead_channel_is_filled_in_as_it_was_before(dead: tuple[int, ...]) -> None:
    old, lost = old_day(), list(dead)
    found = update_standardization(day(1, dead), WHOLE, old)
    new = found.standardization
    assert np.flatnonzero(found.kept).tolist() == lost
    for name in ("mean", "std"):
        assert np.array_equal(getattr(new, name)[lost], getattr(old, name)[lost])
    assert np.array_equal(new.spatial.gain[lost], old.spatial.gain[lost])
    standardized, there = new.standardize(day(1).lfp[:50], day(1, dead).bad[:50])  # type: ignore[index]
    ours, its = (fill_in(model, standardized, there)[:, lost] for model in (new.spatial, old.spatial))
    assert np.abs(its).max() > 0.5
    np.testing.assert_allclose(ours, its, atol=1e-3)


def test_the_channels_that_are_shown_go_together_as_on_the_new_day() -> None:
    dead, shown = (1, 4), [0, 2, 3, 5, 6]
    new = update_standardization(day(1, dead), WHOLE, old_day()).standardization
    covariance = np.linalg.inv(precision_of(new.spatial))
    fresh = fit_standardization(day(1, dead), WHOLE)
    np.testing.assert_allclose(
        covariance[np.ix_(shown, shown)], np.linalg.inv(precision_of(fresh.spatial)), rtol=0, atol=1e-3
    )
    assert np.linalg.eigvalsh(covariance).min() > 0


def test_a_channel_that_was_not_known_stays_unknown() -> None:
    old = old_day(dead=(5,))
    found = update_standardization(day(1, dead=(2,)), WHOLE, old)
    spatial = found.standardization.spatial
    assert np.flatnonzero(~spatial.known).tolist() == [5]
    assert np.flatnonzero(found.kept).tolist() == [2]
    assert not spatial.coupling[0, 5].any()
    inputs = found.standardization.inputs(day(1).lfp[:10], day(1).bad[:10])  # type: ignore[index]
    assert not inputs[:, 5].any()
    assert inputs[:, 2].any()


def test_precisions_are_joined_in_any_mixture_of_channels() -> None:
    old, every = old_day(), np.ones(CHANNELS, np.bool_)
    precision = precision_of(old.spatial)
    assert np.array_equal(join_precisions(precision, every, old.spatial.parts[0]), precision)
    shown = every & (np.arange(CHANNELS) % 2 == 0)
    marginal = np.linalg.inv(np.linalg.inv(precision)[np.ix_(shown, shown)])
    np.testing.assert_allclose(join_precisions(marginal, shown, old.spatial.parts[0]), precision, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dead", [(), (2, 5)])
def test_the_log_power_of_bands_is_updated_beside_the_slow_lfp(dead: tuple[int, ...]) -> None:
    old = old_day(bands=2)
    found = update_standardization(day(1, dead, bands=2), WHOLE, old)
    new, fresh = found.standardization, fit_standardization(day(1, dead, bands=2), WHOLE)
    assert np.flatnonzero(found.kept).tolist() == list(dead)
    kept = [f * CHANNELS + c for f in range(3) for c in dead]
    shown = np.setdiff1d(np.arange(3 * CHANNELS), kept)
    for name in ("mean", "std"):
        assert np.array_equal(getattr(new, name)[kept], getattr(old, name)[kept])
        assert np.array_equal(getattr(new, name)[shown], getattr(fresh, name)[shown])
    assert np.array_equal(new.spatial.gain[kept], old.spatial.gain[kept])
    assert np.array_equal(new.spatial.coupling, fresh.spatial.coupling) == (not dead)
    assert new.spatial.known.all()


def test_a_day_that_shows_no_channel_is_refused() -> None:
    with pytest.raises(RecordingError, match="nothing can be learned about the channels"):
        update_standardization(day(1, dead=tuple(range(CHANNELS))), WHOLE, old_day())
