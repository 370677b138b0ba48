"""Measures how many true values lie in the intervals that a decoder gives, and how sure that share is.

Decoded values, their deviations and true values go in, shares come out. An interval of 90 % is the decoded value plus
and minus 1.645 deviations. Errors of neighbouring bins go together, so the standard error of a share is found from
means over stretches of RUN bins, which are much longer than an error lasts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

QUANTILES = {0.5: 0.6744897501960817, 0.9: 1.6448536269514722}  # share of a normal distribution -> deviations
RUN = 200  # bins
LEAST_RUNS = 5  # fewer give no standard error


@dataclass(frozen=True)
class Coverage:
    """The share of true values in the intervals of one level, over all outputs and by output (K,)."""

    level: float  # the share that is promised
    share: float
    standard_error: float | None  # of `share`; None where the data are too short to tell
    per_output: tuple[float, ...]

    def to_json(self) -> dict[str, object]:
        """Returns the coverage as `bench --json` has it."""
        return {
            "level": self.level,
            "share": self.share,
            "standard_error": self.standard_error,
            "share_per_output": list(self.per_output),
        }


def measure_coverage(
    decoded: npt.NDArray[Any], deviations: npt.NDArray[Any], truth: npt.NDArray[Any], level: float
) -> Coverage:
    """Returns the coverage of the intervals of `level`, one of QUANTILES, over at least one bin of known truth.

    `decoded` and `deviations` are (D, T, K): the same T bins in D ways. `truth` is (T, K), NaN where unknown.
    """
    within = np.abs(decoded.astype(np.float64) - truth) <= QUANTILES[level] * deviations.astype(np.float64)
    known = np.isfinite(truth).all(axis=1)
    hits = within.mean(axis=0)  # (T, K)
    per_output = tuple(float(share) for share in hits[known].mean(axis=0))
    by_bin = np.where(known, hits.mean(axis=1), np.nan)
    return Coverage(level, float(np.mean(per_output)), compute_standard_error(by_bin), per_output)


def compute_standard_error(values: Array) -> float | None:
    """Returns the standard error of the mean of values (T,), of which neighbours go together and some are NaN."""
    known = np.isfinite(values)
    runs = -(-len(values) // RUN)
    away = np.where(known, values - values[known].mean(), 0.0) if known.any() else np.zeros(len(values))
    sums = np.pad(away, (0, runs * RUN - len(values))).reshape(runs, RUN).sum(axis=1)
    used = np.pad(known, (0, runs * RUN - len(values))).reshape(runs, RUN).any(axis=1)
    count = int(used.sum())
    if count < LEAST_RUNS:
        return None
    return float(np.sqrt((sums**2).sum() * count / (count - 1)) / known.sum())
