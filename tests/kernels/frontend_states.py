"""Moves the state of a front end between Python and the stand-alone C front end, for the tests of the latter.

`FrontEnd.export_state` on one side, the bytes of `ed_fe_export` on the other. The product exchanges whole decoder
states, which `edgedistill.runtime.c_state` converts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.signal import sosfilt

from edgedistill.compile.c.frontend_source import kept_samples
from edgedistill.errors import EngineError
from edgedistill.frontend import FrontEndConfig, band_sections, filter_sections
from edgedistill.frontend.design import rest_states

State = Mapping[str, npt.NDArray[np.generic]]


def state_dtype(config: FrontEndConfig) -> np.dtype[np.void]:
    """Returns the struct ed_fe_exchange, which `ed_fe_export` writes and `ed_fe_import` reads."""
    channels, (decimator, shaper) = config.channels, filter_sections(config)
    rows = max(config.flat_bins, config.saturated_bins) - 1
    fields: list[tuple[str, type, tuple[int, ...]]] = [
        (name, np.int64, ()) for name in ("frame", "pending_gap", "lost_bins")
    ]
    if config.decimation > 1:
        fields.append(("decimator", np.float64, (len(decimator), channels, 2)))
    fields += [
        ("shaper", np.float64, (len(shaper), channels, 2)),
    ]
    if config.bands:
        bands, per_band, _ = band_sections(config).shape
        fields += [("bands", np.float64, (bands * per_band, channels, 2)), ("power", np.float64, (bands, channels))]
    fields += [
        ("pending", np.float64, (kept_samples(config), channels)),
    ]
    parts = ("part_low", "part_high", "broken") if config.decimation > 1 else ()
    fields += [(name, np.float64, (channels,)) for name in ("clean", "lowest", "highest", *parts)]
    fields += [(name, np.float32, (rows, channels)) for name in ("low", "high") if rows]
    return np.dtype(fields)


def state_to_c(config: FrontEndConfig, state: State) -> bytes:
    """Returns a state of `FrontEnd` as the bytes that `ed_fe_import` reads. Raises EngineError for float64 samples."""
    record = np.zeros((), state_dtype(config))
    for name in record.dtype.names or ():
        if name in state and name != "pending":
            with np.errstate(over="ignore"):
                record[name] = state[name]
            _require_float32(name, state[name], record[name])
    pending = np.asarray(state["pending"], np.float64)
    _require_float32("pending", pending, pending.astype(np.float32))
    if config.decimation > 1:
        _begin_bin(config, record, pending, int(np.asarray(state["frame"])[()]))
    else:
        record["pending"][: len(pending)] = pending
    return record.tobytes()


def state_from_c(config: FrontEndConfig, data: bytes) -> dict[str, npt.NDArray[np.generic]]:
    """Returns the bytes of `ed_fe_export` as `FrontEnd.import_state` takes them.

    Raises EngineError for bytes of another configuration, and inside a bin if the front end decimates: C keeps no raw
    frames there, so that 30 kHz fit a microcontroller.
    """
    dtype = state_dtype(config)
    if len(data) != dtype.itemsize:
        raise EngineError(
            "the front-end state belongs to another configuration",
            got=f"{len(data)} bytes",
            expected=f"{dtype.itemsize} bytes",
        )
    record = np.frombuffer(data, dtype)[0]
    frame = int(record["frame"])
    filled = frame - config.edge(config.bin_of(frame))
    if filled and config.decimation > 1:
        raise EngineError(
            "a state exported inside a bin fits the C engine only",
            got=f"{filled} frames into bin {config.bin_of(frame)}, decimation by {config.decimation}",
            next_step="export when a bin has just been completed",
        )
    bands = ("bands", "power") if config.bands else ()
    empty = {"low": (0, config.channels), "high": (0, config.channels), "decimator": (0, config.channels, 2)}
    return {
        "frame": np.array(frame, np.int64),
        "pending": record["pending"][:filled].copy(),
        "pending_gap": np.array(bool(record["pending_gap"])),
        "lost_bins": np.array(record["lost_bins"]),
        **{
            name: record[name].astype(np.float64) if name in (dtype.names or ()) else np.empty(empty[name])
            for name in ("decimator", "shaper", *bands, "low", "high", "lowest", "highest", "clean")
        },
    }


def _begin_bin(config: FrontEndConfig, record: Any, pending: npt.NDArray[np.float64], frame: int) -> None:
    """Runs the first stage over a bin's raw frames (n, C), as the C front end does when they arrive."""
    fine = np.isfinite(pending)
    record["part_low"] = np.where(fine, pending, np.inf).min(axis=0, initial=np.inf)
    record["part_high"] = np.where(fine, pending, -np.inf).max(axis=0, initial=-np.inf)
    record["broken"] = ~fine.all(axis=0)
    if len(pending):
        sections, used = filter_sections(config)[0], np.where(fine, pending, 0.0)
        restarted = (record["clean"] == 0) | (record["lost_bins"] > 0)
        rest = rest_states(sections)[:, None] * used[0][:, None]
        z = np.where(restarted[:, None], rest, record["decimator"])
        filtered, record["decimator"] = sosfilt(sections, used.T, zi=z)
        kept = filtered[:, -(frame - len(pending)) % config.decimation :: config.decimation]
        record["pending"][: kept.shape[1]] = kept.T


def _require_float32(name: str, values: npt.ArrayLike, stored: npt.ArrayLike) -> None:
    if not np.array_equal(np.asarray(values, np.float64), np.asarray(stored, np.float64), equal_nan=True):
        raise EngineError(
            f"the front-end state cannot go to the C engine: '{name}' is not float32",
            next_step="push float32 frames to the decoder whose state is exported",
        )
