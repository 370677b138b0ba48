"""Converts a stream's state between the bytes of `ed_state_export` and the named arrays that all Python engines use.

The layout of the bytes is defined in edgedistill.h ("state") and in ed_frontend_state.h (`ed_fe_exchange`). With
decimation, C keeps filtered samples of an unfinished bin where Python keeps raw frames. `abi_engine` therefore gives C
whole bins only, so a state stands at the start of a bin here, with the raw frames beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.config import StudentShape
from edgedistill.errors import EngineError
from edgedistill.frontend import FrontEndConfig, band_sections, filter_sections
from edgedistill.frontend.statistics import ChannelStatistics
from edgedistill.numerics.smoothing import require_smoothing_state
from edgedistill.numerics.state import require_state
from edgedistill.runtime.shift import RunningAmplitude

Arrays = dict[str, npt.NDArray[Any]]

SIZES = ("channels", "d", "layers", "heads", "window", "lag_rows")


def state_dtype(shape: StudentShape, config: FrontEndConfig, smoothing_states: int = 0) -> np.dtype[np.void]:
    """Returns the type of one record: header, rings of each layer, lagged bins, front end, and what follows it.

    These are statistics, running amplitude, and the filter of the outputs, whose state has `smoothing_states` values.
    """
    fields: list[tuple[Any, ...]] = [
        *((name, "<u4") for name in ("magic", "abi_version")),
        *((name, "<u8") for name in ("bytes", "frontend_bytes", "seen")),
        *((name, "<u4") for name in SIZES),
        *((name, "<i4") for name in ("pos", "live")),
        ("smoothing_states", "<u4"),
        ("reserved", "<u4", (3,)),
    ]
    ring = (shape.heads, shape.window - 1, shape.head_dim)
    fields += [(f"ring_{kind}_{i}", "i1", ring) for i in range(shape.layers) for kind in "kv"]
    fields += [("lags", "i1", (shape.lag_rows, shape.channels))]
    fields += [("fill", "i1", (-np.dtype(fields).itemsize % 8,)), *_frontend_fields(config)]
    fields += [(name, "<f8", (shape.channels,)) for name in ("mean", "std") if config.follow_rate]
    fields += [("shift_bins", "<u4"), ("shift_power", "<f4", (config.channels,))]
    fields += [("smoothing", "<f4", (smoothing_states,))]
    fields += [("last_fill", "i1", (-np.dtype(fields).itemsize % 8,))]
    return np.dtype(fields)


def _frontend_fields(config: FrontEndConfig) -> list[tuple[Any, ...]]:
    decimator, shaper = map(len, filter_sections(config))
    bands, per_band = band_sections(config).shape[:2]
    channels, decimated = config.channels, config.decimation > 1
    kept = -(-config.edge(1) // config.decimation)  # bin 0 is the longest
    rows = max(config.flat_bins, config.saturated_bins) - 1
    return [
        *((name, "<i8") for name in ("frame", "pending_gap", "lost_bins")),
        *([("decimator", "<f8", (decimator, channels, 2))] if decimated else []),
        ("shaper", "<f8", (shaper, channels, 2)),
        *([("bands", "<f8", (bands * per_band, channels, 2)), ("power", "<f8", (bands, channels))] if bands else []),
        ("pending", "<f8", (kept, channels)),
        *((name, "<f8", (channels,)) for name in ("clean", "lowest", "highest")),
        *((name, "<f8", (channels,)) for name in (("part_low", "part_high", "broken") if decimated else ())),
        *((name, "<f4", (rows, channels)) for name in ("low", "high")),
    ]


def read_frontend(config: FrontEndConfig, record: npt.NDArray[np.void]) -> Arrays:
    """Returns the front end's part of a record, as `FrontEnd.export_state` does."""
    frame = int(record["frame"])
    pending = 0 if config.decimation > 1 else frame - config.edge(config.bin_of(frame))
    empty = np.zeros((0, config.channels, 2))
    return {
        "frame": np.array(frame, np.int64),
        "pending": record["pending"][:pending].copy(),
        "pending_gap": np.array(bool(record["pending_gap"])),
        "lost_bins": np.array(int(record["lost_bins"]), np.int64),
        "decimator": record["decimator"].copy() if config.decimation > 1 else empty,
        **{name: np.array(record[name], np.float64) for name in _kept_arrays(config)},
    }


