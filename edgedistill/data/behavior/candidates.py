"""Finds the series of a file that could be behavior, and how each is stored.

The input is every time series of an open file. The output is a `BehaviorSeries` for each that is numeric and no
voltage, image or annotation: what it measures, which of its dimensions is time, and the seconds that it covers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from edgedistill.data.behavior.meaning import Meaning, read_meaning
from edgedistill.data.series import Series, read_nominal_rate

MOST_COLUMNS = 8  # of a series without timestamps whose first dimension is taken for columns


@dataclass(frozen=True)
class BehaviorSeries:
    """Holds one series of an open file that could be behavior."""

    series: Series
    transposed: bool  # stored (columns, time), against the standard
    unclear: bool  # nothing tells which dimension is time
    meaning: Meaning

    @property
    def path(self) -> str:
        """Returns the path inside the file."""
        return self.series.path

    @property
    def name(self) -> str:
        """Returns the last part of the path."""
        return self.series.name

    @property
    def node(self) -> Any:
        """Returns the pynwb object."""
        return self.series.node

    @property
    def samples(self) -> int:
        """Returns the number of samples."""
        return self.series.shape[1 if self.transposed else 0]

    @property
    def columns(self) -> int:
        """Returns the number of values in a sample."""
        shape = self.series.shape
        return 1 if len(shape) == 1 else shape[0 if self.transposed else 1]

    @cached_property
    def span(self) -> tuple[float, float]:
        """Returns the times of the first and the last sample in seconds, as the file says. Both may be NaN."""
        if self.node.rate is not None or self.node.timestamps is None:
            start = float(self.node.starting_time or 0.0)
            rate = float(self.node.rate or np.nan)
            return start, start + (self.samples - 1) / rate if rate else start
        times = self.node.timestamps
        return (float(times[0]), float(times[len(times) - 1])) if len(times) else (np.nan, np.nan)

    @property
    def rate(self) -> float:
        """Returns the rate in Hz over the whole series, pauses included."""
        return read_nominal_rate(self.series)


def find_behavior_series(series: Sequence[Series]) -> list[BehaviorSeries]:
    """Returns the numeric series of one or two dimensions that are not voltages, images or annotations.

    A class of an extension is read as the class that it extends.
    """
    held = [s for s in series if _could_be_behavior(s)]
    return [BehaviorSeries(s, *_find_layout(s, held), meaning=read_meaning(s)) for s in held]


def explain_unusable(series: Series) -> str | None:
    """Returns why a series cannot be read as behavior, or None where it can."""
    kind, shape = type(series.node).__name__, series.shape
    if 0 in shape:
        return f"no samples, shape {shape}"
    if len(shape) not in (1, 2):
        return f"{len(shape)} dimensions, shape {shape}"
    if not np.issubdtype(dtype := getattr(series.node.data, "dtype", np.dtype(object)), np.number):
        return f"values of type {dtype}, no numbers"
    return None if _could_be_behavior(series) else f"a series of the type {kind}"


def find_unusable_behavior(series: Sequence[Series]) -> list[tuple[str, str]]:
    """Returns the paths of velocities and positions that cannot be read, and why."""
    named = [s for s in series if not isinstance(s.node, _list_other_types()) and read_meaning(s).kind != "other"]
    return [(s.path, why) for s in named if (why := explain_unusable(s)) is not None]


def _could_be_behavior(series: Series) -> bool:
    if isinstance(series.node, _list_other_types()) or len(series.shape) not in (1, 2) or 0 in series.shape:
        return False
    return np.issubdtype(getattr(series.node.data, "dtype", np.dtype(object)), np.number)


def _list_other_types() -> tuple[type, ...]:
    """Returns the classes of series that are voltages, images, annotations and the like."""
    from pynwb import ecephys, icephys, image, misc, ogen, ophys

    return (
        *(ecephys.ElectricalSeries, icephys.PatchClampSeries, ogen.OptogeneticSeries, ophys.RoiResponseSeries),
        *(image.ImageSeries, image.IndexSeries, misc.AnnotationSeries, misc.IntervalSeries),
        *(misc.AbstractFeatureSeries, misc.DecompositionSeries),
    )


def _find_layout(series: Series, held: Sequence[Series]) -> tuple[bool, bool]:
    """Returns whether a series is stored as (columns, time), and whether that is a guess nobody should rely on.

    The number of timestamps decides, then the lengths of its neighbors, then a first dimension of at most eight.
    """
    shape = series.shape
    if len(shape) == 1 or shape[0] == shape[1]:
        return False, len(shape) == 2 and series.node.timestamps is None
    if series.node.timestamps is not None:
        count = len(series.node.timestamps)
        return (count == shape[1] if count in shape else shape[0] <= MOST_COLUMNS < shape[1]), False
    if shape[0] > shape[1]:
        return False, False
    lengths = {
        max(other.shape)
        for other in held
        if other is not series and other.path.rpartition("/")[0] == series.path.rpartition("/")[0]
        if (len(other.shape) == 1 or other.shape[0] > other.shape[1]) and other.node.rate == series.node.rate
    }
    if (shape[0] in lengths) != (shape[1] in lengths):
        return shape[1] in lengths, False
    return (True, False) if shape[0] <= MOST_COLUMNS < shape[1] else (False, min(shape) > MOST_COLUMNS)
