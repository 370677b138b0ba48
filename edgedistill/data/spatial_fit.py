"""Fits how the channels of an array go together, over the training block of a session.

`SessionBins` go in. A `Standardization` comes out: mean and deviation of each channel, and the model that fills in lost
channels. docs/numerics.md, "How the model is found", is the definition. For a student that was trained on another day,
`update_standardization` keeps what the new day cannot show.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from sklearn.covariance import ledoit_wolf

from edgedistill.data.session import Floats, Mask, SessionBins, compute_moments, find_counted, sum_rows
from edgedistill.errors import RecordingError
from edgedistill.frontend import FeatureModel, FrontEndConfig, SpatialModel, Standardization, standardize
from edgedistill.scratch import allocate, split_rows

KNOWN_SHARE, KNOWN_BINS = 0.1, 100  # of the block, and bins, that a channel must have to be known
WHOLE_SHARE = 0.2  # of the block in which all known channels are good, so that other bins are not needed
LEAST_DEVIATION = 0.01  # of a channel that is known, against the median of the array
MEAN_BINS = 20  # 200 ms; the movements that are decoded are slower
LEAST_SHRINKAGE = 0.001  # so that channels that are equal, or average to 0, can be inverted


@dataclass(frozen=True, eq=False)
class JointStandardization:
    """Holds how another day is standardized, and the channels (C,) that stay as they were before."""

    standardization: Standardization
    kept: Mask


@dataclass(frozen=True, eq=False)
class ShownChannels:
    """Holds what a block of T bins shows of C channels."""

    known: Mask  # (C,) channels that it shows
    standardized: npt.NDArray[np.float32]  # (T, C)
    there: Mask  # (T, C) known channels that are there
    precision: Floats  # of the known channels


def fit_standardization(bins: SessionBins, block: slice) -> Standardization:
    """Returns what turns what the front end gives into the models' input, fitted on `block`. Raises RecordingError."""
    values, counted = find_counted(bins, block)
    mean, std = compute_moments(values, counted)
    assert bins.frontend is not None
    return Standardization(mean, std, fit_spatial_model(bins.frontend, values, invert(counted), mean, std))


def invert(counted: Mask) -> Mask:
    """Turns which bins (T, I) count into which do not, in place."""
    for part in split_rows(slice(0, len(counted)), counted.shape[1]):
        counted[part] = ~counted[part]
    return counted


def update_standardization(bins: SessionBins, block: slice, old: Standardization) -> JointStandardization:
    """Returns the standardization of another day, fitted on `block`, for a student that was trained with `old`.

    Raises RecordingError where the block shows no channel that `old` knows.
    """
    values, counted = find_counted(bins, block)
    found = join_standardizations(compute_moments(values, counted), values, invert(counted), old)
    if found is None:
        raise RecordingError(
            f"{bins.path}: nothing can be learned about the channels of the bundle",
            got=f"{np.count_nonzero(old.spatial.known)} channels, each bad in most of the stretch",
            expected="at least one with a second of signal, and with signal in a tenth of the stretch",
            causes=("the array was not connected", "the stretch is full of artefacts"),
            next_step=f"edgedistill inspect {bins.path}, or take another stretch of it",
        )
    return found


def join_standardizations(
    statistics: tuple[Floats, Floats], values: Floats, bad: Mask, old: Standardization
) -> JointStandardization | None:
    """Returns what values (T, I) of another day show, and what `old` says of the channels that they do not show.

    A channel that `old` does not know stays unknown, because the student has learned nothing about it. A channel that
    is not shown keeps its mean, its deviation and its gain, and is filled in from the others as `old` says.

    `statistics` are mean and deviation (I,) of the values, of which some are bad (T, I), or (T, C) in every feature.
    Returns None where the values show no channel that `old` knows.
    """
    channels, parts, shown = old.spatial.channels, [], []
    for feature, model in enumerate(old.spatial.parts):
        at = slice(feature * channels, (feature + 1) * channels)
        lost = bad if bad.shape[1] == channels else bad[:, at]
        seen = find_shown_channels(values[:, at], lost, (statistics[0][at], statistics[1][at]), model.known)
        if not feature and not seen.known.any():
            return None
        precision = join_precisions(seen.precision, seen.known, model)
        settings = (model.sweeps, model.common_average)
        found = feature_model(precision, model.known, seen.standardized, seen.there, *settings)
        parts.append(replace(found, gain=np.where(seen.known, found.gain, model.gain)))
        shown.append(seen.known)
    every = np.concatenate(shown)
    mean, std = (np.where(every, *both) for both in zip(statistics, (old.mean, old.std), strict=True))
    return JointStandardization(Standardization(mean, std, stack_features(parts)), old.spatial.known & ~shown[0])


def fit_spatial_model(config: FrontEndConfig, values: Floats, bad: Mask, mean: Floats, std: Floats) -> SpatialModel:
    """Returns the model of an array from values (T, I), of which some are bad (T, I), and their statistics (I,).

    A channel whose slow LFP is not known is not known in any band.
    """
    parts: list[FeatureModel] = []
    for feature in range(config.features):
        at = slice(feature * config.channels, (feature + 1) * config.channels)
        wanted = std[at] > 0
        if parts:
            wanted &= parts[0].known
        shown = find_shown_channels(values[:, at], bad[:, at], (mean[at], std[at]), wanted)
        average = config.common_average and not parts
        parts.append(
            feature_model(shown.precision, shown.known, shown.standardized, shown.there, config.fill_sweeps, average)
        )
    return stack_features(parts)


def stack_features(parts: Sequence[FeatureModel]) -> SpatialModel:
    """Returns the model of an array whose features these are."""
    coupling = np.stack([part.coupling for part in parts])
    scale, inverse, gain = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("scale", "inverse_scale", "gain")
    )
    return SpatialModel(coupling, scale, inverse, gain, parts[0].sweeps, parts[0].common_average)


