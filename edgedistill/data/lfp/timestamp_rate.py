"""Estimates the period of timestamps before anything is known of their gaps, and tells packets from single samples.

The input is a dataset of timestamps in seconds, of which stretches are read. The output is a `Pace`, or the rate of a
series where no frames are lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.data.lfp.nominal_rates import find_nominal_rate
from edgedistill.data.series import Series, read_nominal_rate

Times = npt.NDArray[np.float64]

NOISY_STEP, NOISY_SHARE = 0.65, 0.002  # frames, and the share of steps that fall short by more
STRETCHES, STRETCH = 32, 1 << 14
LAGS = (1, 16, 128, 1024, 8192)
ROUNDED_S = 2e-6  # timestamps are often rounded to a microsecond
LONG_PACKET = 32  # frames; longer ones at the rate of a device are trials
COARSE = 0.05  # of a period; timestamps that were rounded to more may tell no rate
FASTEST_HZ = 50_000  # samples that follow each other faster came in a packet


@dataclass(frozen=True)
class Pace:
    """Holds the period between frames, and how the timestamps scatter about it."""

    period_s: float
    packets: bool  # several frames carry nearly the same time, that of their arrival
    noisy: bool  # the time from frame to frame is often wrong by most of a period


def read_typical_rate(series: Series) -> float:
    """Returns the rate in Hz inside the stretches without gaps; 0 where there is none.

    Where the timestamps have no pace, as they do not advance or are no numbers, it is the rate from the first to the
    last one, so that `lfp.clock` says what is wrong with them.
    """
    times = series.node.timestamps
    if series.node.rate is None and times is not None and len(times) > 1:
        period = measure_pace(times, len(times)).period_s
        if np.isfinite(period) and period > 0:
            return 1 / period
    return read_nominal_rate(series)


def measure_pace(times: Any, count: int) -> Pace:
    """Returns the pace of timestamps (count,). A period of 0 means that they do not advance."""
    starts = np.unique(np.linspace(0, max(0, count - STRETCH), STRETCHES).astype(int))
    stretches = [np.asarray(times[at : at + STRETCH], dtype=np.float64) for at in starts]
    packets = _come_in_packets(stretches)
    if packets:
        parts = [find_packet_ends(part, _measure_mean(stretches)) for part in stretches]
    else:
        parts = [np.arange(len(part)) for part in stretches]
    series = [(at, part[at]) for at, part in zip(parts, stretches, strict=True)]
    period = _estimate_period(series)
    if not period > 0:
        return Pace(0.0, packets, False)
    steps = np.concatenate([np.diff(t) / period - np.diff(at) for at, t in series])  # frames beyond what was due
    return Pace(period, packets, bool(steps.size) and bool(np.mean(steps < -NOISY_STEP) > NOISY_SHARE))


def find_packet_ends(times: Times, period_s: float) -> npt.NDArray[np.intp]:
    """Returns the indices of the last frames of packets: those after which the time jumps."""
    return np.flatnonzero(np.diff(times) > 0.7 * period_s)


def find_rounding(times: Any) -> float:
    """Returns the seconds between neighboring numbers of float32 at the last timestamps; 0 where these are finer."""
    last = np.asarray(times[-STRETCH:], dtype=np.float64)
    stored = last.astype(np.float32)
    return abs(float(np.spacing(stored[-1]))) if (stored == last).all() else 0.0


def explain_rounding(times: Any, pace: Pace) -> tuple[str, ...]:
    """Returns the cause of an error that timestamps only have the precision of float32, or () where they are finer."""
    rounded_s = find_rounding(times)
    if rounded_s < COARSE * pace.period_s:
        return ()
    return (
        f"the timestamps were stored as float32, which rounds them to {rounded_s * 1e3:.3g} ms at "
        f"{float(times[-1]):.6g} s; store them as float64",
    )


def _measure_mean(stretches: list[Times]) -> float:
    """Returns the mean period of a typical stretch, in which pauses and packets count in full."""
    means = [(part[-1] - part[0]) / (len(part) - 1) for part in stretches if len(part) > 1]
    return float(np.median(means)) if means else 0.0


def _estimate_period(series: list[tuple[npt.NDArray[np.intp], Times]]) -> float:
    """Returns the median slope over ever longer lags, as long as it agrees with that over shorter ones.

    Gaps make long lags look slow. A longer lag that leaves the bounds of a shorter one therefore ends the search.
    """
    period, bounds = 0.0, np.inf
    for lag in LAGS:
        slopes = [(t[lag:] - t[:-lag]) / (at[lag:] - at[:-lag]) for at, t in series if len(t) > lag]
        if not slopes or not (every := np.concatenate(slopes)).size:
            break
        found = float(np.median(every))
        if not found > 0 or (period > 0 and abs(found / period - 1) > bounds):
            break
        spread = float(np.median(np.abs(every - found)))
        period, bounds = found, ROUNDED_S / (found * lag) + 4 * spread / found + 1e-4
    return period


def _come_in_packets(stretches: list[Times]) -> bool:
    """Returns whether frames carry the time of arrival of their packet.

    Trials that were stored one after another look alike, but then the time within a trial is that of a sampling rate,
    and the time from trial to trial does not follow from the number of frames.
    """
    steps = np.concatenate([np.diff(part) for part in stretches])
    if steps.size < 4:
        return False
    inside, mean = float(np.median(steps)), _measure_mean(stretches)
    if not mean > 0 or inside > 0.3 * mean:
        return False
    if inside <= 1 / FASTEST_HZ:
        return True
    ends = [find_packet_ends(part, mean) for part in stretches]
    if not any(len(at) > 1 for at in ends):
        return False
    sizes = np.concatenate([np.diff(at) for at in ends])
    if np.median(sizes) > LONG_PACKET and find_nominal_rate(1 / inside) is not None:
        return False
    periods = np.concatenate([np.diff(part[at]) for at, part in zip(ends, stretches, strict=True)]) / sizes
    return bool(np.median(np.abs(periods / np.median(periods) - 1)) < 0.1)
