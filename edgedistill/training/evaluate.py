"""Measures how well kinematics can be read from features, by a ridge read-out and R².

The inputs are features for each bin (latents, lagged bins) and behavior. The outputs are a linear read-out, fitted on
the training block with a penalty chosen on the validation block, and R² on the test block, which is used for nothing
else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import cho_factor, cho_solve
from scipy.linalg.blas import dsyrk

from edgedistill.data.bins import Split
from edgedistill.data.session import ARTEFACT_SIGMAS
from edgedistill.models.student import Student
from edgedistill.scratch import allocate, release_pages, split_rows
from edgedistill.training.batches import TrainingSession
from edgedistill.training.lagged_features import Features, read_rows

Array = npt.NDArray[np.float64]
PENALTIES = tuple(10.0**p for p in range(-1, 6))  # for features of unit variance, times the number of bins / 1e4
SHARES = 10  # shares of ridges in a read-out are multiples of its inverse

STILL = 1e-14  # share of an output's mean square; a smaller variation is below the step of a float32


@dataclass(frozen=True, eq=False)
class Readout:
    """Reads kinematics = features @ weight.T + bias, in the units of the behavior."""

    weight: Array  # (K, F)
    bias: Array  # (K,)
    penalty: float  # of a mean of ridges, that of the ridge with the largest share
    validation_r2: float

    def __call__(self, features: Features) -> Array:
        """Reads features (T, F), and returns kinematics (T, K)."""
        return read_out([self], features, slice(0, len(features)))[0]


@dataclass(frozen=True)
class Score:
    """Holds R² on the test block, for each output and as a mean, and the mean R² on the validation block."""

    r2: float
    r2_per_output: tuple[float, ...]
    validation_r2: float


def read_out(readouts: Sequence[Readout], features: Features, rows: slice) -> list[Array]:
    """Returns the kinematics (n, K) that each read-out reads from a block of rows, in one pass over the features."""
    found = [np.empty((rows.stop - rows.start, len(readout.bias))) for readout in readouts]
    for part in split_rows(rows, features.shape[1]):
        seen, at = read_rows(features, part), slice(part.start - rows.start, part.stop - rows.start)
        for guess, readout in zip(found, readouts, strict=True):
            guess[at] = seen @ readout.weight.T + readout.bias
    return found


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
    behavior. Only the upper triangle of `gram` is read.
    """
    normal = np.empty_like(gram, order="F")  # which the solver overwrites in place
    for penalty in penalties:
        normal[...] = gram
        normal[np.diag_indices_from(normal)] += penalty * count / 1e4
        yield penalty, np.asarray(cho_solve(cho_factor(normal, overwrite_a=True, check_finite=False), cross))


def fit_readout(
    features: Features,
    behavior: Array,
    split: Split,
    settled: int = 0,
    calm: npt.NDArray[np.bool_] | None = None,
    latents: int | None = None,
) -> Readout:
    """Fits ridge on the training block from bin `settled` on. The penalty with the best validation R² wins.

    `features` is (T, F), `behavior` is (T, K) with NaN where it is unknown, and `calm` (T,) comes from
    `find_calm_bins`. `find_fitted_rows` says which bins are used. Where `latents` is given, the read-out is a weighted
    mean of three ridges: on all features, on the first so many, and on the others. Latents that were trained on the
    same labels fit the training block too well, so a ridge on both hardly reads the others. The validation block tells.
    """
    rows, width = find_fitted_rows(behavior, split, settled, calm), features.shape[1]
    mean_x, scale, gram, cross = sum_features(features, behavior, rows)
    mean_y = behavior[rows].mean(0)
    parts = [slice(0, width)]
    if latents is not None and 0 < latents < width:
        parts += [slice(0, latents), slice(latents, width)]
    ridges = []
    for seen in parts:
        for penalty, weights in solve_penalties(gram[seen, seen], cross[seen], int(rows.sum())):
            weight = np.zeros((behavior.shape[1], width))
            weight[:, seen] = (weights / scale[seen, None]).T
            ridges.append(Readout(weight, mean_y - weight @ mean_x, penalty, 0.0))
    truth = behavior[split.validation]
    guesses = read_out(ridges, features, split.validation)
    r2 = [compute_mean_r2(r2_score(guess, truth)) for guess in guesses]
    best = [find_largest(r2[i : i + len(PENALTIES)]) + i for i in range(0, len(ridges), len(PENALTIES))]
    shares, found = choose_shares([guesses[i] for i in best], truth)
    return Readout(
        weight=np.sum([share * ridges[i].weight for share, i in zip(shares, best, strict=True)], axis=0),
        bias=np.sum([share * ridges[i].bias for share, i in zip(shares, best, strict=True)], axis=0),
        penalty=ridges[best[find_largest(shares)]].penalty,
        validation_r2=found,
    )


