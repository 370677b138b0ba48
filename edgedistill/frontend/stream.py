"""Runs the front end over a stream and keeps its state: frames in microvolts come in, bins go out.

Filters are second-order sections in transposed direct form II, in float64 and channel-major, which is four times faster
in scipy than time-major. Small filter states are cleared after every bin, so the filter is called once a bin.
Everything else works on many bins at once, which does not change the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy.signal import butter, sosfilt

from edgedistill.errors import EngineError
from edgedistill.frontend.design import FrontEndConfig, bin_edges, filter_sections
from edgedistill.frontend.rules import judge_channels, left_out_channels, new_history, sample_ranges

try:  # the compiled loop of `sosfilt`, whose checks take half of the time when it is called once a bin
    from scipy.signal._sosfilt import _sosfilt
except ImportError:  # it is not public
    _sosfilt = None

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

TINY_STATE = 1e-30
BATCH_SAMPLES = 1 << 17  # float64 samples worked on at a time; 1 MB stays in a core's cache


@dataclass(frozen=True, eq=False)
class Bins:
    """Holds B completed bins of C channels. Row i is bin `first_bin + i`."""

    first_bin: int
    values: Array  # (B, C) uV, not z-scored
    bad: Mask  # (B, C) channels that are not in the average and must be masked, config.left_out among them
    end_frame: npt.NDArray[np.int64]  # (B,) the raw frame that completed the bin
    gap: Mask  # (B,) touched by a declared gap


class FrontEnd:
    """Runs the front end over the frames of one recording. Each stream has its own object."""

    def __init__(self, config: FrontEndConfig) -> None:
        self.config = config
        self._decimator, self._shaper = filter_sections(config)
        self._longest = config.edge(1)  # bin 0 starts on an exact edge, so no bin is longer
        self._batch = max(1, BATCH_SAMPLES // (self._longest * config.channels))
        self.reset()

    def reset(self) -> None:
        """Forgets everything. The next frame is frame 0."""
        c = self.config
        self._frame = 0
        self._pending: Array = np.empty((c.channels, self._longest))  # frames of the unfinished bin
        self._pending_gap = False
        self._state: dict[str, Array] = {
            "decimator": np.zeros((len(self._decimator), c.channels, 2)),
            "shaper": np.zeros((len(self._shaper), c.channels, 2)),
            **new_history(c),
        }

    def push(self, frames_uv: npt.NDArray[np.float32] | Array) -> Bins:
        """Takes frames (n, C) in uV, any n, and returns the bins that they complete. Raises EngineError."""
        frames: npt.NDArray[np.floating] = np.asarray(frames_uv)
        if frames.ndim != 2 or frames.shape[1] != self.config.channels or frames.dtype.kind != "f":
            raise EngineError(
                "the front end cannot take these frames",
                got=f"shape {frames.shape}, {frames.dtype}",
                expected=f"(n, {self.config.channels}) microvolts as floats, time first",
                causes=(
                    "the recording has other channels than the bundle",
                    "channels and time are swapped",
                    "raw integers without their gain",
                ),
            )
        return self._advance(frames, gap=False)

    def gap(self, n_frames: int) -> Bins:
        """Counts `n_frames` lost frames as zeros, flags every bin that they touch, and returns the finished bins."""
        if n_frames < 0:
            raise EngineError("a gap cannot be negative", got=f"{n_frames} frames", expected="0 or more")
        block = self._batch * self._longest
        zeros = np.zeros((min(block, n_frames), self.config.channels), dtype=np.float32)
        parts = [self._advance(zeros[: n_frames - at], gap=True) for at in range(0, max(n_frames, 1), block)]
        return Bins(
            parts[0].first_bin,
            np.concatenate([part.values for part in parts]),
            np.concatenate([part.bad for part in parts]),
            np.concatenate([part.end_frame for part in parts]),
            np.concatenate([part.gap for part in parts]),
        )

    def export_state(self) -> dict[str, npt.NDArray[np.generic]]:
        """Returns copies of all that later bins depend on. `pending` holds the unfinished bin's frames (n, C)."""
        return {
            "frame": np.array(self._frame, np.int64),
            "pending": self._pending[:, : self._filled()].T.copy(),
            "pending_gap": np.array(self._pending_gap),
            **{name: array.copy() for name, array in self._state.items()},
        }

    def import_state(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Continues where `export_state` left off. For a foreign state it raises EngineError and changes nothing."""
        other = FrontEnd(self.config)
        other._frame = int(state["frame"]) if "frame" in state else 0
        for name, array in other.export_state().items():
            if name not in state or np.shape(state[name]) != array.shape:
                raise EngineError(
                    "the front-end state belongs to another configuration",
                    got=f"{name} {np.shape(state[name])}" if name in state else f"no {name}",
                    expected=f"{name} {array.shape}",
                )
        self._frame = other._frame
        self._pending[:, : self._filled()] = state["pending"].T
        self._pending_gap = bool(state["pending_gap"])
        self._state = {name: np.array(state[name], dtype=np.float64) for name in self._state}

    def _filled(self) -> int:
        """Returns how many frames of the unfinished bin have arrived."""
        return self._frame - self.config.edge(self.config.bin_of(self._frame))

    def _advance(self, frames: npt.NDArray[np.floating], gap: bool) -> Bins:
        """Cuts the stream into whole bins and keeps the rest for later."""
        edge, start, stop = self.config.edge, self._frame, self._frame + len(frames)
        first, last = self.config.bin_of(start), self.config.bin_of(stop)
        values: Array = np.empty((last - first, self.config.channels))
        bad: Mask = np.empty(values.shape, dtype=np.bool_)
        flags: Mask = np.full(last - first, gap)
        flags[:1] |= self._pending_gap
        for begin in range(first, last, self._batch):
            end = min(begin + self._batch, last)
            x = self._piece(frames, edge(begin), edge(end))
            values[begin - first : end - first], bad[begin - first : end - first] = self._bins(x, begin, end)
        kept = max(start, edge(last))  # frames before this one are either used or pending already
        self._pending[:, kept - edge(last) : stop - edge(last)] = frames[kept - start :].T
        self._pending_gap = (gap and stop > kept) or (self._pending_gap and first == last)
        self._frame = stop
        return Bins(first, values, bad, bin_edges(self.config.rate, first + 1, last, self.config.bin_ms) - 1, flags)

    def _piece(self, frames: npt.NDArray[np.floating], begin: int, end: int) -> Array:
        """Returns a copy of raw frames [begin, end) as (C, n), the pending ones first."""
        old = max(0, self._frame - begin)
        x: Array = np.empty((self.config.channels, end - begin))
        x[:, :old] = self._pending[:, :old]
        x[:, old:] = frames[begin + old - self._frame : end - self._frame].T
        return x

    def _bins(self, x: Array, begin: int, end: int) -> tuple[Array, Mask]:
        """Turns raw frames (C, n) of bins [begin, end) into their values and bad channels (B, C). Changes x."""
        edges = bin_edges(self.config.rate, begin, end, self.config.bin_ms)
        starts = edges - edges[0]
        bad_before = (self._state["clean"] < self.config.recover_bins) | left_out_channels(self.config)
        bad = judge_channels(self.config, self._state, *sample_ranges(x, starts[:-1]))
        for i, held in enumerate((bad_before, *bad[:-1])):
            if held.any():
                x[held, starts[i] : starts[i + 1]] = 0.0
        u, counts = x, starts
        if (step := self.config.decimation) > 1:
            filtered = self._filtered("decimator", self._decimator, x, starts)
            kept = [y[:, -edge % step :: step].copy() for edge, y in zip(edges[:-1], filtered, strict=True)]
            u, counts = np.concatenate(kept, axis=1), np.cumsum([0, *(y.shape[1] for y in kept)])
        u = self._average_removed(u, np.repeat(bad, np.diff(counts), axis=0).T)
        return np.stack([y[:, -1] for y in self._filtered("shaper", self._shaper, u, counts)]), bad

    def _average_removed(self, u: Array, bad: Mask) -> Array:
        """Returns u (C, n) without the mean of the good channels. Bad channels are zero."""
        u = np.where(bad, 0.0, u)
        if not self.config.common_average:
            return u
        good = len(u) - np.count_nonzero(bad, axis=0)
        total = np.add.accumulate(u, axis=0)[-1]  # one channel after the other, where np.sum may add in pairs
        mean = np.where(good > 1, total / np.maximum(good, 1), 0.0)  # one channel alone is its own average
        return np.where(bad, 0.0, u - mean)

    def _filtered(self, name: str, sections: Array, x: Array, starts: npt.NDArray[np.int64]) -> Iterator[Array]:
        """Filters x (C, n) with `sections`, bin by bin because small states are cleared after each bin."""
        z = np.ascontiguousarray(self._state[name].transpose(1, 0, 2))  # (C, sections, 2)
        for i, j in pairwise(starts):
            y = x[:, i:j].copy()
            _filter_in_place(sections, y, z)
            z[np.abs(z) < TINY_STATE] = 0.0
            yield y
        self._state[name] = np.ascontiguousarray(z.transpose(1, 0, 2))


def _filter_in_place(sections: Array, x: Array, z: Array) -> None:
    """Filters x (C, n) and advances z (C, sections, 2), as `sosfilt` does."""
    if _loop_is_as_known():
        _sosfilt(sections, x, z)
    else:
        _filter_by_public_function(sections, x, z)


def _filter_by_public_function(sections: Array, x: Array, z: Array) -> None:
    y, after = sosfilt(sections, x, zi=z.transpose(1, 0, 2))
    x[:], z[:] = y, after.transpose(1, 0, 2)


@cache
def _loop_is_as_known() -> bool:
    """Returns whether the loop, which another scipy may change or lack, gives what `sosfilt` gives, bit for bit."""
    sections = butter(3, 0.2, output="sos")
    x, z = np.arange(12.0).reshape(2, 6) % 5, np.arange(8.0).reshape(2, 2, 2)
    expected, found = (x.copy(), z.copy()), (x.copy(), z.copy())
    _filter_by_public_function(sections, *expected)
    try:
        _sosfilt(sections, *found)
    except (TypeError, ValueError):
        return False
    return all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


def zscore(values: Array, bad: Mask, mean: Array, std: Array) -> npt.NDArray[np.float32]:
    """Turns bins (B, C) in uV into what models see: (x - mean) / std in float64, 0 where bad or where std is 0."""
    usable = ~bad & (std > 0)
    z = np.divide(values - mean, std, out=np.zeros_like(values, dtype=np.float64), where=usable)
    return z.astype(np.float32)
