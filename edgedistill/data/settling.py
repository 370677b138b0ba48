"""Finds the bins in which the front end still rings from a gap, a lost channel or an artefact.

The inputs are the bins of a session, which of them were lost, and the offset of each electrode. The output is a mask of
the bins whose value is off by more than a tenth of the channel's deviation.

While samples are lost, zeros go into the filters. To a filter this is the channel's offset, taken away and put back.
The response of the filters to that is known exactly, because they are linear.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.signal import sosfilt

from edgedistill.frontend import FrontEndConfig, bin_edges, filter_sections

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

EVERY = 10  # frames
MATTERS = 0.1  # deviations of a channel


class Level:
    """Gathers the mean of every channel in uV, block by block."""

    def __init__(self, channels: int) -> None:
        self._sum, self._count = np.zeros(channels), np.zeros(channels, np.int64)

    def add(self, frames_uv: npt.NDArray[np.float32]) -> None:
        """Takes frames (n, C). One in EVERY is enough for a mean."""
        some = frames_uv[::EVERY].astype(np.float64)
        finite = np.isfinite(some)
        self._sum += np.where(finite, some, 0.0).sum(axis=0)
        self._count += finite.sum(axis=0)

    def offset(self, config: FrontEndConfig) -> Array:
        """Returns the offset (C,) in uV that the filters see: without the common average, if that is subtracted."""
        mean = self._sum / np.maximum(self._count, 1)
        used = np.setdiff1d(np.flatnonzero(self._count), config.left_out)
        return mean - mean[used].mean() if config.common_average and len(used) else mean


def robust_deviation(values: Array, good: Mask) -> Array:
    """Returns the deviation (C,) of values (T, C) over the good bins, from the median; 0 for a channel without any."""
    found = np.zeros(values.shape[1])
    for channel, rows in enumerate(good.T):
        if rows.any():
            x = values[rows, channel]
            found[channel] = 1.4826 * np.median(np.abs(x - np.median(x)))
    return found


def find_rings_of_losses(config: FrontEndConfig, lost: Mask, offset_uv: Array, deviation_uv: Array) -> Mask:
    """Returns the bins (T, C) in which the loss of earlier bins moves a channel by more than it matters.

    `lost` (T, C) says where zeros went into the filters. `offset_uv` and `deviation_uv` are (C,). The first bins after
    a loss always count, because the low-pass still holds zeros in place of the signal.
    """
    rings: Mask = np.zeros(lost.shape, np.bool_)
    for late in range(1, math.ceil(1000 / (config.lowpass_hz * config.bin_ms)) + 1):
        rings[late:] |= lost[:-late]
    _, shaper = filter_sections(config)
    step = config.decimation
    ends = -(-bin_edges(config.rate, 0, len(lost), config.bin_ms) // step)  # in samples that the shaper sees
    for channel in np.flatnonzero(lost.any(axis=0) & (np.abs(offset_uv) > MATTERS * deviation_uv) & (deviation_uv > 0)):
        first = int(np.argmax(lost[:, channel]))
        lengths = np.diff(ends[first:])
        response = sosfilt(shaper, np.repeat(lost[first:, channel].astype(np.float64), lengths))
        off = np.abs(response[np.cumsum(lengths) - 1] * offset_uv[channel])
        rings[first:, channel] |= off > MATTERS * deviation_uv[channel]
    return rings & ~lost


def find_rings_of_artefacts(config: FrontEndConfig, values: Array, invalid: Mask, deviation_uv: Array) -> Mask:
    """Returns the bins (T, C) after invalid stretches (T,) in which the filters can still ring from what was in them.

    The largest value in the stretch fades at least as fast as the response to a step does.
    """
    rings: Mask = np.zeros(values.shape, np.bool_)
    if not invalid.any():
        return rings
    fade = _step_fade(config)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], invalid, [False]])))
    for start, stop in edges.reshape(-1, 2):
        peak = np.abs(values[start:stop]).max(axis=0)
        for channel in np.flatnonzero((deviation_uv > 0) & (peak > MATTERS * deviation_uv)):
            bins = int(np.count_nonzero(fade * peak[channel] > MATTERS * deviation_uv[channel]))
            rings[stop : stop + bins, channel] = True
    return rings


def _step_fade(config: FrontEndConfig) -> Array:
    """Returns by bin the largest later share (n,) of the response to a step, which falls from 1 to 1e-4."""
    _, shaper = filter_sections(config)
    per_bin = float(config.decimated_rate) * config.bin_ms / 1000
    length = int(4 / config.highpass_hz * float(config.decimated_rate))  # seconds in which the high-pass forgets
    response = np.abs(sosfilt(shaper, np.ones(length)))
    later = np.maximum.accumulate(response[::-1])[::-1] / response.max()
    fade = later[np.minimum((np.arange(int(length / per_bin)) * per_bin).astype(int), length - 1)]
    return np.asarray(fade[fade > 1e-4])
