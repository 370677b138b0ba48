"""The fill-in has the bits of docs/numerics.md, written out value by value, and finds the conditional mean."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.cpu.array_models import draw_spatial_model
from edgedistill.frontend import FrontEndConfig, SpatialModel, standardize

f32 = np.float32
LEAST = f32(2.0**-100)


def array_of(channels: int, seed: int = 0, unknown: tuple[int, ...] = (), **changes: object) -> SpatialModel:
    config = replace(FrontEndConfig(Fraction(1000), channels), **changes)
    return draw_spatial_model(config, seed, unknown)


# ---------------------------------------------------------------- docs/numerics.md, value by value


def by_lanes(values: list[np.float32]) -> np.float32:
    lanes = [f32(0)] * 16
    for i, value in enumerate(values):
        lanes[i % 16] = value if i < 16 else lanes[i % 16] + value
    for half in (8, 4, 2, 1):
        lanes = [lanes[i] + lanes[half + i] for i in range(half)]
    return lanes[0]


def times(coupling: np.ndarray, x: list[np.float32]) -> list[np.float32]:
    found, C = [], len(x)
    for c in range(C):
        total = f32(0)
        for j in range(0, C, 4):
            m = [x[k] * coupling[k, c] if k < C else f32(0) for k in range(j, j + 4)]
            total = total + ((m[0] + m[1]) + (m[2] + m[3]))
        found.append(total)
    return found


def ratio(a: np.float32, b: np.float32) -> np.float32:
    return a / b if b > LEAST else f32(0)


def literal_fill_in(model: SpatialModel, s: np.ndarray, there: np.ndarray) -> list[np.float32]:
    """Returns x (C,) for one bin of standardized channels (C,)."""
    channels = range(len(s))
    lost = [bool(model.gain[c] > 0 and not there[c]) for c in channels]
    present = [s[c] if there[c] else f32(0) for c in channels]
    a = by_lanes(present) / f32(max(int(there.sum()), 1))
    y = [(a if lost[c] else present[c]) * model.scale[c] for c in channels]
    product = times(model.coupling, y)
    r = [-product[c] if lost[c] else f32(0) for c in channels]
    p, power = r, by_lanes([v * v for v in r])
    for _ in range(model.sweeps):
        q = times(model.coupling, p)
        alpha = ratio(power, by_lanes([p[c] * q[c] for c in channels]))
        y = [y[c] + alpha * p[c] for c in channels]
        r = [r[c] - alpha * q[c] if lost[c] else f32(0) for c in channels]
        new = by_lanes([v * v for v in r])
        beta, going = ratio(new, power), new > LEAST
        p = [r[c] + beta * p[c] if going else f32(0) for c in channels]
        r = [r[c] if going else f32(0) for c in channels]
        power = new
    return [y[c] * model.inverse_scale[c] if lost[c] else present[c] for c in channels]


def literal_input(model: SpatialModel, s: np.ndarray, there: np.ndarray) -> list[np.float32]:
    """Returns the models' input z (C,) for one bin."""
    x = literal_fill_in(model, s, there)
    known = [bool(gain > 0) for gain in model.gain]
    average = by_lanes(x) / f32(sum(known)) if model.common_average and sum(known) > 1 else f32(0)
    return [(x[c] - average) * model.gain[c] if known[c] else f32(0) for c in range(len(x))]


