"""The deviation of an output has the bits of docs/numerics.md, whatever was decoded, and never falls with a loss."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedistill.numerics.deviation import FASTEST, DeviationModel

f32 = np.float32
CHANNELS = 4


def random_model(outputs: int, seed: int) -> DeviationModel:
    rng = np.random.default_rng(seed)
    grown = np.cumsum(rng.exponential(size=(2, CHANNELS + 1, outputs)), axis=1).astype(f32)
    weight = rng.choice([0.0, 1e-3, 1.0, 1e12], size=outputs).astype(f32)
    return DeviationModel(grown[0], grown[1] / f32(64), rng.normal(size=outputs).astype(f32), weight)


def literal_deviation(model: DeviationModel, kinematics: np.ndarray, lost: int) -> list[np.float32]:
    """Writes docs/numerics.md, "Standard deviation of an output", out value by value."""
    speed = f32(0)
    with np.errstate(all="ignore"):
        for k in range(len(kinematics)):
            away = (kinematics[k] - model.center[k]) * model.weight[k]
            speed = speed + away * away
        speed = speed if speed < f32(64) else f32(64)
        return [np.sqrt(model.at_rest[lost, k] + model.by_speed[lost, k] * speed) for k in range(len(kinematics))]


values = st.one_of(
    st.floats(width=32), st.sampled_from([np.nan, np.inf, -np.inf, 3e38, -0.0, 1e-45]), st.floats(-10, 10, width=32)
)


@settings(max_examples=300, deadline=None)
@given(rows=st.lists(st.lists(values, min_size=3, max_size=3), min_size=1, max_size=6), seed=st.integers(0, 9))
def test_deviations_have_the_bits_of_the_definition(rows: list[list[float]], seed: int) -> None:
    model, kinematics = random_model(3, seed), np.array(rows, f32)
    lost = np.arange(len(rows)) % (CHANNELS + 1)
    found = model.deviations(kinematics, lost)
    expected = [literal_deviation(model, row, n) for row, n in zip(kinematics, lost, strict=True)]
    assert found.dtype == np.float32
    assert found.tobytes() == np.array(expected, f32).tobytes()
    assert np.isfinite(found).all()


@pytest.mark.parametrize("lost_value", [np.nan, np.inf, -np.inf, 1e30])
def test_what_is_not_finite_counts_as_the_fastest(lost_value: float) -> None:
    table = np.ones((CHANNELS + 1, 2), f32)
    model = DeviationModel(table, table, np.zeros(2, f32), np.ones(2, f32))
    found = model.deviations(np.array([[lost_value, 0.0], [0.0, 0.0]], f32), np.array([0, 0]))
    assert found.tolist() == [[np.sqrt(1 + FASTEST)] * 2, [1.0, 1.0]]


def test_an_output_that_does_not_move_has_no_part_in_the_speed() -> None:
    table = np.ones((CHANNELS + 1, 2), f32)
    model = DeviationModel(table, table, np.zeros(2, f32), np.array([0, 1], f32))
    assert model.speed(np.array([[1e9, 2.0]], f32)).tolist() == [4.0]


def test_a_model_without_outputs_in_motion_is_constant() -> None:
    model = random_model(2, 0)
    still = DeviationModel(model.at_rest, np.zeros_like(model.by_speed), model.center, model.weight)
    found = still.deviations(np.random.default_rng(0).normal(size=(5, 2)).astype(f32), np.full(5, 2))
    assert np.array_equal(found, np.tile(np.sqrt(model.at_rest[2]), (5, 1)))
