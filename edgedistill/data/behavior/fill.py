"""Finds the number that a tracker writes where it lost what it follows, such as -1, -9999 or the corner of the image.

The inputs are the values of one series. The output is the row of numbers that stands for "lost", or None. A movement
that rests at a place comes and goes in small steps. A fill value is jumped to and jumped from, again and again.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

JUMP = 50  # times the typical step; a hand that is sampled at 5 Hz or faster does not move like this
NEARLY_ALL = 0.9  # share of the borders of the stretches at this value that are jumps
FEWEST = 5  # samples at this value; fewer are glitches of the tracker
MOST = 0.9  # share of the samples


def find_fill(values: Floats) -> Floats | None:
    """Returns the row (K,) that stands for lost samples in values (n, K), or None. Rows of NaN are no such value."""
    steps = np.linalg.norm(np.diff(values, axis=0), axis=1)  # (n - 1,), NaN beside a NaN
    moved = steps[steps > 0]
    if not moved.size:
        return None
    jumps = steps > JUMP * float(np.median(moved))
    if not jumps.any():
        return None
    beside = np.concatenate([values[:-1][jumps], values[1:][jumps]])
    rows, counts = np.unique(beside, axis=0, return_counts=True)
    row = rows[int(np.argmax(counts))]
    at = (values == row).all(axis=1)
    borders = (at[1:] != at[:-1]) & np.isfinite(steps)
    enough = FEWEST <= at.sum() <= MOST * len(values) and borders.sum() >= 2
    return row if enough and jumps[borders].mean() >= NEARLY_ALL else None
