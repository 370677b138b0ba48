"""The spike counts of a bundle's holdout, as the spike models take them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.bundle import Bundle
from edgedistill.bundle.contents import HOLDOUT, Holdout, Normalization, read_spike_student
from edgedistill.config import StudentShape
from edgedistill.errors import BundleError

Floats = npt.NDArray[np.float32]


def spike_counts(bundle: Bundle, holdout: Holdout) -> tuple[StudentShape, Floats]:
    """The spike student's shape, and the counts as it takes them."""
    if holdout.counts is None or not len(holdout.counts):
        raise BundleError(f"{bundle.path}: '{HOLDOUT}' holds no 'counts'", next_step="build the bundle again")
    student = read_spike_student(bundle)
    return student.shape, standardised(holdout.counts, student.normalization)


def standardised(counts: npt.NDArray[Any], normalization: Normalization | None) -> Floats:
    """Counts (T, U) as the spike models take them: (x - mean) / std, 0 where std is 0."""
    if normalization is None:
        return counts.astype(np.float32)
    mean, std = (np.asarray(part, np.float64) for part in (normalization.mean, normalization.std))
    scaled = np.divide(counts - mean, std, out=np.zeros(counts.shape), where=std > 0)
    return scaled.astype(np.float32)
