"""Draws models of an array and of outputs, their deviations and their smoothing, for students with random weights.

They have the shape and the size of fitted ones: neighbors go together, most of what is recorded is common to all
channels, and channels that the front end leaves out are not known.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgedistill.frontend import FrontEndConfig
from edgedistill.frontend.spatial import SpatialModel
from edgedistill.numerics.deviation import DeviationModel
from edgedistill.numerics.smoothing import SmoothingModel

Floats = npt.NDArray[np.float32]

REACH = 3.0  # channels over which the correlation of neighbors falls to 1 / e
COMMON, OWN = 0.6, 0.1  # share of the variance that is common to all channels, and that a channel has alone


def draw_spatial_model(config: FrontEndConfig, seed: int = 0, unknown: tuple[int, ...] = ()) -> SpatialModel:
    """Returns the model of an array whose channels in `unknown` and `left_out` are not known.

    Of each band one more channel is not known, if the array has more than two.
    """
    rng, parts = np.random.default_rng(seed), []
    for feature in range(config.features):
        more = (feature % config.channels,) if feature and config.channels > 2 else ()
        parts.append(_draw_feature(config.channels, rng, (*unknown, *config.left_out, *more)))
    coupling, scale, gain = (np.stack(tables) for tables in zip(*parts, strict=True))
    inverse = np.float32(1) / scale
    vectors = (values.ravel() for values in (scale, inverse, gain))
    return SpatialModel(coupling, *vectors, config.fill_sweeps, config.common_average)


def _draw_feature(channels: int, rng: np.random.Generator, unknown: tuple[int, ...]) -> tuple[Floats, Floats, Floats]:
    """Returns coupling (C, C), scale and gain (C,) of one feature."""
    known = ~np.isin(np.arange(channels), unknown)
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
    return coupling, scale, gain


def draw_deviation_model(channels: int, outputs: int, seed: int = 0) -> DeviationModel:
    """Returns deviations that grow with the number of lost channels and with speed."""
    rng = np.random.default_rng(seed)
    lost = np.arange(channels + 1)[:, None] / channels
    at_rest = rng.uniform(0.1, 0.5, outputs) * (1 + 3 * lost)
    by_speed = rng.uniform(0.05, 0.2, outputs) * (1 + lost)
    center, weight = rng.normal(size=outputs), rng.uniform(0.2, 2, outputs)
    return DeviationModel(*(values.astype(np.float32) for values in (at_rest, by_speed, center, weight)))


def draw_smoothing_model(outputs: int, order: int, seed: int = 0) -> SmoothingModel:
    """Returns a filter of outputs, with a state of `order` bins that fades within some tens of bins."""
    rng, states = np.random.default_rng(seed), outputs * order
    keep = rng.normal(size=(states, states))
    keep *= 0.9 / np.abs(np.linalg.eigvals(keep)).max()
    gain = 0.3 * np.eye(states, outputs) + 0.05 * rng.normal(size=(states, outputs))
    means = rng.normal(size=(2, outputs))
    return SmoothingModel(*(values.astype(np.float32) for values in (keep, gain, *means)))