def choose_shares(guesses: Sequence[Array], truth: Array) -> tuple[tuple[float, ...], float]:
    """Returns the shares of a weighted mean of `guesses` (n, K) with the best mean R², and that R².

    Shares are multiples of 1 / SHARES, not negative, and add up to 1. Among equal ones the first guess has the most.
    """
    every = [one for one in product(range(SHARES, -1, -1), repeat=len(guesses)) if sum(one) == SHARES]
    shares = [tuple(part / SHARES for part in one) for one in every]
    means = (np.sum([share * guess for share, guess in zip(one, guesses, strict=True)], axis=0) for one in shares)
    r2 = [compute_mean_r2(r2_score(mean, truth)) for mean in means]
    best = find_largest(r2)
    return shares[best], r2[best]


def find_largest(values: Sequence[float]) -> int:
    """Returns where the largest R² of `values` stands, the first of equal ones."""
    return max(range(len(values)), key=lambda i: rank_r2(values[i]))


def rank_r2(r2: float) -> float:
    """Returns the R², or for NaN a number below every R², so that a largest one can be found."""
    return -math.inf if math.isnan(r2) else r2


def sum_features(features: Features, behavior: Array, rows: npt.NDArray[np.bool_]) -> tuple[Array, Array, Array, Array]:
    """Returns mean and scale (F,) of the features over the `rows` (T,), and the products `solve_penalties` takes.

    The products are those of features of zero mean and unit variance. They are summed over blocks of rows, and only the
    upper triangle of the first is filled.
    """
    count, width, mean_y = int(rows.sum()), features.shape[1], behavior[rows].mean(0)
    mean = sum((read_rows(features, part)[rows[part]].sum(0) for part in _used_blocks(rows, width)), np.zeros(width))
    mean /= count
    gram, cross = np.zeros((width, width), order="F"), np.zeros((width, behavior.shape[1]))
    for part in _used_blocks(rows, width):
        x = np.ascontiguousarray(read_rows(features, part)[rows[part]] - mean)
        gram = dsyrk(1.0, x.T, beta=1.0, c=gram, overwrite_c=True)
        cross += x.T @ (behavior[part][rows[part]] - mean_y)
    deviation = np.sqrt(np.diagonal(gram) / count)
    scale = np.where(deviation > 0, deviation, 1.0)
    gram /= scale
    gram /= scale[:, None]
    return mean, scale, gram, cross / scale[:, None]


def _used_blocks(rows: npt.NDArray[np.bool_], width: int) -> Iterator[slice]:
    """Yields blocks of the `rows` (T,) of features, without those in which no row is used."""
    used = np.flatnonzero(rows)
    every = slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 0)
    return (part for part in split_rows(every, width) if rows[part].any())


def score(readout: Readout, features: Features, behavior: Array, split: Split) -> Score:
    """Returns the R² of `readout` on the test block."""
    per_output = r2_score(read_out([readout], features, split.test)[0], behavior[split.test])
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
def stream_latents(student: Student, session: str, bins: torch.Tensor) -> npt.NDArray[np.float32]:
    """Returns latents (T, d) of a whole recording, streamed from a fresh state at its first bin."""
    latents, done = allocate((len(bins), student.size.d), np.float32), 0
    for chunk in student.stream(session, bins):
        latents[done : done + len(chunk)] = chunk.numpy()
        done += len(chunk)
        release_pages()
    return latents


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
    inputs = session.inputs("lfp")
    parts = split_rows(slice(0, len(inputs)), inputs.shape[1])
    loud = np.concatenate([(inputs[part].abs() > ARTEFACT_SIGMAS).any(1).numpy() for part in parts])
    return np.asarray(~np.convolve(loud, np.ones(lags + 1, np.bool_))[: len(loud)].astype(np.bool_))


def probe(
    features: Features,
    session: TrainingSession,
    calm: npt.NDArray[np.bool_] | None = None,
    latents: int | None = None,
) -> tuple[Readout, Score]:
    """Fits a ridge read-out to the features of a session as `fit_readout` does, and scores it."""
    behavior = unscale_behavior(session)
    readout = fit_readout(features, behavior, session.split, session.settled, calm, latents)
    return readout, score(readout, features, behavior, session.split)
