"""Finds the columns of a behavior series that are no behavior: frame counters, clocks, and columns that never move.

Some trackers store a frame number, a hardware time stamp and a label in front of the position. A decoder would learn
such a column well, and say nothing of the hand. Columns with known names are chosen by name. The values of every column
are looked at when they are read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.data.behavior.candidates import BehaviorSeries
from edgedistill.data.behavior.meaning import to_snake_case

CLOCK_NAME = re.compile(
    r"time|stamp|clock|frame|count|likelihood|confidence|probability|"
    r"(?:^|_)(?:ind|idx|label|labels|id|sync|ts|prob|score|valid|quality)(?:_|$)"
)
PLACE_NAME = re.compile(r"(?:pos_?|loc_?|vel_?|v)?([xyz])(?:_?(?:pos|position|loc|location|vel|velocity))?_?(\d*)")
UNIX_S = 1e9  # larger values that only rise are seconds, milliseconds or nanoseconds since 1970
NEARLY_ALL = 0.95
STILL = "never moves"  # how the description of a column without movement begins
FEWEST = 100  # samples from which a column is called a counter or a clock


def read_column_names(series: BehaviorSeries) -> list[str] | None:
    """Returns the names of all columns from the control or the description, or None.

    A description names columns in parentheses, "cursor velocity (x, y)", or is nothing but a list of names of axes,
    clocks and counters, "HWframeCount, xloc, yloc".
    """
    count = series.columns
    control = getattr(series.node, "control_description", None)
    if control is not None and len(control) == count and series.node.control is None:  # else it names states in time
        return [to_snake_case(str(name)) for name in control]
    description = str(series.node.description or "")
    text = description + " " + str(getattr(series.node, "reference_frame", None) or "")
    for inside in re.findall(r"[(\[]([^()\[\]]+)[)\]]", text):
        names = _split_names(inside)
        if len(names) == count and len(set(names)) == count and all(re.fullmatch(r"[a-z]\w{0,11}", n) for n in names):
            return names
    if count == 1 or not re.fullmatch(r"\s*[A-Za-z]\w*(?:\s*[,;]\s*[A-Za-z]\w*)+\s*", description):
        return None  # a sentence
    names = _split_names(description)
    known = [bool(PLACE_NAME.fullmatch(name) or CLOCK_NAME.search(name)) for name in names]
    if len(names) == count and len(set(names)) == count and sum(known) >= count / 2:
        return [_shorten_place(name) for name in names]
    return None


def _shorten_place(name: str) -> str:
    """Returns x for `xloc` and `x_pos`, and any other name as it is."""
    match = re.fullmatch(r"([xyz])_?(?:loc|location|pos|position)_?(\d*)", name)
    return "".join(match.groups()) if match else name


def _split_names(text: str) -> list[str]:
    return [to_snake_case(name.strip()) for name in re.split(r",|;|\band\b", text)]


def choose_columns(names: Sequence[str] | None, count: int) -> tuple[int, ...]:
    """Returns the columns to read: all of them, or the places where a name says that another is a clock or a counter.

    Of two sets of places, such as `xloc, yloc` and `xloc2, yloc2`, the first is read then.
    """
    everything = tuple(range(count))
    if names is None or not any(is_clock_name(name) for name in names):
        return everything
    places = {c: match for c, name in enumerate(names) if (match := PLACE_NAME.fullmatch(name))}
    if places:
        first = next(iter(places.values())).group(2)
        return tuple(column for column, match in places.items() if match.group(2) == first)
    return tuple(c for c in everything if not is_clock_name(names[c])) or everything


def is_clock_name(name: str) -> bool:
    """Returns whether a column of this name is a clock, a counter, a label or how sure the tracker was."""
    return bool(CLOCK_NAME.search(name)) and not PLACE_NAME.fullmatch(name)


def describe_odd_column(values: npt.NDArray[np.float64], times_s: npt.NDArray[np.float64]) -> str | None:
    """Returns what a column (n,) looks like if it is no behavior, e.g. "a counter, by 1 each sample", else None."""
    known = np.isfinite(values)
    x, t = values[known], times_s[known]
    if not x.size:
        return None  # too few values are another error
    low, high = float(x.min()), float(x.max())
    if low == high:
        return f"{STILL}, always {low:.6g}"
    if x.size < FEWEST:
        return None
    steps = np.diff(x)
    falls = int((steps < 0).sum())
    typical = float(np.median(steps))
    if typical and (np.abs(steps - typical) <= 1e-3 * abs(typical)).mean() >= NEARLY_ALL:
        kind = "a counter" if abs(typical) < 1e3 and typical == round(typical) else "a clock"
        return f"{kind}, by {typical:.6g} each sample from {x[0]:.6g} to {x[-1]:.6g}"
    if falls > 1e-3 * len(steps):
        return None
    if low > UNIX_S:
        return f"a clock, from {x[0]:.6g} to {x[-1]:.6g}"
    if not falls and (x == np.round(x)).all():
        return f"a counter, whole numbers that only rise from {x[0]:.6g} to {x[-1]:.6g}"
    if _is_line(x, t) or _is_line(x, np.arange(len(x), dtype=np.float64)):
        return f"a clock, rises evenly from {x[0]:.6g} to {x[-1]:.6g}"
    return None


def _is_line(x: npt.NDArray[np.float64], at: npt.NDArray[np.float64]) -> bool:
    line: Any = np.interp(at, [at[0], at[-1]], [x[0], x[-1]])
    return bool(np.abs(x - line).max() < 5e-3 * (x[-1] - x[0]))
