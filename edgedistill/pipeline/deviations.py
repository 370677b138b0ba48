"""Calibrates the standard deviation that comes with every output, on the validation block of a session.

The INT8 student and the session go in. A `DeviationModel` comes out. The student decodes the block with no channel lost
and with more and more of them lost, as it would on the device. The variance of its errors is a constant plus a share of
the squared speed, by number of lost channels, and is scaled so that nine in ten errors lie within 1.645 deviations.
docs/accuracy.md, "Confidence", shows how well that holds on the test block.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgedistill.config import StudentShape
from edgedistill.numerics import Int8Model, Oracle
from edgedistill.numerics.deviation import FASTEST, DeviationModel
from edgedistill.training.batches import TrainingSession
from edgedistill.training.evaluate import unscale_behavior

LOST = (0.0, 0.125, 0.25, 0.5, 0.75)  # shares of the channels
DRAWS = 2  # of which channels are lost, at each share but 0
COVERED, QUANTILE = 0.9, 1.6448536269514722  # share of the errors within so many deviations

Floats = npt.NDArray[np.float64]


def fit_deviation_model(model: Int8Model, session: TrainingSession) -> DeviationModel:
    """Returns the calibrated deviations of the outputs of `model` on `session`."""
    truth = unscale_behavior(session)
    train = truth[session.split.train]
    center, spread = np.nanmean(train, axis=0), np.nanstd(train, axis=0)
    weight = np.where(spread > 0, 1 / np.where(spread > 0, spread, 1.0), 0.0)
    channels, block = model.shape.channels, session.split.validation
    shares, rows = [], []
    for share in LOST:
        lost = round(share * channels)
        errors, speeds = [], []
        for draw in range(DRAWS if lost else 1):
            guess = decode_with_loss(model, session, block, draw_lost(channels, lost, draw))
            known = np.isfinite(truth[block]).all(axis=1)
            errors.append((guess - truth[block])[known])
            speeds.append((((guess - center) * weight) ** 2).sum(axis=1)[known])
        shares.append(lost)
        rows.append(fit_variances(np.concatenate(errors), np.minimum(np.concatenate(speeds), float(FASTEST))))
    at_rest, by_speed = (interpolate(shares, [row[part] for row in rows], channels) for part in (0, 1))
    return DeviationModel(at_rest, by_speed, center.astype(np.float32), weight.astype(np.float32))


def draw_lost(channels: int, lost: int, draw: int) -> npt.NDArray[np.int64]:
    """Draws which channels are lost. A larger number contains the smaller ones."""
    return np.random.default_rng([7, draw]).permutation(channels)[:lost]


def decode_with_loss(model: Int8Model, session: TrainingSession, block: slice, lost: npt.NDArray[np.int64]) -> Floats:
    """Returns kinematics (T, K) of a block after a run-up of one receptive field, without the `lost` channels."""
    source = session.source
    assert source is not None
    shape: StudentShape = model.shape
    start = max(0, block.start - shape.receptive_field - shape.lag_rows)
    present, there = (part[start : block.stop].numpy().copy() for part in (source.present, source.there))
    present[:, lost], there[:, lost] = 0, False
    bins = source.standardization.spatial.complete(present, there)
    return np.asarray(Oracle(model).run(bins)[block.start - start :], np.float64)


def fit_variances(errors: Floats, speed: Floats) -> tuple[Floats, Floats]:
    """Returns variance at rest and by squared speed (K,) each, for errors (N, K) at squared speeds (N,)."""
    features = np.column_stack([np.ones(len(speed)), speed])
    at_rest, by_speed = np.empty(errors.shape[1]), np.empty(errors.shape[1])
    for k, error in enumerate(errors.T):
        square = error**2
        slope = max(0.0, float(np.linalg.lstsq(features, square, rcond=None)[0][1]))
        base = max(float(square.mean() - slope * speed.mean()), 0.05 * float(square.mean()))
        scale = float(np.quantile(np.abs(error) / np.sqrt(base + slope * speed + 1e-300), COVERED)) / QUANTILE
        at_rest[k], by_speed[k] = base * scale**2, slope * scale**2
    return at_rest, by_speed


def interpolate(lost: list[int], rows: list[Floats], channels: int) -> npt.NDArray[np.float32]:
    """Returns the variances (C + 1, K) for every number of lost channels, from `rows` (K,) at some numbers."""
    known = np.stack(rows)
    counts = np.arange(channels + 1)
    return np.stack([np.interp(counts, lost, column) for column in known.T], axis=1).astype(np.float32)
