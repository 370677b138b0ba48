"""A smoothed output has the bits of docs/numerics.md, recovers from anything, and its delay is what a tone shows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.cpu.array_models import draw_smoothing_model
from edgedistill.errors import EngineError
from edgedistill.numerics.smoothing import LARGEST, SMALLEST, OutputSmoother, SmoothingModel

f32 = np.float32


def low_pass(pole: float, outputs: int = 1) -> SmoothingModel:
    """Returns a first-order low-pass for each output by itself."""
    still, own = np.zeros(outputs, f32), np.eye(outputs, dtype=f32)
    return SmoothingModel(own * f32(pole), own * f32(1 - pole), still, still)


def literal_step(model: SmoothingModel, state: list[np.float32], raw: list[np.float32]) -> list[np.float32]:
    """Writes docs/numerics.md, "Smoothed output", out value by value. Changes `state`."""
    if any(not abs(value) <= f32(2.0**80) for value in raw):
        return list(raw)
    after = []
    for i in range(len(state)):
        total = f32(0)
        for j in range(len(state)):
            total = total + model.keep[i, j] * state[j]
        for k in range(len(raw)):
            total = total + model.gain[i, k] * (raw[k] - model.raw_mean[k])
        total = min(max(total, f32(-(2.0**80))), f32(2.0**80))
        after.append(f32(0) if abs(total) < f32(2.0**-100) else total)
    state[:] = after
    return [state[k] + model.mean[k] for k in range(len(raw))]


values = st.one_of(
    st.floats(width=32),
    st.sampled_from([np.nan, np.inf, -np.inf, 3e38, 2.0**80, -0.0, 1e-45, 1e-31]),
    st.floats(-10, 10, width=32),
)


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(st.lists(values, min_size=3, max_size=3), min_size=1, max_size=20), seed=st.integers(0, 9))
@pytest.mark.parametrize("order", [1, 2])
def test_smoothed_outputs_have_the_bits_of_the_definition(rows: list[list[float]], order: int, seed: int) -> None:
    model, raw = draw_smoothing_model(3, order, seed), np.array(rows, f32)
    state = [f32(0)] * (3 * order)
    with np.errstate(all="ignore"):
        expected = [literal_step(model, state, list(row)) for row in raw]
    smoother = OutputSmoother(model)
    found = np.stack([smoother.step(row) for row in raw])
    assert found.dtype == np.float32
    assert found.tobytes() == np.array(expected, f32).tobytes() == model.run(raw).tobytes()
    assert smoother.export_state()["state"].tobytes() == np.array(state, f32).tobytes()


def test_a_value_that_is_not_finite_is_given_out_and_leaves_no_trace() -> None:
    model, raw = draw_smoothing_model(2, 2, 0), np.random.default_rng(0).normal(size=(40, 2)).astype(f32)
    clean = model.run(raw)
    with_holes = np.insert(raw, 20, [[np.nan, 1], [1, np.inf], [2.0**81, 0]], axis=0)
    found = model.run(with_holes)
    np.testing.assert_array_equal(found[20:23], with_holes[20:23])
    assert np.delete(found, [20, 21, 22], axis=0).tobytes() == clean.tobytes()


def test_the_largest_values_overflow_nothing_and_are_forgotten() -> None:
    model = draw_smoothing_model(4, 2, 1)
    raw = np.zeros((3000, 4), f32)
    raw[:500] = LARGEST * np.random.default_rng(0).choice([-1, 1], size=(500, 4)).astype(f32)
    with np.errstate(over="raise", invalid="raise"):
        found = model.run(raw)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[-1], model.run(np.zeros((3000, 4), f32))[-1], rtol=1e-3, atol=1e-4)


def test_silence_ends_in_zeros_and_not_in_denormal_numbers() -> None:
    model = low_pass(0.5, outputs=2)
    raw = np.zeros((400, 2), f32)
    raw[0] = 1
    smoother = OutputSmoother(model)
    states = []
    for row in raw:
        smoother.step(row)
        states.append(smoother.export_state()["state"])
    assert not states[-1].any()
    moving = np.abs(np.array(states))
    assert (moving[moving > 0] >= SMALLEST).all()
    assert np.count_nonzero(moving[:, 0]) == pytest.approx(100, abs=2)


def test_a_state_moves_to_another_stream_and_a_reset_forgets_it() -> None:
    model, raw = draw_smoothing_model(2, 2, 3), np.random.default_rng(1).normal(size=(60, 2)).astype(f32)
    whole, first, second = model.run(raw), OutputSmoother(model), OutputSmoother(model)
    for row in raw[:30]:
        first.step(row)
    second.import_state(first.export_state())
    assert np.stack([second.step(row) for row in raw[30:]]).tobytes() == whole[30:].tobytes()
    second.reset()
    assert np.stack([second.step(row) for row in raw]).tobytes() == whole.tobytes()


@pytest.mark.parametrize(
    "state", [np.zeros(3, f32), np.zeros(4), np.full(4, np.nan, f32), np.full(4, 2.0**81, f32), np.full(4, 1e-40, f32)]
)
def test_a_state_that_no_stream_comes_to_is_refused_and_changes_nothing(state: np.ndarray) -> None:
    smoother = OutputSmoother(draw_smoothing_model(2, 2, 3))
    smoother.step(np.ones(2, f32))
    before = smoother.export_state()["state"]
    with pytest.raises(EngineError, match="smoothing_state"):
        smoother.import_state({"state": state})
    with pytest.raises(EngineError, match="smoothing_state"):
        smoother.import_state({})
    assert smoother.export_state()["state"].tobytes() == before.tobytes()


# ---------------------------------------------------------------- the model


def test_a_filter_that_would_never_fade_or_does_not_fit_is_found_out() -> None:
    good = draw_smoothing_model(2, 2, 0)
    assert good.find_fault() is None
    faults = {
        "never fades": SmoothingModel(np.eye(4, dtype=f32), good.gain, good.raw_mean, good.mean),
        "'gain' is float32": SmoothingModel(good.keep, good.gain[:2], good.raw_mean, good.mean),
        "'mean' is float64": SmoothingModel(good.keep, good.gain, good.raw_mean, good.mean.astype(float)),  # type: ignore[arg-type]
        "'raw_mean' holds": SmoothingModel(good.keep, good.gain, good.raw_mean * f32(np.nan), good.mean),
        "'keep' holds": SmoothingModel(good.keep * f32(1e20), good.gain, good.raw_mean, good.mean),
        "does not belong": SmoothingModel(good.keep[:3, :3], good.gain[:3], good.raw_mean, good.mean),
    }
    for told, model in faults.items():
        assert told in str(model.find_fault())


def test_a_filter_whose_delay_cannot_be_computed_is_found_out() -> None:
    keep = np.diag(np.full(31, 2.0**40, f32), 1)  # it fades, but its powers leave the numbers
    model = SmoothingModel(keep, np.full((32, 16), 2.0**40, f32), np.zeros(16, f32), np.zeros(16, f32))
    assert "delay is not finite" in str(model.find_fault())


@pytest.mark.parametrize("pole", [0.3, 0.65, 0.95])
def test_the_delay_of_a_low_pass_is_the_textbooks(pole: float) -> None:
    angle = 2 * np.pi * 0.01
    expected = 10 * pole * (np.cos(angle) - pole) / (1 - 2 * pole * np.cos(angle) + pole**2)
    assert low_pass(pole).delay_ms(10) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("order", [1, 2])
def test_the_delay_is_what_a_slow_tone_burst_shows(order: int) -> None:
    model = draw_smoothing_model(2, order, 5)
    t = np.arange(6000)
    envelope = np.exp(-0.5 * ((t - 3000) / 700) ** 2)
    tone = envelope * np.exp(2j * np.pi * 0.01 * t)
    delays = []
    for k in range(2):
        raw = np.zeros((2, 6000, 2))
        raw[0, :, k], raw[1, :, k] = tone.real, tone.imag
        still = np.zeros(2, f32)
        plain = SmoothingModel(model.keep, model.gain, still, still)
        real, imag = (plain.run(part.astype(f32))[:, k].astype(float) for part in raw)
        weight = real**2 + imag**2
        delays.append(10 * ((weight * t).sum() / weight.sum() - 3000))
    assert model.delay_ms(10) == pytest.approx(max(delays), abs=0.3)


def test_an_output_without_influence_has_no_delay() -> None:
    model = low_pass(0.9, outputs=2)
    deaf = SmoothingModel(model.keep, np.diag([1.0, 0.0]).astype(f32), model.raw_mean, model.mean)
    assert deaf.delay_ms(10) == pytest.approx(low_pass(0.9).delay_ms(10))
    assert SmoothingModel(model.keep, np.zeros((2, 2), f32), model.raw_mean, model.mean).delay_ms(10) == 0
