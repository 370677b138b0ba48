"""Frames are put where they belong; what is missing, late or double is counted and nothing else."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgedistill.live.placing import FramePlacer, Piece

RATE = Fraction(1000)


def frames(start: int, stop: int) -> np.ndarray:
    return np.arange(start, stop, dtype=np.float32)[:, None]


class Feed:
    """Feeds a placer and notes what comes out: the value of each frame, or None for a lost one."""

    def __init__(self, hold_s: float = 0.01, patience_s: float = 0.25) -> None:
        self.placer = FramePlacer(RATE, hold_s, patience_s)
        self.out: list[float | None] = []

    def take(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            self.out += [None] * piece.count if piece.frames is None else piece.frames[:, 0].tolist()

    def chunk(self, start: int, stop: int, at_s: float, number: int | None = None) -> None:
        numbers = np.arange(start, stop) + (0 if number is None else number - start)
        self.take(self.placer.place(numbers, frames(start, stop), at_s))

    def wait(self, until_s: float) -> None:
        self.take(self.placer.find_overdue(until_s))

    def counts(self) -> tuple[int, int, int, int, int]:
        c = self.placer.counts
        return c.lost, c.gaps, c.late, c.duplicated, c.reordered


def expected(stop: int, *lost: tuple[int, int]) -> list[float | None]:
    gone = {i for start, end in lost for i in range(start, end)}
    return [None if i in gone else float(i) for i in range(stop)]


def test_frames_in_order_pass_at_once() -> None:
    feed = Feed()
    for start in range(0, 100, 10):
        feed.chunk(start, start + 10, start / 1000)
        assert len(feed.out) == start + 10
    assert feed.out == expected(100)
    assert feed.counts() == (0, 0, 0, 0, 0)


def test_a_dropped_chunk_is_a_gap_after_it_was_waited_for() -> None:
    feed = Feed()
    feed.chunk(0, 10, 0.010)
    feed.chunk(20, 30, 0.030)
    assert feed.out == expected(10)  # it may still come
    feed.wait(0.041)
    assert feed.out == expected(30, (10, 20))
    assert feed.counts() == (10, 1, 0, 0, 0)


def test_chunks_that_overtake_each_other_are_put_in_order_once() -> None:
    feed = Feed()
    feed.chunk(0, 10, 0.010)
    feed.chunk(20, 30, 0.020)
    feed.chunk(20, 30, 0.021)
    feed.chunk(10, 20, 0.022)
    assert feed.out == expected(30)
    assert feed.counts() == (0, 0, 0, 10, 10)


def test_a_chunk_that_comes_twice_is_left_out_once() -> None:
    feed = Feed()
    feed.chunk(0, 10, 0.010)
    feed.chunk(0, 10, 0.011)
    feed.chunk(5, 20, 0.020)
    assert feed.out == expected(20)
    assert feed.counts() == (0, 0, 0, 15, 0)


def test_a_chunk_that_comes_50_ms_late_is_a_gap_and_is_left_out() -> None:
    feed = Feed()
    feed.chunk(0, 10, 0.010)
    for start in range(20, 70, 10):
        feed.chunk(start, start + 10, (start + 10) / 1000)
    feed.chunk(10, 20, 0.071)
    assert feed.out == expected(70, (10, 20))
    assert feed.counts() == (10, 1, 10, 0, 0)


def test_without_a_hold_a_missing_frame_is_lost_at_once() -> None:
    feed = Feed(hold_s=0.0)
    feed.chunk(0, 10, 0.010)
    feed.chunk(11, 20, 0.020)
    assert feed.out == expected(20, (10, 11))


def test_silence_is_a_gap_that_goes_on_and_is_one_gap() -> None:
    feed = Feed(patience_s=0.1)
    feed.chunk(0, 10, 0.010)
    feed.wait(0.1095)
    assert len(feed.out) == 10
    feed.wait(0.1605)
    feed.wait(0.2105)
    assert feed.out == expected(110, (10, 110))
    assert feed.placer.silent
    feed.chunk(105, 120, 0.3)
    assert feed.out == expected(120, (10, 110))
    assert feed.counts() == (100, 1, 5, 0, 0)
    assert not feed.placer.silent


def test_numbers_that_begin_anew_go_on_where_time_says() -> None:
    feed = Feed()
    feed.chunk(0, 10, 0.010)
    feed.placer.begin_anew()
    feed.chunk(100, 110, 0.110, number=0)
    assert feed.out == expected(110, (10, 100))
    feed.placer.begin_anew()
    feed.chunk(150, 160, 0.160, number=50)  # and these go on by themselves
    feed.wait(0.171)
    assert feed.out == expected(160, (10, 100), (110, 150))


def test_nothing_is_missing_before_the_first_frame() -> None:
    feed = Feed()
    feed.placer.begin_anew(trusted=False)
    feed.wait(1000.0)
    feed.chunk(0, 10, 1000.0)
    assert feed.out == expected(10)
    assert feed.counts() == (0, 0, 0, 0, 0)


def test_a_source_that_does_not_count_has_a_gap_as_long_as_its_pause() -> None:
    feed = Feed(patience_s=0.1)
    feed.chunk(0, 10, 0.010)
    feed.placer.begin_anew(trusted=False)
    feed.chunk(300, 310, 0.310, number=10)
    assert feed.out == expected(310, (10, 300))


@given(st.lists(st.integers(1, 7), min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_whatever_arrives_no_frame_is_moved_and_all_are_accounted_for(sizes: list[int], random: object) -> None:
    edges = np.concatenate([[0], np.cumsum(sizes)]).tolist()
    chunks = list(pairwise(edges))
    sent = []
    for i, chunk in enumerate(chunks):
        kind = random.random() if i else 1.0  # type: ignore[attr-defined]
        if kind < 0.1:
            continue
        place = max(1, len(sent) - 2) if kind < 0.2 and sent else len(sent)
        sent.insert(place, chunk)
        if kind > 0.9:
            sent.append(chunk)
    feed, now = Feed(), 0.0
    for start, stop in sent:
        now += 0.004
        feed.chunk(start, stop, now)
        feed.wait(now)
    feed.take(feed.placer.finish(now))
    lost, _, late, doubled, _ = feed.counts()
    assert all(value is None or value == i for i, value in enumerate(feed.out))
    assert len(feed.out) == feed.placer.next
    assert lost == feed.out.count(None)
    assert sum(stop - start for start, stop in sent) == len(feed.out) - lost + late + doubled
