"""Accounts for every second of a session: what is kept, and what is left out for which reason.

The inputs are the span of the session, the edges of its bins, and a mask for each reason. The output is a `Coverage`.
Kept and left-out seconds add up to the length of the session, because each bin is counted under one reason at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Reasons = list[tuple[str, Mask]]  # why bins (T,) are left out; the first that applies to a bin counts

BEFORE = "before the first bin"
GAP = "gap in the LFP"
INVALID = "invalid times"
UNOBSERVED = "no unit was observed"
ALL_BAD = "all channels bad"
SETTLING = "filters settle after a disturbance"
NO_BEHAVIOR = "no behavior"


def after_end(part: str) -> str:
    """Returns the reason for the seconds after the first part has ended, e.g. `after the end of the LFP`."""
    return f"after the end of the {part}"


@dataclass(frozen=True)
class Coverage:
    """Holds the seconds of one session. `left_out_s` names a reason only where it cost something."""

    session_s: float
    kept_s: float
    left_out_s: Mapping[str, float]

    def to_text(self) -> str:
        """Returns one line: `312.0 of 372.0 s kept; invalid times 60.0 s`."""
        reasons = ", ".join(
            f"{reason} {seconds:.7g} s" for reason, seconds in self.left_out_s.items() if seconds > 1e-3
        )
        kept = f"{self.kept_s:.7g} of {self.session_s:.7g} s kept"
        return f"{kept}; left out: {reasons}" if reasons else kept


def cover(
    span_s: tuple[float, float], edges_s: npt.NDArray[np.float64], end: str, reasons: Sequence[tuple[str, Mask]]
) -> Coverage:
    """Accounts for a session that lasts over `span_s`, whose bins have the edges (T + 1,) in s.

    `end` is the reason for the time after the last bin. `reasons` are masks (T,); a bin to which several apply counts
    under the first.
    """
    lengths = np.diff(edges_s)
    first, last = min(span_s[0], edges_s[0]), max(span_s[1], edges_s[-1])
    seconds = {BEFORE: float(edges_s[0] - first)}
    left: Mask = np.zeros(len(lengths), np.bool_)
    for reason, mask in reasons:
        seconds[reason] = seconds.get(reason, 0.0) + float(lengths[mask & ~left].sum())
        left |= mask
    seconds[end] = seconds.get(end, 0.0) + float(last - edges_s[-1])
    lost = {reason: amount for reason, amount in seconds.items() if amount > 1e-10}
    return Coverage(float(last - first), float(lengths[~left].sum()), lost)


def mask_intervals(edges_s: npt.NDArray[np.float64], intervals_s: npt.NDArray[np.float64]) -> Mask:
    """Returns which bins (T,) touch one of the intervals (n, 2) in s. A bin that only meets an end does not."""
    touched: Mask = np.zeros(len(edges_s) - 1, np.bool_)
    for start, stop in intervals_s.reshape(-1, 2):
        first = int(np.searchsorted(edges_s, start + 1e-9, side="right")) - 1
        last = int(np.searchsorted(edges_s, stop - 1e-9, side="left"))
        touched[max(first, 0) : max(last, 0)] = True
    return touched


def mask_covered(edges_s: npt.NDArray[np.float64], intervals_s: npt.NDArray[np.float64]) -> Mask:
    """Returns which bins (T,) lie wholly inside one of the sorted, disjoint intervals (n, 2) in s."""
    if not len(intervals_s):
        return np.zeros(len(edges_s) - 1, np.bool_)
    at = np.searchsorted(intervals_s[:, 0], edges_s[:-1] + 1e-9, side="right") - 1
    inside = edges_s[1:] <= intervals_s[np.maximum(at, 0), 1] + 1e-9
    return np.asarray((at >= 0) & inside)
