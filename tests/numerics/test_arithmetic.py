from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgedistill.numerics import exp32, lane_sum, quantize, rms32, silu32
from edgedistill.numerics.arithmetic import product

from .students import exponential, summed

floats = st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=False)
rows = hnp.arrays(np.float32, st.integers(1, 70), elements=st.floats(-1e6, 1e6, width=32))


@given(rows)
def test_a_lane_sum_is_the_sum_written_out(x):
    assert lane_sum(x[None])[0] == summed(list(x))


@given(rows)
def test_a_lane_sum_is_near_the_sum(x):
    assert abs(float(lane_sum(x)) - float(x.astype(np.float64).sum())) <= 1e-6 * float(np.abs(x).sum(dtype=np.float64))


def test_the_exponential_is_within_two_in_ten_million():
    x = np.linspace(-87, 88, 1_000_001).astype(np.float32)
    worst = np.abs(exp32(x).astype(np.float64) / np.exp(x.astype(np.float64)) - 1).max()
    assert worst < 2e-7


@given(st.floats(-200, 200, width=32))
def test_the_exponential_is_the_one_written_out(x):
    assert exp32(np.array([x], np.float32))[0] == exponential(np.float32(x))


def test_the_exponential_stays_finite_and_positive_beyond_its_range():
    ends = exp32(np.array([-np.inf, -1e30, 1e30, np.inf], np.float32))
    assert np.isfinite(ends).all()
    assert (ends > 0).all()
    assert exp32(np.zeros(1, np.float32))[0] == 1


def test_silu_is_near_its_formula():
    x = np.linspace(-60, 60, 100_001).astype(np.float32)
    true = x.astype(np.float64) / (1 + np.exp(-x.astype(np.float64)))
    assert np.abs(silu32(x) - true).max() < 1e-5
    assert (np.abs(silu32(x) - true) <= 5e-7 * np.abs(true)).all()


@given(rows)
def test_the_norm_is_near_its_formula(x):
    true = x / np.sqrt(np.mean(x.astype(np.float64) ** 2) + 1e-6)
    assert np.allclose(rms32(x), true, rtol=1e-5, atol=1e-6)


@given(hnp.arrays(np.float32, 20, elements=st.floats(-100, 100, width=32)), st.floats(0.01, 10))
def test_quantizing_errs_by_half_a_scale_inside_the_range(x, limit):
    scale = np.float32(limit / 127)
    inside = x[np.abs(x) <= limit]
    error = np.abs(quantize(inside, np.float32(1) / scale) * scale.astype(np.float64) - inside)
    assert (error <= 0.5 * scale * (1 + 1e-4)).all()


@given(floats)
def test_quantizing_saturates_symmetrically(x):
    q = quantize(np.array([x, -x], np.float32), np.array([1], np.float32))
    assert -127 <= q.min() <= q.max() <= 127
    assert q[0] == -q[1]


def test_ties_go_to_even_and_zero_to_zero():
    one = np.ones(1, np.float32)
    assert quantize(np.array([0.5, 1.5, 2.5, -0.5, -1.5], np.float32), one).tolist() == [0, 2, 2, 0, -2]
    assert quantize(np.array([0.0, -0.0], np.float32), one).tolist() == [0, 0]


@given(st.data())
def test_products_are_exact(data):
    n, out = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 5))
    eight = st.integers(-127, 127)
    x = data.draw(hnp.arrays(np.int8, (2, n), elements=eight))
    w = data.draw(hnp.arrays(np.int8, (out, n), elements=eight))
    assert (product(x, w) == x.astype(np.int64) @ w.astype(np.int64).T).all()


def test_products_are_exact_where_float32_would_not_be():
    x, w = np.full((1, 100_001), 127, np.int8), np.full((1, 100_001), 127, np.int8)
    w[0, 0] = 126
    assert product(x, w)[0, 0] == 127 * 127 * 100_001 - 127


@pytest.mark.parametrize("shape", [(3, 16), (2, 5, 21), (0, 4)])
def test_shapes_are_kept(shape):
    x = np.ones(shape, np.float32)
    assert rms32(x).shape == silu32(x).shape == exp32(x).shape == shape
    assert rms32(x).dtype == silu32(x).dtype == exp32(x).dtype == np.float32
