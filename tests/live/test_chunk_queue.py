"""The queue between reading and decoding keeps the newest frames, and all news."""

from __future__ import annotations

import numpy as np

from edgedistill.live.chunk_queue import ChunkQueue, SourceNews
from edgedistill.live.source import Chunk


def chunk(first: int, count: int) -> Chunk:
    return Chunk(np.zeros((count, 2)), 0.0, numbers=np.arange(first, first + count))


def first_of(item: object) -> int:
    assert isinstance(item, Chunk)
    assert item.numbers is not None
    return int(item.numbers[0])


def test_the_oldest_frames_are_dropped_and_counted() -> None:
    queue = ChunkQueue(20)
    for first in range(0, 100, 5):
        queue.put(chunk(first, 5))
    assert queue.dropped_frames == 80
    assert [first_of(queue.get(0)) for _ in range(4)] == [80, 85, 90, 95]
    assert queue.get(0.001) is None


def test_news_are_never_dropped_and_stay_in_their_place() -> None:
    queue = ChunkQueue(10)
    queue.put(chunk(0, 5))
    queue.put(SourceNews("lost"))
    queue.put(chunk(5, 5))
    queue.put(chunk(10, 5))
    assert isinstance(queue.get(0), SourceNews)
    assert first_of(queue.get(0)) == 5


def test_a_chunk_longer_than_the_queue_is_kept() -> None:
    queue = ChunkQueue(10)
    queue.put(chunk(0, 5))
    queue.put(chunk(5, 50))
    assert first_of(queue.get(0)) == 5
    assert queue.dropped_frames == 5
