"""Collects what a stream does and makes the events of the page from it, in memory that does not grow.

Blocks of a stream come in from its thread. A ticking thread takes what is new several times a second and gets
Server-Sent Events: `header` once for each browser, `bins` with what was decoded and recorded since the last one, and
`status` with all that is counted. Numbers that are not finite become null.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from threading import Lock
from time import monotonic

import numpy as np
import numpy.typing as npt

from edgedistill.live.records import DecodedBin, StreamBlock, StreamCounters, StreamDescription
from edgedistill.live.sinks.page.channels import ChannelBin, Channels
from edgedistill.live.sinks.page.latencies import EDGES_US, Latencies
from edgedistill.measure.intervals import QUANTILES
from edgedistill.runtime import Flag

SHOWN = 0.9  # level of the intervals
CHANNELS_AT_ONCE = 16  # that a browser shows
TOLD = (  # fields of the description that the page is told as they are
    *("bundle", "engine", "source", "started", "warnings", "bin_s", "deadline_s"),
    *("channel_labels", "output_names", "output_units"),
)
MOST_BINS = 200  # of one event; a replay that is faster than the page leaves older bins out


@dataclass(frozen=True)
class NewBins:
    """Holds what has come since the last event."""

    decoded: tuple[DecodedBin, ...]
    recorded: tuple[ChannelBin, ...]

    def event(self, first_channel: int) -> bytes:
        """Returns the `bins` event, with the channels from `first_channel` on."""
        group = slice(first_channel, first_channel + CHANNELS_AT_ONCE)
        decoded = {
            "bin": [one.index for one in self.decoded],
            "flags": [int(one.flags) for one in self.decoded],
            "value": [_finite(one.kinematics) for one in self.decoded],
            "deviation": [_finite(one.deviation) for one in self.decoded],
        }
        raw = {
            "first": first_channel,
            "bin": [one.index for one in self.recorded],
            "low": [_finite(one.low[group]) for one in self.recorded],
            "high": [_finite(one.high[group]) for one in self.recorded],
        }
        return format_event("bins", {"decoded": decoded, "raw": raw})


class Feed:
    """Collects one stream. One thread may add while another takes."""

    def __init__(self, description: StreamDescription) -> None:
        self._description = description
        self._lock = Lock()
        self._channels = Channels(description.front_end)
        self._decoded: deque[DecodedBin] = deque(maxlen=MOST_BINS)
        self._recorded: deque[ChannelBin] = deque(maxlen=MOST_BINS)
        self._latencies = Latencies(description.deadline_s * 1e6)
        self._flagged = dict.fromkeys(Flag, 0)
        self._counters = StreamCounters()
        self._heard = monotonic()
        self._recent: deque[DecodedBin] = deque(maxlen=MOST_BINS)
        self._newest: ChannelBin | None = None  # whose output is one of `_recent`, because channels come later

    @property
    def state(self) -> str:
        """Returns what the source does: "waiting", "streaming" or "ended"."""
        return self._counters.state

    def add(self, block: StreamBlock) -> None:
        """Adds a block."""
        recorded = list(self._channels.add(block))
        with self._lock:
            self._heard, self._counters = monotonic(), block.counters
            self._record(recorded)
            self._decoded.extend(block.bins)
            self._recent.extend(block.bins)
            for one in block.bins:
                for flag in Flag:
                    self._flagged[flag] += bool(one.flags & flag)
                if block.frames is not None:  # what was lost did not arrive
                    self._latencies.add(one.latency_s * 1e6)

    def flush(self) -> None:
        """Adds frames that wait for others, because none may come."""
        recorded = list(self._channels.flush())
        with self._lock:
            self._record(recorded)

    def end(self) -> None:
        """Says that no further block comes, whatever the last one said."""
        with self._lock:
            self._counters = replace(self._counters, state="ended")

    def take(self) -> NewBins | None:
        """Returns what has come since the last call, or None where nothing has."""
        with self._lock:
            new = NewBins(tuple(self._decoded), tuple(self._recorded))
            self._decoded.clear()
            self._recorded.clear()
        return new if new.decoded or new.recorded else None

    def header(self) -> bytes:
        """Returns the `header` event."""
        about = self._description
        header = {name: getattr(about, name) for name in TOLD} | {
            "rate_hz": float(about.rate),
            "delay_ms": about.group_delay_ms + about.smoothing_delay_ms,
            "interval": {"level": SHOWN, "deviations": QUANTILES[SHOWN]},
            "edges_us": EDGES_US,
            "flags": {flag.name: int(flag) for flag in Flag},
            "left_out": list(about.front_end.left_out),
            "channels_at_once": CHANNELS_AT_ONCE,
            "real_time": [{"name": n, "in_force": ok, "detail": words} for n, ok, words in about.real_time.rows()],
        }
        return format_event("header", header)

    def status(self, viewers: int) -> bytes:
        """Returns the `status` event."""
        with self._lock:
            last = self._recent[-1] if self._recent else None
            status = {
                "silent_s": round(monotonic() - self._heard, 2),
                "time_s": None if last is None else last.time_s,
                "flags": 0 if last is None else int(last.flags),
                "flagged": {flag.name: count for flag, count in self._flagged.items()},
                "masked": self._find_masked(),
                "latency": self._latencies.to_json(),
                "counters": asdict(self._counters),
                "viewers": viewers,
            }
        return format_event("status", status)

    def _record(self, recorded: list[ChannelBin]) -> None:
        self._recorded.extend(recorded)
        self._newest = recorded[-1] if recorded else self._newest

    def _find_masked(self) -> dict[str, object]:
        """Returns how many channels the decoder masks, and which ones they are.

        The page finds them by itself, and says None where it has missed blocks and so cannot know them.
        """
        newest = self._newest
        same = next((one for one in self._recent if newest is not None and one.index == newest.index), None)
        if same is None or newest is None:
            count = self._recent[-1].bad_channels if self._recent else 0
            return {"count": count, "channels": [] if not count else None}
        channels = np.flatnonzero(newest.masked).tolist()
        return {"count": same.bad_channels, "channels": channels if len(channels) == same.bad_channels else None}


def format_event(name: str, content: Mapping[str, object]) -> bytes:
    """Returns a Server-Sent Event whose data is one line of JSON."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return f"event: {name}\ndata: {text}\n\n".encode()


def _finite(values: npt.NDArray[np.floating]) -> list[float | None]:
    """Returns four digits of each value, which is more than a screen shows."""
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values]
