"""Defines what every source of a live stream offers: a header, and then chunks of frames as they arrive."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from threading import Event
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

Clock = Literal["lsl", "file", "none"]


@dataclass(frozen=True)
class SourceHeader:
    """Holds what a source says of itself before its first frame."""

    where: str  # names the source in messages
    rate: Fraction  # frames a second
    channel_count: int  # columns of a frame, C'
    channel_names: tuple[str, ...] | None  # (C',) labels of the columns, where it names them
    gain_uv: tuple[float, ...]  # (C',) microvolts of one stored number
    clock: Clock = "none"  # what the time stamps of its chunks count on
    matched: bool = False  # the channels are those of the bundle, in its order
    ordered: bool = True  # frames never overtake each other, so a missing one never comes
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Chunk:
    """Holds frames that arrived together. Numbers, or without them stamps, tell which ones they are."""

    frames: npt.NDArray[Any]  # (n, C') as the source counts
    arrived_s: float  # when they arrived, as time.perf_counter() counts
    numbers: npt.NDArray[np.int64] | None = None  # (n,) running numbers of the frames, lost ones counted
    stamps_s: npt.NDArray[np.float64] | None = None  # (n,) times on the clock of the source
    offset_s: float = 0.0  # what turns stamps into the clock that the header names
    jumps: int = 0  # times that the source's counter was set anew within the chunk or before it
    counted_here: bool = False  # the source does not number its frames, so the numbers only say what arrived


class SourceEnded(Exception):
    """Says that a source is over, as at the end of a file."""


class SourceLost(Exception):
    """Says that a source vanished, and why. It may come back."""


class Source(Protocol):
    """Gives frames. All methods but `close` are called by one thread at a time."""

    def open(self, stop: Event) -> SourceHeader | None:
        """Waits until the source is there, and connects to it. Returns None if `stop` was set before.

        It is called again after SourceLost. Raises EdgeDistillError for a source that cannot be used.
        """

    def read(self, timeout_s: float) -> Chunk | None:
        """Returns what has arrived, as soon as there is something, or None after `timeout_s` without.

        Raises SourceLost or SourceEnded.
        """

    def close(self) -> None:
        """Gives back what the source holds. A second call does nothing."""
