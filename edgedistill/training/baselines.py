"""Fits the causal decoders that a neural engineer would try first: lagged ridge (Wiener filter) and Kalman filter.

Each is tuned on the validation block over at least as many settings as any network is.
Sources: Wiener filter as in Glaser 2020; Kalman filter as in Wu 2003 (the state is the kinematics and their past).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgedistill.training.batches import TrainingSession
from edgedistill.training.evaluate import (
    Array,
    Readout,
    Score,
    compute_mean_r2,
    fit_readout,
    r2_score,
    score,
    stack_lagged_bins,
    unscale_behavior,
)
from edgedistill.training.kalman import fit_linear_gaussian, solve_steady_kalman

RIDGE_LAGS = (5, 10, 20, 40)
KALMAN_LAGS = (0, 5, 10, 20)
KALMAN_ORDERS = (1, 2)
SHRINKAGES = (0.01, 0.1)  # share by which the observation noise is shrunk towards its diagonal


@dataclass(frozen=True, eq=False)
class LaggedRidge:
    """Reads kinematics from the newest bin and the last `lags` before it, as `stack_lagged_bins` puts them together."""

    readout: Readout
    lags: int
    score: Score


def score_ridge(bins: Array, session: TrainingSession, bidirectional: bool = False) -> Score:
    """Returns the score of the best lagged ridge on bins (T, C)."""
    return fit_ridge(bins, session, bidirectional).score


def fit_ridge(
    bins: Array, session: TrainingSession, bidirectional: bool = False, lags: Sequence[int] | None = None
) -> LaggedRidge:
    """Returns the best lagged ridge on bins (T, C). Lags and penalty are chosen on validation.

    `bidirectional` puts half of the lags into the future, which shows what the same filter would do offline. `lags` are
    those to choose from, RIDGE_LAGS by default.
    """
    behavior = unscale_behavior(session)
    best: LaggedRidge | None = None
    for length in RIDGE_LAGS if lags is None else lags:
        ahead = length // 2 if bidirectional else 0
        features = np.roll(stack_lagged_bins(np.vstack([bins, np.zeros((ahead, bins.shape[1]))]), length), -ahead, 0)
        features = features[: len(bins)]
        readout = fit_readout(features, behavior, session.split, session.settled)
        if best is None or readout.validation_r2 > best.readout.validation_r2:  # NaN where no output moves
            best = LaggedRidge(readout, length, score(readout, features, behavior, session.split))
    assert best is not None
    return best


def score_kalman(bins: Array, session: TrainingSession) -> Score:
    """Returns the score of the best Kalman filter on bins (T, C) with lags. Settings are chosen on validation."""
    behavior, split = unscale_behavior(session), session.split
    train = slice(session.settled, split.train.stop)
    best, chosen = -np.inf, None
    for lags in KALMAN_LAGS:
        features = stack_lagged_bins(bins, lags)
        for order in KALMAN_ORDERS:
            model = fit_linear_gaussian(features[train], behavior[train], order)
            for shrinkage in SHRINKAGES:
                kalman = solve_steady_kalman(model, shrinkage)
                validation = r2_score(kalman(features[split.validation]), behavior[split.validation])
                if chosen is None or compute_mean_r2(validation) > best:
                    test = r2_score(kalman(features[split.test]), behavior[split.test])
                    best = compute_mean_r2(validation)
                    chosen = Score(float(np.mean(test)), test, best)
    assert chosen is not None
    return chosen
