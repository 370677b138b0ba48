"""The attention core differs from float attention by what 127 levels for the weights cost, and by no more."""

from __future__ import annotations

import numpy as np
import pytest

from edgedistill.numerics import attend

KINDS = ("uniform", "peaked", "ordinary")


def core(window, kind, seed=0, heads=2, width=32):
    """Returns q, keys, values, bias and scales of one bin over a full window."""
    rng = np.random.default_rng(seed)
    q = rng.integers(-127, 128, (heads, 1, width)).astype(np.int8)
    keys = rng.integers(-127, 128, (heads, window, width)).astype(np.int8)
    values = rng.integers(-127, 128, (heads, window, width)).astype(np.int8)
    spread = {"uniform": 0.0, "ordinary": 1.0, "peaked": 8.0}[kind]  # standard deviation of the scores
    scale = np.array([spread / (np.sqrt(width) * 73.6**2)], np.float32)  # 73.6 is the deviation of uniform integers
    bias = np.zeros((heads, window), np.float32)
    return q, keys, values, bias, scale, np.array([0.02], np.float32)


def in_float(q, keys, values, bias, scale, v_scale):
    """Returns softmax attention in float64 of the same integers, and its weights relative to the largest."""
    scores = (q.astype(float) @ keys.astype(float).swapaxes(1, 2))[:, 0] * float(scale[0]) + bias[:, ::-1]
    e = np.exp(scores - scores.max(1, keepdims=True))
    v = values.astype(float) * float(v_scale[0])
    return np.einsum("hj,hjd->hd", e, v) / e.sum(1)[:, None], e, v


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [1 + 1, 31, 200, 400, 1600])
def test_the_core_errs_by_the_rounding_of_its_weights_and_no_more(window, kind):
    q, keys, values, bias, scale, v_scale = core(window, kind)
    found = attend(q, keys, values, bias, window - 1, scale, v_scale)[0]
    true, e, v = in_float(q, keys, values, bias, scale, v_scale)
    rounding = np.abs(np.rint(127 * e) - 127 * e) + 1e-4  # the error of every weight, which is known exactly
    bound = np.einsum("hj,hjd->hd", rounding, np.abs(v - true[:, None])) / np.rint(127 * e).sum(1)[:, None]
    assert (np.abs(found - true) <= bound + 1e-6).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [200, 400, 1600])
def test_the_error_is_below_the_step_of_the_context(window, kind):
    q, keys, values, bias, scale, v_scale = core(window, kind, seed=1, heads=16)
    found = attend(q, keys, values, bias, window - 1, scale, v_scale)[0]
    true, _, v = in_float(q, keys, values, bias, scale, v_scale)
    assert np.sqrt(np.mean((found - true) ** 2)) <= 0.01 * v.std()  # one step of the int8 values is 0.0136


@pytest.mark.parametrize("window", [200, 400, 1600])
def test_uniform_attention_is_the_mean(window):
    q, keys, values, bias, scale, v_scale = core(window, "uniform")
    found = attend(q, keys, values, bias, window - 1, scale, v_scale)[0]
    assert np.abs(found - values.mean(1) * 0.02).max() < 1e-5


def test_normalized_probabilities_in_eight_bits_would_not_do():
    """These figures are the reason why the exponentials are quantized."""
    assert round(float(np.rint(127 / 200) * 200 / 127), 2) == 1.57
    assert np.rint(127 / 254.1) == 0


def test_a_bin_that_does_not_exist_has_no_say():
    q, keys, values, bias, scale, v_scale = core(31, "ordinary")
    bias = np.arange(62, dtype=np.float32).reshape(2, 31) / 31
    few = attend(q, keys, values, bias, 4, scale, v_scale)
    other = keys.copy(), values.copy()
    for array in other:
        array[:, :26] = 127
    assert (attend(q, *other, bias, 4, scale, v_scale) == few).all()
    alone = attend(q, keys, values, bias, 0, scale, v_scale)[0]
    assert np.allclose(alone, values[:, -1] * 0.02, rtol=1e-6)


def test_the_newest_bin_has_age_zero():
    q, keys, values, _, scale, v_scale = core(31, "uniform")
    bias = np.full((2, 31), -100, np.float32)
    bias[0, 0], bias[1, 7] = 0, 0
    context = attend(q, keys, values, bias, 30, scale, v_scale)[0]
    assert np.allclose(context[0], values[0, -1] * 0.02, rtol=1e-6)
    assert np.allclose(context[1], values[1, -8] * 0.02, rtol=1e-6)


def test_a_stretch_is_its_bins_one_by_one():
    rng = np.random.default_rng(3)
    window, steps = 31, 50
    q = rng.integers(-127, 128, (2, steps, 16)).astype(np.int8)
    keys, values = (rng.integers(-127, 128, (2, window - 1 + steps, 16)).astype(np.int8) for _ in range(2))
    bias = rng.standard_normal((2, window)).astype(np.float32)
    scale, v_scale = np.array([2e-5], np.float32), np.array([0.02], np.float32)
    whole = attend(q, keys, values, bias, 10, scale, v_scale)
    for t in range(steps):
        part = slice(t, t + window)
        live = min(window - 1, 10 + t)
        one = attend(q[:, t : t + 1], keys[:, part], values[:, part], bias, live, scale, v_scale)
        assert (one[0] == whole[t]).all()