@settings(deadline=None, max_examples=80)
@given(st.sampled_from([1, 2, 3, 4, 5, 15, 16, 17, 19, 33]), st.integers(0, 2**32), st.data())
def test_the_input_has_the_bits_of_the_definition(channels: int, seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    unknown = tuple(np.flatnonzero(rng.random(channels) < data.draw(st.sampled_from([0, 0.3]))))[: channels - 1]
    settings_of_it = {
        "fill_sweeps": data.draw(st.sampled_from([0, 1, 3, 8])),
        "common_average": data.draw(st.booleans()),
    }
    model = array_of(channels, seed % 7, unknown, **settings_of_it)
    scale = data.draw(st.sampled_from([1.0, 2.0**20, 1e-12, 1e-25]))
    s = np.clip(scale * rng.normal(size=(5, channels)), -(2.0**20), 2.0**20).astype(f32)
    lost = rng.random((5, channels)) < np.array([0.0, 0.1, 0.5, 0.9, 1.0])[:, None]
    there = ~lost & model.known
    found = model.complete(s, there)
    assert found.dtype == f32
    for row, expected in enumerate(literal_input(model, *pair) for pair in zip(s, there, strict=True)):
        np.testing.assert_array_equal(found[row], np.array(expected, f32))
        alone = model.complete(s[row : row + 1], there[row : row + 1])[0]
        assert alone.tobytes() == found[row].tobytes()  # no bin depends on the others of a call


def test_a_solution_that_is_exact_is_left_alone() -> None:
    """One lost channel is solved in one step. What is left of the residual then becomes 0 and no denormal number."""
    model = array_of(6)
    s, there = np.random.default_rng(1).normal(size=6).astype(f32), np.arange(6) != 2
    one, many = (literal_fill_in(replace(model, sweeps=n), s, there) for n in (1, 60))
    assert abs(one[2] - many[2]) < 1e-6
    found = replace(model, sweeps=60).complete(s[None], there[None])[0]
    np.testing.assert_array_equal(found, np.array(literal_input(replace(model, sweeps=60), s, there), f32))


# ---------------------------------------------------------------- what it is for


@pytest.mark.parametrize("n_lost", [1, 5, 20, 31])
def test_lost_channels_become_their_conditional_mean(n_lost: int) -> None:
    model, rng = replace(array_of(32, 3), sweeps=40, common_average=False), np.random.default_rng(n_lost)
    s = rng.normal(size=32).astype(f32)
    lost = np.isin(np.arange(32), rng.permutation(32)[:n_lost])
    precision = np.float64(model.coupling) * np.outer(model.scale, model.scale)
    exact = -np.linalg.solve(precision[np.ix_(lost, lost)], precision[np.ix_(lost, ~lost)] @ s[~lost])
    found = model.complete(s[None], ~lost[None])[0] / model.gain
    np.testing.assert_allclose(found[lost], exact, atol=2e-4)
    np.testing.assert_allclose(found[~lost], s[~lost], rtol=1e-6)


def test_a_channel_that_is_lost_makes_no_step_in_the_average() -> None:
    """Its fill-in is close to what it holds, so that the inputs of all other channels hardly move."""
    model, rng = array_of(32, 1), np.random.default_rng(0)
    common = rng.normal(size=(500, 1))
    s = (common + 0.1 * rng.normal(size=(500, 32))).astype(f32)
    whole = model.complete(s, np.ones(s.shape, np.bool_))
    for channel in range(0, 32, 5):
        there = np.broadcast_to(np.arange(32) != channel, s.shape)
        others = np.arange(32) != channel
        assert np.abs(model.complete(s, there)[:, others] - whole[:, others]).max() < 0.05


def test_one_channel_alone_is_not_its_own_average() -> None:
    model = array_of(4, unknown=(0, 1, 3))
    z = model.complete(np.ones((1, 4), f32), model.known[None])[0]
    assert z.tolist() == [0, 0, float(model.gain[2]), 0]


# ---------------------------------------------------------------- which channels are there


def test_a_channel_is_there_if_it_is_good_known_and_no_further_than_a_million_deviations() -> None:
    limit = 2.0**20
    values = np.array([[limit, -limit, limit * (1 + 2.0**-23), -3e38 * 1e10, 1.0, 1.0, 1.0, np.nan]])
    bad = np.array([[False] * 6 + [True, False]])
    mean, std = np.zeros(8), np.array([1.0, 1, 1, 1, 0, 1, 1, 1])
    known = np.arange(8) != 5
    s, there, judged = standardize(values, bad, (mean, std), known)
    assert there[0].tolist() == [True, True, False, False, False, False, False, False]
    assert judged[0].tolist() == [False, False, True, True, False, False, True, True]
    assert s[0].tolist() == [limit, -limit, 0, 0, 0, 0, 0, 0]
