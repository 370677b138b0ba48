"""Compares the amplitude of a recording with that of the bundle's session, channel by channel.

A minute of LFP near the middle of the recording goes through the bundle's front end. The deviation of each channel,
fitted as a build fits it, is divided by the bundle's. A lost gain or a wrong unit moves all channels by one factor. A
contact that broke or a reference that was moved shows in single channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgedistill.data.session import BINS_PER_S, compute_moments, leave_out_artefacts
from edgedistill.errors import RecordingError
from edgedistill.frontend import FrontEnd, FrontEndConfig, settling_bins

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

STRETCH_BINS = 60 * BINS_PER_S
MIN_GOOD_BINS = 5 * BINS_PER_S  # of a channel; with fewer it is not compared
READ_VALUES = 1 << 24  # frames x channels that are read at a time: 64 MB
USUAL, POSSIBLE = (0.5, 2.0), (0.05, 20.0)  # median ratios without a warning, and without an error
USUAL_SINGLE = (0.1, 10.0)  # of one channel
MOST_LISTED = 8


class Frames(Protocol):
    """Describes the LFP of a recording with its channels in the order of the bundle."""

    @property
    def frames(self) -> int:
        """Returns how many frames there are."""

    @property
    def longest_run(self) -> tuple[int, int]:
        """Returns [first, stop) of the longest stretch of frames without a gap."""

    def find_invalid(self, config: FrontEndConfig) -> Mask:
        """Returns which bins (B,) of the recording touch times that it marks as invalid."""

    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Reads frames [start, stop) as (frames, channels) in uV, with NaN where nothing is known."""


def measure_ratios(lfp: Frames, config: FrontEndConfig, std: Floats) -> Floats:
    """Returns by channel the deviation of the recording over `std` (C,), the bundle's. NaN stands for not compared.

    The slow LFP is compared, and not the power of bands, of which a gain changes the mean and not the deviation.
    Channels are not compared where the bundle's deviation is 0, or where less than five seconds of the minute that is
    measured are good. Bins in invalid times are not good.
    """
    config = replace(config, bands=())
    values, good, calm = _filter_middle(lfp, config)
    good = np.where(calm.sum(axis=0) >= MIN_GOOD_BINS, calm, good)
    _, found = compute_moments(values, leave_out_artefacts(values, good, settling_bins(config)))
    ratios: Floats = np.full(len(std), np.nan)
    np.divide(found, std, out=ratios, where=std > 0)
    ratios[good.sum(axis=0) < MIN_GOOD_BINS] = np.nan
    return ratios


def describe_length(lfp: Frames, config: FrontEndConfig) -> str | None:
    """Returns a warning where the recording is too short for `measure_ratios` to compare any channel, else None."""
    found, needed = config.bin_of(lfp.frames), settling_bins(config) + MIN_GOOD_BINS
    if found >= needed:
        return None
    return (
        f"the amplitude was not compared with the bundle: the recording is {found / BINS_PER_S:g} s long, and "
        f"{needed / BINS_PER_S:g} s are needed"
    )


def _filter_middle(lfp: Frames, config: FrontEndConfig) -> tuple[Floats, Mask, Mask]:
    """Returns bins of a minute after the settling time, good ones, and good ones with settled filters, (B, C) each.

    Bins in invalid times are not good. The minute lies in the longest stretch without a gap, or in the whole recording
    where that is too short: where the fewest of its bins are invalid, and of such places closest to the middle.
    """
    settling = settling_bins(config)
    begin, total = map(config.bin_of, lfp.longest_run)
    invalid = lfp.find_invalid(config)
    if np.count_nonzero(~invalid[begin + settling : total]) < MIN_GOOD_BINS:
        begin, total = 0, len(invalid)
    wanted = settling + STRETCH_BINS
    firsts = np.arange(begin, max(begin, total - wanted) + 1)
    before = np.concatenate([[0], np.cumsum(~invalid)])  # valid bins before each
    valid = before[np.minimum(firsts + wanted, total)] - before[np.minimum(firsts + settling, total)]
    aside = np.abs(firsts - (begin + total - wanted) // 2)
    first = int(firsts[np.lexsort((aside, -valid))[0]])
    start, stop = config.edge(first), config.edge(min(total, first + wanted))
    front_end, step = FrontEnd(config), max(1, READ_VALUES // config.channels)
    parts = [front_end.push(lfp.read(at, min(at + step, stop))) for at in range(start, stop, step)]
    values = np.concatenate([np.empty((0, config.channels)), *(part.values for part in parts)])
    bad: Mask = np.concatenate([np.empty(values[:0].shape, np.bool_), *(part.bad for part in parts)])
    unsettled: Mask = np.concatenate([np.empty(0, np.bool_), *(part.unsettled for part in parts)])
    spoilt = invalid[first : first + len(bad)]
    good = ~(bad | spoilt[:, None])
    calm = good & ~(unsettled | _touch_after(spoilt, settling))[:, None]
    return values[settling:], good[settling:], calm[settling:]


def _touch_after(spoilt: Mask, settling: int) -> Mask:
    """Returns the bins (B,) that are spoilt or lie within the settling time after such a bin."""
    at = np.arange(len(spoilt))
    latest = np.maximum.accumulate(np.where(spoilt, at, -settling - 1))
    touched: Mask = at - latest <= settling
    return touched


def judge_ratios(ratios: Floats, names: Sequence[str], file: object, series: str) -> list[str]:
    """Returns warnings for the ratios (C,) of `measure_ratios`. Raises RecordingError for an impossible amplitude."""
    known = np.isfinite(ratios)
    if not known.any():
        return [
            "the amplitude was not compared with the bundle: no channel has five good seconds in the minute that "
            f"was measured; if all are flat, check `conversion` and the unit of {series}"
        ]
    median, warnings = float(np.median(ratios[known])), []
    if not POSSIBLE[0] <= median <= POSSIBLE[1]:
        raise RecordingError(
            f"{file}: the amplitude of {series} is not that of the session that the bundle was built on",
            got=f"{median:.3g} times the bundle's, the median over {known.sum()} channels",
            expected=f"{USUAL[0]:g} to {USUAL[1]:g} times",
            causes=(
                "the gain was lost: `conversion` or `channel_conversion`",
                "the samples are not in the unit that the file states",
                "the series is not the one that the bundle was built on",
            ),
            next_step=f"edgedistill inspect {file} lists the series for --lfp; else correct `conversion` in the file",
        )
    usual = USUAL[0] <= median <= USUAL[1]
    if not usual:
        warnings.append(
            f"the amplitude is {median:.3g} times that of the bundle, the median over {known.sum()} channels: check "
            f"the gain (`conversion`, `channel_conversion`) and the unit of {series}"
        )
    single = ratios if usual else ratios / median
    far = np.flatnonzero(known & ~((single >= USUAL_SINGLE[0]) & (single <= USUAL_SINGLE[1])))
    if far.size:
        listed = ", ".join(f"{names[i]} ({ratios[i]:.3g} times)" for i in far[:MOST_LISTED])
        more = f" and {far.size - MOST_LISTED} more" if far.size > MOST_LISTED else ""
        warnings.append(f"the amplitude of single channels is far from that of the bundle: {listed}{more}")
    return warnings
