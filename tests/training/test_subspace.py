"""The task's matrix is that of the formulas, and its gradients are those of finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgedistill.config import TeacherSize
from edgedistill.models.teacher import PatchAutoencoder
from edgedistill.training.subspace import (
    TaskMoments,
    add_task_moments,
    compute_task_gradients,
    find_leading_directions,
    find_task_matrix,
)

D, OUTPUTS, LAYERS = 6, 2, 3


def transcribed(a: np.ndarray, c: np.ndarray) -> np.ndarray:
    """M of activations (n, d) and gradients (n, d) as it stands in the paper's code, one sample at a time."""
    a = a - a.mean(0)
    sigma_a, sigma_c, sigma_ac = np.zeros((D, D)), np.zeros((D, D)), np.zeros((D, D))
    for one, grad in zip(a, c, strict=True):
        sigma_a += np.outer(one, one) / len(a)
        sigma_c += np.outer(grad, grad) / len(a)
        sigma_ac += np.outer(one, grad) / len(a)
    trace_a, trace_c = np.trace(sigma_a), np.trace(sigma_c)
    balanced = 2 * np.sqrt(trace_c / trace_a) * sigma_a + 2 * np.sqrt(trace_a / trace_c) * sigma_c
    return np.asarray(sigma_ac + sigma_ac.T + balanced)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-3, 1.0, 1e3]), together=st.floats(-1, 1))
def test_the_matrix_is_that_of_the_formulas_and_positive_semidefinite(seed: int, scale: float, together: float) -> None:
    """Also where gradients go against activations, where plain Σac + Σacᵀ is not definite."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(40, 1, D)) * rng.uniform(0.1, 3, D) + 2
    noise = rng.normal(size=(40, 1, OUTPUTS, D))
    c = scale * (together * (a - a.mean(0))[:, :, None] + 0.1 * noise)
    moments = TaskMoments(torch.from_numpy(a.mean(0)), OUTPUTS)
    for part in (slice(0, 25), slice(25, 40)):
        moments.add(torch.from_numpy(a[part]), torch.from_numpy(c[part]))
    (found,) = moments.sum_task_matrices()
    expected = sum(transcribed(a[:, 0], c[:, 0, output]) for output in range(OUTPUTS))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-9 * scale)
    values = np.linalg.eigvalsh(found.numpy())
    assert values.min() > -1e-9 * values.max()


def test_the_leading_directions_are_those_of_numpy() -> None:
    spread = np.random.default_rng(0).normal(size=(D, D))
    matrix = spread @ spread.T
    found = find_leading_directions(torch.from_numpy(matrix), 3).numpy()
    values, vectors = np.linalg.eigh(matrix)
    expected = vectors[:, np.argsort(values)[::-1][:3]]
    np.testing.assert_allclose(np.abs(np.sum(found * expected, 0)), 1, atol=1e-9)
    np.testing.assert_allclose(found.T @ found, np.eye(3), atol=1e-9)


def test_an_output_that_nothing_moves_adds_nothing() -> None:
    sigma = torch.eye(D, dtype=torch.float64)
    assert not find_task_matrix(sigma, torch.zeros(D, D, dtype=torch.float64), torch.zeros_like(sigma)).any()
    assert not find_task_matrix(torch.zeros_like(sigma), sigma, torch.zeros_like(sigma)).any()


@pytest.fixture(scope="module")
def teacher() -> PatchAutoencoder:
    torch.manual_seed(0)
    size = TeacherSize(8, LAYERS, 2, 16, patch=4, span=1, predictor_layers=1, predictor_d=8, mask_share=0.3)
    return PatchAutoencoder(size, {"s": 6}).double().eval()


def read(teacher: PatchAutoencoder, bins: Tensor, weight: Tensor, at: int, layer: int, moved: Tensor) -> float:
    """Returns the sum over a batch of one output at bin `at`, with all patches after `layer` moved by (bins, d)."""

    def move(_: object, __: object, tokens: Tensor) -> Tensor:
        return tokens + moved.repeat_interleave(2, 0)  # two patches of four units

    handle = teacher.encoder[layer].register_forward_hook(move)
    with torch.no_grad():
        found = (teacher.latents("s", bins)[:, at] @ weight).sum().item()
    handle.remove()
    return float(found)


def test_gradients_are_those_of_finite_differences(teacher: PatchAutoencoder) -> None:
    """One bin of the read-out depends on every bin of every layer before the last, and on itself alone in the last."""
    generator = torch.Generator().manual_seed(1)
    bins, weight = torch.randn(1, 9, 6, generator=generator).double(), torch.randn(2, 8, generator=generator).double()
    at, depths = torch.tensor([3]), list(range(LAYERS))
    activations, gradients = compute_task_gradients(teacher, "s", bins, weight, at, depths)
    assert activations.shape == (1, 9, LAYERS, 8)
    assert gradients.shape == (1, 9, LAYERS, 2, 8)
    assert torch.equal(activations[:, :, -1], teacher.latents("s", bins))
    step = 1e-6
    for layer in range(LAYERS - 1):
        for output in range(2):
            direction = torch.randn(9, 8, generator=generator).double()
            ends = [read(teacher, bins, weight[output], 3, layer, sign * step * direction) for sign in (1, -1)]
            slope = (ends[0] - ends[1]) / (2 * step)
            assert (gradients[0, :, layer, output] * direction).sum().item() == pytest.approx(slope, rel=1e-5)
    torch.testing.assert_close(gradients[0, 3, -1], weight)
    assert not gradients[0, torch.arange(9) != 3, -1].any()


def test_only_valid_bins_are_read_and_counted(teacher: PatchAutoencoder) -> None:
    generator = torch.Generator().manual_seed(1)
    segments = torch.randn(3, 9, 6, generator=generator).double()
    valid = torch.zeros(3, 9, dtype=torch.bool)
    valid[0, 4] = valid[1, 2] = valid[1, 6] = True
    weight, found = torch.ones(1, 8).double(), TaskMoments(torch.zeros(1, 8), 1)
    add_task_moments(found, teacher, "s", segments, valid, weight, [LAYERS - 1], generator)
    assert found.rows == 3
    read_at = found.c[0, 0] / (weight.T @ weight)  # the last layer's gradient is the weight at the bin that is read
    torch.testing.assert_close(read_at, torch.full_like(read_at, 2))  # one bin in each segment that has one
