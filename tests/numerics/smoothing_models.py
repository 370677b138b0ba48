"""Makes filters of outputs, for the tests of every engine that smooths."""

from __future__ import annotations

import numpy as np

from edgedistill.numerics.smoothing import SmoothingModel

f32 = np.float32


def random_smoothing(outputs: int, order: int, seed: int = 0) -> SmoothingModel:
    """Returns a filter with random numbers whose state fades within some tens of bins."""
    rng = np.random.default_rng(seed)
    states = outputs * order
    keep = rng.normal(size=(states, states))
    keep *= 0.9 / np.abs(np.linalg.eigvals(keep)).max()
    gain = np.eye(states, outputs) * 0.3 + 0.05 * rng.normal(size=(states, outputs))
    raw_mean, mean = rng.normal(size=(2, outputs))
    return SmoothingModel(keep.astype(f32), gain.astype(f32), raw_mean.astype(f32), mean.astype(f32))


def low_pass(pole: float, outputs: int = 1) -> SmoothingModel:
    """Returns a first-order low-pass for each output by itself."""
    still = np.zeros(outputs, f32)
    return SmoothingModel(
        np.eye(outputs, dtype=f32) * f32(pole), np.eye(outputs, dtype=f32) * f32(1 - pole), still, still
    )
