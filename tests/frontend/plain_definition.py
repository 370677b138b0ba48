"""The front end's definition once more, sample by sample in plain Python."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from hypothesis import strategies as st

from edgedistill.frontend import (
    Bins,
    FrontEnd,
    FrontEndConfig,
    band_sections,
    count_notches,
    filter_sections,
)
from edgedistill.frontend.design import resume_bins
from tests.frontend.recordings import assert_same, joined

INF = float("inf")


def biquads(sections: list[list[float]], z: list[list[float]], x: float) -> float:
    """Filters one sample with the sections, in transposed direct form II."""
    for (b0, b1, b2, _, a1, a2), s in zip(sections, z, strict=True):
        y = b0 * x + s[0]
        s[0] = b1 * x - a1 * y + s[1]
        s[1] = b2 * x - a2 * y
        x = y
    return x


def rest(sections: list[list[float]], x: float) -> list[list[float]]:
    """Returns the states in which the sections have been at x for ever."""
    states, level = [], 1.0
    for b0, b1, b2, _, a1, a2 in sections:
        after = level * ((b0 + b1) + b2) / ((1 + a1) + a2)
        second = b2 * level - a2 * after
        states.append([((b1 * level - a1 * after) + second) * x, second * x])
        level = after
    return states


def cleared(z: list[list[float]]) -> list[list[float]]:
    return [[0.0 if abs(state) < 1e-30 else state for state in section] for section in z]


def is_finite(x: float) -> bool:
    return abs(x) <= float(np.finfo(np.float32).max)


def logarithm(x: float) -> float:
    """Returns ln x in the operations of the definition."""
    mantissa, exponent = math.frexp(x)  # from 1/2 to 1, and the definition's lies between the root of 1/2 and that of 2
    if mantissa < math.sqrt(0.5):
        mantissa, exponent = 2 * mantissa, exponent - 1
    s = (mantissa - 1) / (mantissa + 1)
    z = s * s
    p = ((1 / 9 * z + 1 / 7) * z + 1 / 5) * z + 1 / 3
    return exponent * 0.6931471805599453 + (s + s) * (1 + z * p)


class PlainChannel:
    """Computes one channel, a bin at a time and sample by sample."""

    def __init__(self, config: FrontEndConfig) -> None:
        self.config = config
        self.first, self.second = (sos.tolist() for sos in filter_sections(config))
        self.decimator = [[0.0, 0.0] for _ in self.first]
        self.shaper = [[0.0, 0.0] for _ in self.second]
        self.bands = [sections.tolist() for sections in band_sections(config)]
        self.band_states = [[[0.0, 0.0] for _ in sections] for sections in self.bands]
        self.power = [2.0**-20] * len(self.bands)
        self.ranges = [(-INF, INF)] * (max(config.flat_bins, config.saturated_bins) - 1)
        self.lowest, self.highest = INF, -INF
        self.clean = config.recover_bins

    def lose(self) -> None:
        """Takes a lost bin."""
        self.decimator = [[0.0, 0.0] for _ in self.first]

    def take(self, samples: list[float], begin: int, lost_bins: int) -> list[float]:
        """Takes a bin that begins with frame `begin` after so many lost bins, and returns its features."""
        config = self.config
        finite = [x if is_finite(x) else 0.0 for x in samples]
        if lost_bins > 0:
            since = config.settled_bins - resume_bins(config) - 4 * lost_bins
            long = lost_bins > config.bridged_bins
            self.clean = min(self.clean, config.recover_bins if long else max(config.recover_bins, since))
        restarts = lost_bins > config.bridged_bins or self.clean == 0
        if config.decimation > 1 and (restarts or lost_bins > 0):
            self.decimator = rest(self.first, finite[0])
        kept = []
        for frame, x in enumerate(finite, begin):
            y = biquads(self.first, self.decimator, x) if config.decimation > 1 else x
            if frame % config.decimation == 0:
                kept.append(y)
        if restarts:
            self.shaper = rest(self.second, kept[0])
        n = count_notches(config)
        if restarts:
            self.band_states = [rest([*self.second[:n], *band], kept[0])[n:] for band in self.bands]
        notches, others = self.shaper[:n], self.shaper[n:]
        clean = [biquads(self.second[:n], notches, x) for x in kept]
        value = [biquads(self.second[n:], others, x) for x in clean][-1]
        power = [self.measure(b, clean, restarts) for b in range(len(self.bands))]
        self.decimator, self.shaper = cleared(self.decimator), cleared([*notches, *others])
        self.band_states = [cleared(states) for states in self.band_states]
        self.judge(samples)
        return [value, *power]

    def measure(self, band: int, clean: list[float], restarts: bool) -> float:
        """Returns the log power of one band, and moves its smoothed power on."""
        total = 0.0
        for x in clean:
            y = biquads(self.bands[band], self.band_states[band], x)
            total += y * y
        mean = total / len(clean)
        before = mean if restarts else self.power[band]
        rate = -math.expm1(-self.config.bin_ms / self.config.band_ms)
        self.power[band] = max(before + rate * (mean - before), 2.0**-20)
        return logarithm(self.power[band])

    def judge(self, samples: list[float]) -> None:
        """Counts the bins since the last trigger, this one included."""
        finite = [x for x in samples if is_finite(x)]
        low, high = min(finite, default=INF), max(finite, default=-INF)
        self.ranges.append((low, high))
        self.lowest, self.highest = min(self.lowest, low), max(self.highest, high)
        bottom, top = self.range_of(self.config.flat_bins)
        flat = top - bottom < self.config.flat_uv
        bottom, top = self.range_of(self.config.saturated_bins)
        saturated = top == bottom and (high == self.highest or low == self.lowest)
        trigger = len(finite) < len(samples) or flat or saturated
        self.clean = 0 if trigger else min(self.clean + 1, self.config.settled_bins)

    def range_of(self, bins: int) -> tuple[float, float]:
        return min(low for low, _ in self.ranges[-bins:]), max(high for _, high in self.ranges[-bins:])


def choose(config: FrontEndConfig, clean: list[int]) -> tuple[list[bool], bool]:
    """Returns the bad channels and whether most of the others have not settled, for `clean` of every channel."""
    used = [-1 if c in config.left_out else count for c, count in enumerate(clean)]
    recovered = [count >= config.recover_bins for count in used]
    settled = [count >= config.settled_bins for count in used]
    unsettled = 2 * sum(settled) < sum(recovered)
    return [not good for good in (recovered if unsettled else settled)], unsettled


def reference(config: FrontEndConfig, frames: np.ndarray, lost: np.ndarray) -> dict[str, np.ndarray]:
    """Computes every bin in plain Python, as the oracle of the front end. Frames in `lost` (n,) carry no samples."""
    channels = [PlainChannel(config) for _ in range(config.channels)]
    used = [c for c in range(config.channels) if c not in config.left_out]
    rows = []
    lost_bins, b = config.bridged_bins + 1, 0
    per_bin = config.rate * config.bin_ms / 1000
    while (end := int(-(-(b + 1) * per_bin // 1))) <= len(frames):
        begin = int(-(-b * per_bin // 1))
        x = frames[begin:end].astype(np.float64).tolist()
        gap = any(lost[begin:end]) or not all(any(is_finite(frame[c]) for c in used) for frame in x)
        if gap:
            for channel in channels:
                channel.lose()
            values, bad, unsettled = [0.0] * config.inputs, [True] * len(channels), False
            lost_bins = min(lost_bins + 1, config.bridged_bins + 1)
        else:
            columns = zip(channels, zip(*x, strict=True), strict=True)
            taken = [channel.take(list(column), begin, lost_bins) for channel, column in columns]
            values = [number for feature in zip(*taken, strict=True) for number in feature]
            bad, unsettled = choose(config, [channel.clean for channel in channels])
            lost_bins = 0
        rows.append((values, bad, end - 1, gap, unsettled))
        b += 1
    kinds = (np.float64, np.bool_, np.int64, np.bool_, np.bool_)
    names = ("values", "bad", "end_frame", "gap", "unsettled")
    columns = zip(*rows, strict=True)
    return {name: np.array(column, kind) for name, kind, column in zip(names, kinds, columns, strict=True)}


def feed(front: FrontEnd, frames: np.ndarray, lost: np.ndarray) -> dict[str, np.ndarray]:
    """Pushes the frames, and declares those in `lost` (n,) as lost."""
    edges = [0, *(np.flatnonzero(np.diff(lost)) + 1).tolist(), len(lost)]
    parts = [
        front.gap(stop - begin) if lost[begin] else front.push(frames[begin:stop]) for begin, stop in pairwise(edges)
    ]
    return joined(parts)


def assert_equals_reference(config: FrontEndConfig, frames: np.ndarray, lost: np.ndarray | None = None) -> Bins:
    lost = np.zeros(len(frames), np.bool_) if lost is None else lost
    expected = reference(config, frames, lost)
    got = feed(FrontEnd(config), frames, lost)
    for name in ("gap", "unsettled", "bad"):
        np.testing.assert_array_equal(got[name], expected[name], err_msg=name)
    assert_same(got, expected)
    return Bins(0, **got)


def draw_losses(data: st.DataObject, config: FrontEndConfig, frames: int) -> np.ndarray:
    """Draws which of the frames (n,) are declared lost: gaps of a few frames up to several bins."""
    lost = np.zeros(frames, np.bool_)
    for begin in data.draw(st.lists(st.integers(0, frames - 1), max_size=3)):
        lost[begin : begin + data.draw(st.integers(1, 8 * config.edge(1)))] = True
    return lost
