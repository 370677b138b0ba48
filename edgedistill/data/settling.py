"""Finds the bins in which the front end still rings from an artefact in times that the file marks as invalid.

The inputs are the bins of a session, its invalid times, and the level of each electrode. The output is a mask of the
bins whose value is off by more than a tenth of the channel's deviation. Lost samples need nothing here, because the
front end starts from rest after them and says when it has settled.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy

from edgedistill.data.session import BINS_PER_S, copy_columns, split_columns
from edgedistill.frontend import FrontEndConfig, bin_edges, filter_sections
from edgedistill.scratch import allocate

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

EVERY = 10  # frames
MATTERS = 0.1  # deviations of a channel
ORDINARY = 10  # deviations of a channel that its data reach by themselves
SHORT_BINS = 100  # in which notches and the low-pass have forgotten an artefact


class Level:
    """Gathers the mean of every channel in uV for each second, block by block. An electrode's offset wanders."""

    def __init__(self, config: FrontEndConfig, bins: int) -> None:
        seconds = -(-bins // BINS_PER_S) + 1
        self._config = config
        self._sum = np.zeros((seconds, config.channels))
        self._count = np.zeros((seconds, config.channels), np.int64)

    def add(self, frames_uv: npt.NDArray[np.float32], first: int) -> None:
        """Takes frames (n, C), of which the first is frame `first` of the recording. One in EVERY is enough."""
        some = frames_uv[::EVERY].astype(np.float64)
        rate = self._config.rate
        second = (first + EVERY * np.arange(len(some))) * rate.denominator // rate.numerator
        begins = np.flatnonzero(np.diff(second, prepend=-1))
        if not len(begins):
            return
        finite = np.isfinite(some)
        at = np.minimum(second[begins], len(self._sum) - 1)
        np.add.at(self._sum, at, np.add.reduceat(np.where(finite, some, 0.0), begins, axis=0))
        np.add.at(self._count, at, np.add.reduceat(finite.astype(np.int64), begins, axis=0))

    def offset(self, bad: Mask) -> Array:
        """Returns by second the offset (S, C) in uV that the filters see.

        Where a channel is `bad` (T, C), and in the second before, its offset lies between those before and after.
        """
        known = self._count[:-1] > 0
        for c, rows in enumerate(bad.T):
            calm, late = known[:, c].copy(), np.unique(np.flatnonzero(rows) // BINS_PER_S)
            calm[late] = calm[np.maximum(late - 1, 0)] = False
            if calm.any():
                known[:, c] = calm
        mean = self._sum[:-1] / np.maximum(self._count[:-1], 1)
        at = np.arange(len(mean))
        for c, held in enumerate(known.T):
            mean[:, c] = np.interp(at, at[held], mean[held, c]) if held.any() else 0.0
        return np.asarray(mean)

    def excess(self, offset_uv: Array) -> Array:
        """Returns by second by how much the mean (S, C) in uV lay above the offset, 0 where nothing is known."""
        known = self._count[:-1] > 0
        mean = self._sum[:-1] / np.maximum(self._count[:-1], 1)
        return np.where(known, mean - offset_uv, 0.0)


def robust_deviation(values: Array, good: Mask) -> Array:
    """Returns the deviation (C,) of values (T, C) over the good bins, from the median; 0 for a channel without any."""
    found = np.zeros(values.shape[1])
    for columns in split_columns(values):
        for channel, column in enumerate(copy_columns(values, columns), columns.start):
            if (rows := good[:, channel]).any():
                x = column[rows]
                found[channel] = 1.4826 * np.median(np.abs(x - np.median(x)))
    return found


def find_rings_of_artefacts(
    config: FrontEndConfig, values: Array, invalid: Mask, excess_uv: Array, deviation_uv: Array
) -> Mask:
    """Returns the bins (T, C) after invalid stretches (T,) in which the filters still ring from what was in them.

    Only a channel that leaves its ordinary range `values` (T, C) in a stretch counts. What the high-pass remembers is
    its slow excess over the offset, `excess_uv` by second (S, C). All other filters forget within SHORT_BINS.
    """
    rings: Mask = allocate(values.shape, np.bool_)
    rings[:] = False
    if not invalid.any():
        return rings
    _, shaper = filter_sections(config)
    ends = -(-bin_edges(config.rate, 0, len(values), config.bin_ms) // config.decimation)
    stretches = np.flatnonzero(np.diff(np.concatenate([[False], invalid, [False]]))).reshape(-1, 2)
    first = int(stretches[0, 0])
    lengths = np.diff(ends[first:])
    for channel in np.flatnonzero(deviation_uv > 0):
        (column,) = copy_columns(values, slice(channel, channel + 1))
        loud = np.abs(column) > ORDINARY * deviation_uv[channel]
        if not (loud & invalid).any():
            continue
        for start, stop in stretches:
            rings[stop : stop + SHORT_BINS, channel] |= loud[start:stop].any()
        slow = np.where(invalid, np.repeat(excess_uv[:, channel], BINS_PER_S)[: len(values)], 0.0)
        response = scipy.signal.sosfilt(shaper, np.repeat(slow[first:], lengths))[np.cumsum(lengths) - 1]
        rings[first:, channel] |= np.abs(response) > MATTERS * deviation_uv[channel]
    return rings & ~invalid[:, None]
