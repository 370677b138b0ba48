"""Puts frames where they belong in the stream: numbered chunks come in, frames and gaps in order go out.

A frame that is missing is waited for as long as the source may still bring it, then it is lost. A frame that comes
after that, or twice, is left out. While nothing comes at all, frames that are overdue are lost one after the other, so
that outputs go on and carry their flags.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
REMEMBERED = 1000  # stretches of lost frames that are told from frames that came twice


@dataclass(frozen=True, eq=False)
class Piece:
    """Holds frames of the stream that follow the last ones, or says that they are lost."""

    frames: Floats | None  # (n, C) uV; None where they are lost
    count: int  # n
    arrived_s: float  # when they arrived, or were found to be lost
    stamps_s: npt.NDArray[np.float64] | None = None  # (n,)


@dataclass
class PlacingCounts:
    """Counts what was put right and what was left out, in frames."""

    lost: int = 0
    gaps: int = 0
    late: int = 0
    duplicated: int = 0
    reordered: int = 0


@dataclass(frozen=True, eq=False)
class _Held:
    first: int
    frames: Floats
    stamps_s: npt.NDArray[np.float64] | None
    arrived_s: float

    @property
    def stop(self) -> int:
        return self.first + len(self.frames)

    def after(self, first: int) -> _Held:
        """Returns the frames from `first` on."""
        cut = first - self.first
        return _Held(first, self.frames[cut:], None if self.stamps_s is None else self.stamps_s[cut:], self.arrived_s)


class FramePlacer:
    """Places the frames of one stream. It holds back at most `hold_s` of frames."""

    def __init__(self, rate: Fraction, hold_s: float, patience_s: float) -> None:
        """`hold_s` is how long a missing frame is waited for, and `patience_s` how long nothing may come."""
        self.counts = PlacingCounts()
        self.next = 0  # frame of the stream
        self._rate, self._hold_s, self._patience_s = float(rate), hold_s, patience_s
        self._origin: int | None = None  # number of the source at frame 0
        self._held: list[_Held] = []  # by first frame
        self._held_since_s = 0.0
        self._lost: deque[tuple[int, int]] = deque(maxlen=REMEMBERED)
        self._reached, self._reached_s = 0, 0.0  # the frame after the last that came, and when that was
        self._anew: Literal["no", "unless they go on", "yes"] = "no"

    @property
    def silent(self) -> bool:
        """Returns whether the last frames of the stream were lost."""
        return self.next > self._reached

    def begin_anew(self, trusted: bool = True) -> None:
        """Says that the numbers of the source may begin anew with the next frame, as after it came back.

        If they are `trusted` and go on as they must, they say what is missing. Otherwise the time that passed does.
        """
        self._anew = "unless they go on" if trusted else "yes"

    def place(
        self,
        numbers: npt.NDArray[np.int64],
        frames: Floats,
        arrived_s: float,
        stamps_s: npt.NDArray[np.float64] | None = None,
    ) -> list[Piece]:
        """Returns what may now be decoded, in order."""
        if not len(numbers):
            return []
        if self._origin is None:
            self._origin, self._anew = int(numbers[0]), "no"  # nothing came before that could be missing
        made: list[Piece] = []
        if self._anew != "no":
            due = self._reached + round((arrived_s - self._reached_s) * self._rate)
            goes_on = self.next <= int(numbers[-1]) - self._origin < due + self._rate
            if self._anew == "yes" or not goes_on:
                first = max(self.next, due - len(numbers))
                self._origin = int(numbers[0]) - first
                made += [*self._release(arrived_s, wait_s=-np.inf), *self._lose_until(first, arrived_s)]
            self._anew = "no"
        breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
        for start, stop in zip([0, *breaks.tolist()], [*breaks.tolist(), len(numbers)], strict=True):
            first = int(numbers[start]) - self._origin
            part = None if stamps_s is None else stamps_s[start:stop]
            made += self._take(_Held(first, frames[start:stop], part, arrived_s))
        reached = int(numbers[-1]) - self._origin + 1
        if reached >= self._reached:
            self._reached, self._reached_s = reached, arrived_s
        return made + self._release(arrived_s)

    def find_overdue(self, now_s: float) -> list[Piece]:
        """Returns what may be decoded because time has passed: frames that were held back, and lost ones."""
        made = self._release(now_s)
        if self._origin is not None and not self._held:
            due = self._reached + int((now_s - self._reached_s - self._patience_s) * self._rate)
            made += self._lose_until(due, now_s)
        return made

    def finish(self, now_s: float) -> list[Piece]:
        """Returns what is still held back at the end of the stream."""
        return self._release(now_s, wait_s=-np.inf)

    def _take(self, held: _Held) -> list[Piece]:
        if held.first < self.next:
            self._leave_out(held.first, min(held.stop, self.next))
            if held.stop <= self.next:
                return []
            held = held.after(self.next)
        if any(one.first <= held.first and held.stop <= one.stop for one in self._held):
            self._leave_out(held.first, held.stop)
            return []
        self.counts.reordered += len(held.frames) if held.first < self._reached else 0
        if held.first > self.next:
            self._hold(held)
            return []
        return [self._pass_on(held), *self._drain()]

    def _hold(self, held: _Held) -> None:
        if not self._held:
            self._held_since_s = held.arrived_s
        self._held.append(held)
        self._held.sort(key=lambda one: one.first)

    def _drain(self) -> list[Piece]:
        """Returns what was held back and now follows."""
        made = []
        while self._held and self._held[0].first <= self.next:
            held = self._held.pop(0)
            if held.first < self.next:
                self._leave_out(held.first, min(held.stop, self.next))
                if held.stop <= self.next:
                    continue
                held = held.after(self.next)
            made.append(self._pass_on(held))
        return made

    def _release(self, now_s: float, wait_s: float | None = None) -> list[Piece]:
        """Gives up frames that were waited for long enough."""
        wait_s = self._hold_s if wait_s is None else wait_s
        made: list[Piece] = []
        while self._held and now_s - self._held_since_s >= wait_s:
            made += self._lose_until(self._held[0].first, now_s)
            made += self._drain()
            if self._held:
                self._held_since_s = self._held[0].arrived_s
        return made

    def _pass_on(self, held: _Held) -> Piece:
        self.next = held.stop
        return Piece(held.frames, len(held.frames), held.arrived_s, held.stamps_s)

    def _lose_until(self, stop: int, now_s: float) -> list[Piece]:
        """Counts the frames before `stop` as lost."""
        count = stop - self.next
        if count <= 0:
            return []
        if self._lost and self._lost[-1][1] == self.next:  # the same gap goes on
            self._lost[-1] = (self._lost[-1][0], stop)
        else:
            self._lost.append((self.next, stop))
            self.counts.gaps += 1
        self.counts.lost += count
        self.next = stop
        return [Piece(None, count, now_s)]

    def _leave_out(self, first: int, stop: int) -> None:
        late = sum(max(0, min(stop, end) - max(first, start)) for start, end in self._lost)
        self.counts.late += late
        self.counts.duplicated += stop - first - late
