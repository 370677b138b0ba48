"""How well a session's kinematics can be read from features: ridge, streamed latents, R².

Comes in: features a bin (latents, lagged bins) and behavior. Goes out: a linear read-out fitted on the training
block, its penalty chosen on the validation block, and R² on the test block, which nothing else ever sees.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from edgedistill.data.bins import Split
from edgedistill.data.session import ARTEFACT_SIGMAS
from edgedistill.models.student import Student
from edgedistill.training.batches import TrainingSession

Array = npt.NDArray[np.float64]
PENALTIES = tuple(10.0**p for p in range(-1, 6))  # per sample of unit variance, times the number of bins / 1e4

STILL = 1e-14  # of an output's mean square: variation below the step of a float32 is none


@dataclass(frozen=True, eq=False)
class Readout:
    """kinematics = features @ weight.T + bias, in the units of the behavior."""

    weight: Array  # (K, F)
    bias: Array  # (K,)
    penalty: float
    validation_r2: float

    def __call__(self, features: Array) -> Array:
        """(T, F) -> (T, K)."""
        return np.asarray(features @ self.weight.T + self.bias)


@dataclass(frozen=True)
class Score:
    """R² on the test block, an output each and their mean."""

    r2: float
    r2_per_output: tuple[float, ...]
    validation_r2: float


def r2_score(guess: Array, truth: Array) -> tuple[float, ...]:
    """Coefficient of determination of each column of (T, K), over the bins in which `truth` is known."""
    known = np.isfinite(truth).all(1)
    error = ((truth[known] - guess[known]) ** 2).sum(0)
    spread = ((truth[known] - truth[known].mean(0)) ** 2).sum(0)
    moves = spread > STILL * (truth[known] ** 2).sum(0)
    return tuple(float(v) for v in 1 - error / np.where(moves, spread, np.nan))


def mean_of_moving(r2: Sequence[float]) -> float:
    """Mean over the outputs that have an R²: one that stands still has no say in a choice. NaN where none moves."""
    moving = [value for value in r2 if math.isfinite(value)]
    return float(np.mean(moving)) if moving else math.nan


def fit_readout(
    features: Array, behavior: Array, split: Split, settled: int = 0, calm: npt.NDArray[np.bool_] | None = None
) -> Readout:
    """Ridge on the training block from bin `settled` on; the penalty with the best validation R² wins.

    features (T, F), behavior (T, K), NaN where unknown; `calm` (T,) as `calm_bins` gives it.
    """
    train = np.arange(settled, split.train.stop)
    known = np.isfinite(behavior[train]).all(1)
    undisturbed = known if calm is None else known & calm[train]
    train = train[undisturbed if 2 * undisturbed.sum() >= known.sum() else known]  # else it is no artefact
    x, y = features[train], behavior[train]
    mean_x, mean_y = x.mean(0), y.mean(0)
    scale = x.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    x = (x - mean_x) / scale
    values, vectors = np.linalg.eigh(x.T @ x)
    rotated = vectors.T @ (x.T @ (y - mean_y))
    best: Readout | None = None
    for penalty in PENALTIES:
        weights = vectors @ (rotated / (np.maximum(values, 0)[:, None] + penalty * len(x) / 1e4))
        weight = (weights / scale[:, None]).T
        readout = Readout(weight, mean_y - weight @ mean_x, penalty, 0.0)
        r2 = mean_of_moving(r2_score(readout(features[split.validation]), behavior[split.validation]))
        if best is None or r2 > best.validation_r2:  # NaN where no output moves
            best = Readout(weight, readout.bias, penalty, r2)
    assert best is not None
    return best


def score(readout: Readout, features: Array, behavior: Array, split: Split) -> Score:
    """R² of `readout` on the test block."""
    per_output = r2_score(readout(features[split.test]), behavior[split.test])
    return Score(float(np.mean(per_output)), per_output, readout.validation_r2)


def behavior_of(session: TrainingSession) -> Array:
    """(T, K) in the units of the recording."""
    assert session.behavior is not None
    mean, std = session.scale
    return np.asarray(session.behavior.numpy().astype(np.float64) * std + mean)


@torch.no_grad()
def streamed_latents(student: Student, session: str, bins: torch.Tensor) -> Array:
    """(T, d) latents of a whole recording, streamed from a fresh state at its first bin."""
    return np.asarray(torch.cat(list(student.stream(session, bins))).double().numpy())


def lagged_features(bins: Array, lags: int) -> Array:
    """(T, C) -> (T, (lags + 1) * C), lag 0 first; zeros before the first bin."""
    columns = [np.vstack([np.zeros((lag, bins.shape[1])), bins[: len(bins) - lag]]) for lag in range(lags + 1)]
    return np.hstack(columns)


def calm_bins(session: TrainingSession, modality: str, lags: int) -> npt.NDArray[np.bool_]:
    """(T,) bins that neither are an artefact of the LFP nor have one among the last `lags` bins.

    An artefact on all channels points where the common average leaves no variance: a handful of such bins turns a
    linear read-out. Counts are never artefacts: one spike of a rare unit is as many deviations.
    """
    if modality != "lfp":
        return np.ones(session.split.test.stop, np.bool_)
    loud = (session.inputs("lfp").abs() > ARTEFACT_SIGMAS).any(1).numpy()
    return np.asarray(~np.convolve(loud, np.ones(lags + 1, np.bool_))[: len(loud)].astype(np.bool_))


def probe(
    features: Array, session: TrainingSession, calm: npt.NDArray[np.bool_] | None = None
) -> tuple[Readout, Score]:
    """Ridge read-out of a session's features and its score."""
    behavior = behavior_of(session)
    readout = fit_readout(features, behavior, session.split, session.settled, calm)
    return readout, score(readout, features, behavior, session.split)
