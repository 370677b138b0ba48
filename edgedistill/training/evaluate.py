"""Measures how well kinematics can be read from features, by a ridge read-out and R².

The inputs are features for each bin (latents, lagged bins) and behavior. The outputs are a linear read-out, fitted on
the training block with a penalty chosen on the validation block, and R² on the test block, which is used for nothing
else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import cho_factor, cho_solve

from edgedistill.data.bins import Split
from edgedistill.data.session import ARTEFACT_SIGMAS
from edgedistill.models.student import Student
from edgedistill.training.batches import TrainingSession

Array = npt.NDArray[np.float64]
PENALTIES = tuple(10.0**p for p in range(-1, 6))  # for features of unit variance, times the number of bins / 1e4

STILL = 1e-14  # share of an output's mean square; a smaller variation is below the step of a float32


@dataclass(frozen=True, eq=False)
class Readout:
    """Reads kinematics = features @ weight.T + bias, in the units of the behavior."""

    weight: Array  # (K, F)
    bias: Array  # (K,)
    penalty: float
    validation_r2: float

    def __call__(self, features: Array) -> Array:
        """Reads features (T, F), and returns kinematics (T, K)."""
        return np.asarray(features @ self.weight.T + self.bias)


@dataclass(frozen=True)
class Score:
    """Holds R² on the test block, for each output and as a mean, and the mean R² on the validation block."""

    r2: float
    r2_per_output: tuple[float, ...]
    validation_r2: float


def r2_score(guess: Array, truth: Array) -> tuple[float, ...]:
    """Returns the R² of each column of (T, K), over the bins in which `truth` is known; NaN where it does not move."""
    known = np.isfinite(truth).all(1)
    error = ((truth[known] - guess[known]) ** 2).sum(0)
    spread = ((truth[known] - truth[known].mean(0)) ** 2).sum(0)
    moves = spread > STILL * (truth[known] ** 2).sum(0)
    return tuple(float(v) for v in 1 - error / np.where(moves, spread, np.nan))


def compute_mean_r2(r2: Sequence[float]) -> float:
    """Returns the mean over the outputs that have an R²; NaN where no output moves."""
    moving = [value for value in r2 if math.isfinite(value)]
    return float(np.mean(moving)) if moving else math.nan


def find_fitted_rows(
    behavior: Array, split: Split, settled: int, calm: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.bool_]:
    """Returns the bins (T,) of the training block from bin `settled` on that a linear fit uses: with known behavior.

    Only calm bins are used where they are at least half of the known ones, because more than half cannot be artefacts.
    """
    rows, block = np.zeros(len(behavior), np.bool_), slice(settled, split.train.stop)
    known = np.isfinite(behavior[block]).all(1)
    undisturbed = known if calm is None else known & calm[block]
    rows[block] = undisturbed if 2 * undisturbed.sum() >= known.sum() else known
    return rows


def solve_penalties(
    gram: Array, cross: Array, count: int, penalties: Sequence[float] = PENALTIES
) -> Iterator[tuple[float, Array]]:
    """Yields each penalty and its ridge weights (F, K), for features of unit variance and zero mean.

    `gram` (F, F) and `cross` (F, K) are sums over `count` bins of products of the features with each other and with the
    behavior.
    """
    for penalty in penalties:
        normal = gram.copy()
        normal[np.diag_indices_from(normal)] += penalty * count / 1e4
        yield penalty, np.asarray(cho_solve(cho_factor(normal, overwrite_a=True, check_finite=False), cross))


def fit_readout(
    features: Array,
    behavior: Array,
    split: Split,
    settled: int = 0,
    calm: npt.NDArray[np.bool_] | None = None,
    latents: int | None = None,
) -> Readout:
    """Fits ridge on the training block from bin `settled` on. The penalty with the best validation R² wins.

    `features` is (T, F), `behavior` is (T, K) with NaN where it is unknown, and `calm` (T,) comes from
    `find_calm_bins`. `find_fitted_rows` says which bins are used. Where `latents` is given, ridges that read only the
    first so many features are among the choices. The weights of all other features are then exactly 0.
    """
    rows = find_fitted_rows(behavior, split, settled, calm)
    x, y = features[rows], behavior[rows]
    mean_x, mean_y = x.mean(0), y.mean(0)
    scale = x.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    x = (x - mean_x) / scale
    gram, cross = x.T @ x, x.T @ (y - mean_y)
    best: Readout | None = None
    for seen in sorted({x.shape[1], latents or x.shape[1]}, reverse=True):
        for penalty, weights in solve_penalties(gram[:seen, :seen], cross[:seen], len(x)):
            weight = np.zeros((y.shape[1], x.shape[1]))
            weight[:, :seen] = (weights / scale[:seen, None]).T
            readout = Readout(weight, mean_y - weight @ mean_x, penalty, 0.0)
            r2 = compute_mean_r2(r2_score(readout(features[split.validation]), behavior[split.validation]))
            if best is None or r2 > best.validation_r2:  # NaN where no output moves
                best = Readout(weight, readout.bias, penalty, r2)
    assert best is not None
    return best


def score(readout: Readout, features: Array, behavior: Array, split: Split) -> Score:
    """Returns the R² of `readout` on the test block."""
    per_output = r2_score(readout(features[split.test]), behavior[split.test])
    return Score(float(np.mean(per_output)), per_output, readout.validation_r2)


def score_decoded(decoded: Array, behavior: Array, split: Split) -> Score:
    """Returns the R² of kinematics (T, K) that were decoded from a whole session."""
    per_output = r2_score(decoded[split.test], behavior[split.test])
    validation = compute_mean_r2(r2_score(decoded[split.validation], behavior[split.validation]))
    return Score(float(np.mean(per_output)), per_output, validation)


def unscale_behavior(session: TrainingSession) -> Array:
    """Returns the behavior (T, K) in the units of the recording."""
    assert session.behavior is not None
    mean, std = session.scale
    return np.asarray(session.behavior.numpy().astype(np.float64) * std + mean)


@torch.no_grad()
def stream_latents(student: Student, session: str, bins: torch.Tensor) -> Array:
    """Returns latents (T, d) of a whole recording, streamed from a fresh state at its first bin."""
    return np.asarray(torch.cat(list(student.stream(session, bins))).double().numpy())


def stack_lagged_bins(bins: Array, lags: int) -> Array:
    """Stacks lags of (T, C) to (T, (lags + 1) * C), lag 0 first, with zeros before the first bin."""
    columns = [np.vstack([np.zeros((lag, bins.shape[1])), bins[: len(bins) - lag]]) for lag in range(lags + 1)]
    return np.hstack(columns)


def find_calm_bins(session: TrainingSession, modality: str, lags: int) -> npt.NDArray[np.bool_]:
    """Returns which bins (T,) neither are an artefact of the LFP nor have one among the last `lags` bins.

    An artefact on all channels points where the common average leaves no variance, so that a handful of such bins turns
    a linear read-out. Counts are never artefacts: one spike of a rare unit is as many deviations from its mean.
    """
    if modality != "lfp":
        return np.ones(session.split.test.stop, np.bool_)
    loud = (session.inputs("lfp").abs() > ARTEFACT_SIGMAS).any(1).numpy()
    return np.asarray(~np.convolve(loud, np.ones(lags + 1, np.bool_))[: len(loud)].astype(np.bool_))


def probe(
    features: Array,
    session: TrainingSession,
    calm: npt.NDArray[np.bool_] | None = None,
    latents: int | None = None,
) -> tuple[Readout, Score]:
    """Fits a ridge read-out to the features of a session as `fit_readout` does, and scores it."""
    behavior = unscale_behavior(session)
    readout = fit_readout(features, behavior, session.split, session.settled, calm, latents)
    return readout, score(readout, features, behavior, session.split)
