"""Lets a student that learns behavior begin with whitened inputs, and leaves it a plain map of bins at the end.

Neighboring channels share most of what they record, and so do neighboring bins. The inputs of a tokenizer therefore
vary much in a few directions and hardly at all in the others. What tells the movement is often among the small ones,
and gradient descent finds it late. While a student is trained, the map of each array is multiplied by a fixed matrix W,
and the inputs W x vary nearly alike in all directions. The product is the student's map afterwards, so no file and no
engine knows of W.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor

from edgedistill import ranks
from edgedistill.models.tokenizer import BinTokenizer
from edgedistill.scratch import release_pages
from edgedistill.training.batches import TrainingSession
from edgedistill.training.evaluate import Array

SHRINKAGE = 0.03  # share of the mean variance in that of every direction, so that noise is not blown up
NOTHING = 1e-6  # share of the mean variance below which a direction holds nothing, as that of a dead channel
MOST_INPUTS = 4000  # numbers that a tokenizer sees at once; the time for a matrix grows with the cube of it
MOST_BINS = 60_000  # of an array, spread over its sessions; more do not make the moments better
BINS_AT_ONCE = 4096


@contextmanager
def whitened_inputs(tokenizer: BinTokenizer, sessions: Sequence[TrainingSession]) -> Iterator[None]:
    """Multiplies the map of each array by its W within the context, and puts the product in its place at the end.

    The tokenizer is one of LFP that was not trained yet. Arrays with more than MOST_INPUTS inputs stay as they are.
    """
    for array in dict.fromkeys(session.array for session in sessions):
        recorded = [session for session in sessions if session.array == array]
        if len(tokenizer.lags) * recorded[0].inputs("lfp").shape[1] <= MOST_INPUTS:
            tokenizer.turns[array] = ranks.lead(partial(make_whitening, recorded, tokenizer.lags))
    try:
        yield
    finally:
        tokenizer.keep_turned_maps()


def make_whitening(sessions: Sequence[TrainingSession], lags: Sequence[int]) -> Tensor:
    """Returns W (n, n) in float32 for the n inputs of a tokenizer with these `lags`, in sessions of one array."""
    return torch.from_numpy(compute_whitening(compute_second_moments(sessions, lags)).astype(np.float32))


def compute_second_moments(sessions: Sequence[TrainingSession], lags: Sequence[int]) -> Array:
    """Returns the mean of x xᵀ (n, n) over the training blocks, for the inputs x of a tokenizer with these `lags`."""
    blocks = [np.arange(s.settled + max(lags), s.split.train.stop) for s in sessions]
    spacing = max(1, -(-sum(len(block) for block in blocks) // MOST_BINS))
    width, count = len(lags) * sessions[0].inputs("lfp").shape[1], 0
    moments = np.zeros((width, width))
    for session, block in zip(sessions, blocks, strict=True):
        values = session.inputs("lfp").numpy()
        used = block[::spacing][session.valid.numpy()[block[::spacing]]]
        for start in range(0, len(used), BINS_AT_ONCE):
            rows = used[start : start + BINS_AT_ONCE]
            x = np.concatenate([values[rows - lag] for lag in lags], 1).astype(np.float64)
            moments += x.T @ x
            count += len(rows)
            release_pages()
    return moments / max(1, count)


def compute_whitening(moments: Array) -> Array:
    """Returns the symmetric W (n, n) that whitens inputs with these second moments, up to SHRINKAGE.

    W = V diag((1 - s) l + s mean(l))^-1/2 Vᵀ, times the number that leaves the mean square of the inputs as it was. V
    and l are eigenvectors and eigenvalues of the moments, s is SHRINKAGE. Directions without variance are left out,
    because weights that no training reaches would stay random there. Inputs that are always 0 give the identity.
    """
    variances, directions = np.linalg.eigh(moments)
    mean = variances.mean()
    if mean <= 0:
        return np.eye(len(moments))
    gains = np.where(variances > NOTHING * mean, ((1 - SHRINKAGE) * variances.clip(0) + SHRINKAGE * mean) ** -0.5, 0)
    gains *= np.sqrt(mean / np.mean(gains**2 * variances))
    whitening: Array = (directions * gains) @ directions.T
    return whitening
