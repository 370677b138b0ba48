"""Deviations that were fitted to errors cover as many further errors as they promise, at every speed and loss."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedistill.measure.intervals import QUANTILES
from edgedistill.numerics.deviation import FASTEST, DeviationModel
from edgedistill.pipeline.deviation_fit import Decoded, fit_deviations, fit_line, spread_as_deviations

CHANNELS, BINS = 8, 20_000
Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
KINDS: dict[str, Draw] = {
    "normal": lambda rng, size: rng.normal(size=size),
    "heavy tails": lambda rng, size: rng.standard_t(3, size=size),
    "two sizes": lambda rng, size: rng.normal(size=size) * rng.choice([0.3, 3.0], size=size),
}


def decode(seed: int, lost: float, draw: Draw, size: Callable[[np.ndarray], np.ndarray], bins: int = BINS) -> Decoded:
    """Makes kinematics of two outputs, and errors whose size depends on the squared speed."""
    rng = np.random.default_rng([seed, round(lost)])
    kinematics = rng.normal(size=(bins, 2)) * np.array([10.0, 4.0]) + np.array([1.0, -2.0])
    square = (((kinematics - [1.0, -2.0]) / [10.0, 4.0]) ** 2).sum(axis=1)
    errors = draw(rng, (bins, 2)) * size(square)[:, None] * np.array([1.0, 0.1])
    return Decoded(lost, kinematics.astype(np.float32), errors)


def behavior() -> np.ndarray:
    return np.random.default_rng(9).normal(size=(5000, 2)) * np.array([10.0, 4.0]) + np.array([1.0, -2.0])


def covered(model: DeviationModel, decoded: Decoded) -> np.ndarray:
    deviations = model.deviations(decoded.kinematics, np.full(len(decoded.errors), round(decoded.lost)))
    return np.asarray(np.abs(decoded.errors) <= QUANTILES[0.9] * deviations)


@pytest.mark.parametrize("kind", list(KINDS))
def test_nine_in_ten_further_errors_lie_within_at_every_speed(kind: str) -> None:
    def size(square: np.ndarray) -> np.ndarray:
        return np.sqrt(1 + 4 * np.minimum(square, 2))

    fitted = [decode(0, lost, KINDS[kind], lambda s, k=lost: (1 + k) * size(s)) for lost in (0.0, 2.0, 8.0)]
    model = fit_deviations(fitted, behavior(), CHANNELS)
    for lost in (0.0, 2.0, 8.0):
        later = decode(1, lost, KINDS[kind], lambda s, k=lost: (1 + k) * size(s))
        within, square = covered(model, later), model.speed(later.kinematics)
        assert within.mean(axis=0) == pytest.approx(0.9, abs=0.012)  # 4 standard errors of fit and count
        for part in np.array_split(np.argsort(square, kind="stable"), 3):
            assert within[part].mean() == pytest.approx(0.9, abs=0.03)


def test_an_error_that_depends_on_no_speed_gets_one_deviation() -> None:
    model = fit_deviations([decode(0, 0, KINDS["normal"], np.ones_like)], behavior(), CHANNELS)
    found = model.deviations(np.array([[1.0, -2.0], [60.0, 30.0]], np.float32), np.array([0, 0]))
    assert found == pytest.approx(np.array([[1.0, 0.1]] * 2), rel=0.04)


def test_the_limit_of_the_speed_is_found_and_the_speed_is_that_of_the_behavior() -> None:
    model = fit_deviations(
        [decode(0, 0, KINDS["normal"], lambda s: np.sqrt(0.1 + np.minimum(s, 1.0)))], behavior(), CHANNELS
    )
    assert model.center == pytest.approx([1.0, -2.0], abs=0.5)
    assert model.weight * [10.0, 4.0] == pytest.approx(np.sqrt(float(FASTEST)), rel=0.05)
    assert model.at_rest[0] == pytest.approx([0.1, 0.001], rel=0.2)
    assert (model.at_rest + FASTEST * model.by_speed)[0] == pytest.approx([1.1, 0.011], rel=0.1)


def test_numbers_of_lost_channels_in_between_are_interpolated() -> None:
    fitted = [decode(0, lost, KINDS["normal"], lambda s, k=lost: np.full_like(s, np.sqrt(1 + k))) for lost in (0, 2, 8)]
    variance = fit_deviations(fitted, behavior(), CHANNELS).at_rest[:, 0]
    assert variance[[0, 1, 2, 5, 8]] == pytest.approx([1, 2, 3, 6, 9], rel=0.08)
    assert variance.shape == (CHANNELS + 1,)


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.floats(0.1, 10), min_size=3, max_size=3), slopes=st.lists(st.floats(0, 3), min_size=3, max_size=3)
)
def test_a_larger_loss_never_has_a_smaller_deviation(sizes: list[float], slopes: list[float]) -> None:
    fitted = [
        decode(0, lost, KINDS["normal"], lambda s, a=size, b=slope: np.sqrt(a + b * s), bins=300)
        for lost, size, slope in zip((0.0, 3.0, 6.0), sizes, slopes, strict=True)
    ]
    model = fit_deviations(fitted, behavior(), CHANNELS)
    assert all((table >= 0).all() and np.isfinite(table).all() for table in (model.at_rest, model.by_speed))
    for kinematics in ([1.0, -2.0], [5.0, 0.0], [1e6, 0.0]):
        found = [model.deviations(np.array([kinematics], np.float32), np.array([n]))[0] for n in range(CHANNELS + 1)]
        assert (np.diff(found, axis=0) >= -1e-6 * np.array(found[:-1])).all()


def test_an_artefact_does_not_decide_the_fit() -> None:
    clean = decode(0, 0, KINDS["normal"], lambda s: np.sqrt(1 + s))
    struck = Decoded(0, clean.kinematics, clean.errors.copy())
    struck.errors[100:110] = 1e4
    model, other = (fit_deviations([one], behavior(), CHANNELS) for one in (clean, struck))
    assert other.at_rest[0] == pytest.approx(model.at_rest[0], rel=0.1)


def test_outputs_that_stand_still_or_are_decoded_exactly_stay_finite() -> None:
    still = np.tile([7.0, 7.0], (600, 1))
    for errors in (np.zeros((600, 2)), np.full((600, 2), 1e-3)):
        model = fit_deviations([Decoded(0, still.astype(np.float32), errors)], still, CHANNELS)
        found = model.deviations(still[:1].astype(np.float32), np.array([0]))
        assert np.isfinite(found).all()
        assert found == pytest.approx(np.abs(errors[:1]) / QUANTILES[0.9], rel=0.01, abs=1e-15)
        assert (model.weight == 0).all()


def test_without_speed_the_likeliest_variance_is_the_mean_square() -> None:
    square = np.random.default_rng(0).exponential(size=500)
    assert fit_line(square, np.zeros(500)) == (pytest.approx(square.mean()), 0.0)
    assert fit_line(square, np.ones(500)) == (pytest.approx(square.mean()), 0.0)


def test_the_spread_of_the_behavior_covers_nine_in_ten_of_it_at_any_loss() -> None:
    truth = behavior()
    model = spread_as_deviations(truth, CHANNELS)
    nothing = np.tile(truth.mean(axis=0), (len(truth), 1)).astype(np.float32)
    for lost in (0, CHANNELS):
        within = np.abs(truth - nothing) <= QUANTILES[0.9] * model.deviations(nothing, np.full(len(truth), lost))
        assert within.mean(axis=0) == pytest.approx(0.9, abs=0.001)
