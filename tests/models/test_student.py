"""`forward`, `stream` and `step` of the student agree, look back exactly as far as stated, and never look ahead."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgedistill.config import StudentSize
from edgedistill.models.student import Student, StudentState
from edgedistill.models.window_attention import build_age_bias_band, window_attention
from edgedistill.quantization.onnx_graph import graph_from_student
from edgedistill.runtime.onnx_engine import OnnxEngine

SIZES = {
    "window 2": StudentSize(d=8, layers=2, heads=2, window=2, ff=8, taps=1, dilation=1, lags=0),
    "window 9": StudentSize(d=8, layers=3, heads=4, window=9, ff=16, taps=3, dilation=2, lags=2),
    "window 65": StudentSize(d=8, layers=2, heads=1, window=65, ff=8, taps=2, dilation=5, lags=3),
    "window 150": StudentSize(d=16, layers=2, heads=2, window=150, ff=16, taps=5, dilation=2, lags=10),
}
CHANNELS = {"monday": 3, "tuesday": 3, "other": 5}
ARRAYS = {"monday": "left", "tuesday": "left", "other": "right"}


def student_of(size: StudentSize, channels: int | None = None) -> Student:
    """Returns a student whose weights are all random, also those that start at zero or one."""
    torch.manual_seed(0)
    counts = {"monday": channels} if channels else CHANNELS
    student = Student(size, counts, {s: ARRAYS[s] for s in counts}, 4, 2)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return student.eval().requires_grad_(False)


def random_bins(n: int, channels: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(n, channels, generator=torch.Generator().manual_seed(seed))


def stepped(student: Student, bins: Tensor, session: str = "monday") -> tuple[Tensor, StudentState]:
    state = student.make_fresh_state(session)
    return torch.stack([student.step(session, b, state) for b in bins]), state


def streamed(student: Student, bins: Tensor, chunks: Sequence[int]) -> Tensor:
    """Streams like `Student.stream`, but with a chunk size of its own for each call into the same cache."""
    cache, reach, live, at, out = student.make_empty_cache(1), max(student.tokenizer.lags), 0, 0, []
    sizes = [*chunks, len(bins)]
    while at < len(bins):
        stop = min(len(bins), at + sizes.pop(0))
        seen = bins[max(0, at - reach) : stop]
        tokens = student.tokenizer("monday", seen[None])[:, min(at, reach) :]
        latents, cache = student.encode(tokens, cache, live)
        live, at = min(live + stop - at, student.size.window - 1), stop
        out.append(latents[0])
    return torch.cat(out)


@pytest.mark.parametrize("name", SIZES)
def test_step_equals_forward_and_stream(name: str) -> None:
    student, bins = student_of(SIZES[name]), random_bins(330)
    steps, _ = stepped(student, bins)
    torch.testing.assert_close(student("monday", bins[None])[0], steps, rtol=0, atol=1e-5)
    for chunk in (1, 7, 64, 100, 1000):
        latents = torch.cat(list(student.stream("monday", bins, chunk)))
        torch.testing.assert_close(latents, steps, rtol=0, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 100, 1000])
def test_chunks_hold_every_layer(chunk: int) -> None:
    student, bins = student_of(SIZES[sorted(SIZES)[0]]), random_bins(330)
    whole = student.layer_latents("monday", bins[None])
    parts = zip(*student.stream_layers("monday", bins, chunk), strict=True)
    for layer, expected in zip(parts, whole, strict=True):
        torch.testing.assert_close(torch.cat(layer, 1), expected, rtol=0, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(sorted(SIZES)),
    chunks=st.lists(st.integers(1, 200), max_size=12),
    length=st.integers(1, 400),
)
def test_chunks_of_any_size_stream_the_same_latents(name: str, chunks: list[int], length: int) -> None:
    student, bins = student_of(SIZES[name]), random_bins(length)
    whole = student("monday", bins[None])[0]
    torch.testing.assert_close(streamed(student, bins, chunks), whole, rtol=0, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize(
    "n", [2_000, pytest.param(20_000, marks=pytest.mark.variant), pytest.param(100_000, marks=pytest.mark.slow)]
)
def test_step_equals_stream_and_forward_over_many_bins(n: int) -> None:
    """Compares outputs and rings over many turns of the ring. It uses one layer, because more take minutes."""
    size = StudentSize(d=8, layers=1, heads=2, window=300, ff=8, taps=3, dilation=2, lags=4)
    student = student_of(size, channels=2)
    bins = random_bins(n, 2)
    steps, state = stepped(student, bins)
    torch.testing.assert_close(torch.cat(list(student.stream("monday", bins))), steps, rtol=0, atol=2e-5)
    whole, cache = student.encode(student.tokenizer("monday", bins[None]), student.make_empty_cache(1), 0)
    torch.testing.assert_close(whole[0], steps, rtol=0, atol=2e-5)
    slots = size.window - 1
    assert (state.pos, state.live) == (n % slots, slots)
    oldest_first = [(state.pos + i) % slots for i in range(slots)]
    for (k, v), ring_k, ring_v in zip(cache, state.ring_k, state.ring_v, strict=True):
        torch.testing.assert_close(ring_k[:, oldest_first], k[0], rtol=0, atol=2e-5)
        torch.testing.assert_close(ring_v[:, oldest_first], v[0], rtol=0, atol=2e-5)
    assert torch.equal(state.lags, bins[-4:].flip(0))


@pytest.mark.parametrize("name", ["window 2", "window 9", "window 65"])
def test_the_receptive_field_reaches_back_exactly_as_far_as_stated(name: str) -> None:
    """The oldest bin of the field changes the latent, and the bin before it does not change one bit."""
    size = SIZES[name]
    student = student_of(size)
    if size.layers > 1:  # attention even over ages, so that the oldest bin is not lost in rounding
        for block in student.layers:
            block.age_bias.zero_()
    reach = size.layers * (size.window - 1) + (size.taps - 1) * size.dilation
    bins, at = random_bins(reach + 50).double(), reach + 45
    student = student.double()
    latent = latent_at(student, bins, at)
    inside, outside = bins.clone(), bins.clone()
    inside[at - reach] += 100
    outside[: at - reach] += 100
    assert not torch.equal(latent_at(student, inside, at), latent)
    assert torch.equal(latent_at(student, outside, at), latent)


def latent_at(student: Student, bins: Tensor, at: int) -> Tensor:
    cache = [(k.double(), v.double()) for k, v in student.make_empty_cache(1)]
    return student.encode(student.tokenizer("monday", bins[None]), cache, 0)[0][0, at]


@settings(max_examples=8, deadline=None)
@given(name=st.sampled_from(sorted(SIZES)), cut=st.integers(1, 199), value=st.floats(-1e6, 1e6, width=32))
def test_future_bins_do_not_change_past_latents(name: str, cut: int, value: float) -> None:
    student, bins = student_of(SIZES[name]), random_bins(200)
    other = bins.clone()
    other[cut:] = value
    assert torch.equal(
        student("monday", bins[None])[0, :cut],
        student("monday", other[None])[0, :cut],
    )
    assert torch.equal(stepped(student, bins[: cut + 1])[0][:cut], stepped(student, other[: cut + 1])[0][:cut])


@pytest.mark.parametrize("name", SIZES)
def test_the_graph_of_the_folded_student_computes_the_step(name: str) -> None:
    size, session = SIZES[name], "other"
    student, bins = student_of(size), random_bins(3 * size.window + 5, CHANNELS["other"])
    shape = size.shape(CHANNELS[session], 2)
    rng = np.random.default_rng(0)
    weights = {n: t.numpy() for n, t in student.fold(session).items()}
    weights["readout.latent"] = rng.normal(size=(2, size.d)).astype(np.float32)
    weights["readout.lags"] = rng.normal(size=(2, (size.lags + 1) * shape.channels)).astype(np.float32)
    weights["readout.bias"] = np.array([1, -2], np.float32)
    engine = OnnxEngine(graph_from_student(shape, weights).SerializeToString(), shape)
    steps, state = stepped(student, bins, session)
    found = []
    for bin_, latent in zip(bins, steps, strict=True):
        found.append(engine.step(bin_.numpy()))
        np.testing.assert_allclose(engine.latent, latent.numpy(), rtol=0, atol=2e-5)
    lagged = [np.pad(bins.numpy(), ((lag, 0), (0, 0)))[: len(bins)] for lag in range(size.lags + 1)]
    expected = steps.numpy() @ weights["readout.latent"].T + np.hstack(lagged) @ weights["readout.lags"].T
    np.testing.assert_allclose(np.stack(found), expected + weights["readout.bias"], rtol=0, atol=2e-4)
    kept = engine.export_state()
    assert (int(kept["pos"][0]), int(kept["live"][0])) == (state.pos, state.live)
    for i, (k, v) in enumerate(zip(state.ring_k, state.ring_v, strict=True)):
        np.testing.assert_allclose(kept[f"ring_k_{i}"], k.numpy(), rtol=0, atol=2e-5)
        np.testing.assert_allclose(kept[f"ring_v_{i}"], v.numpy(), rtol=0, atol=2e-5)


def test_window_attention_equals_its_definition() -> None:
    """Compares with the definition, one query at a time, where only a part of the cache exists."""
    heads, window, n, live = 2, 7, 90, 3
    torch.manual_seed(0)
    q, bias = torch.randn(1, heads, n, 4), torch.randn(heads, window)
    k, v = torch.randn(2, 1, heads, window - 1 + n, 4)
    found = window_attention(q, k, v, bias, live)[0]
    for i in range(n):
        ages = torch.arange(min(window, i + live + 1))
        at = i + window - 1 - ages
        scores = (k[0][:, at] @ q[0, :, i, :, None])[..., 0] / 2 + bias[:, ages]
        expected = (scores.softmax(-1)[..., None] * v[0][:, at]).sum(1)
        torch.testing.assert_close(found[:, i], expected, rtol=0, atol=1e-5)


def test_each_row_of_the_age_bias_band_holds_each_age_once() -> None:
    band = build_age_bias_band(torch.tensor([[0.0, 1.0, 2.0]]), 2)
    gone = -torch.inf
    assert band.tolist() == [[[2, 1, 0, gone], [gone, 2, 1, 0]]]


def test_sessions_of_an_array_share_their_base() -> None:
    student = student_of(SIZES["window 9"])
    assert len(student.tokenizer.base) == 2
    assert len(student.tokenizer.deviation) == 3
    bins = random_bins(20)[None]
    assert not torch.equal(student("monday", bins), student("tuesday", bins))
