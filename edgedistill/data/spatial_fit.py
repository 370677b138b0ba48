"""Fits how the channels of an array go together, over the training block of a session.

`SessionBins` go in. A `Standardization` comes out: mean and deviation of each channel, and the model that fills in lost
channels. docs/numerics.md, "How the model is found", is the definition.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.covariance import ledoit_wolf

from edgedistill.data.session import Floats, Mask, SessionBins, compute_moments, find_counted
from edgedistill.frontend import FrontEndConfig, SpatialModel, Standardization, standardize

KNOWN_SHARE, KNOWN_BINS = 0.1, 100  # of the block, and bins, that a channel must have to be known
WHOLE_SHARE = 0.2  # of the block in which all known channels are good, so that other bins are not needed
LEAST_SHRINKAGE = 0.001  # so that channels that are equal, or average to 0, can be inverted


def fit_standardization(bins: SessionBins, block: slice) -> Standardization:
    """Returns what turns the channels of `bins` into the models' input, fitted on `block`. Raises RecordingError."""
    values, counted = find_counted(bins, block)
    mean, std = compute_moments(values, counted)
    assert bins.frontend is not None
    return Standardization(mean, std, fit_spatial_model(bins.frontend, values, ~counted, mean, std))


def fit_spatial_model(config: FrontEndConfig, values: Floats, bad: Mask, mean: Floats, std: Floats) -> SpatialModel:
    """Returns the model of an array from values (T, C) in uV, its bad channels (T, C), and its statistics (C,)."""
    found, there, _ = standardize(values, bad, (mean, std), std > 0)
    count = there.sum(axis=0)
    known = (std > 0) & (count >= max(KNOWN_BINS, KNOWN_SHARE * len(there)))
    there &= known
    whole = there[:, known].all(axis=1)
    rows = whole if whole.sum() >= max(KNOWN_BINS, WHOLE_SHARE * len(there)) else there.any(axis=1)
    present = np.where(there, found, 0.0)[rows][:, known].astype(np.float64)
    precision = find_precision(present)
    return spatial_model(config, precision, known, found, there)


def find_precision(present: Floats) -> Floats:
    """Returns the precision matrix of standardized channels (T, C), with the shrinkage of Ledoit and Wolf (2004)."""
    if not present.size:
        return np.eye(present.shape[1])
    covariance, shrinkage = ledoit_wolf(present, assume_centered=True)
    if shrinkage < LEAST_SHRINKAGE:
        size = float(np.trace(covariance)) / len(covariance)
        covariance = (1 - LEAST_SHRINKAGE) * covariance + LEAST_SHRINKAGE * size * np.eye(len(covariance))
    return np.asarray(np.linalg.inv(covariance))


def spatial_model(
    config: FrontEndConfig, precision: Floats, known: Mask, standardized: npt.NDArray[np.float32], there: Mask
) -> SpatialModel:
    """Returns the model of the `known` channels (C,) with `precision`, whose gains are found on standardized (T, C)."""
    channels = len(known)
    root = np.sqrt(np.diag(precision))
    coupling, scale = np.zeros((channels, channels), np.float32), np.ones(channels, np.float32)
    coupling[np.ix_(known, known)] = (precision + precision.T) / (2 * np.outer(root, root))
    coupling[known, known] = 1
    scale[known] = root
    gain = known.astype(np.float32)
    inverse = np.float32(1) / scale
    model = SpatialModel(coupling, scale, inverse, gain, config.fill_sweeps, config.common_average)
    filled = model.complete(standardized, there)[there.any(axis=1)].astype(np.float64)
    deviation = filled.std(axis=0) if len(filled) else np.ones(channels)
    gain = np.where(known, 1 / np.where(deviation > 0, deviation, 1.0), 0.0).astype(np.float32)
    return SpatialModel(coupling, scale, inverse, gain, config.fill_sweeps, config.common_average)
