"""Runs the front end over a stream and keeps its state: frames in microvolts come in, bins go out.

Filters are second-order sections in transposed direct form II, in float64 and channel-major, which is four times faster
in scipy than time-major. Small filter states are cleared after every bin, so the filter is called once a bin.
Everything else works on many bins at once, which does not change the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy  # `scipy.signal` takes most of a second to import, which waits until filters are designed

from edgedistill.errors import EngineError
from edgedistill.frontend.design import (
    FrontEndConfig,
    band_sections,
    bin_edges,
    count_notches,
    filter_sections,
    rest_states,
)
from edgedistill.frontend.rules import (
    SAMPLE_LIMIT,
    choose_channels,
    find_lost_frames,
    judge_channels,
    new_history,
    sample_ranges,
)
from edgedistill.numerics.arithmetic import log64

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

TINY_STATE = 1e-30
LARGEST_STATE = 2.0**256  # no filter comes near it, and below it nothing overflows
LEAST_POWER = 2.0**-20  # uV², a thousandth of a microvolt squared; silence has this power
LARGEST_POWER = 2.0**512
MOST_FRAMES = 2**62  # of a stream, 4.9 million years at 30 kHz; the C engine counts in 64 bits
BATCH_SAMPLES = 1 << 17  # float64 samples worked on at a time; 1 MB stays in a core's cache


@dataclass(frozen=True, eq=False)
class Bins:
    """Holds B completed bins of C channels, with I values in each. Row i is bin `first_bin + i`."""

    first_bin: int
    values: Array  # (B, I) uV filtered, then log power of bands, each channel by itself; 0 in a bin with lost frames
    bad: Mask  # (B, C) channels whose value must not be used, config.left_out among them
    end_frame: npt.NDArray[np.int64]  # (B,) the raw frame that completed the bin
    gap: Mask  # (B,) frames were lost
    unsettled: Mask  # (B,) the filters of most channels have not settled since their start


class FrontEnd:
    """Runs the front end over the frames of one recording. Each stream has its own object."""

    def __init__(self, config: FrontEndConfig) -> None:
        self.config = config
        self._decimator, self._shaper = filter_sections(config)
        self._bands, self._notches = band_sections(config), count_notches(config)
        before = self._shaper[: self._notches]
        self._rest = {"decimator": rest_states(self._decimator), "shaper": rest_states(self._shaper)}
        bands = [rest_states(np.concatenate([before, band]), self._notches) for band in self._bands]
        self._rest["bands"] = np.concatenate([np.empty((0, 2)), *bands])
        self._longest = config.edge(1)  # bin 0 starts on an exact edge, so no bin is longer
        self._batch = max(1, BATCH_SAMPLES // (self._longest * config.channels))
        self.reset()

    def reset(self) -> None:
        """Forgets everything. The next frame is frame 0."""
        c = self.config
        self._frame = 0
        self._pending: Array = np.empty((c.channels, self._longest))  # frames of the unfinished bin
        self._pending_gap = False
        self._lost_bins = c.bridged_bins + 1  # in a row up to now; a stream starts as after a long gap
        # states of the filters, channel-major as scipy's loop wants them
        self._filters = {
            "decimator": np.zeros((c.channels, len(self._decimator), 2)),
            "shaper": np.zeros((c.channels, len(self._shaper), 2)),
        }
        if c.bands:
            self._filters["bands"] = np.zeros((c.channels, self._bands.shape[0] * self._bands.shape[1], 2))
        self._power: Array = np.full((len(c.bands), c.channels), LEAST_POWER)  # of each band, smoothed, in uV²
        self._history = new_history(c)

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
        require_room(self._frame, len(frames))
        return self._advance(frames, gap=False)

    def gap(self, n_frames: int) -> Bins:
        """Counts `n_frames` lost frames, flags every bin that they touch, and returns the finished bins."""
        if n_frames < 0:
            raise EngineError("a gap cannot be negative", got=f"{n_frames} frames", expected="0 or more")
        require_room(self._frame, n_frames)
        block = self._batch * self._longest
        zeros = np.zeros((min(block, n_frames), self.config.channels), dtype=np.float32)
        parts = [self._advance(zeros[: n_frames - at], gap=True) for at in range(0, max(n_frames, 1), block)]
        return Bins(
            parts[0].first_bin,
            np.concatenate([part.values for part in parts]),
            np.concatenate([part.bad for part in parts]),
            np.concatenate([part.end_frame for part in parts]),
            np.concatenate([part.gap for part in parts]),
            np.concatenate([part.unsettled for part in parts]),
        )

    def export_state(self) -> dict[str, npt.NDArray[np.generic]]:
        """Returns copies of all that later bins depend on. `pending` holds the unfinished bin's frames (n, C)."""
        pending = self._pending[:, : self._filled()]
        return {
            "frame": np.array(self._frame, np.int64),
            "pending": pending.T.copy(),
            "pending_gap": np.array(self._pending_gap or bool(find_lost_frames(self.config, pending).any())),
            "lost_bins": np.array(self._lost_bins, np.int64),
            **{name: z.transpose(1, 0, 2).copy() for name, z in self._filters.items()},
            **({"power": self._power.copy()} if self.config.bands else {}),
            **{name: array.copy() for name, array in self._history.items()},
        }

    def import_state(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Continues where `export_state` left off. For a foreign state it raises EngineError and changes nothing."""
        other = FrontEnd(self.config)
        _require_alike({"frame": np.array(0)}, {name: array for name, array in state.items() if name == "frame"})
        _require_between("frame", state["frame"], 0, MOST_FRAMES)
        other._frame = int(state["frame"])
        _require_alike(other.export_state(), state)
        _require_possible(self.config, state)
        self._frame = other._frame
        self._pending[:, : self._filled()] = state["pending"].T
        self._pending_gap = bool(state["pending_gap"])
        self._lost_bins = int(state["lost_bins"])
        for name in self._filters:
            self._filters[name] = np.ascontiguousarray(state[name].transpose(1, 0, 2), dtype=np.float64)
        self._history = {name: np.array(state[name], dtype=np.float64) for name in self._history}
        if self.config.bands:
            self._power = np.array(state["power"], dtype=np.float64)

    def _filled(self) -> int:
        """Returns how many frames of the unfinished bin have arrived."""
        return self._frame - self.config.edge(self.config.bin_of(self._frame))

    def _advance(self, frames: npt.NDArray[np.floating], gap: bool) -> Bins:
        """Cuts the stream into whole bins and keeps the rest for later."""
        edge, start, stop = self.config.edge, self._frame, self._frame + len(frames)
        first, last = self.config.bin_of(start), self.config.bin_of(stop)
        values: Array = np.empty((last - first, self.config.inputs))
        bad: Mask = np.empty((last - first, self.config.channels), dtype=np.bool_)
        unsettled: Mask = np.empty(last - first, dtype=np.bool_)
        lost: Mask = np.full(last - first, gap)
        lost[:1] |= self._pending_gap
        for begin in range(first, last, self._batch):
            end = min(begin + self._batch, last)
            x, part = self._piece(frames, edge(begin), edge(end)), slice(begin - first, end - first)
            values[part], bad[part], unsettled[part] = self._bins(x, begin, lost[part])
        kept = max(start, edge(last))  # frames before this one are either used or pending already
        self._pending[:, kept - edge(last) : stop - edge(last)] = frames[kept - start :].T
        self._pending_gap = (gap and stop > kept) or (self._pending_gap and first == last)
        self._frame = stop
        ends = bin_edges(self.config.rate, first + 1, last, self.config.bin_ms) - 1
        return Bins(first, values, bad, ends, lost, unsettled)

    def _piece(self, frames: npt.NDArray[np.floating], begin: int, end: int) -> Array:
        """Returns a copy of raw frames [begin, end) as (C, n), the pending ones first."""
        old = max(0, self._frame - begin)
        x: Array = np.empty((self.config.channels, end - begin))
        x[:, :old] = self._pending[:, :old]
        x[:, old:] = frames[begin + old - self._frame : end - self._frame].T
        return x

    def _bins(self, x: Array, begin: int, lost: Mask) -> tuple[Array, Mask, Mask]:
        """Turns raw frames (C, n) of bins from `begin` on into values (B, I), bad channels (B, C) and `unsettled` (B,).

        Changes x. `lost` (B,) says which bins have declared gaps, and afterwards also which have frames without any
        sample.
        """
        edges = bin_edges(self.config.rate, begin, begin + len(lost), self.config.bin_ms)
        starts = edges - edges[0]
        lost |= np.logical_or.reduceat(find_lost_frames(self.config, x), starts[:-1])
        values: Array = np.zeros((len(lost), self.config.inputs))
        bad: Mask = np.ones((len(lost), self.config.channels), dtype=np.bool_)
        unsettled: Mask = np.zeros(len(lost), dtype=np.bool_)
        low, high, broken = sample_ranges(x, starts[:-1])
        for first, stop in _runs(lost):
            if lost[first]:
                self._lost_bins = min(self._lost_bins + stop - first, self.config.bridged_bins + 1)
                self._filters["decimator"][:] = 0.0
                continue
            clean, restarted = self._judge(low[first:stop], high[first:stop], broken[first:stop])
            bad[first:stop], unsettled[first:stop] = choose_channels(self.config, clean)
            for i in range(first, stop):
                frames = x[:, starts[i] : starts[i + 1]]
                values[i] = self._filter_bin(frames, int(edges[i]), restarted[i - first])
        return values, bad, unsettled

    def _judge(self, low: Array, high: Array, broken: Mask) -> tuple[Array, Mask]:
        """Judges whole bins in a row. Returns `clean` and the channels whose filters start from rest, (B, C) each."""
        history, config = self._history, self.config
        if self._lost_bins:
            history["clean"] = np.minimum(history["clean"], config.clean_after_loss(self._lost_bins))
        before = history["clean"]
        clean = judge_channels(config, history, low, high, broken)
        restarted: Mask = np.concatenate([before[None], clean[:-1]]) == 0
        restarted[0] |= self._lost_bins > config.bridged_bins
        return clean, restarted

    def _filter_bin(self, x: Array, first_frame: int, restarted: Mask) -> Array:
        """Returns the values (I,) of one bin with raw frames x (C, n). Channels in `restarted` (C,) start anew."""
        if (step := self.config.decimation) > 1:
            anew = restarted | (self._lost_bins > 0)
            x = self._filter("decimator", self._decimator, x, anew)[:, -first_frame % step :: step]
        self._lost_bins = 0
        if not self.config.bands:
            return np.asarray(self._filter("shaper", self._shaper, x, restarted)[:, -1])
        first, n = np.array(x[:, :1]), self._notches
        # the part of the notches is what the bands see too
        cleaned = self._filter_part("shaper", slice(0, n), self._shaper[:n], x, restarted, first)
        slow = self._filter_part("shaper", slice(n, None), self._shaper[n:], cleaned, restarted, first)
        return np.concatenate([slow[:, -1], self._measure_power(cleaned, restarted, first).ravel()])

    def _measure_power(self, x: Array, restarted: Mask, first: Array) -> Array:
        """Returns the log power (B, C) of each band over x (C, n), and moves the smoothed power on."""
        per_band = self._bands.shape[1]
        for b, sections in enumerate(self._bands):
            part = slice(b * per_band, (b + 1) * per_band)
            y = self._filter_part("bands", part, sections, x, restarted, first)
            mean = np.add.accumulate(y * y, axis=1)[:, -1] / y.shape[1]
            before = np.where(restarted, mean, self._power[b])
            self._power[b] = np.maximum(before + self.config.band_rate * (mean - before), LEAST_POWER)
        return log64(self._power)

    def _filter_part(self, name: str, part: slice, sections: Array, x: Array, restarted: Mask, first: Array) -> Array:
        """Returns x (C, n) filtered by a part of the sections. `first` (C, 1) is what a filter at rest has seen."""
        z, y = np.ascontiguousarray(self._filters[name][:, part]), np.array(x, order="C")
        if restarted.any():
            z[restarted] = self._rest[name][part] * first[restarted, :, None]
        _filter_in_place(sections, y, z)
        z[np.abs(z) < TINY_STATE] = 0.0
        self._filters[name][:, part] = z
        return y

    def _filter(self, name: str, sections: Array, x: Array, restarted: Mask) -> Array:
        """Returns x (C, n) filtered, and clears the small states afterwards."""
        z, y = self._filters[name], np.array(x, order="C")
        if restarted.any():
            z[restarted] = self._rest[name] * x[restarted, :1, None]
        _filter_in_place(sections, y, z)
        z[np.abs(z) < TINY_STATE] = 0.0
        return y


def require_room(frame: int, n_frames: int) -> None:
    """Raises EngineError where a stream that stands at `frame` cannot take `n_frames` further ones."""
    if n_frames > MOST_FRAMES - frame:
        raise EngineError(
            "a stream cannot have that many frames", got=f"{n_frames} after {frame}", expected=f"{MOST_FRAMES} in all"
        )


def _require_alike(own: Mapping[str, npt.NDArray[np.generic]], found: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """Raises EngineError unless a state has the names, types and shapes of this one."""
    for name in (*own, *(name for name in found if name not in own)):
        got, expected = (
            f"{name} {np.asarray(part[name]).dtype} {np.shape(part[name])}" if name in part else f"no {name}"
            for part in (found, own)
        )
        if got != expected:
            raise EngineError("the front-end state belongs to another configuration", got=got, expected=expected)


def _require_possible(config: FrontEndConfig, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """Raises EngineError for numbers that no stream comes to. Names, types and shapes have been checked."""
    _require_between("lost_bins", state["lost_bins"], 0, config.bridged_bins + 1)
    _require_between("clean", state["clean"], 0, config.settled_bins)
    if (state["clean"] != np.floor(state["clean"])).any():
        raise EngineError("state 'fe_clean' is out of range", expected="whole numbers")
    pending = state["pending"]
    with np.errstate(over="ignore"):
        rounded = pending.astype(np.float32)
    if (np.isfinite(pending) & (rounded != pending)).any():
        raise EngineError(
            "state 'fe_pending' holds what is no sample",
            expected="numbers of float32, not finite ones among them, as `Decoder.push` makes them",
        )
    _require_between("decimator", state["decimator"], -LARGEST_STATE, LARGEST_STATE)
    for name in ("shaper", *(("bands",) if config.bands else ())):
        _require_between(name, state[name], -LARGEST_STATE, LARGEST_STATE)
        size = np.abs(state[name])
        if ((size > 0) & (size < TINY_STATE)).any():
            raise EngineError(f"state 'fe_{name}' is out of range", expected=f"magnitudes of {TINY_STATE:g} or 0")
    if config.bands:
        _require_between("power", state["power"], LEAST_POWER, LARGEST_POWER)
    _require_ranges("lowest", state["lowest"], state["highest"])
    before_start = (state["low"] == -np.inf) & (state["high"] == np.inf)
    _require_ranges("low", state["low"][~before_start], state["high"][~before_start])


def _require_between(name: str, found: npt.NDArray[Any], least: float, most: float) -> None:
    """Raises EngineError for a number that is not from `least` to `most`, NaN among them."""
    if not ((found >= least) & (found <= most)).all():
        raise EngineError(f"state 'fe_{name}' is out of range", expected=f"numbers from {least:g} to {most:g}")


def _require_ranges(name: str, low: npt.NDArray[Any], high: npt.NDArray[Any]) -> None:
    """Raises EngineError unless finite samples have these ranges. Without a sample they are (inf, -inf)."""
    none = np.isposinf(low) & np.isneginf(high)
    if not (none | ((low >= -SAMPLE_LIMIT) & (low <= high) & (high <= SAMPLE_LIMIT))).all():
        raise EngineError(f"state 'fe_{name}' is no range of samples", expected="finite, the lowest first")


def _runs(lost: Mask) -> list[tuple[int, int]]:
    """Returns the stretches of bins [first, stop) that are alike."""
    edges = [0, *(np.flatnonzero(np.diff(lost)) + 1).tolist(), len(lost)]
    return [(first, stop) for first, stop in pairwise(edges) if stop > first]


def _filter_in_place(sections: Array, x: Array, z: Array) -> None:
    """Filters x (C, n) and advances z (C, sections, 2), as `sosfilt` does."""
    if _loop_is_as_known():
        _sosfilt(sections, x, z)
    else:
        _filter_by_public_function(sections, x, z)


def _sosfilt(sections: Array, x: Array, z: Array) -> None:
    """Runs the compiled loop of `sosfilt`, whose checks take half of the time when it is called once a bin."""
    from scipy.signal._sosfilt import _sosfilt as loop  # it is not public

    loop(sections, x, z)


def _filter_by_public_function(sections: Array, x: Array, z: Array) -> None:
    if not len(sections):  # of the notches, where there are none; `sosfilt` refuses that
        return
    y, after = scipy.signal.sosfilt(sections, x, zi=z.transpose(1, 0, 2))
    x[:], z[:] = y, after.transpose(1, 0, 2)


@cache
def _loop_is_as_known() -> bool:
    """Returns whether the loop, which another scipy may change or lack, gives what `sosfilt` gives, bit for bit."""
    sections = scipy.signal.butter(3, 0.2, output="sos")
    x, z = np.arange(12.0).reshape(2, 6) % 5, np.arange(8.0).reshape(2, 2, 2)
    expected, found = (x.copy(), z.copy()), (x.copy(), z.copy())
    _filter_by_public_function(sections, *expected)
    try:
        _sosfilt(sections, *found)
    except (ImportError, TypeError, ValueError):
        return False
    return all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))
