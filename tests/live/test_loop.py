"""A live stream decodes what `run` decodes, and every planted fault is flagged, counted and stops nothing else."""

from __future__ import annotations

import errno
import json
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from threading import Event

import numpy as np
import pytest

from edgedistill.bundle import Bundle
from edgedistill.errors import OutputError, RecordingError
from edgedistill.live import loop
from edgedistill.live.loop import LiveSettings, LiveStream
from edgedistill.live.records import RealTimeManners, StreamBlock, StreamCounters, StreamDescription
from edgedistill.live.sink import Sink
from edgedistill.live.sources import framed
from edgedistill.live.sources.framed import open_tcp_source
from edgedistill.runtime import Decoder, Flag, Output

from ..bundles import CHANNELS
from ..waiting import wait_until
from .fakes import FRAMES, BlockedSink, Clock, FailingSink, FakeSource, KeepingSink, Step

FREELY = LiveSettings(real_time=False, backlog_s=60, sink_backlog_s=600)  # a busy machine drops nothing
PLAIN = replace(FREELY, patience_s=60)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (loop, framed):
        monkeypatch.setattr(module, "perf_counter", clock)
    return clock


def stream(
    decoder: Decoder, source: FakeSource, settings: LiveSettings = PLAIN, **sinks: Sink
) -> tuple[StreamCounters, KeepingSink]:
    kept = KeepingSink()
    counters = LiveStream(decoder, source, {"kept": kept, **sinks}, settings).run(Event())
    return counters, kept


def decode_placed(decoder: Decoder, kept: KeepingSink) -> list[Output]:
    """Decodes what the sinks were given, as `run` would decode a recording of it."""
    decoder.reset()
    made: list[Output] = []
    at = 0
    for block in kept.blocks:
        assert block.first_frame == at
        at += block.frame_count
        if block.frames is not None:
            made += decoder.push(block.frames)
        else:
            made += decoder.push(np.full((block.frame_count, CHANNELS), np.nan, np.float32))
    return made


def require_same(kept: KeepingSink, outputs: list[Output]) -> None:
    assert [b.index for b in kept.bins] == [o.bin for o in outputs] == list(range(len(outputs)))
    for bin_, output in zip(kept.bins, outputs, strict=True):
        assert (bin_.end_frame, bin_.flags, bin_.bad_channels) == (output.end_frame, output.flags, output.bad_channels)
        assert bin_.kinematics.tobytes() == output.kinematics.tobytes()
        assert bin_.deviation.tobytes() == output.deviation.tobytes()


def lost_frames_of(kept: KeepingSink) -> set[int]:
    return {
        frame
        for block in kept.blocks
        if block.frames is None
        for frame in range(block.first_frame, block.first_frame + block.frame_count)
    }


def chunks(start: int, stop: int, size: int = 5) -> list[tuple[int, int]]:
    return [(at, min(at + size, stop)) for at in range(start, stop, size)]


def test_what_is_decoded_has_the_bits_of_run_whatever_the_chunks_are(decoder: Decoder) -> None:
    script = [*chunks(0, 200, 1), *chunks(200, 1500, 7), (1500, 3000)]
    counters, kept = stream(decoder, FakeSource(script))
    decoder.reset()
    require_same(kept, decoder.push(FRAMES[:3000]))
    assert np.array_equal(np.concatenate([b.frames for b in kept.blocks if b.frames is not None]), FRAMES[:3000])
    assert (counters.frames, counters.bins, counters.lost_frames) == (3000, 1200, 0)
    assert (counters.state, counters.reason) == ("ended", "the script ended")
    assert kept.blocks[-1].counters.state == "ended"
    assert kept.closed