def find_shown_channels(values: Floats, bad: Mask, statistics: tuple[Floats, Floats], wanted: Mask) -> ShownChannels:
    """Returns what values (T, C) of one feature, of which some are bad (T, C), show of the `wanted` channels (C,)."""
    wanted = wanted & (statistics[1] > 0)
    if wanted.any():  # what a dead channel holds, such as a rest of the mains, must not be blown up
        wanted &= statistics[1] >= LEAST_DEVIATION * np.median(statistics[1][wanted])
    every, (bins, channels) = slice(0, len(values)), values.shape
    found, there = allocate(values.shape, np.float32), allocate(values.shape, np.bool_)
    count = np.zeros(channels, np.int64)
    for part in split_rows(every, values.strides[0] // values.itemsize):
        found[part], there[part], _ = standardize(values[part], bad[part], statistics, wanted)
        count += there[part].sum(axis=0)
    known = wanted & (count >= max(KNOWN_BINS, KNOWN_SHARE * bins))
    whole, some = np.empty(bins, np.bool_), np.empty(bins, np.bool_)
    for part in split_rows(every, channels):
        there[part] &= known
        whole[part], some[part] = there[part][:, known].all(axis=1), there[part].any(axis=1)
    rows = whole if whole.sum() >= max(KNOWN_BINS, WHOLE_SHARE * bins) else some
    means = np.concatenate([np.empty((0, int(known.sum()))), *average_runs(found, there, rows, known)])
    return ShownChannels(known, found, there, find_precision(means))


def average_runs(found: npt.NDArray[np.float32], there: Mask, rows: Mask, known: Mask) -> Iterator[Floats]:
    """Yields the means (n, known channels) of MEAN_BINS bins at a time among the `rows` (T,) of standardized (T, C).

    A channel that is not there counts as 0, its mean. Bins at the end that are too few for a mean are left out.
    """
    waiting = np.empty((0, int(known.sum())))
    for part in split_rows(slice(0, len(found)), found.shape[1]):
        present = np.where(there[part], found[part], 0.0)[rows[part]][:, known].astype(np.float64)
        waiting = np.concatenate([waiting, present])
        whole = len(waiting) // MEAN_BINS
        yield waiting[: whole * MEAN_BINS].reshape(whole, MEAN_BINS, waiting.shape[1]).mean(axis=1)
        waiting = waiting[whole * MEAN_BINS :]


def join_precisions(precision: Floats, shown: Mask, old: FeatureModel) -> Floats:
    """Returns the precision matrix of all channels that `old` knows. `precision` is that of those `shown` (C,).

    The others go with the shown ones as they did: their rows are those of `old`. So their conditional mean is the same,
    and the shown channels have the covariance that `precision` says. Such a matrix is always positive definite.
    """
    kept = (old.known & ~shown)[old.known]
    if not kept.any():
        return precision
    scale = old.scale[old.known].astype(np.float64)
    joint = old.coupling[np.ix_(old.known, old.known)].astype(np.float64) * np.outer(scale, scale)
    across = joint[np.ix_(~kept, kept)]
    joint[np.ix_(~kept, ~kept)] = precision + across @ np.linalg.solve(joint[np.ix_(kept, kept)], across.T)
    return joint


def find_precision(means: Floats) -> Floats:
    """Returns the precision matrix of means of standardized channels (n, C), shrunk as Ledoit and Wolf (2004) do.

    They are means over MEAN_BINS bins. Kinematics are decoded from what changes slowly, and how channels go together
    there is not how they go together in rhythms and noise. Such means are also nearly independent of each other, as the
    shrinkage takes them to be.
    """
    if not means.size:
        return np.eye(means.shape[1])
    covariance, shrinkage = ledoit_wolf(means, assume_centered=True)
    if shrinkage < LEAST_SHRINKAGE:
        size = float(np.trace(covariance)) / len(covariance)
        covariance = (1 - LEAST_SHRINKAGE) * covariance + LEAST_SHRINKAGE * size * np.eye(len(covariance))
    return np.asarray(np.linalg.inv(covariance))


def feature_model(
    precision: Floats,
    known: Mask,
    standardized: npt.NDArray[np.float32],
    there: Mask,
    sweeps: int,
    common_average: bool,
) -> FeatureModel:
    """Returns the model of the `known` channels (C,) with `precision`, whose gains are found on standardized (T, C)."""
    channels = len(known)
    root = np.sqrt(np.diag(precision))
    coupling, scale = np.zeros((channels, channels), np.float32), np.ones(channels, np.float32)
    coupling[np.ix_(known, known)] = (precision + precision.T) / (2 * np.outer(root, root))
    coupling[known, known] = 1
    scale[known] = root
    gain = known.astype(np.float32)
    model = FeatureModel(coupling, scale, np.float32(1) / scale, gain, sweeps, common_average)
    filled, every, count = allocate(standardized.shape, np.float32), slice(0, len(standardized)), 0
    seen = np.empty(len(standardized), np.bool_)
    for part in split_rows(every, channels):
        filled[part], seen[part] = model.complete(standardized[part], there[part]), there[part].any(axis=1)
    count = max(1, int(seen.sum()))
    mean = sum_rows(lambda part: filled[part][seen[part]].astype(np.float64), every, channels) / count
    squares = sum_rows(lambda part: (filled[part][seen[part]].astype(np.float64) - mean) ** 2, every, channels)
    deviation = np.sqrt(squares / count) if seen.any() else np.ones(channels)
    gain = np.where(known, 1 / np.where(deviation > 0, deviation, 1.0), 0.0).astype(np.float32)
    return replace(model, gain=gain)
