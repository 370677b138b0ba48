"""Hands events to browsers without ever waiting for one.

Each viewer has a queue of bytes that is bounded. Where a browser is too slow, the oldest events are dropped and
counted, so that it sees the present with holes and memory does not grow.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import Condition, Lock

MOST_VIEWERS = 32
MOST_WAITING_BYTES = 1 << 20  # for each viewer, about a minute of events


class Viewer:
    """Holds what one browser has not been sent yet."""

    def __init__(self, first_channel: int) -> None:
        self.first_channel = first_channel  # of the channels that this browser shows
        self.dropped = 0  # events
        self._events: deque[bytes] = deque()
        self._waiting = 0  # bytes
        self._closed = False
        self._changed = Condition()

    def put(self, event: bytes) -> None:
        """Adds an event. The oldest ones are dropped where too many wait."""
        with self._changed:
            self._events.append(event)
            self._waiting += len(event)
            while self._waiting > MOST_WAITING_BYTES:
                self._waiting -= len(self._events.popleft())
                self.dropped += 1
            self._changed.notify()

    def take(self, timeout_s: float) -> list[bytes] | None:
        """Returns the waiting events, none of them after the timeout, and None at the end of the stream."""
        with self._changed:
            self._changed.wait_for(lambda: self._events or self._closed, timeout_s)
            events = list(self._events)
            self._events.clear()
            self._waiting = 0
            return events if events or not self._closed else None

    def close(self) -> None:
        """Lets `take` return what waits, and then None."""
        with self._changed:
            self._closed = True
            self._changed.notify()


class Audience:
    """Holds all viewers of one page."""

    def __init__(self) -> None:
        self._viewers: set[Viewer] = set()
        self._lock = Lock()
        self._closed = False

    def __len__(self) -> int:
        return len(self._viewers)

    def join(self, viewer: Viewer) -> bool:
        """Adds a viewer. Returns False where there are too many, or the stream has ended."""
        with self._lock:
            if self._closed or len(self._viewers) >= MOST_VIEWERS:
                return False
            self._viewers.add(viewer)
            return True

    def leave(self, viewer: Viewer) -> None:
        """Removes a viewer."""
        with self._lock:
            self._viewers.discard(viewer)

    def send(self, event_for: Callable[[int], bytes]) -> None:
        """Gives every viewer the event for the channels that it shows. `event_for` is called once for each choice."""
        with self._lock:
            viewers = list(self._viewers)
        made: dict[int, bytes] = {}
        for viewer in viewers:
            if viewer.first_channel not in made:
                made[viewer.first_channel] = event_for(viewer.first_channel)
            viewer.put(made[viewer.first_channel])

    def tell(self, event: bytes) -> None:
        """Gives every viewer the same event."""
        self.send(lambda first_channel: event)

    def close(self) -> None:
        """Ends all viewers once they were sent what waits, and lets nobody join."""
        with self._lock:
            self._closed = True
            viewers = list(self._viewers)
        for viewer in viewers:
            viewer.close()