def test_planted_faults_are_flagged_and_counted(decoder: Decoder, clock: Clock) -> None:
    """One chunk in a hundred is dropped, one comes twice, one 50 ms late, and one after the chunk behind it."""
    size, pace_s, planted = 5, 5 / 250, {"dropped": 0, "doubled": 20, "late": 40, "overtaken": 60}
    sent: list[tuple[float, int]] = []  # when chunks come, and their number
    for chunk in range(1000):
        kind = next((name for name, at in planted.items() if chunk % 100 == 15 + at), "")
        at_s = pace_s * chunk + {"late": 0.05, "overtaken": 1.5 * pace_s}.get(kind, 0)
        sent += [(at_s, chunk)] * {"dropped": 0, "doubled": 2}.get(kind, 1)
    script: list[Step] = []
    for (before_s, _), (at_s, chunk) in pairwise([(0.0, 0), *sorted(sent)]):
        script += [at_s - before_s, (chunk * size, (chunk + 1) * size)]
    settings = replace(PLAIN, hold_s=0.015)
    counters, kept = stream(decoder, FakeSource(script, clock=clock, ordered=False), settings)
    lost = {frame for frame in range(5000) if frame // size % 100 in (15, 55)}
    assert lost_frames_of(kept) == lost
    require_same(kept, decode_placed(decoder, kept))
    assert (counters.lost_frames, counters.gaps, counters.frames) == (100, 20, 4900)
    assert (counters.duplicated_frames, counters.reordered_frames, counters.late_frames) == (50, 50, 50)
    assert counters.dropped_frames == 0
    touched = {decoder.frontend_config.bin_of(frame) for frame in lost}
    assert {bin_.index for bin_ in kept.bins if bin_.flags & Flag.GAP} == touched
    assert {bin_.index for bin_ in kept.bins} == set(range(2000))


def test_stamps_show_the_same_faults(decoder: Decoder) -> None:
    parts = [*chunks(0, 2000), *chunks(2040, 3000), (2990, 3000), *chunks(3000, 3500)]
    counters, kept = stream(decoder, FakeSource(parts, stamped=True))
    assert lost_frames_of(kept) == set(range(2000, 2040))
    assert (counters.lost_frames, counters.gaps, counters.duplicated_frames) == (40, 1, 10)
    assert counters.jitter_ms == pytest.approx(0, abs=0.01)
    assert kept.bins[-1].stamp_s == pytest.approx(3499 / 250)
    require_same(kept, decode_placed(decoder, kept))


def test_a_source_that_vanishes_is_waited_for_and_outputs_say_so(decoder: Decoder, clock: Clock) -> None:
    """It comes back 0.3 s after its last frame, counts from the beginning, and outputs went on by then."""
    source, kept = FakeSource([*chunks(0, 500), "lost", *chunks(0, 500)], clock=clock), KeepingSink()
    source_open = source.open

    def slow_open(stop: Event) -> object:
        if source.opened:
            clock.now_s += 0.3
            wait_until(lambda: sum(bool(bin_.flags & Flag.GAP) for bin_ in kept.bins) >= 15)
        return source_open(stop)

    source.open = slow_open  # type: ignore[method-assign, assignment]
    counters = LiveStream(decoder, source, {"kept": kept}, replace(FREELY, patience_s=0.1)).run(Event())
    seen = [block.counters for block in kept.blocks]
    assert any(c.state == "waiting" and "cable" in (c.reason or "") for c in seen)
    assert (counters.reconnects, counters.gaps, counters.lost_frames) == (1, 1, 0.3 * 250 - 5)
    assert lost_frames_of(kept) == set(range(500, 570))
    gone = [bin_ for bin_ in kept.bins if bin_.flags & Flag.GAP]
    assert [bin_.index for bin_ in gone] == list(range(200, 228))
    assert all(bin_.flags & Flag.INVALID for bin_ in gone)
    require_same(kept, decode_placed(decoder, kept))


def test_outputs_go_on_while_a_source_is_silent(decoder: Decoder, clock: Clock) -> None:
    kept = KeepingSink()

    def waiting() -> list[StreamBlock]:
        return [block for block in kept.blocks if block.counters.state == "waiting"]

    silence: list[Step] = [0.4, lambda: wait_until(lambda: sum(len(block.bins) for block in waiting()) >= 30)]
    source = FakeSource([*chunks(0, 100), *silence, *chunks(200, 300)], clock=clock)
    counters = LiveStream(decoder, source, {"kept": kept}, replace(FREELY, patience_s=0.1)).run(Event())
    assert (counters.gaps, counters.lost_frames) == (1, 100)
    assert any("nothing came for 0.1 s" in (block.counters.reason or "") for block in waiting())
    require_same(kept, decode_placed(decoder, kept))


def test_a_server_that_is_killed_and_started_anew_is_a_gap(decoder: Decoder, clock: Clock) -> None:
    """Its socket is reset, as the system does for a program that it ends. Its counter begins anew."""
    facts = {"rate": 250, "channels": CHANNELS, "type": "float32", "unit": "uV", "byte_order": "little"}
    rows = np.zeros(500, [("counter", "<u4"), ("samples", "<f4", (CHANNELS,))])
    rows["counter"], rows["samples"] = np.arange(500), FRAMES[:500]
    server, kept, stop = socket.create_server(("127.0.0.1", 0)), KeepingSink(), Event()

    def serve() -> None:
        for after_s, frames in ((0.0, 500), (3.0, 1000)):
            clock.now_s += after_s
            with server.accept()[0] as connection:
                connection.sendall(json.dumps(facts | {"counter": "uint32"}).encode() + b"\n" + rows.tobytes())
                wait_until(lambda frames=frames: live.counters.frames >= frames)  # type: ignore[misc]
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stop.set()

    source = open_tcp_source(f"127.0.0.1:{server.getsockname()[1]}")
    live = LiveStream(decoder, source, {"kept": kept}, replace(FREELY, patience_s=0.1))
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    counters = live.run(stop)
    thread.join(60)
    server.close()
    assert (counters.reconnects, counters.gaps) == (1, 1)
    assert counters.lost_frames > 0
    assert counters.frames == 1000
    assert any("closed the connection" in (block.counters.reason or "") for block in kept.blocks)
    gone = [bin_ for bin_ in kept.bins if bin_.flags & Flag.GAP]
    assert gone
    assert all(bin_.flags & Flag.INVALID for bin_ in gone)
    require_same(kept, decode_placed(decoder, kept))


def test_outlets_open_after_all_that_takes_time(decoder: Decoder) -> None:
    """Who waits for an outlet begins to send, and what comes while a file is opened would be old."""
    opened: list[str] = []

    class Slow(KeepingSink):
        def open(self, description: StreamDescription) -> None:
            opened.append("slow")

    class Outlet(KeepingSink):
        never_waits = True

        def open(self, description: StreamDescription) -> None:
            opened.append("outlet")

    stream(decoder, FakeSource(chunks(0, 50)), outlet=Outlet(), slow=Slow())
    assert opened == ["slow", "outlet"]


def test_a_source_that_comes_back_as_another_one_is_refused(decoder: Decoder) -> None:
    class Changing(FakeSource):
        def open(self, stop: Event) -> object:  # type: ignore[override]
            self._changes = {"gain_uv": (2.0,) * CHANNELS} if self.opened else {}
            return super().open(stop)

    with pytest.raises(RecordingError, match="came back as another source"):
        stream(decoder, Changing([*chunks(0, 100), "lost", *chunks(100, 200)]))


def test_decoding_that_falls_behind_drops_the_oldest_frames_and_declares_them(decoder: Decoder) -> None:
    slow, given, push = Event(), Event(), decoder.push

    def give_all_during_the_first_push() -> Iterator[tuple[int, int]]:
        yield 0, 5
        slow.wait(120)
        yield from chunks(5, 2000)
        given.set()

    def slow_push(frames: np.ndarray) -> list[Output]:
        slow.set()
        given.wait(120)
        return push(frames)

    decoder.push = slow_push  # type: ignore[method-assign]
    settings = replace(PLAIN, backlog_s=1.0)
    counters, kept = stream(decoder, FakeSource(give_all_during_the_first_push()), settings)
    decoder.push = push  # type: ignore[method-assign]
    assert counters.dropped_frames == counters.lost_frames == 2000 - 5 - 250  # a second may wait
    assert counters.gaps == 1
    assert min(lost_frames_of(kept)) == 5
    assert counters.frames + counters.lost_frames == 2000  # the newest are decoded
    require_same(kept, decode_placed(decoder, kept))


def test_a_sink_that_blocks_loses_blocks_and_nothing_waits_for_it(decoder: Decoder) -> None:
    blocked = BlockedSink()
    settings = replace(PLAIN, sink_backlog_s=1.0, sink_closing_s=0.2)
    kept = KeepingSink()
    script: list[Step] = [*chunks(0, 1500), lambda: wait_until(lambda: bool(kept.bins) and kept.bins[-1].index == 599)]
    counters = LiveStream(decoder, FakeSource(script), {"kept": kept, "blocked": blocked}, settings).run(Event())
    assert not blocked.blocks  # it still holds its first one, although the stream has ended
    sink = counters.sinks["blocked"]
    assert sink.failure is not None
    assert sink.dropped_blocks > 0
    assert sink.dropped_bins > 450
    assert counters.bins == 600
    blocked.release.set()


@pytest.mark.parametrize(
    ("error", "said"),
    [(OSError(errno.ENOSPC, "No space left"), "the disk is full"), (OutputError("x", got="why"), "x: why")],
)
def test_a_sink_that_fails_stops_alone(decoder: Decoder, error: Exception, said: str) -> None:
    failing = FailingSink(error)
    counters, kept = stream(decoder, FakeSource(chunks(0, 500)), failing=failing)
    assert counters.sinks["failing"].failure == said
    assert failing.closed
    assert len(failing.blocks) == 3
    assert len(kept.bins) == 200
    assert counters.sinks["kept"].failure is None


def test_a_stream_without_a_sink_that_works_ends(decoder: Decoder) -> None:
    failing = FailingSink(OSError(errno.EIO, "I/O error"))
    source = FakeSource(item for at in range(0, 10**9, 5) for item in ((at, at + 5), 0.001))
    counters = LiveStream(decoder, source, {"failing": failing}, PLAIN).run(Event())
    assert counters.reason == "every sink failed"


def test_a_sink_that_cannot_be_opened_ends_the_program_before_the_first_frame(decoder: Decoder) -> None:
    class Broken(KeepingSink):
        def open(self, description: object) -> None:
            raise OutputError("no room")

    kept = KeepingSink()
    with pytest.raises(OutputError, match="no room"):
        LiveStream(decoder, FakeSource(chunks(0, 50)), {"kept": kept, "broken": Broken()}, PLAIN).run(Event())
    assert kept.closed
    assert not kept.blocks


def test_stop_ends_a_stream_whose_source_is_silent(decoder: Decoder) -> None:
    stop, kept = Event(), KeepingSink()

    def stop_after_the_last_frame() -> None:
        wait_until(lambda: len(kept.bins) == 40)
        stop.set()

    source = FakeSource([*chunks(0, 100), stop_after_the_last_frame, *[0.02] * 1000])
    counters = LiveStream(decoder, source, {"kept": kept}, PLAIN).run(stop)
    assert counters.reason == "stopped"
    assert counters.frames == 100


@pytest.mark.parametrize("how", ["stop", "seconds"])
def test_a_gap_of_a_year_does_not_keep_a_stream_from_ending(decoder: Decoder, how: str) -> None:
    stop, year = Event(), 250 * 86_400 * 365
    settings = replace(PLAIN, seconds=10) if how == "seconds" else PLAIN

    class Stopping(KeepingSink):
        def accept(self, block: StreamBlock) -> None:
            if block.bins and block.bins[-1].index > 500 and how == "stop":
                stop.set()

    source = FakeSource([*chunks(0, 100), (year, year + 5)])
    counters = LiveStream(decoder, source, {"kept": Stopping()}, settings).run(stop)
    assert counters.reason == ("stopped" if how == "stop" else "10 s were decoded")
    assert counters.bins < 100_000


@pytest.mark.parametrize("real_time", [True, False])
def test_a_thread_of_real_time_priority_that_is_always_busy_rests(
    decoder: Decoder, clock: Clock, monkeypatch: pytest.MonkeyPatch, real_time: bool
) -> None:
    """It has a core to itself, on which nothing else could run while it catches up with a gap of 15 s."""
    push, rests = decoder.gap, []

    def slow_gap(frames: int) -> list[Output]:
        clock.now_s += 0.4
        return push(frames)

    @contextmanager
    def no_manners(wanted: bool, core: int | None) -> Iterator[RealTimeManners]:
        yield RealTimeManners(False, "other", None, (0,))

    decoder.gap = slow_gap  # type: ignore[method-assign]
    monkeypatch.setattr(loop, "sleep", rests.append)
    monkeypatch.setattr(loop, "real_time_manners", no_manners)
    monkeypatch.setattr(loop, "stay_before_other_programs", lambda: None)
    source = FakeSource([*chunks(0, 100), (100 + 15 * 250, 105 + 15 * 250)], clock=clock)
    counters, _ = stream(decoder, source, replace(PLAIN, real_time=real_time))
    decoder.gap = push  # type: ignore[method-assign]
    assert counters.lost_frames == 15 * 250
    assert rests == ([loop.REST_S] * 5 if real_time else [])  # 15 pieces, three to a second


def test_a_failure_to_read_is_raised_after_the_sinks_were_closed(decoder: Decoder) -> None:
    class Broken(FakeSource):
        def read(self, timeout_s: float) -> object:  # type: ignore[override]
            raise RecordingError("the amplifier is on fire")

    kept = KeepingSink()
    with pytest.raises(RecordingError, match="on fire"):
        LiveStream(decoder, Broken([]), {"kept": kept}, PLAIN).run(Event())
    assert kept.closed


def test_two_streams_at_once_in_one_program(bundle: Bundle) -> None:
    kept = [KeepingSink(), KeepingSink()]
    with Decoder(bundle, "onnxruntime") as one, Decoder(bundle, "onnxruntime") as other:
        parts = [chunks(0, 2000), chunks(1000, 3000, 3)]
        lives = [
            LiveStream(d, FakeSource(script), {"kept": sink}, PLAIN)
            for d, script, sink in zip((one, other), parts, kept, strict=True)
        ]
        threads = [threading.Thread(target=live.run, args=(Event(),)) for live in lives]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        for decoder, sink, start in ((one, kept[0], 0), (other, kept[1], 1000)):
            decoder.reset()
            require_same(sink, decoder.push(FRAMES[start : start + 2000]))


def test_latencies_count_from_the_arrival_of_the_last_frame(decoder: Decoder) -> None:
    source = FakeSource(chunks(0, 500))
    counters, kept = stream(decoder, source, replace(PLAIN, deadline_s=1e-9))
    arrivals_s = [source.arrivals_s[bin_.end_frame // 5] for bin_ in kept.bins]
    assert [bin_.arrived_s for bin_ in kept.bins] == arrivals_s
    assert all(bin_.latency_s > 0 for bin_ in kept.bins)
    assert counters.late_bins == counters.bins
