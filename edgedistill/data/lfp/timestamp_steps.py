"""Finds where timestamps step persistently, among jitter, packets and slow drift.

The input is how far each frame lies from a regular grid, in frames (`off`). The output is a list of `Step`s. A frame
that is late or early for a moment returns to the level of its neighbors and is no step. Levels are medians over some
frames on either side, so that a single odd timestamp counts for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Offsets = npt.NDArray[np.float64]

LEAST_STEP = 0.7  # frames; jitter may blur a step of one frame by this much
ODD_STEP = 0.5  # frames; where neighbors differ by more, a step is looked for
SIDE = 64  # frames on either side that a level is taken from
HOP = 256  # frames of one level, where single frames are too noisy
LEAST_SIDE = 8
RETURN_S = 10  # a step that is taken back within this time was a late stretch


@dataclass(frozen=True)
class Step:
    """Holds a lasting change between the frames `at` and `at + 1`. Positive means that time was lost."""

    at: int
    frames: float


def find_steps(off: Offsets, noisy: bool) -> list[Step]:
    """Returns the lasting steps in `off` (n,), which may hold hundreds of them. `at` counts from 0."""
    return _find_noisy_steps(off) if noisy else _find_clear_steps(off)


def _find_clear_steps(off: Offsets) -> list[Step]:
    """Looks at every odd step alone, and at the level of the frames before and after it up to the next one.

    The smallest are dropped first, because the levels of the others become better known with every one that goes.
    """
    return _keep_lasting(off, np.flatnonzero(np.abs(np.diff(off)) > ODD_STEP))


def _keep_lasting(off: Offsets, odd: npt.NDArray[np.intp]) -> list[Step]:
    for limit in (0.2, 0.3, 0.4, 0.5, 0.6, LEAST_STEP):
        while odd.size:
            sizes = _measure_steps(off, odd)
            lasting = np.abs(sizes) >= limit
            if lasting.all():
                break
            odd = odd[lasting]
    return [Step(int(at), float(size)) for at, size in zip(odd, _measure_steps(off, odd), strict=True)]


def _measure_steps(off: Offsets, odd: npt.NDArray[np.intp]) -> Offsets:
    """Returns the level after each place less that before it: medians of up to SIDE frames, up to the next place."""
    bounds = np.concatenate([[0], odd + 1, [len(off)]])
    middle = odd + 1
    before = _medians_of(off, np.maximum(bounds[:-2], middle - SIDE), middle)
    return _medians_of(off, middle, np.minimum(bounds[2:], middle + SIDE)) - before


def _medians_of(off: Offsets, starts: npt.NDArray[np.intp], stops: npt.NDArray[np.intp]) -> Offsets:
    """Returns the median of each stretch [start, stop) of at most SIDE frames."""
    medians = np.empty(len(starts))
    for first in range(0, len(starts), 1 << 14):
        rows = slice(first, first + (1 << 14))
        at = starts[rows, None] + np.arange(SIDE)
        count = (stops - starts)[rows]
        ordered = np.sort(np.where(at < stops[rows, None], off[np.minimum(at, len(off) - 1)], np.inf), axis=1)
        row = np.arange(len(count))
        medians[rows] = (ordered[row, (count - 1) // 2] + ordered[row, count // 2]) / 2
    return medians


def hop_levels(off: Offsets) -> Offsets:
    """Returns the median of every HOP frames; frames that are left over at the end are not used."""
    hops = len(off) // HOP
    return np.asarray(np.median(off[: hops * HOP].reshape(hops, HOP), axis=1))


def _find_noisy_steps(off: Offsets) -> list[Step]:
    """Compares levels two hops apart, then finds the frame of each step by least squares."""
    levels = hop_levels(off)
    noise = _measure_noise(off, levels)
    if len(levels) < 3:
        return _settle(off, _split(off, 0, noise, LEAST_STEP))
    changes = np.abs(levels[2:] - levels[:-2])
    usual = 1.48 * float(np.median(changes))  # larger than single frames let expect where delays last for a while
    limit = max(LEAST_STEP, 6 * 1.25 * noise / np.sqrt(HOP), 5 * usual)
    odd = np.flatnonzero(changes >= limit)
    places: list[int] = []
    for group in np.split(odd, np.flatnonzero(np.diff(odd) > 3) + 1):
        if group.size:
            first, last = int(group[0]) * HOP, min((int(group[-1]) + 3) * HOP, len(off))
            places += _split(off[first:last], first, noise, limit)
    return _settle(off, places)


def _measure_noise(off: Offsets, levels: Offsets) -> float:
    """Returns the deviation of single frames from the level of their hop."""
    if not len(levels):
        return float(1.48 * np.median(np.abs(off - np.median(off)))) if len(off) else 0.0
    near = off[: len(levels) * HOP].reshape(-1, HOP) - levels[:, None]
    return float(1.48 * np.median(np.abs(near)))


def _split(off: Offsets, first: int, noise: float, least: float) -> list[int]:
    """Returns where two constant levels fit a stretch best, and the same of both halves, as long as levels differ."""
    n = len(off)
    if n < 2 * LEAST_SIDE:
        return []
    left = np.arange(1, n)
    sums = np.cumsum(off)
    before, after = sums[:-1] / left, (sums[-1] - sums[:-1]) / (n - left)
    gain = (after - before) ** 2 * left * (n - left) / n
    gain[: LEAST_SIDE - 1] = gain[n - LEAST_SIDE :] = -1
    best = int(np.argmax(gain))
    limit = max(least, 5 * noise * np.sqrt(1 / (best + 1) + 1 / (n - best - 1)))
    if abs(after[best] - before[best]) < limit:
        return []
    here = [first + best]
    before_it = _split(off[: best + 1], first, noise, least)
    return before_it + here + _split(off[best + 1 :], first + best + 1, noise, least)


def _settle(off: Offsets, places: list[int]) -> list[Step]:
    """Moves each place to where the levels on either side fit best, now that all the others are known."""
    for _ in range(2):
        bounds = [0, *(at + 1 for at in places), len(off)]
        for i, at in enumerate(places):
            low, high = max(bounds[i], at + 1 - HOP), min(bounds[i + 2], at + 1 + HOP)
            before, after = np.median(off[low : at + 1]), np.median(off[at + 1 : high])
            wrong = np.cumsum((off[low:high] - before) ** 2 - (off[low:high] - after) ** 2)
            places[i] = low + int(np.argmin(wrong[:-1])) if high - low > 1 else at
            bounds[i + 1] = places[i] + 1
    return _keep_lasting(off, np.unique(np.array(places, dtype=np.intp)))


def take_back_returns(steps: list[Step], period_s: float) -> tuple[list[Step], list[tuple[int, int]]]:
    """Removes what is taken back within ten seconds: a step forward and then backward is a late stretch, no gap.

    Returns the steps that last, and the stretches between those that were removed, as frames (after, up to).
    """
    near = RETURN_S / period_s
    held = sorted(steps, key=lambda step: step.at)
    stretches: list[tuple[int, int]] = []
    while True:
        pairs = [
            (b.at - a.at, i)
            for i, (a, b) in enumerate(pairwise(held))
            if (a.frames > 0) != (b.frames > 0) and b.at - a.at <= near
        ]
        if not pairs:
            return held, stretches
        i = min(pairs)[1]
        stretches.append((held[i].at, held[i + 1].at))
        rest = held[i].frames + held[i + 1].frames
        if abs(rest) < LEAST_STEP:
            held[i : i + 2] = []
        else:  # the larger of the two stays, less what the other took back
            kept = held[i] if abs(held[i].frames) > abs(held[i + 1].frames) else held[i + 1]
            held[i : i + 2] = [replace(kept, frames=rest)]
