"""Decides which channels are bad: the range of raw samples in each bin comes in, bad channels of each bin go out.

A bin triggers a channel when a sample was not finite, when the last second was flat, or when the last 20 ms stood still
at the largest or smallest value since the start, as a saturated amplifier does. The channel stays bad until a second
has passed without a trigger and its filters, which start from rest after a trigger, have settled. If that leaves fewer
than half of the recovered channels, the others are used before they have settled, and the output says so. A channel
that the settings leave out is bad in every bin. The rules look at past bins only, and need the range of each bin but
never its samples (docs/numerics.md, "Bad channels"). Bins with lost frames do not exist for them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgedistill.frontend.design import FrontEndConfig

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

SAMPLE_LIMIT = float(np.finfo(np.float32).max)  # a larger sample counts as infinite, so that no sum can overflow


def new_history(config: FrontEndConfig) -> dict[str, Array]:
    """Returns what the rules remember, as it is before the first bin."""
    rows, channels = max(config.flat_bins, config.saturated_bins) - 1, config.channels
    return {
        # Bins before the start have an infinite range, so they are neither flat nor saturated and need no counter.
        "low": np.full((rows, channels), -np.inf),  # ranges of the last bins, oldest first
        "high": np.full((rows, channels), np.inf),
        "lowest": np.full(channels, np.inf),  # since the start
        "highest": np.full(channels, -np.inf),
        "clean": np.full(channels, float(config.recover_bins)),  # bins since a trigger, at most settled_bins
    }


def sample_ranges(x: Array, starts: npt.NDArray[np.int64]) -> tuple[Array, Array, Mask]:
    """Returns the smallest and largest finite sample of each bin of x (C, n), and whether one is not, (B, C) each.

    Samples that are not finite become 0 in x. A bin that has no other samples has the range (inf, -inf).
    """
    low, high = np.minimum.reduceat(x, starts, axis=1), np.maximum.reduceat(x, starts, axis=1)
    broken: Mask = ~((high <= SAMPLE_LIMIT) & (low >= -SAMPLE_LIMIT))  # NaN wins every minimum and maximum
    for channel in np.flatnonzero(broken.any(axis=1)):
        lost = ~(np.abs(x[channel]) <= SAMPLE_LIMIT)
        low[channel] = np.minimum.reduceat(np.where(lost, np.inf, x[channel]), starts)
        high[channel] = np.maximum.reduceat(np.where(lost, -np.inf, x[channel]), starts)
        x[channel, lost] = 0.0
    return low.T, high.T, broken.T


def judge_channels(config: FrontEndConfig, history: dict[str, Array], low: Array, high: Array, broken: Mask) -> Array:
    """Returns `clean` (B, C) at the end of each of B whole bins in a row, and advances `history` by these bins."""
    bins = len(low)
    lows, highs = np.concatenate([history["low"], low]), np.concatenate([history["high"], high])
    lowest = np.minimum.accumulate(np.concatenate([history["lowest"][None], low]))
    highest = np.maximum.accumulate(np.concatenate([history["highest"][None], high]))
    top, bottom = (
        _over(np.maximum, highs, config.flat_bins, bins),
        _over(np.minimum, lows, config.flat_bins, bins),
    )
    flat = top - bottom < config.flat_uv
    top = _over(np.maximum, highs, config.saturated_bins, bins)
    still = top == _over(np.minimum, lows, config.saturated_bins, bins)
    trigger = broken | flat | (still & ((high == highest[1:]) | (low == lowest[1:])))
    at = np.arange(bins, dtype=np.float64)[:, None]
    latest = np.maximum.accumulate(np.where(trigger, at, -1 - history["clean"]))
    clean = np.minimum(at - latest, config.settled_bins)
    history.update(low=lows[bins:], high=highs[bins:], lowest=lowest[-1], highest=highest[-1], clean=clean[-1])
    return clean


def choose_channels(config: FrontEndConfig, clean: Array) -> tuple[Mask, Mask]:
    """Returns the bad channels (B, C), and whether most of the others are not settled yet (B,), for `clean` (B, C).

    Channels that have recovered but not settled are used only where they are more than those that have settled.
    """
    used = ~left_out_channels(config)
    recovered, settled = used & (clean >= config.recover_bins), used & (clean >= config.settled_bins)
    unsettled: Mask = 2 * np.count_nonzero(settled, axis=1) < np.count_nonzero(recovered, axis=1)
    return ~np.where(unsettled[:, None], recovered, settled), unsettled


def find_lost_frames(config: FrontEndConfig, x: npt.NDArray[np.floating]) -> Mask:
    """Returns which frames of x (C, n) hold no finite sample, apart from channels that are left out."""
    used = x[~left_out_channels(config)]
    lost: Mask = ~(np.abs(used) <= SAMPLE_LIMIT).any(axis=0)
    return lost


def left_out_channels(config: FrontEndConfig) -> Mask:
    """Returns which channels (C,) the settings leave out. They are bad in every bin."""
    mask: Mask = np.zeros(config.channels, np.bool_)
    mask[list(config.left_out)] = True
    return mask


def _over(choose: np.ufunc, rows: Array, width: int, count: int) -> Array:
    """Returns the minimum or maximum over each of the last `count` rows and the `width - 1` before it, by doubling."""
    rows, done = rows[len(rows) - count - width + 1 :], 1
    while done < width:
        step = min(done, width - done)
        rows, done = choose(rows[step:], rows[:-step]), done + step
    return rows
