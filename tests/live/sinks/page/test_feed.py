"""Tests what the page is told, and that it does not grow with the stream."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgedistill.live.sinks.page.feed import CHANNELS_AT_ONCE, MOST_BINS, Feed
from edgedistill.live.sinks.page.latencies import EDGES_US, Latencies
from edgedistill.runtime import Flag

from .streams import BROKEN, CHANNELS, DEAD, FRAMES, MadeStream, make_description


def read_event(event: bytes) -> tuple[str, dict[str, Any]]:
    """Returns name and content of an event. A value that JSON does not have is an error."""
    name, data, *rest = event.decode().split("\n")
    assert rest == ["", ""]  # an empty line ends it
    refuse: Any = pytest.fail
    return name.removeprefix("event: "), json.loads(data.removeprefix("data: "), parse_constant=refuse)


@pytest.fixture
def feed() -> Feed:
    return Feed(make_description())


def test_outputs_and_envelopes_of_every_bin_are_told_once(feed: Feed) -> None:
    stream = MadeStream()
    blocks = [stream.block(lost=at == 4) for at in range(7)]
    for block in blocks:
        feed.add(block)
    feed.flush()
    new = feed.take()
    assert new is not None
    assert feed.take() is None
    name, found = read_event(new.event(16))
    assert name == "bins"
    assert found["decoded"]["bin"] == found["raw"]["bin"] == list(range(7))
    for i, block in enumerate(blocks):
        (decoded,) = block.bins
        assert found["decoded"]["value"][i] == pytest.approx(decoded.kinematics, rel=1e-3)
        assert found["decoded"]["deviation"][i] == pytest.approx(decoded.deviation, rel=1e-3)
        assert found["decoded"]["flags"][i] == decoded.flags
        if block.frames is None:
            assert found["raw"]["low"][i] == [None] * CHANNELS_AT_ONCE
        else:
            assert found["raw"]["low"][i] == pytest.approx(block.frames[:, 16:32].min(axis=0), rel=1e-3)
            assert found["raw"]["high"][i] == pytest.approx(block.frames[:, 16:32].max(axis=0), rel=1e-3)
    assert len(read_event(new.event(32))[1]["raw"]["low"][0]) == CHANNELS - 32
    assert read_event(new.event(99))[1]["raw"]["low"][0] == []


def test_values_that_are_no_numbers_become_null(feed: Feed) -> None:
    block = MadeStream().block()
    broken = replace(block.bins[0], kinematics=np.array([np.nan, np.inf], np.float32))
    feed.add(replace(block, bins=(broken,)))
    feed.flush()
    new = feed.take()
    assert new is not None
    found = read_event(new.event(0))[1]
    assert found["decoded"]["value"] == [[None, None]]
    assert found["raw"]["high"][0][BROKEN] is None


def test_masked_channels_are_named_and_not_guessed(feed: Feed) -> None:
    stream = MadeStream()
    for _ in range(150):
        feed.add(stream.block())
    assert read_event(feed.status(1))[1]["masked"] == {"count": 2, "channels": [DEAD, BROKEN]}
    odd = stream.block()
    feed.add(replace(odd, bins=(replace(odd.bins[0], bad_channels=7),)))
    feed.flush()
    assert read_event(feed.status(1))[1]["masked"] == {"count": 7, "channels": None}


def test_blocks_that_never_came_are_a_gap_of_the_raw_channels(feed: Feed) -> None:
    stream = MadeStream()
    feed.add(stream.block())
    for _ in range(5):
        stream.block()
    feed.add(stream.block())
    feed.flush()
    new = feed.take()
    assert new is not None
    found = read_event(new.event(0))[1]
    assert found["raw"]["bin"] == list(range(7))
    assert [row[0] is None for row in found["raw"]["low"]] == [False, *[True] * 5, False]
    assert found["decoded"]["bin"] == [0, 6]


def test_a_status_counts_flags_and_tells_the_state(feed: Feed) -> None:
    assert read_event(feed.status(0))[1]["counters"]["state"] == "waiting"
    stream = MadeStream()
    for at in range(310):
        feed.add(stream.block(lost=at == 305))
    name, found = read_event(feed.status(3))
    assert name == "status"
    assert found["flagged"] == {"WARMUP": 300, "MASKED": 310, "GAP": 1, "INVALID": 1, "SHIFTED": 0}
    assert found["flags"] == Flag.MASKED
    assert found["time_s"] == pytest.approx(3.1)
    assert found["latency"]["outputs"] == sum(found["latency"]["counts"]) == 309  # what was lost did not arrive
    assert found["counters"]["lost_frames"] == FRAMES
    assert found["counters"]["sinks"]["nwb:out.nwb"]["dropped_blocks"] == 2
    assert found["viewers"] == 3
    feed.add(stream.end("the recording is over"))
    found = read_event(feed.status(0))[1]
    assert (found["counters"]["state"], found["counters"]["reason"]) == ("ended", "the recording is over")


def test_a_feed_that_is_closed_without_a_last_block_has_ended(feed: Feed) -> None:
    feed.add(MadeStream().block())
    assert feed.state == "streaming"
    feed.end()
    assert feed.state == read_event(feed.status(0))[1]["counters"]["state"] == "ended"


def test_the_header_says_what_the_stream_is(feed: Feed) -> None:
    name, found = read_event(feed.header())
    assert name == "header"
    assert len(found["channel_labels"]) == CHANNELS
    assert found["rate_hz"] == 1000
    assert found["delay_ms"] == 55
    assert found["interval"] == {"level": 0.9, "deviations": pytest.approx(1.645, abs=1e-3)}
    assert found["flags"] == {flag.name: int(flag) for flag in Flag}
    assert [row["in_force"] for row in found["real_time"]] == [False, False, False]


def test_a_feed_keeps_no_more_than_an_event_holds(feed: Feed) -> None:
    stream = MadeStream()
    for _ in range(MOST_BINS + 50):
        feed.add(stream.block())
    feed.flush()
    new = feed.take()
    assert new is not None
    assert [one.index for one in new.decoded] == list(range(50, MOST_BINS + 50))
    assert [one.index for one in new.recorded] == list(range(50, MOST_BINS + 50))


def test_the_memory_of_a_feed_does_not_grow(feed: Feed) -> None:
    stream = MadeStream()

    def decode(bins: int) -> int:
        for at in range(bins):
            feed.add(stream.block())
            if at % 5 == 4 and (new := feed.take()) is not None:
                new.event(0)
                feed.status(1)
        return tracemalloc.get_traced_memory()[0]

    decode(1000)  # all queues are full
    tracemalloc.start()
    try:
        before = decode(MOST_BINS + 50)
        after = decode(600)
    finally:
        tracemalloc.stop()
    assert after - before < 60_000


def test_latencies_are_counted_in_the_right_bins() -> None:
    latencies = Latencies(deadline_us=1000)
    assert latencies.to_json()["recent"] == {"outputs": 0, "p50_us": None, "p99_us": None, "max_us": None}
    for time_us in (0.0, 500.0, 500.0, 1000.0, 1001.0, 5e6):
        latencies.add(time_us)
    found = latencies.to_json()
    counts = found["counts"]
    assert isinstance(counts, list)
    assert len(counts) == len(EDGES_US) - 1
    (at,) = (i for i, edge in enumerate(EDGES_US) if edge <= 500 < EDGES_US[i + 1])
    assert counts[at] == 2
    assert (counts[0], counts[-1]) == (1, 1)  # what lies outside
    assert (found["outputs"], found["late"], found["max_us"]) == (6, 2, 5e6)
    for _ in range(1000):
        latencies.add(100.0)
    assert latencies.to_json()["recent"] == {"outputs": 1000, "p50_us": 100, "p99_us": 100, "max_us": 100}
    assert latencies.to_json()["max_us"] == 5e6
