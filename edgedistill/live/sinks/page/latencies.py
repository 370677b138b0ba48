"""Counts the times from the last sample of a bin to its output, in memory that does not grow.

Microseconds come in. A histogram since the start and the percentiles of the last outputs go out.
"""

from __future__ import annotations

import bisect
from collections import deque

import numpy as np

PER_DECADE = 8
LOWEST_US, DECADES = 10.0, 5  # from 10 µs to 1 s
RECENT = 1000  # outputs: the last 10 s
EDGES_US = tuple(LOWEST_US * 10 ** (i / PER_DECADE) for i in range(DECADES * PER_DECADE + 1))


class Latencies:
    """Counts times. The first and the last bin of the histogram also count what lies outside."""

    def __init__(self, deadline_us: float) -> None:
        self._deadline_us = deadline_us
        self._counts = [0] * (len(EDGES_US) - 1)
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._total = self._late = 0
        self._longest_us = 0.0

    def add(self, time_us: float) -> None:
        """Counts one output."""
        at = bisect.bisect_right(EDGES_US, time_us) - 1
        self._counts[min(max(at, 0), len(self._counts) - 1)] += 1
        self._recent.append(time_us)
        self._total += 1
        self._late += time_us > self._deadline_us
        self._longest_us = max(self._longest_us, time_us)

    def to_json(self) -> dict[str, object]:
        """Returns counts since the start, and p50, p99 and the maximum of the last outputs. No output gives None."""
        recent = np.array(self._recent)
        p50, p99 = np.percentile(recent, [50, 99]) if recent.size else (None, None)
        return {
            "counts": list(self._counts),
            "outputs": self._total,
            "late": self._late,
            "max_us": self._longest_us if self._total else None,
            "recent": {
                "outputs": len(recent),
                "p50_us": None if p50 is None else float(p50),
                "p99_us": None if p99 is None else float(p99),
                "max_us": float(recent.max()) if recent.size else None,
            },
        }
