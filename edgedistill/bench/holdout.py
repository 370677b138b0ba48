"""Prepares the spike counts of a bundle's holdout for the spike models, which take them standardized."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.bundle import Bundle
from edgedistill.bundle.contents import HOLDOUT, Floats, Holdout, Normalization, SpikeStudent
from edgedistill.errors import BundleError


def standardize_holdout_counts(bundle: Bundle, holdout: Holdout, student: SpikeStudent) -> Floats:
    """Returns the counts (T, U) of the holdout as the spike models take them.

    Raises BundleError where the holdout has no counts.
    """
    if holdout.counts is None or not len(holdout.counts):
        raise BundleError(f"{bundle.path}: '{HOLDOUT}' holds no 'counts'", next_step="build the bundle again")
    counts = standardize_counts(holdout.counts, student.normalization)
    return counts if holdout.unobserved is None else np.where(holdout.unobserved, np.float32(0), counts)


def standardize_counts(counts: npt.NDArray[Any], normalization: Normalization | None) -> Floats:
    """Returns (x - mean) / std of counts (T, U), with 0 where std is 0. Without statistics, counts stay as they are."""
    if normalization is None:
        return counts.astype(np.float32)
    mean, std = (np.asarray(part, np.float64) for part in (normalization.mean, normalization.std))
    scaled = np.divide(counts - mean, std, out=np.zeros(counts.shape), where=std > 0)
    return scaled.astype(np.float32)
