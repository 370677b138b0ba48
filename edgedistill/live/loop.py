"""Decodes a live stream: a source comes in, blocks of frames and outputs go to the sinks.

One thread reads the source, the caller's thread decodes, and each sink that may wait has a thread of its own. The
thread that decodes waits for frames and for nothing else. Several streams may run in one program, each with its own
decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from threading import Event, Thread
from time import perf_counter, sleep
from typing import Any

import numpy as np

from edgedistill.decoding import BINS_PER_S, time_s
from edgedistill.errors import RecordingError
from edgedistill.live.chunk_queue import ChunkQueue, SourceNews
from edgedistill.live.direct_sink import DirectSink
from edgedistill.live.matched_source import MatchedSource, match_source
from edgedistill.live.placing import FramePlacer, Piece
from edgedistill.live.real_time import real_time_manners, stay_before_other_programs
from edgedistill.live.records import (
    DecodedBin,
    Floats,
    RealTimeManners,
    StreamBlock,
    StreamCounters,
    StreamDescription,
)
from edgedistill.live.sink import Sink, is_record, never_waits
from edgedistill.live.sink_thread import SinkThread
from edgedistill.live.source import Chunk, Source, SourceEnded, SourceHeader, SourceLost
from edgedistill.live.stamp_clock import StampClock
from edgedistill.runtime import Decoder, Output

TICK_S = 0.01  # how often overdue frames are looked for
READ_S = 0.1
CLOSING_S = 2.0
WAITED_S = 0.0001  # a longer wait for frames leaves the core to others
BUSY_S, REST_S = 1.0, 0.2  # after so long without a wait, the thread that decodes rests
MOST_GAP_BINS = 100  # of a long gap that are decoded at a time


@dataclass(frozen=True)
class LiveSettings:
    """Holds what a user may choose about a stream."""

    source: str = "source"  # its name for descriptions
    deadline_s: float = 1 / BINS_PER_S
    hold_s: float = 0.01  # how long a missing frame is waited for, where the source may bring frames out of order
    patience_s: float = 0.25  # how long nothing may come before frames are lost
    backlog_s: float = 1.0  # of frames that may wait to be decoded
    sink_backlog_s: float = 5.0  # of blocks that may wait for a sink
    record_backlog_s: float = 20.0  # the same for one that must be complete
    sink_closing_s: float = 10.0  # that a sink may take to end
    real_time: bool = True
    core: int | None = None
    seconds: float | None = None  # of signal after which the stream ends


class LiveStream:
    """Runs one stream from its source to its sinks."""

    def __init__(
        self, decoder: Decoder, source: Source, sinks: Mapping[str, Sink], settings: LiveSettings | None = None
    ) -> None:
        """`sinks` are named as the user named them. They are opened by `run`."""
        self.description: StreamDescription | None = None
        self._settings = settings or LiveSettings()
        self._decoder, self._source, self._sinks = decoder, source, dict(sinks)
        config = decoder.frontend_config
        self._config = config
        self._most_frames = None if self._settings.seconds is None else round(self._settings.seconds * config.rate)
        self._queue = ChunkQueue(max(1, int(self._settings.backlog_s * config.rate)))
        self._runners: list[DirectSink | SinkThread] = []  # those of sinks that never wait first
        self._counts = asdict(StreamCounters())  # as numbers that change, because a record of each change takes time
        self._stop = Event()
        self._busy_since_s = 0.0
        self._frame, self._bin = 0, 0  # of the stream, next ones
        self._next_edge = config.edge(1)
        self._block: list[Floats] = []  # frames that no sink was given yet

    def run(self, stop: Event, watch: Callable[[StreamDescription], None] | None = None) -> StreamCounters:
        """Decodes until the source ends or `stop` is set, and returns the counters.

        `watch` is given the description before the first frame. Raises EdgeDistillError for a source that the bundle
        cannot decode, and for a sink that cannot be opened.
        """
        settings, self._stop = self._settings, stop
        with ExitStack() as stack:
            begin = stay_before_other_programs if settings.real_time else None
            threads = []
            for name, sink in self._sinks.items():
                if not never_waits(sink):
                    threads.append(SinkThread(name, sink, *self._find_room(sink), settings.sink_closing_s, begin))
                    stack.callback(threads[-1].close)
            # What follows has the manners, and so have the threads that LSL starts.
            manners = stack.enter_context(real_time_manners(settings.real_time, settings.core))
            direct = [DirectSink(name, sink) for name, sink in self._sinks.items() if never_waits(sink)]
            for runner in direct:
                stack.callback(runner.close)
            self._runners = [*direct, *threads]
            stack.callback(self._source.close)
            header = self._source.open(stop)
            if header is None:
                return self.counters
            matched = match_source(self._decoder.bundle, self._decoder.info, header)
            self.description = self._describe(header, matched, manners)
            # Outlets open last, since they tell others that all is ready.
            for each in sorted(self._runners, key=lambda runner: isinstance(runner, DirectSink)):
                each.open(self.description)
            if watch is not None:
                watch(self.description)
            self._decoder.reset()
            self._decoder.take_frames_at_once()
            reading = Event()
            reader = Thread(target=self._read, args=(header, reading), name="source", daemon=True)
            reader.start()
            try:
                reason = self._decode(header, matched, stop)
            finally:
                reading.set()
                reader.join(CLOSING_S)
            self._set(state="ended", reason=reason)
            self._emit_frames(())
        return self.counters  # with what the sinks did at their end

    @property
    def counters(self) -> StreamCounters:
        """Returns what happened so far."""
        return StreamCounters(**self._counts | {"sinks": {runner.name: runner.counters for runner in self._runners}})

    def _find_room(self, sink: Sink) -> tuple[int, int]:
        """Returns how many frames, and in how many blocks, may wait for a sink."""
        settings = self._settings
        backlog_s = settings.record_backlog_s if is_record(sink) else settings.sink_backlog_s
        return max(1, int(backlog_s * self._config.rate)), max(1, int(backlog_s * BINS_PER_S))

    # ---------------------------------------------------------------- the thread that reads

    def _read(self, header: SourceHeader, ended: Event) -> None:
        try:
            while not ended.is_set():
                try:
                    chunk = self._source.read(READ_S)
                except SourceLost as lost:
                    self._queue.put(SourceNews("lost", str(lost)))
                    found = self._source.open(ended)
                    if found is None:
                        return
                    _require_same(header, found)
                    self._queue.put(SourceNews("back"))
                    continue
                if chunk is not None and len(chunk.frames):
                    self._queue.put(chunk)
        except SourceEnded as end:
            self._queue.put(SourceNews("ended", str(end) or "the source ended"))
        except BaseException as error:
            self._queue.put(SourceNews("ended", "reading the source failed", error))

    # ---------------------------------------------------------------- the thread that decodes

    def _decode(self, header: SourceHeader, matched: MatchedSource, stop: Event) -> str:
        """Decodes until the end, and returns why it ended."""
        settings = self._settings
        clock, self._busy_since_s = StampClock(header.rate), perf_counter()
        placer = FramePlacer(header.rate, 0.0 if header.ordered else settings.hold_s, settings.patience_s)
        while not stop.is_set():
            began_s = perf_counter()
            item = self._queue.get(TICK_S)
            if perf_counter() - began_s >= WAITED_S:
                self._busy_since_s = perf_counter()
            self._rest()
            if isinstance(item, Chunk):
                if self._counts["state"] != "streaming":
                    self._set(state="streaming", reason=None)
                    if item.counted_here:  # a pause is a gap, since nothing else says how much is missing
                        placer.begin_anew(trusted=False)
                self._counts["clock_jumps"] += item.jumps
                numbers = item.numbers
                if numbers is None:
                    assert item.stamps_s is not None
                    numbers = clock.number(item.stamps_s, item.arrived_s)
                    self._counts["clock_jumps"] = clock.jumps
                stamps_s = None if item.stamps_s is None else item.stamps_s + item.offset_s
                frames = matched.arrange(item.frames)
                self._pass(placer, clock, placer.place(numbers, frames, item.arrived_s, stamps_s))
            elif item is None:
                self._wait(placer, clock)
            elif item.kind == "ended":
                self._pass(placer, clock, placer.finish(perf_counter()))
                if item.failure is not None:
                    raise item.failure
                return item.reason or "the source ended"
            else:
                self._follow_source(item, placer, header)
            if (end := self._find_end()) is not None:
                return end
        return "stopped"

    def _wait(self, placer: FramePlacer, clock: StampClock) -> None:
        """Decodes what is overdue."""
        pieces = placer.find_overdue(perf_counter())
        if not pieces:
            return
        if self._counts["state"] == "streaming" and placer.silent:
            self._set(state="waiting", reason=f"nothing came for {self._settings.patience_s:g} s")
        self._pass(placer, clock, pieces)

    def _follow_source(self, news: SourceNews, placer: FramePlacer, header: SourceHeader) -> None:
        """Notes that the source vanished, or that it is back. Its numbers may begin anew; its clock goes on."""
        if news.kind == "lost":
            self._set(state="waiting", reason=news.reason)
        else:
            self._set(reconnects=self._counts["reconnects"] + 1)
            if header.clock == "none":
                placer.begin_anew()
        self._emit_frames(())

    def _find_end(self) -> str | None:
        """Returns why the stream is over, or None."""
        if self._most_frames is not None and self._frame >= self._most_frames:
            return f"{self._settings.seconds:g} s were decoded"
        if self._runners and all(runner.failure is not None for runner in self._runners):
            return "every sink failed"
        return None

    def _pass(self, placer: FramePlacer, clock: StampClock, pieces: list[Piece]) -> None:
        """Decodes pieces, and tells the sinks of the bins that they complete."""
        counts = placer.counts
        self._set(
            lost_frames=counts.lost,
            gaps=counts.gaps,
            late_frames=counts.late,
            duplicated_frames=counts.duplicated,
            reordered_frames=counts.reordered,
            dropped_frames=self._queue.dropped_frames,
            drift_ppm=clock.drift_ppm,
            jitter_ms=clock.jitter_ms,
        )
        for piece in pieces:
            if piece.frames is None:
                self._lose(piece)
            else:
                self._push(piece, piece.frames)

    def _push(self, piece: Piece, frames: Floats) -> None:
        """Decodes frames up to the end of each bin, so that no output waits for frames behind its bin."""
        at = 0
        while at < piece.count:
            count = min(piece.count - at, self._next_edge - self._frame)
            part = frames[at : at + count]
            outputs = self._decoder.push(part)
            self._block.append(part)
            self._frame, at = self._frame + count, at + count
            self._counts["frames"] += count
            if outputs:
                stamp_s = None if piece.stamps_s is None else float(piece.stamps_s[at - 1])
                bins = self._name_bins(outputs, piece.arrived_s, stamp_s)
                self._counts["late_bins"] += sum(bin_.latency_s > self._settings.deadline_s for bin_ in bins)
                self._emit_frames(bins)

    def _lose(self, piece: Piece) -> None:
        if self._block:
            self._emit_frames(())
        left = piece.count
        while left and not self._stop.is_set() and self._find_end() is None:
            count = min(left, self._config.edge(self._bin + MOST_GAP_BINS) - self._frame)
            outputs = self._decoder.gap(count)
            first, self._frame, left = self._frame, self._frame + count, left - count
            self._emit(StreamBlock(first, None, count, self._name_bins(outputs, piece.arrived_s, None), self.counters))
            self._rest()

    def _rest(self) -> None:
        """Leaves the core to others for a moment where decoding never waits.

        With FIFO priority nothing else would run there, and outputs are late in any case.
        """
        if self._settings.real_time and perf_counter() - self._busy_since_s > BUSY_S:
            sleep(REST_S)
            self._busy_since_s = perf_counter()

    def _name_bins(self, outputs: list[Output], arrived_s: float, stamp_s: float | None) -> tuple[DecodedBin, ...]:
        """Returns outputs as sinks get them. The last frame of the last bin arrived at `arrived_s`."""
        now = perf_counter()
        self._bin += len(outputs)
        self._next_edge = self._config.edge(self._bin + 1)
        self._counts["bins"] = self._bin
        return tuple(
            DecodedBin(
                index=output.bin,
                end_frame=output.end_frame,
                time_s=time_s(output),
                stamp_s=stamp_s,
                kinematics=output.kinematics,
                deviation=output.deviation,
                flags=output.flags,
                bad_channels=output.bad_channels,
                latency_s=now - arrived_s,
                arrived_s=arrived_s,
            )
            for output in outputs
        )

    # ---------------------------------------------------------------- what the sinks are told

    def _emit_frames(self, bins: tuple[DecodedBin, ...]) -> None:
        """Gives the sinks the frames since the last block, with the bins that they completed."""
        held = self._block
        count = sum(map(len, held))
        frames = held[0] if len(held) == 1 else np.concatenate(held) if held else None
        self._block = []
        self._emit(StreamBlock(self._frame - count, frames, count, bins, self.counters))

    def _emit(self, block: StreamBlock) -> None:
        for runner in self._runners:
            runner.put(block)

    def _set(self, **changes: Any) -> None:
        self._counts.update(changes)

    def _describe(self, header: SourceHeader, matched: MatchedSource, manners: RealTimeManners) -> StreamDescription:
        info, channels = self._decoder.info, matched.channels
        return StreamDescription(
            bundle=info.name,
            sha256=info.sha256,
            engine=info.engine,
            source=self._settings.source,
            rate=info.rate,
            channel_ids=info.channel_ids,
            channel_labels=tuple(channel.label or channel.id for channel in channels),
            output_names=info.output_names,
            output_units=info.output_units,
            bin_s=1 / BINS_PER_S,
            front_end=self._config,
            deadline_s=self._settings.deadline_s,
            group_delay_ms=info.group_delay_ms,
            smoothing_delay_ms=info.smoothing_delay_ms,
            warmup_bins=info.warmup_bins,
            started=datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            real_time=manners,
            clock=header.clock,
            channels=channels,
            warnings=(*matched.warnings, *manners.warnings),
        )


def _require_same(before: SourceHeader, now: SourceHeader) -> None:
    """Raises RecordingError for a source that came back as another one."""
    changed = [
        name
        for name in ("rate", "channel_count", "channel_names", "gain_uv")
        if getattr(before, name) != getattr(now, name)
    ]
    if changed:
        raise RecordingError(
            f"{now.where}: it came back as another source",
            got=", ".join(f"{name} {getattr(now, name)}" for name in changed),
            expected=", ".join(f"{name} {getattr(before, name)}" for name in changed),
            causes=("the amplifier was set anew", "another source has taken its name"),
            next_step="run the command again, which compares the source with the bundle",
        )
