"""Writes the settings of a front end as the constants that kernels/c/ed_frontend.h is compiled with.

A FrontEndConfig and the mean and deviation of each number of a bin go in, and C text comes out. All figures are exact.
Coefficients are hexadecimal floats, the rate is the bin clock's two integers, and times are counted in bins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgedistill.errors import EngineError
from edgedistill.frontend import FrontEndConfig, band_sections, count_notches, filter_sections
from edgedistill.frontend.design import RESUME_BINS_PER_LOST, Array, rest_states, resume_bins

CLOCK_BITS = 62  # of the bin clock's numerator and denominator, so that 64-bit remainders never overflow


def frontend_constants(config: FrontEndConfig) -> str:
    """Returns the ED_FE_* constants and the filter tables, which stand before `#include "ed_frontend.h"`.

    Raises EngineError if the numbers of the rate's fraction are too large for the bin clock's 64-bit integers.
    """
    numerator, denominator = bin_clock(config)
    decimator, shaper = filter_sections(config)
    bands, notches = band_sections(config), count_notches(config)
    numbers = {
        "CHANNELS": config.channels,
        "DECIMATION": config.decimation,
        "CLOCK_NUM": f"UINT64_C({numerator})",  # frames per bin = CLOCK_NUM / CLOCK_DEN
        "CLOCK_DEN": f"UINT64_C({denominator})",
        "KEPT": kept_samples(config),
        "DECIMATOR_SECTIONS": len(decimator),
        "SHAPER_SECTIONS": len(shaper),
        "NOTCHES": notches,
        "BANDS": len(bands),
        "BAND_SECTIONS": bands.shape[1],
        "BAND_RATE": float(config.band_rate).hex(),
        "FEATURES": config.features,
        # where a first and a last coefficient are the same, one product serves for two
        "MIRRORED": int(
            all(b0 == b2 for b0, _, b2, *_ in (*decimator, *shaper, *np.concatenate([*bands, shaper[:0]])))
        ),
        "COMMON_AVERAGE": int(config.common_average),
        "FLAT_BINS": config.flat_bins,
        "SATURATED_BINS": config.saturated_bins,
        "RECOVER_BINS": f"{config.recover_bins}u",
        "SETTLED_BINS": f"{config.settled_bins}u",
        "RESUME_BINS": f"{resume_bins(config)}u",
        "RESUME_BINS_PER_LOST": f"{RESUME_BINS_PER_LOST}u",
        "BRIDGED_BINS": f"{config.bridged_bins}u",
        "FLAT_UV": float(config.flat_uv).hex(),
        "LEFT_OUT": f"{len(config.left_out)}u",
        "FILL_SWEEPS": config.fill_sweeps,
        "FOLLOWS": int(config.follow_rate > 0),
        "FOLLOW_RATE": float(config.follow_rate).hex(),
    }
    lines = [f"#define ED_FE_{name} {value}" for name, value in numbers.items()]
    lines += _filter_tables("decimator", decimator, rest_states(decimator)) if len(decimator) else []
    lines += _filter_tables("shaper", shaper, rest_states(shaper))
    if len(bands):
        rest = [rest_states(np.concatenate([shaper[:notches], band]), notches) for band in bands]
        lines += _filter_tables("bands", np.concatenate(bands), np.concatenate(rest))
    left_out = ", ".join(str(int(channel in config.left_out)) for channel in range(config.channels))
    lines.append(f"static const uint32_t ed_fe_left_out[{config.channels}] = {{{left_out}}}; /* 1: bad in every bin */")
    return "\n".join(["#include <stdint.h>", *lines, ""])


def _filter_tables(name: str, sections: Array, rest: Array) -> list[str]:
    """Returns the coefficients of sections (S, 6) and their states (S, 2) at rest."""
    tables = {"": (np.delete(sections, 3, axis=1), "b0 b1 b2 a1 a2"), "_rest": (rest, "z0 z1")}
    lines = []
    for part, (values, what) in tables.items():
        rows = [f"    {{{', '.join(float(value).hex() for value in row)}}}," for row in values]
        head = f"static const double ed_fe_{name}{part}[{len(values)}][{values.shape[1]}] = {{ /* {what} */"
        lines += [head, *rows, "};"]
    return lines


def normalization_tables(config: FrontEndConfig, mean: Sequence[float], std: Sequence[float]) -> str:
    """Returns the tables `ed_fe_mean` and `ed_fe_std`, both (I,). Raises EngineError where one does not fit."""
    lines = []
    for name, values in (("mean", mean), ("std", std)):
        table = np.asarray(values, np.float64)
        if table.shape != (config.inputs,) or not np.isfinite(table).all() or (name == "std" and (table < 0).any()):
            raise EngineError(
                f"the {name} of the normalization does not fit",
                got=f"shape {table.shape}, smallest {table.min(initial=np.inf):g}",
                expected=f"({config.inputs},) finite values, one for each number of a bin, and no negative deviation",
            )
        rows = ", ".join(float(value).hex() for value in table)
        lines.append(f"static const double ed_fe_{name}[{len(table)}] = {{{rows}}};")
    return "\n".join([*lines, ""])


def bin_clock(config: FrontEndConfig) -> tuple[int, int]:
    """Returns the frames per bin as numerator and denominator without a common factor.

    Raises EngineError where one of them needs more than CLOCK_BITS bits.
    """
    numerator, denominator = config.rate.numerator * config.bin_ms, config.rate.denominator * 1000
    common = math.gcd(numerator, denominator)
    numerator, denominator = numerator // common, denominator // common
    if max(numerator, denominator).bit_length() > CLOCK_BITS:
        raise EngineError(
            "the sampling rate is a fraction with too large numbers for the C engine",
            got=f"{numerator}/{denominator} frames per bin",
            expected=f"numbers of at most {CLOCK_BITS} bits",
            next_step="state the rate as the amplifier's data sheet does, such as 390625/16",
        )
    return numerator, denominator


def kept_samples(config: FrontEndConfig) -> int:
    """Returns the most samples that a bin has after decimation.

    Bin 0 has that many, because it starts on a kept frame.
    """
    return -(-config.edge(1) // config.decimation)
