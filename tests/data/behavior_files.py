"""Writes files that hold nothing but behavior, in the layouts of many labs, and reads their behavior."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from pynwb import TimeSeries
from pynwb.behavior import BehavioralTimeSeries, Position, SpatialSeries

from edgedistill.data.recording import Behavior, SeriesNames, open_recording

from . import nwb_files as make

SECONDS = 20.0


@contextmanager
def ignore_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def times_at(rate: float, start: float = 0.0, seconds: float = SECONDS) -> np.ndarray:
    return start + np.arange(round(seconds * rate)) / rate


def movement(times: np.ndarray, columns: int = 2) -> np.ndarray:
    """Returns a smooth movement (n, columns); every column has its own frequency."""
    return np.stack([np.sin((1 + 0.3 * column) * times + column) for column in range(columns)], axis=1)


@ignore_warnings()  # pynwb warns of a SpatialSeries with more than three columns
def write_behavior(path: Path, series: Mapping[str, Mapping[str, Any]]) -> Path:
    """Writes series by their path below the module `behavior`.

    `Position/cursor` lies in a Position, and any other container becomes BehavioralTimeSeries of that name. `kind` is
    SpatialSeries in a Position, else TimeSeries. Without data, a smooth movement at 100 Hz is written.
    """
    nwb = make.new_nwb()
    module = nwb.create_processing_module("behavior", "test")
    for place, given in series.items():
        settings = dict(given)
        container, _, name = place.rpartition("/")
        kind = settings.pop("kind", "SpatialSeries" if container == "Position" else "TimeSeries")
        if "timestamps" not in settings:
            settings.setdefault("rate", 100.0)
        settings.setdefault("data", movement(times_at(100)))
        settings.setdefault("unit", "cm" if kind == "SpatialSeries" else "cm/s")
        if kind == "SpatialSeries":
            node: Any = SpatialSeries(name=name, reference_frame="screen", **settings)
        else:
            node = TimeSeries(name=name, **settings)
        if not container:
            module.add(node)
        elif container == "Position":
            held = module.data_interfaces.get(container) or _add(module, Position(name=container))
            held.add_spatial_series(node)
        else:
            held = module.data_interfaces.get(container) or _add(module, BehavioralTimeSeries(name=container))
            held.add_timeseries(node)
    return make.write(nwb, path)


def _add(module: Any, container: Any) -> Any:
    module.add(container)
    return container


def replace(path: Path, dataset: str, values: np.ndarray) -> Path:
    """Replaces a dataset below the module `behavior` by another that pynwb would not write."""
    with h5py.File(path, "r+") as file:
        node = file["processing/behavior"]
        kept = dict(node[dataset].attrs)
        del node[dataset]
        node[dataset] = values
        node[dataset].attrs.update(kept)
    return path


def read_behavior(path: Path, named: str | None = None, at: np.ndarray | None = None) -> tuple[Behavior, np.ndarray]:
    """Returns the behavior of a file, which is closed then, and its values at the ends of the bins."""
    with open_recording(path, SeriesNames(behavior=named)) as recording:
        behavior = recording.behavior
        assert behavior is not None
        ends = np.arange(1, round(SECONDS * 100) + 1) / 100 if at is None else at
        return behavior, behavior.sample_at(ends)
