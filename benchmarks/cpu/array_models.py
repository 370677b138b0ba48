"""Draws models of an array and of outputs, their deviations and their smoothing, for students with random weights.

They have the shape and the size of fitted ones: neighbors go together, most of what is recorded is common to all
channels, and channels that the front end leaves out are not known.
"""

from __future__ import annotations

import numpy as np

from edgedistill.config import StudentShape
from edgedistill.frontend import FrontEndConfig
from edgedistill.frontend.spatial import SpatialModel
from edgedistill.numerics.deviation import DeviationModel
from edgedistill.numerics.smoothing import SmoothingModel

REACH = 3.0  # channels over which the correlation of neighbors falls to 1 / e
COMMON, OWN = 0.6, 0.1  # share of the variance that is common to all channels, and that a channel has alone


def draw_spatial_model(config: FrontEndConfig, seed: int = 0, unknown: tuple[int, ...] = ()) -> SpatialModel:
    """Returns the model of an array whose channels in `unknown` and `left_out` are not known."""
    rng, channels = np.random.default_rng(seed), config.channels
    known = ~np.isin(np.arange(channels), (*unknown, *config.left_out))
    place = rng.permutation(channels) + rng.uniform(-0.3, 0.3, channels)
    near = np.exp(-np.abs(place[:, None] - place) / REACH)
    covariance = COMMON + (1 - COMMON - OWN) * near + OWN * np.eye(channels)
    precision = np.linalg.inv(covariance[np.ix_(known, known)])
    root = np.sqrt(np.diag(precision))
    coupling, scale = np.zeros((channels, channels), np.float32), np.ones(channels, np.float32)
    coupling[np.ix_(known, known)] = (precision + precision.T) / (2 * np.outer(root, root))
    coupling[known, known] = 1
    scale[known] = root
    gain = np.where(known, rng.uniform(1.2, 2.5, channels), 0).astype(np.float32)
    inverse = np.float32(1) / scale
    return SpatialModel(coupling, scale, inverse, gain, config.fill_sweeps, config.common_average)


def draw_deviation_model(shape: StudentShape, seed: int = 0) -> DeviationModel:
    """Returns deviations that grow with the number of lost channels and with speed."""
    rng = np.random.default_rng(seed)
    lost = np.arange(shape.channels + 1)[:, None] / shape.channels
    at_rest = rng.uniform(0.1, 0.5, shape.outputs) * (1 + 3 * lost)
    by_speed = rng.uniform(0.05, 0.2, shape.outputs) * (1 + lost)
    center, weight = rng.normal(size=shape.outputs), rng.uniform(0.2, 2, shape.outputs)
    return DeviationModel(*(values.astype(np.float32) for values in (at_rest, by_speed, center, weight)))


def draw_smoothing_model(outputs: int, order: int, seed: int = 0) -> SmoothingModel:
    """Returns a filter of outputs, with a state of `order` bins that fades within some tens of bins."""
    rng, states = np.random.default_rng(seed), outputs * order
    keep = rng.normal(size=(states, states))
    keep *= 0.9 / np.abs(np.linalg.eigvals(keep)).max()
    gain = 0.3 * np.eye(states, outputs) + 0.05 * rng.normal(size=(states, outputs))
    means = rng.normal(size=(2, outputs))
    return SmoothingModel(*(values.astype(np.float32) for values in (keep, gain, *means)))
