"""Brings samples on any clock to the ends of the 10 ms bins, and makes up no value where none was recorded.

The inputs are times (n,) in seconds, strictly increasing, and values (n, K). The outputs are values (B, K) at the ends
of bins (B,), with NaN before the first sample, in pauses, beside NaN samples and after the last sample. Two samples
have a pause between them if they lie more than five periods and more than 50 ms apart.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

BIN_S = 0.01
ON_SAMPLE = 1e-6  # share of a period; two roundings of one time differ by less
PAUSE_S = 0.05
FASTER = 0.99  # a period below this share of a bin is faster than the bins


def resample(times_s: Floats, values: Floats, ends_s: Floats, period_s: float, *, positions: bool) -> Floats:
    """Returns velocities (B, K) at the ends of bins (B,).

    With `positions` the values are positions, and the velocity is the central difference of the interpolated positions
    one bin before and after, one-sided where only one of the two exists. A bin has none where the position at its end
    is unknown or where a NaN sample lies in it.

    Without `positions` the values are velocities (or anything else that is stored ready): averaged over the bin where
    they come faster than the bins by more than 1 %, else interpolated at its end. The last of them holds for one
    period. A last position does not, because it would look like a hand that stops.
    """
    if not positions and period_s < FASTER * BIN_S:
        return average_over_bins(times_s, values, ends_s, period_s)
    if positions:
        here, before, after = (interpolate(times_s, values, ends_s + by, period_s, 0.0) for by in (0.0, -BIN_S, BIN_S))
        out = (after - before) / (2 * BIN_S)
        for one_sided in ((here - before) / BIN_S, (after - here) / BIN_S):
            out = np.where(np.isnan(out), one_sided, out)
        out[np.isnan(here)] = np.nan
    else:
        out = interpolate(times_s, values, ends_s, period_s, period_s)
    out[_hold_nan(times_s, values, ends_s, period_s)] = np.nan
    return out


def _hold_nan(times_s: Floats, values: Floats, ends_s: Floats, period_s: float) -> npt.NDArray[np.bool_]:
    """Returns for bins that end at `ends_s` (B,) whether a NaN sample lies in them (B, K). The start is not part."""
    last = ends_s + ON_SAMPLE * period_s
    first, stop = (np.searchsorted(times_s, at_s, side="right") for at_s in (last - BIN_S, last))
    lost = _accumulate(np.isnan(values).astype(np.float64))
    return np.asarray(lost[stop] > lost[first])


def interpolate(times_s: Floats, values: Floats, at_s: Floats, period_s: float, hold_s: float) -> Floats:
    """Interpolates values (n, K) at times (n,) linearly at `at_s` (B,). Returns (B, K).

    The result is NaN before the first sample, later than `hold_s` after the last, and in pauses, because a line across
    the pause between trials is not data.
    """
    last = len(times_s) - 1
    after = np.searchsorted(times_s, at_s, side="right")
    low, high = np.clip(after - 1, 0, last), np.clip(after, 0, last)
    span = times_s[high] - times_s[low]
    share = np.divide(at_s - times_s[low], span, out=np.zeros_like(at_s), where=span > 0)
    low, share = np.where(share > 1 - ON_SAMPLE, high, low), np.where(share > 1 - ON_SAMPLE, 0.0, share)
    on_sample = share < ON_SAMPLE  # the next sample does not count then, because it may be NaN or far away
    out = np.where(on_sample[:, None], values[low], values[low] + share[:, None] * (values[high] - values[low]))
    pause = (span > longest_step(period_s)) & ~on_sample
    out[pause | (at_s < times_s[0] - ON_SAMPLE * period_s) | (at_s > times_s[last] + hold_s + ON_SAMPLE * period_s)] = (
        np.nan
    )
    return out


def average_over_bins(times_s: Floats, values: Floats, ends_s: Floats, period_s: float) -> Floats:
    """Averages the line through values (n, K) over the 10 ms before each of `ends_s` (B,). Returns (B, K).

    The line is integrated exactly, so that the average does not depend on how many samples happen to fall into a bin.
    The last sample holds for one period. A first bin that lacks less than one period is averaged over the rest. The
    result is NaN where a NaN sample, a pause or a time outside of the samples touches the bin.
    """
    times_s, values = np.append(times_s, times_s[-1] + period_s), np.append(values, values[-1:], axis=0)
    steps = np.diff(times_s)
    void = np.isnan(values)
    void = void[1:] | void[:-1] | (steps > longest_step(period_s))[:, None]
    known = np.nan_to_num(values, nan=0.0)
    slopes = np.diff(known, axis=0) / steps[:, None]
    sums = _accumulate((known[1:] + known[:-1]) / 2 * steps[:, None])
    slack = ON_SAMPLE * period_s

    def integrate(at_s: Floats) -> Floats:
        low = np.clip(np.searchsorted(times_s, at_s, side="right") - 1, 0, len(steps) - 1)
        by = (at_s - times_s[low])[:, None]
        return sums[low] + known[low] * by + slopes[low] * by**2 / 2

    starts_s = ends_s - BIN_S
    partly = (starts_s < times_s[0]) & (starts_s > times_s[0] - period_s)
    starts_s = np.where(partly, times_s[0], starts_s)
    outside = (starts_s < times_s[0] - slack) | (ends_s > times_s[-1] + slack)
    inside = np.where(outside, times_s[0], starts_s), np.where(outside, times_s[0] + BIN_S, ends_s)
    first = np.clip(np.searchsorted(times_s, inside[0] + slack, side="right") - 1, 0, len(steps) - 1)
    last = np.clip(np.searchsorted(times_s, inside[1] - slack, side="left") - 1, 0, len(steps) - 1)
    voids = _accumulate(void.astype(np.float64))
    out = (integrate(inside[1]) - integrate(inside[0])) / (inside[1] - inside[0])[:, None]
    out[outside[:, None] | (voids[last + 1] > voids[first])] = np.nan
    return np.asarray(out)


def _accumulate(steps: Floats) -> Floats:
    return np.concatenate([np.zeros((1, steps.shape[1])), np.cumsum(steps, axis=0)])


def longest_step(period_s: float) -> float:
    """Returns the largest distance in seconds of two samples that have no pause between them."""
    return max(5 * period_s, PAUSE_S)


def find_spans(times_s: Floats, period_s: float) -> Floats:
    """Returns the stretches (m, 2) in seconds in which samples follow each other. A sample lasts one period."""
    at = np.flatnonzero(np.diff(times_s) > longest_step(period_s))
    return np.stack([times_s[np.append(0, at + 1)], times_s[np.append(at, len(times_s) - 1)] + period_s], axis=1)


def intersect_spans(one: Floats, other: Floats) -> Floats:
    """Returns the stretches (m, 2) that lie in a stretch of both. Each input is sorted and without overlaps."""
    found = [
        (max(start, low), min(stop, high))
        for start, stop in one
        for low, high in other[np.searchsorted(other[:, 1], start, side="right") : np.searchsorted(other[:, 0], stop)]
    ]
    return np.array(found, dtype=np.float64).reshape(-1, 2)
