"""Defines what a live stream tells its sinks: what it is, what it decoded, and what went wrong so far.

All records are frozen, and their arrays must not be written to, because every sink gets the same objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgedistill.bundle.manifest import Channel
from edgedistill.frontend import FrontEndConfig
from edgedistill.runtime import Flag, Output
from edgedistill.runtime.decoder import DecoderInfo

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class RealTimeManners:
    """Says what the operating system granted the thread that decodes."""

    memory_locked: bool
    policy: str  # "fifo" or "other"
    priority: int | None  # of "fifo", 1 to 99
    cores: tuple[int, ...]  # on which the thread may run
    warnings: tuple[str, ...] = ()  # what was asked for and not granted, each with its cause

    def rows(self) -> tuple[tuple[str, bool, str], ...]:
        """Returns what was asked for, whether it is in force, and what it is in words."""
        locked = "no page of memory waits for the disk" if self.memory_locked else "pages may wait for the disk"
        fifo = self.policy == "fifo"
        turn = f"FIFO priority {self.priority}" if fifo else "usual turns with other programs"
        cores = f"core{'s' * (len(self.cores) != 1)} {', '.join(map(str, self.cores))}"
        return (
            ("memory locked", self.memory_locked, locked),
            ("real-time priority", fifo, turn),
            ("own core", len(self.cores) == 1, cores),
        )


@dataclass(frozen=True)
class StreamDescription:
    """Holds what is known before the first frame."""

    bundle: str  # name of the bundle
    sha256: str  # of the bundle's manifest
    engine: str
    source: str  # as the user named it, such as "lsl:amplifier"
    rate: Fraction  # frames a second
    channel_ids: tuple[str, ...]  # (C,) in the order of the bundle, as all frames and masks
    channel_labels: tuple[str, ...]  # (C,) what people call them: label, or else id
    output_names: tuple[str, ...]  # (K,)
    output_units: tuple[str, ...]  # (K,)
    bin_s: float  # 0.01
    front_end: FrontEndConfig  # with which masked channels can be told from the frames
    deadline_s: float  # an output is late that comes later than this after the last frame of its bin
    group_delay_ms: float  # of the front end
    smoothing_delay_ms: float  # of the filter that smooths the outputs
    warmup_bins: int
    started: str  # ISO 8601, UTC
    real_time: RealTimeManners
    clock: str = "none"  # of stamp_s: "lsl" for LSL's clock on this machine, "file" for that of a recording, or "none"
    channels: tuple[Channel, ...] = ()  # (C,) ids, labels and positions as the bundle states them
    warnings: tuple[str, ...] = ()  # how the source differs from the bundle, and what else to know

    @property
    def info(self) -> DecoderInfo:
        """Returns what the decoder says of itself."""
        return DecoderInfo(
            name=self.bundle,
            engine=self.engine,
            sha256=self.sha256,
            rate=self.rate,
            channel_ids=self.channel_ids,
            output_names=self.output_names,
            output_units=self.output_units,
            group_delay_ms=self.group_delay_ms,
            smoothing_delay_ms=self.smoothing_delay_ms,
            warmup_bins=self.warmup_bins,
        )


@dataclass(frozen=True, eq=False)
class DecodedBin:
    """Holds the output of one 10 ms bin."""

    index: int  # of the bin in the stream
    end_frame: int  # the frame of the stream that completed it, lost frames counted
    time_s: float  # end of the bin in seconds after the first frame, (index + 1) · bin_s
    stamp_s: float | None  # the last frame's time on the clock of the source, where it has one
    kinematics: Floats  # (K,) in output_units
    deviation: Floats  # (K,) standard deviation of each; nine in ten true values lie within 1.645 of it
    flags: Flag
    bad_channels: int  # channels that were masked and filled in
    latency_s: float  # from the arrival of the bin's last frame in this program to its output
    arrived_s: float = 0.0  # that arrival, or when frames were found to be lost, as time.perf_counter() counts

    @property
    def output(self) -> Output:
        """Returns the bin as the decoder gave it."""
        return Output(self.index, self.end_frame, self.flags, self.bad_channels, self.kinematics, self.deviation)


@dataclass(frozen=True)
class SinkCounters:
    """Counts what one sink took."""

    blocks: int = 0  # that it was given
    dropped_blocks: int = 0  # that it never saw, because it was too slow
    dropped_bins: int = 0
    failure: str | None = None  # why it stopped


@dataclass(frozen=True)
class StreamCounters:
    """Counts what happened since the first frame. Frames are samples of all channels."""

    frames: int = 0  # decoded
    bins: int = 0  # decoded, those in gaps among them
    lost_frames: int = 0  # declared to the decoder as a gap, for whatever reason
    gaps: int = 0  # stretches of lost frames
    late_frames: int = 0  # came after they had been declared lost, and were left out
    duplicated_frames: int = 0  # came twice; the second was left out
    dropped_frames: int = 0  # left out because decoding was behind; they count as lost too
    reordered_frames: int = 0  # came after later ones and were put in order
    reconnects: int = 0  # the source vanished and came back
    clock_jumps: int = 0  # the source's clock or counter was set anew
    late_bins: int = 0  # later than the deadline
    drift_ppm: float | None = None  # how much faster than its nominal rate the source runs; None until it is known
    jitter_ms: float | None = None  # standard deviation of its time stamps around a steady rate
    state: Literal["waiting", "streaming", "ended"] = "waiting"  # of the source, "waiting" also after it vanished
    reason: str | None = None  # why it is waited for, or how it ended
    sinks: Mapping[str, SinkCounters] = field(default_factory=dict)  # by the words of --to


@dataclass(frozen=True, eq=False)
class StreamBlock:
    """Holds what happened between two moments: frames that arrived or were lost, and the bins that they completed."""

    first_frame: int  # of the stream
    frames: Floats | None  # (n, C) uV in the order of the bundle; None where they were lost
    frame_count: int  # n, of lost frames too
    bins: tuple[DecodedBin, ...]
    counters: StreamCounters  # after this block
