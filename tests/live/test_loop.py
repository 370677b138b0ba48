"""A live stream decodes what `run` decodes, and every planted fault is flagged, counted and stops nothing else."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from dataclasses import replace
from threading import Event
from time import monotonic, sleep

import numpy as np
import pytest

from edgedistill.bundle import Bundle
from edgedistill.errors import OutputError, RecordingError
from edgedistill.live.loop import LiveSettings, LiveStream
from edgedistill.live.records import StreamCounters
from edgedistill.live.sink import Sink
from edgedistill.runtime import Decoder, Flag, Output

from ..bundles import CHANNELS
from .fakes import FRAMES, BlockedSink, FailingSink, FakeSource, KeepingSink

FREELY = LiveSettings(real_time=False, backlog_s=60, sink_backlog_s=600)  # a busy machine drops nothing
PLAIN = replace(FREELY, patience_s=60)


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


def test_planted_faults_are_flagged_and_counted(decoder: Decoder) -> None:
    """Chunk 40 is dropped, 80 comes twice, 120 and 121 are swapped, 160 comes after the ten behind it."""
    parts: list[tuple[int, int] | float] = list(chunks(0, 1000))
    late = parts.pop(160)
    parts[161:161] = [0.05]
    parts[172:172] = [late]
    parts[120], parts[121] = parts[121], parts[120]
    parts.insert(81, parts[80])
    del parts[40]
    counters, kept = stream(decoder, FakeSource(parts, ordered=False))
    lost = {*range(200, 205), *range(800, 805)}
    assert lost_frames_of(kept) == lost
    require_same(kept, decode_placed(decoder, kept))
    assert (counters.lost_frames, counters.gaps) == (10, 2)
    assert (counters.duplicated_frames, counters.reordered_frames, counters.late_frames) == (5, 5, 5)
    config = decoder.frontend_config
    touched = {config.bin_of(frame) for frame in lost}
    assert {bin_.index for bin_ in kept.bins if bin_.flags & Flag.GAP} == touched


def test_stamps_show_the_same_faults(decoder: Decoder) -> None:
    parts = [*chunks(0, 2000), *chunks(2040, 3000), (2990, 3000), *chunks(3000, 3500)]
    counters, kept = stream(decoder, FakeSource(parts, stamped=True))
    assert lost_frames_of(kept) == set(range(2000, 2040))
    assert (counters.lost_frames, counters.gaps, counters.duplicated_frames) == (40, 1, 10)
    assert counters.jitter_ms == pytest.approx(0, abs=0.01)
    assert kept.bins[-1].stamp_s == pytest.approx(3499 / 250)
    require_same(kept, decode_placed(decoder, kept))


def test_a_source_that_vanishes_is_waited_for_and_outputs_say_so(decoder: Decoder) -> None:
    script = [*chunks(0, 500), "lost", *chunks(0, 500)]
    source = FakeSource(script)
    source_open, seen = source.open, []

    def slow_open(stop: Event) -> object:
        if source.opened:
            sleep(0.3)
        return source_open(stop)

    source.open = slow_open  # type: ignore[method-assign, assignment]
    kept = KeepingSink()
    live = LiveStream(decoder, source, {"kept": kept}, replace(FREELY, patience_s=0.05))
    counters = live.run(Event())
    seen = [block.counters for block in kept.blocks]
    assert any(c.state == "waiting" and "cable" in (c.reason or "") for c in seen)
    assert counters.reconnects == 1
    assert counters.gaps == 1
    assert 40 <= counters.lost_frames <= 250 * 5
    gone = [bin_ for bin_ in kept.bins if bin_.flags & Flag.GAP]
    assert len(gone) >= 10
    assert all(bin_.flags & Flag.INVALID for bin_ in gone[1:-1])
    require_same(kept, decode_placed(decoder, kept))


def test_outputs_go_on_while_a_source_is_silent(decoder: Decoder) -> None:
    script = [*chunks(0, 100), *[0.02] * 20, *chunks(200, 300)]
    counters, kept = stream(decoder, FakeSource(script), replace(FREELY, patience_s=0.1))
    waiting = [block for block in kept.blocks if block.counters.state == "waiting"]
    assert sum(len(block.bins) for block in waiting) >= 10  # before the source came back
    assert counters.gaps == 1
    require_same(kept, decode_placed(decoder, kept))


def test_a_source_that_comes_back_as_another_one_is_refused(decoder: Decoder) -> None:
    class Changing(FakeSource):
        def open(self, stop: Event) -> object:  # type: ignore[override]
            self._changes = {"gain_uv": (2.0,) * CHANNELS} if self.opened else {}
            return super().open(stop)

    with pytest.raises(RecordingError, match="came back as another source"):
        stream(decoder, Changing([*chunks(0, 100), "lost", *chunks(100, 200)]))


def test_decoding_that_falls_behind_drops_the_oldest_frames_and_declares_them(decoder: Decoder) -> None:
    slow, push = threading.Event(), decoder.push

    def give_all_during_the_first_push() -> Iterator[tuple[int, int]]:
        yield 0, 5
        slow.wait(30)
        yield from chunks(5, 2000)

    def slow_push(frames: np.ndarray) -> list[Output]:
        if not slow.is_set():
            slow.set()
            sleep(0.3)
        return push(frames)

    decoder.push = slow_push  # type: ignore[method-assign]
    settings = replace(PLAIN, backlog_s=1.0)
    counters, kept = stream(decoder, FakeSource(give_all_during_the_first_push()), settings)
    decoder.push = push  # type: ignore[method-assign]
    assert counters.dropped_frames == counters.lost_frames > 1000
    assert counters.gaps == 1
    assert min(lost_frames_of(kept)) == 5
    assert counters.frames + counters.lost_frames == 2000  # the newest are decoded
    require_same(kept, decode_placed(decoder, kept))


def test_a_sink_that_blocks_loses_blocks_and_nothing_waits_for_it(decoder: Decoder) -> None:
    blocked = BlockedSink()
    settings = replace(PLAIN, sink_backlog_s=1.0, sink_closing_s=0.2)
    began = monotonic()
    counters, kept = stream(decoder, FakeSource([*chunks(0, 1500)]), settings, blocked=blocked)
    assert monotonic() - began < 60  # and not the two minutes that the sink would take
    sink = counters.sinks["blocked"]
    assert sink.failure is not None
    assert sink.dropped_blocks > 0
    assert sink.dropped_bins > 450
    assert counters.bins == 600
    blocked.release.set()
    assert kept.bins[-1].index == 599


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
    source = FakeSource([*chunks(0, 100), *[0.02] * 1000])
    threading.Timer(0.3, stop.set).start()
    counters = LiveStream(decoder, source, {"kept": kept}, PLAIN).run(stop)
    assert counters.reason == "stopped"
    assert counters.frames == 100


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
    counters, kept = stream(decoder, FakeSource([*chunks(0, 500)]), replace(FREELY, deadline_s=1e-9))
    assert all(0 < bin_.latency_s < 5 for bin_ in kept.bins)
    assert counters.late_bins == counters.bins
