"""Makes a stream without a decoder: its description, and blocks with plausible outputs and some faults."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np

from edgedistill.frontend import FrontEndConfig
from edgedistill.live.records import (
    DecodedBin,
    RealTimeManners,
    SinkCounters,
    StreamBlock,
    StreamCounters,
    StreamDescription,
)
from edgedistill.runtime import Flag

RATE, CHANNELS = 1000, 40
DEAD, BROKEN = 5, 11  # a channel that is flat, and one without numbers
FRAMES = 10  # of a block, one bin
MANNERS = RealTimeManners(False, "other", None, (0, 1), ("memory is not locked: the limit is 64 kB",))
NAMES = ("hand_vel_x", "hand_vel_y")


def make_description(**changes: object) -> StreamDescription:
    """Returns the description of a stream of 40 channels at 1 kHz."""
    ids = tuple(f"ch{i:02d}" for i in range(CHANNELS))
    known = StreamDescription(
        bundle="monkey.edge",
        sha256="0" * 64,
        engine="c",
        source="replay:today.nwb",
        rate=Fraction(RATE),
        channel_ids=ids,
        channel_labels=ids,
        output_names=NAMES,
        output_units=("cm/s", "cm/s"),
        bin_s=0.01,
        front_end=FrontEndConfig(rate=Fraction(RATE), channels=CHANNELS),
        deadline_s=0.002,
        group_delay_ms=31.0,
        smoothing_delay_ms=24.0,
        warmup_bins=300,
        started="2026-03-01T09:00:00+00:00",
        real_time=MANNERS,
        warnings=MANNERS.warnings,
    )
    return replace(known, **changes)  # type: ignore[arg-type]


class MadeStream:
    """Makes one block after the other."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self.bin = 0
        self.counters = StreamCounters(state="streaming", drift_ppm=2.5, jitter_ms=0.31)

    def block(self, *, lost: bool = False) -> StreamBlock:
        """Returns the next bin and its frames, which are lost on request."""
        at = self.bin
        self.bin += 1
        counted = self.counters
        self.counters = replace(
            counted,
            frames=counted.frames + (0 if lost else FRAMES),
            bins=at + 1,
            lost_frames=counted.lost_frames + (FRAMES if lost else 0),
            gaps=counted.gaps + lost,
            sinks={"page:0": SinkCounters(blocks=at + 1), "nwb:out.nwb": SinkCounters(at, 2, 2)},
        )
        frames = None if lost else self._frames(at)
        return StreamBlock(at * FRAMES, frames, FRAMES, (self._decoded(at, lost),), self.counters)

    def end(self, reason: str = "the recording is over") -> StreamBlock:
        """Returns the last block, in which nothing came."""
        self.counters = replace(self.counters, state="ended", reason=reason)
        return StreamBlock(self.bin * FRAMES, None, 0, (), self.counters)

    def wait(self, reason: str = "the source has vanished") -> StreamBlock:
        """Returns a block that says that the source is waited for."""
        waiting = replace(self.counters, state="waiting", reason=reason)
        return StreamBlock(self.bin * FRAMES, None, 0, (), waiting)

    def _frames(self, at: int) -> np.ndarray:
        seconds = (at * FRAMES + np.arange(FRAMES)) / RATE
        slow = 60 * np.sin(2 * np.pi * (2 + np.arange(CHANNELS) / 10) * seconds[:, None])
        frames = (slow + self._rng.normal(0, 25, (FRAMES, CHANNELS))).astype(np.float32)
        frames[:, DEAD] = 3.0
        frames[:, BROKEN] = np.nan
        return frames

    def _decoded(self, at: int, lost: bool) -> DecodedBin:
        flags = Flag.MASKED | (Flag.WARMUP if at < 300 else Flag(0)) | (Flag.GAP if lost else Flag(0))
        invalid = lost or at % 1000 in range(700, 720)
        seconds = at * 0.01
        value = np.array([9 * np.sin(1.7 * seconds), 7 * np.cos(2.3 * seconds)], np.float32)
        noise = self._rng.normal(0, 0.6, 2).astype(np.float32)
        latency_s = float(self._rng.lognormal(np.log(4e-4), 0.3)) * (20 if at % 333 == 332 else 1)
        return DecodedBin(
            index=at,
            end_frame=at * FRAMES + FRAMES - 1,
            time_s=(at + 1) * 0.01,
            stamp_s=None,
            kinematics=value + noise,
            deviation=np.array([2.1, 1.7], np.float32),
            flags=flags | (Flag.INVALID if invalid else Flag(0)),
            bad_channels=CHANNELS if lost else 1 if at < 100 else 2,  # flat needs a second
            latency_s=latency_s,
        )
