"""Holds what a read-out sees of a session without ever stacking it: latents, and the last bins at every bin.

Latents and bins go in, and blocks of rows come out. Stacked features of an hour of 96 channels would take tens of
gigabytes, because every bin stands in them once a lag.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LaggedFeatures:
    """Holds features (T, F): d latents, then the newest of C inputs and those of the last `lags` bins."""

    latents: npt.NDArray[Any]  # (T, d)
    bins: npt.NDArray[Any]  # (T, C)
    lags: int
    bin_scale: Array | float = 1.0  # (1,) or (C,), multiplies the bins

    def __len__(self) -> int:
        """Returns the number of bins T."""
        return len(self.bins)

    @property
    def shape(self) -> tuple[int, int]:
        """Returns (T, F)."""
        return len(self), self.latents.shape[1] + (self.lags + 1) * self.bins.shape[1]

    def read(self, rows: slice) -> Array:
        """Returns the features (n, F) of a contiguous block of bins in float64, with zeros before the first bin."""
        start, stop, _ = rows.indices(len(self))
        d, channels = self.latents.shape[1], self.bins.shape[1]
        found = np.zeros((max(0, stop - start), self.shape[1]))
        found[:, :d] = self.latents[start:stop]
        first = max(0, start - self.lags)
        seen = self.bins[first:stop] * np.asarray(self.bin_scale, np.float64)
        for lag in range(self.lags + 1):
            known = max(start, lag)  # bins before it have no bin so long ago
            if known < stop:
                columns = slice(d + lag * channels, d + (lag + 1) * channels)
                found[known - start :, columns] = seen[known - lag - first : stop - lag - first]
        return found


Features = npt.NDArray[Any] | LaggedFeatures


def read_rows(features: Features, rows: slice) -> Array:
    """Returns a contiguous block of features (n, F) in float64."""
    return np.asarray(features[rows], np.float64) if isinstance(features, np.ndarray) else features.read(rows)
