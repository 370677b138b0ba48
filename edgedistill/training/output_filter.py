"""Fits the filter that smooths a decoder's outputs, whatever the decoder is.

What was decoded and the behavior go in, and an `OutputFilter` comes out: a Kalman filter in steady state, whose
features are the decoded outputs. It is fitted on the training block. A decoder's errors are smaller there than on new
data, so the observation noise is multiplied by a factor. Factor and order are chosen on the validation block, where "no
filter" is among the choices. Comparisons of decoders are fair if each was given its own filter by this function.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgedistill.data.bins import Split
from edgedistill.numerics.smoothing import ORDERS, SmoothingModel
from edgedistill.training.evaluate import STILL, Array, compute_mean_r2, r2_score
from edgedistill.training.kalman import KalmanFilter, fit_linear_gaussian, solve_steady_kalman, stack_past
from edgedistill.training.lagged_moments import compute_lagged_moments

KALMAN, NONE = "kalman", "none"
KINDS = (KALMAN, NONE)
NOISE_FACTORS = tuple(2.0**power for power in range(-6, 5))
SHRINKAGE = 0.01  # of the observation noise, so that outputs which are decoded alike do not make it singular
LEAST_BINS = 100  # of the training block with labels
RUN_UP = 1000  # bins before the validation block, in which a filter forgets its start


@dataclass(frozen=True, eq=False)
class OutputFilter:
    """Smooths decoded outputs, or leaves them as they are where that decodes the validation block best."""

    model: SmoothingModel | None  # None: the outputs stay as they are
    validation_r2: float  # of the smoothed outputs
    raw_validation_r2: float  # of the outputs as they were decoded
    order: int | None = None  # bins of kinematics in the filter's state
    noise: float | None = None  # factor of the observation noise

    @property
    def kind(self) -> str:
        """Returns which of KINDS it is."""
        return NONE if self.model is None else KALMAN

    def __call__(self, decoded: Array) -> Array:
        """Smooths decoded outputs (T, K) as every engine does, from a fresh state at the first bin."""
        if self.model is None:
            return decoded
        return self.model.run(decoded.astype(np.float32)).astype(np.float64)


def fit_output_filter(decoded: Array, behavior: Array, split: Split, settled: int = 0) -> OutputFilter:
    """Returns the filter for outputs `decoded` (T, K) that gives the best R² on the validation block.

    `behavior` (T, K) is NaN where it is unknown. Training bins count from `settled` on. Where the training block has
    fewer than LEAST_BINS labels, or the validation block none, there is no filter.
    """
    train = slice(settled, split.train.stop)
    scored = slice(max(0, split.validation.start - RUN_UP), split.validation.stop)
    start, truth = split.validation.start - scored.start, behavior[split.validation]
    raw = _mean_r2(decoded[split.validation], truth)
    best = OutputFilter(None, raw, raw)
    known = np.asarray(np.isfinite(behavior[train]).all(1))
    if np.count_nonzero(known) < LEAST_BINS or not np.isfinite(raw):
        return best
    raw_scale, scale = find_scale(decoded[train][known]), find_scale(behavior[train][known])
    for order in ORDERS:
        try:
            truth_scaled = behavior[train] / scale
            moments = compute_lagged_moments(decoded[train] / raw_scale, stack_past(truth_scaled, order), known, (0,))
            fitted = fit_linear_gaussian(moments, truth_scaled, known, order)
            filters = {noise: solve_steady_kalman(fitted, SHRINKAGE, noise) for noise in NOISE_FACTORS}
        except np.linalg.LinAlgError:  # outputs that do not move together with the behavior at all
            continue
        for noise, kalman in filters.items():
            r2 = _mean_r2(kalman(decoded[scored] / raw_scale)[start:] * scale, truth)
            model = smoothing_from_kalman(kalman, raw_scale, scale) if r2 > best.validation_r2 else None
            if model is not None and model.find_fault() is None:
                best = OutputFilter(model, r2, raw, order, noise)
    return best


def smoothing_from_kalman(kalman: KalmanFilter, raw_scale: Array, scale: Array) -> SmoothingModel:
    """Returns a filter of scaled outputs as one of outputs in their own units.

    `raw_scale` (K,) divided the outputs that were decoded, and `scale` (K,) the behavior.
    """
    states = np.tile(scale, len(kalman.keep) // len(scale))
    return SmoothingModel(
        keep=(kalman.keep * states[:, None] / states).astype(np.float32),
        gain=(kalman.drive.weight[:, 0] * states[:, None] / raw_scale).astype(np.float32),
        raw_mean=(kalman.mean_bins[0] * raw_scale).astype(np.float32),
        mean=(kalman.mean_state[: len(scale)] * scale).astype(np.float32),
    )


def find_scale(values: Array) -> Array:
    """Returns the deviation (K,) of values (T, K), and 1 for a column that does not move."""
    variance = values.var(0)
    moves = variance > STILL * (values**2).mean(0)
    return np.where(moves, np.sqrt(np.where(moves, variance, 1.0)), 1.0)


def _mean_r2(guess: Array, truth: Array) -> float:
    """Returns the mean R², or NaN where the truth is unknown or does not move."""
    return compute_mean_r2(r2_score(guess, truth)) if np.isfinite(truth).all(1).any() else float("nan")