def _kept_arrays(config: FrontEndConfig) -> tuple[str, ...]:
    """Returns the arrays that every record has, whether samples are decimated or not."""
    bands = ("bands", "power") if config.bands else ()
    return ("shaper", *bands, "low", "high", "lowest", "highest", "clean")


def write_frontend(config: FrontEndConfig, record: npt.NDArray[np.void], state: Mapping[str, npt.NDArray[Any]]) -> None:
    """Writes a state that `FrontEnd` accepted into a record. With decimation the caller keeps `pending`.

    Raises EngineError for a front end that was fed samples finer than float32, which C does not keep.
    """
    for name in ("pending", "low", "high", "lowest", "highest"):
        with np.errstate(over="ignore"):
            kept = state[name].astype(np.float32)
        if not np.array_equal(kept.astype(np.float64), state[name], equal_nan=True):
            raise EngineError(
                f"state 'fe_{name}' holds samples finer than float32",
                expected="the state of a decoder that was fed float32, as `Decoder.push` makes them",
            )
    frame, pending = int(state["frame"]), len(state["pending"])
    decimated = config.decimation > 1
    record["frame"], record["pending_gap"] = frame - (pending if decimated else 0), bool(state["pending_gap"])
    record["lost_bins"] = int(state["lost_bins"])
    record["pending"] = 0
    if not decimated:
        record["pending"][:pending] = state["pending"]
    for name in (*_kept_arrays(config), *(("decimator",) if decimated else ())):
        record[name] = state[name]


def read_statistics(record: npt.NDArray[np.void]) -> Arrays:
    """Returns the statistics in a record, as `ChannelStatistics.export_state` does."""
    return {name: record[name].astype(np.float64) for name in ("mean", "std") if name in (record.dtype.names or ())}


def write_statistics(record: npt.NDArray[np.void], state: Mapping[str, npt.NDArray[Any]]) -> None:
    """Writes statistics into a record that has them. Raises EngineError, with nothing changed, if they do not fit."""
    if "mean" in (record.dtype.names or ()):
        ChannelStatistics(len(record["mean"]), rate=1).import_state(state)
        record["mean"], record["std"] = state["mean"], state["std"]


def read_shift(record: npt.NDArray[np.void]) -> Arrays:
    """Returns the running amplitude in a record, as `RunningAmplitude.export_state` does."""
    return {"power": record["shift_power"].astype(np.float32), "bins": np.array(int(record["shift_bins"]), np.int64)}


def write_shift(record: npt.NDArray[np.void], state: Mapping[str, npt.NDArray[Any]]) -> None:
    """Writes a running amplitude into a record. Raises EngineError, before anything changes, if it cannot be one."""
    RunningAmplitude(len(record["shift_power"])).import_state(state)
    record["shift_power"], record["shift_bins"] = state["power"], state["bins"]


def read_smoothing(record: npt.NDArray[np.void]) -> Arrays:
    """Returns the state of the filter of the outputs in a record, as `OutputSmoother.export_state` does.

    Returns nothing where the outputs are not smoothed.
    """
    state = record["smoothing"].astype(np.float32)
    return {"state": state} if len(state) else {}


def write_smoothing(record: npt.NDArray[np.void], state: Mapping[str, npt.NDArray[Any]]) -> None:
    """Writes the state of the filter of the outputs into a record. Raises EngineError if it cannot be one."""
    record["smoothing"] = require_smoothing_state(state, len(record["smoothing"]))


def read_student(shape: StudentShape, record: npt.NDArray[np.void]) -> Arrays:
    """Returns the student's part of a record, as `export_state` of every engine does."""
    rings = [f"ring_{kind}_{i}" for i in range(shape.layers) for kind in "kv"]
    arrays: Arrays = {name: record[name].copy() for name in rings}
    arrays |= {name: np.array([record[name]], np.int32) for name in ("pos", "live")}
    return arrays | ({"lags": record["lags"].copy()} if shape.lag_rows else {})


def write_student(shape: StudentShape, record: npt.NDArray[np.void], state: Mapping[str, npt.NDArray[Any]]) -> None:
    """Writes a student's state into a record. Raises EngineError, before anything changes, if it does not fit."""
    own = read_student(shape, record)
    require_state(own, state)
    for name in own:
        record[name] = state[name][0] if name in ("pos", "live") else state[name]
