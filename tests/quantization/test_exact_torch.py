"""The INT8 student in torch gives the bits of the numpy oracle, for every shape, chunk size and ring position."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgedistill.config import StudentShape
from edgedistill.numerics import Int8Model, Oracle, arithmetic, part_names
from edgedistill.numerics.tensors import four_bit_parts
from edgedistill.quantization import exact_torch
from edgedistill.quantization.exact_torch import ExactStream, run_exact_stream

from ..numerics.students import ODD, SMALL, random_bins, random_model, without_lags

SHAPES = {
    "small": SMALL,
    "odd": ODD,
    "head_dim 16": StudentShape(9, 3, d=64, layers=2, heads=4, window=200, ff=96, taps=5, dilation=2, lags=10),
    "window 2": StudentShape(3, 1, d=16, layers=3, heads=1, window=2, ff=8, taps=1, dilation=1, lags=0),
    "window 65": StudentShape(4, 2, d=12, layers=1, heads=2, window=65, ff=20, taps=2, dilation=3, lags=2),
    # products and sums over the window that float32 could not hold: 1500 taps, 1100 hidden, 1200 bins
    "wide": StudentShape(500, 1, d=16, layers=1, heads=1, window=1200, ff=1100, taps=3, dilation=1, lags=0),
}


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, np.ndarray]) -> int:
    """Asserts that all tensors are equal to the last bit, and returns how many integers were compared."""
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].numpy().dtype == array.dtype, name
        assert found[name].numpy().tobytes() == np.ascontiguousarray(array).tobytes(), name
    return sum(array.size for array in expected.values() if array.dtype == np.int8)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("kept", [False, True], ids=["integers", "some float32"])
@pytest.mark.parametrize("weights", [8, 4])
def test_torch_gives_the_bits_of_the_oracle(name: str, weights: int, kept: bool) -> None:
    shape = SHAPES[name]
    parts = tuple(part for part in part_names(shape) if not part.endswith("attention"))
    keep = parts[::2] if kept else ()
    four = tuple(part for part in four_bit_parts(shape) if weights == 4 and part not in keep)
    model = random_model(shape, keep=keep, four=four)
    bins = random_bins(shape, 700)  # three times around the ring of 200, 3.5 pieces
    found = ExactStream(shape, model.tensors).trace(torch.from_numpy(bins))
    assert_same_bits(found, Oracle(model).trace(bins))


def test_a_readout_of_the_latents_alone_gives_the_bits_of_the_oracle() -> None:
    model, bins = without_lags(random_model(SMALL)), random_bins(SMALL, 100)
    expected = Oracle(model).trace(bins)
    assert np.isfinite(expected["kinematics"]).all()
    assert_same_bits(ExactStream(SMALL, model.tensors).trace(torch.from_numpy(bins)), expected)


def test_none_of_a_million_integers_differs_from_the_oracle() -> None:
    shape = SHAPES["head_dim 16"]
    model, bins = random_model(shape, seed=5), random_bins(shape, 1000, seed=5)
    found = ExactStream(shape, model.tensors).trace(torch.from_numpy(bins))
    assert assert_same_bits(found, Oracle(model).trace(bins)) > 1_000_000


@settings(max_examples=12, deadline=None)
@given(
    name=st.sampled_from(["small", "odd", "window 2", "window 65"]),
    chunks=st.lists(st.integers(1, 150), min_size=1, max_size=5),
    seed=st.integers(0, 99),
)
def test_chunks_of_any_size_give_the_same_bits(name: str, chunks: list[int], seed: int) -> None:
    shape = SHAPES[name]
    model, bins = random_model(shape, seed), random_bins(shape, sum(chunks), seed)
    stream = ExactStream(shape, model.tensors)
    pieces = [stream.trace(part) for part in torch.from_numpy(bins).split(chunks)]
    found = {key: torch.cat([piece[key] for piece in pieces]) for key in pieces[0]}
    assert_same_bits(found, Oracle(model).trace(bins))


def test_saturated_and_silent_bins_give_the_bits_of_the_oracle() -> None:
    """Saturated, zero, tiny and huge input stays in the range in which both are defined."""
    model, bins = random_model(SMALL), random_bins(SMALL, 200)
    bins[20:40], bins[40:60], bins[60:80] = 0, 1e-30, 1e30
    found = ExactStream(SMALL, model.tensors).trace(torch.from_numpy(bins))
    assert_same_bits(found, Oracle(model).trace(bins))


def test_one_call_returns_the_latents_and_kinematics_of_the_oracle() -> None:
    model, bins = random_model(), random_bins(SMALL, 90)
    latents, kinematics = run_exact_stream(SMALL, model.tensors, torch.from_numpy(bins))
    trace = Oracle(model).trace(bins, ())
    np.testing.assert_array_equal(latents.numpy(), trace["latents"])
    np.testing.assert_array_equal(kinematics.numpy(), trace["kinematics"])


def test_autocast_and_gradients_do_not_change_a_bit() -> None:
    model, bins = random_model(), torch.from_numpy(random_bins(SMALL, 90)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        latents, kinematics = run_exact_stream(SMALL, model.tensors, bins)
    assert not kinematics.requires_grad
    assert torch.equal(latents, run_exact_stream(SMALL, model.tensors, bins.detach())[0])


def test_a_lower_matmul_precision_does_not_change_a_bit() -> None:
    """TensorFloat-32 and bfloat16 operands hold integers up to 127, where the CPU has them."""
    model, bins = random_model(), torch.from_numpy(random_bins(SMALL, 90))
    before, expected = torch.get_float32_matmul_precision(), run_exact_stream(SMALL, model.tensors, bins)
    try:
        torch.set_float32_matmul_precision("medium")
        found = run_exact_stream(SMALL, model.tensors, bins)
    finally:
        torch.set_float32_matmul_precision(before)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("name", SHAPES)
def test_torch_on_a_gpu_gives_the_bits_of_the_oracle(name: str) -> None:
    shape = SHAPES[name]
    model, bins = random_model(shape), random_bins(shape, 700)
    found = ExactStream(shape, model.tensors, "cuda").trace(torch.from_numpy(bins).cuda())
    assert_same_bits({key: tensor.cpu() for key, tensor in found.items()}, Oracle(model).trace(bins))


# ---------------------------------------------------------------- operations


def numbers(n: int = 200_000) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.standard_normal(n) * np.exp(rng.uniform(-20, 4, n))).astype(np.float32)


def test_exponential_lane_sum_and_rounding_equal_those_of_the_oracle() -> None:
    x = numbers()
    t = torch.from_numpy(x)
    np.testing.assert_array_equal(exact_torch.exp32(t).numpy(), arithmetic.exp32(x))
    for width in (1, 15, 16, 17, 50):
        part = x[: width * 1000].reshape(1000, width)
        np.testing.assert_array_equal(exact_torch.lane_sum(torch.from_numpy(part)).numpy(), arithmetic.lane_sum(part))
    ties = np.arange(-300, 301).astype(np.float32) / 2
    one = np.ones(1, np.float32)
    found = exact_torch.quantize(torch.from_numpy(ties), torch.from_numpy(one)).numpy()
    np.testing.assert_array_equal(found, arithmetic.quantize(ties, one))
    assert torch.equal(t, torch.from_numpy(numbers()))  # nothing was overwritten


def test_the_root_is_correctly_rounded() -> None:
    """The float32 root of torch itself is not correctly rounded, on CPUs where MKL computes it."""
    model: Int8Model = random_model(ODD)
    x = np.abs(numbers(21 * 5000)).reshape(5000, 21)
    found = ExactStream(ODD, model.tensors)._rms(torch.from_numpy(x))
    np.testing.assert_array_equal(found.numpy(), arithmetic.rms32(x))
