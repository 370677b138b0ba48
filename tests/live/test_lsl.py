"""A stream goes over Lab Streaming Layer and back without losing a sample, and decodes to the bits of `run`."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from time import sleep
from typing import Any

import numpy as np
import pytest

from edgedistill.errors import EngineError, RecordingError
from edgedistill.live.loop import LiveStream
from edgedistill.live.lsl import import_lsl
from edgedistill.live.sinks.lsl import LslSink
from edgedistill.live.sources.lsl import LslSource
from edgedistill.runtime import Decoder

from ..bundles import CHANNELS
from ..waiting import LONGEST_S, wait_until
from .fakes import FRAMES, FakeSource, KeepingSink, Step
from .test_loop import PLAIN, chunks

try:
    import_lsl()
    MISSING = None
except EngineError as error:
    MISSING = f"Lab Streaming Layer: {error.got}"

needs_lsl = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


@pytest.fixture(scope="module")
def lsl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Keeps the search for streams on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        settings = tmp_path_factory.mktemp("lsl") / "lsl_api.cfg"
        settings.write_text("[multicast]\nResolveScope = machine\n")
        patch.setenv("LSLAPICFG", str(settings))
        yield import_lsl()


def amplifier(lsl: Any, name: str, **changes: Any) -> Any:
    facts = {"channels": CHANNELS, "rate": 250.0, "kind": lsl.cf_float32, "units": ["microvolts"] * CHANNELS} | changes
    info = lsl.StreamInfo(name, "LFP", facts["channels"], facts["rate"], facts["kind"], f"test {name}")
    if facts["units"]:
        info.set_channel_units(facts["units"])
        info.set_channel_labels([f"e{i}" for i in range(facts["channels"])])
    return lsl.StreamOutlet(info)


class Running:
    """Runs a stream in a thread of its own, and raises in the test what it raises."""

    def __init__(self, live: LiveStream) -> None:
        self._live, self._stop, self._failure = live, Event(), None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Running:
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def wait_for(self, condition: Any) -> None:
        wait_until(lambda: condition() or not self._thread.is_alive())
        assert self._thread.is_alive(), f"the stream ended: {self._failure!r}"

    def _run(self) -> None:
        try:
            self._live.run(self._stop)
        except BaseException as error:
            self._failure = error


@needs_lsl
def test_a_loopback_loses_nothing_and_outputs_come_back(
    lsl: Any, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clocks are said to be half a second apart. What LSL finds out about them depends on what else runs."""
    monkeypatch.setattr(LslSource, "_read_offset", lambda source, timeout_s: setattr(source, "_offset_s", 0.5))
    outlet, kept = amplifier(lsl, "loop-in"), KeepingSink()
    live = LiveStream(decoder, LslSource("loop-in"), {"kept": kept, "out": LslSink("loop-out")}, PLAIN)
    with Running(live) as running:
        running.wait_for(lambda: live.description is not None and outlet.have_consumers())
        found = lsl.resolve_byprop("name", "loop-out", timeout=LONGEST_S)
        inlet = lsl.StreamInlet(found[0], as_numpy=True)
        inlet.open_stream(timeout=LONGEST_S)
        assert inlet.info().get_channel_labels() == [
            *("cursor_vel_x", "cursor_vel_y", "cursor_vel_x sd", "cursor_vel_y sd", "flags", "bad_channels")
        ]
        assert inlet.info().get_channel_units() == [*["cm/s"] * 4, "bits", "channels"]
        began = lsl.local_clock()
        for start in range(0, 500, 5):  # chunks are stamped as if sampled at their true pace
            outlet.push_chunk(FRAMES[start : start + 5], began + (start + 4) / 250)
            sleep(0.002)
        got: list[Any] = []
        stamps: list[float] = []
        while len(got) < 200:
            values, times = inlet.pull_chunk(timeout=LONGEST_S, max_samples=1024, min_samples=1)
            assert len(times), "outputs are missing"
            got += list(values)
            stamps += list(times)
    decoder.reset()
    outputs = decoder.push(FRAMES[:500])
    assert (live.counters.frames, live.counters.lost_frames) == (500, 0)
    for values, stamp, output in zip(got, stamps, outputs, strict=True):
        assert values[:2].tobytes() == output.kinematics.tobytes()
        assert values[2:4].tobytes() == output.deviation.tobytes()
        assert (values[4], values[5]) == (int(output.flags), output.bad_channels)
        assert stamp == pytest.approx(began + output.end_frame / 250 + 0.5, abs=1e-6)
    assert np.concatenate([b.frames for b in kept.blocks if b.frames is not None]).tobytes() == FRAMES[:500].tobytes()


@needs_lsl
def test_a_receiver_that_never_reads_stops_nothing(lsl: Any, decoder: Decoder) -> None:
    script: list[Step] = [*chunks(0, 100), lambda: wait_until(subscribe), *chunks(100, 4000)]
    inlets: list[Any] = []

    def subscribe() -> bool:
        inlets[:] = [lsl.StreamInlet(lsl.resolve_byprop("name", "unread", timeout=30)[0], max_buflen=1)]
        inlets[0].open_stream(timeout=30)
        return True

    counters = LiveStream(decoder, FakeSource(script), {"lsl": LslSink("unread")}, PLAIN).run(Event())
    assert inlets
    assert (counters.frames, counters.bins, counters.lost_frames) == (4000, 1600, 0)
    assert counters.sinks["lsl"].blocks > 1600
    assert counters.sinks["lsl"].failure is None


@needs_lsl
def test_an_outlet_that_is_closed_is_waited_for(lsl: Any, decoder: Decoder) -> None:
    outlet = amplifier(lsl, "comes-back")
    live = LiveStream(decoder, LslSource("comes-back"), {"kept": KeepingSink()}, PLAIN)
    with Running(live) as running:
        running.wait_for(lambda: live.description is not None and outlet.have_consumers())
        outlet.push_chunk(FRAMES[:50])
        running.wait_for(lambda: live.counters.frames == 50)
        del outlet
        running.wait_for(lambda: live.counters.state == "waiting")
        outlet = amplifier(lsl, "comes-back")
        running.wait_for(lambda: live.counters.reconnects == 1 and outlet.have_consumers())
        outlet.push_chunk(FRAMES[50:100])
        running.wait_for(lambda: live.counters.frames == 100)
    assert live.counters.lost_frames > 0
    assert live.counters.clock_jumps == 0


@needs_lsl
def test_a_stream_of_markers_is_refused(lsl: Any) -> None:
    markers = amplifier(lsl, "markers", channels=1, rate=0.0, kind=lsl.cf_string, units=None)
    source = LslSource("markers")
    with pytest.raises(RecordingError, match="no frames at a regular rate"):
        source.open(Event())
    source.close()
    assert markers is not None


@needs_lsl
def test_units_and_labels_are_read(lsl: Any) -> None:
    outlet = amplifier(lsl, "units", channels=2, units=["millivolts", "apples"])
    source = LslSource("units")
    header = source.open(Event())
    source.close()
    assert outlet is not None
    assert header is not None
    assert header.gain_uv == (1000.0, 1.0)
    assert header.channel_names == ("e0", "e1")
    assert (header.rate, header.clock, header.ordered) == (250, "lsl", True)
    assert any("'apples'" in warning for warning in header.warnings)


def test_without_its_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pylsl", None)
    with pytest.raises(EngineError, match=r"edgedistill\[stream\]"):
        LslSource("x")
