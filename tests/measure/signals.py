"""Makes signals of an array and of its units, for the tests of what damage does."""

from __future__ import annotations

import numpy as np

from edgedistill.frontend import SpatialModel, Standardization
from edgedistill.measure.damage import LfpSignal, SpikeSignal

C, T = 40, 1500


def make_array(
    common: float = 1.0,
    unknown: tuple[int, ...] = (),
    gain: np.ndarray | None = None,
    average: bool = True,
    features: int = 1,
) -> LfpSignal:
    """Returns channels of deviation 1 that share a signal `common` times as large as their own, and its exact model.

    `gain` is that of the slow LFP. Each of the `features` has a signal of its own.
    """
    rng = np.random.default_rng(0)
    total = np.sqrt(1 + common**2)
    parts = [rng.standard_normal((T, C)) + common * rng.standard_normal((T, 1)) for _ in range(features)]
    values = np.concatenate(parts, axis=1) / total
    covariance = (np.eye(C) + common**2) / total**2
    known = np.setdiff1d(np.arange(C), unknown)
    precision = np.linalg.inv(covariance[np.ix_(known, known)])
    root = np.sqrt(np.diag(precision))
    coupling, scale = np.zeros((C, C), np.float32), np.ones(C, np.float32)
    coupling[np.ix_(known, known)] = precision / np.outer(root, root)
    scale[known] = root
    gain = np.full(C, total, np.float32) if gain is None else gain.copy()
    gain[list(unknown)] = 0
    coupling, scale, gain = np.stack([coupling] * features), np.tile(scale, features), np.tile(gain, features)
    spatial = SpatialModel(coupling, scale, 1 / scale, gain, 8, average)
    there = np.broadcast_to(spatial.known, (T, C)).copy()
    statistics = np.zeros(features * C), np.repeat(np.arange(1.0, features + 1), C)
    present = np.where(np.tile(there, features), values, 0).astype(np.float32)
    return LfpSignal(present, there, Standardization(*statistics, spatial))


def make_spikes() -> SpikeSignal:
    """Returns white units of deviation 1."""
    return SpikeSignal(np.random.default_rng(1).standard_normal((T, C)).astype(np.float32))
