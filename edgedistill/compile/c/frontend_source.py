"""Front-end settings in, the constants that kernels/c/ed_frontend.h is compiled with out; and its states.

All figures go over exactly: coefficients as hexadecimal floats, the rate as the bin clock's integers, times as
bins. A stream's state moves between `FrontEnd.export_state` and the bytes of `ed_fe_export` in both directions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.signal import sosfilt

from edgedistill.errors import EngineError
from edgedistill.frontend import FrontEndConfig, filter_sections

CLOCK_BITS = 62  # numerator and denominator of the bin clock: 64-bit remainders then never overflow

State = Mapping[str, npt.NDArray[np.generic]]


def frontend_constants(config: FrontEndConfig) -> str:
    """C text: the ED_FE_* constants and the filter tables, to stand before `#include "ed_frontend.h"`.

    EngineError if the rate is too odd a fraction for the bin clock's 64-bit integers.
    """
    numerator, denominator = bin_clock(config)
    decimator, shaper = filter_sections(config)
    numbers = {
        "CHANNELS": config.channels,
        "DECIMATION": config.decimation,
        "CLOCK_NUM": f"UINT64_C({numerator})",  # frames a bin = CLOCK_NUM / CLOCK_DEN
        "CLOCK_DEN": f"UINT64_C({denominator})",
        "KEPT": kept_samples(config),
        "DECIMATOR_SECTIONS": len(decimator),
        "SHAPER_SECTIONS": len(shaper),
        "COMMON_AVERAGE": int(config.common_average),
        "FLAT_BINS": config.flat_bins,
        "SATURATED_BINS": config.saturated_bins,
        "RECOVER_BINS": f"{config.recover_bins}u",
        "FLAT_UV": float(config.flat_uv).hex(),
    }
    lines = [f"#define ED_FE_{name} {value}" for name, value in numbers.items()]
    tables = [("ed_fe_decimator", decimator)] if len(decimator) else []
    for name, sections in (*tables, ("ed_fe_shaper", shaper)):
        rows = [f"    {{{', '.join(float(k).hex() for k in (*row[:3], *row[4:]))}}}," for row in sections]
        lines += [f"static const double {name}[{len(rows)}][5] = {{ /* b0 b1 b2 a1 a2 */", *rows, "};"]
    return "\n".join(["#include <stdint.h>", *lines, ""])


def normalization_tables(config: FrontEndConfig, mean: Sequence[float], std: Sequence[float]) -> str:
    """C text: `ed_fe_mean` and `ed_fe_std`, both (C,) in uV. EngineError for tables that do not fit."""
    lines = []
    for name, values in (("mean", mean), ("std", std)):
        table = np.asarray(values, np.float64)
        if table.shape != (config.channels,) or not np.isfinite(table).all() or (name == "std" and (table < 0).any()):
            raise EngineError(
                f"the {name} of the normalization does not fit",
                got=f"shape {table.shape}, smallest {table.min(initial=np.inf):g}",
                expected=f"({config.channels},) finite values, one a channel; a standard deviation of 0 or more",
            )
        rows = ", ".join(float(value).hex() for value in table)
        lines.append(f"static const double ed_fe_{name}[{len(table)}] = {{{rows}}};")
    return "\n".join([*lines, ""])


def bin_clock(config: FrontEndConfig) -> tuple[int, int]:
    """Frames a bin as numerator and denominator without a common factor."""
    numerator, denominator = config.rate.numerator * config.bin_ms, config.rate.denominator * 1000
    common = math.gcd(numerator, denominator)
    numerator, denominator = numerator // common, denominator // common
    if max(numerator, denominator).bit_length() > CLOCK_BITS:
        raise EngineError(
            "the sampling rate is too odd a fraction for the C engine",
            got=f"{numerator}/{denominator} frames a bin",
            expected=f"numbers of at most {CLOCK_BITS} bits",
            next_step="state the rate as the amplifier's data sheet does, such as 390625/16",
        )
    return numerator, denominator


def kept_samples(config: FrontEndConfig) -> int:
    """Most samples of one bin after decimation: those of bin 0, which starts on one."""
    return -(-config.edge(1) // config.decimation)


def state_dtype(config: FrontEndConfig) -> np.dtype[np.void]:
    """The struct ed_fe_exchange: what `ed_fe_export` writes and `ed_fe_import` reads."""
    channels, (decimator, shaper) = config.channels, filter_sections(config)
    rows = max(config.flat_bins, config.saturated_bins) - 1
    fields: list[tuple[str, type, tuple[int, ...]]] = [("frame", np.int64, ()), ("pending_gap", np.int64, ())]
    if config.decimation > 1:
        fields.append(("decimator", np.float64, (len(decimator), channels, 2)))
    fields += [
        ("shaper", np.float64, (len(shaper), channels, 2)),
        ("pending", np.float64, (kept_samples(config), channels)),
    ]
    parts = ("part_low", "part_high", "broken") if config.decimation > 1 else ()
    fields += [(name, np.float64, (channels,)) for name in ("clean", "lowest", "highest", *parts)]
    fields += [(name, np.float32, (rows, channels)) for name in ("low", "high") if rows]
    return np.dtype(fields)


def state_to_c(config: FrontEndConfig, state: State) -> bytes:
    """`FrontEnd.export_state` as the bytes `ed_fe_import` reads. EngineError if samples were no float32."""
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
    """The bytes of `ed_fe_export` as `FrontEnd.import_state` takes them.

    EngineError for bytes of another configuration, and inside a bin if the front end decimates: C keeps no raw
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
    empty = {"low": (0, config.channels), "high": (0, config.channels), "decimator": (0, config.channels, 2)}
    return {
        "frame": np.array(frame, np.int64),
        "pending": record["pending"][:filled].copy(),
        "pending_gap": np.array(bool(record["pending_gap"])),
        **{
            name: record[name].astype(np.float64) if name in (dtype.names or ()) else np.empty(empty[name])
            for name in ("decimator", "shaper", "low", "high", "lowest", "highest", "clean")
        },
    }


def _begin_bin(config: FrontEndConfig, record: Any, pending: npt.NDArray[np.float64], frame: int) -> None:
    """The first stage over a bin's raw frames (n, C), as the C front end runs it when they arrive."""
    fine = np.isfinite(pending)
    record["part_low"] = np.where(fine, pending, np.inf).min(axis=0, initial=np.inf)
    record["part_high"] = np.where(fine, pending, -np.inf).max(axis=0, initial=-np.inf)
    record["broken"] = ~fine.all(axis=0)
    if len(pending):
        used = np.where(fine & (record["clean"] >= config.recover_bins), pending, 0.0)
        filtered, record["decimator"] = sosfilt(filter_sections(config)[0], used.T, zi=record["decimator"])
        kept = filtered[:, -(frame - len(pending)) % config.decimation :: config.decimation]
        record["pending"][: kept.shape[1]] = kept.T


def _require_float32(name: str, values: npt.ArrayLike, stored: npt.ArrayLike) -> None:
    if not np.array_equal(np.asarray(values, np.float64), np.asarray(stored, np.float64), equal_nan=True):
        raise EngineError(
            f"the front-end state cannot go to the C engine: '{name}' is not float32",
            next_step="push float32 frames to the decoder whose state is exported",
        )
