"""Runs the LFP of a recording through the front end, and finds the bins in which its filters are disturbed.

The inputs are an open LFP and the bins of the session. The output is a `BinnedLfp`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from edgedistill.config import NO_BANDS, BandPower
from edgedistill.data.bin_clock import BinClock
from edgedistill.data.coverage import ALL_BAD, GAP, INVALID, SETTLING, Reasons
from edgedistill.data.lfp.layout import describe_amplitude
from edgedistill.data.lfp.lfp import Gap, Lfp
from edgedistill.data.session import Mask
from edgedistill.data.settling import Level, find_rings_of_artefacts, robust_deviation
from edgedistill.errors import RecordingError
from edgedistill.frontend import FrontEnd, FrontEndConfig, find_bands
from edgedistill.scratch import allocate, release_pages

BLOCK_VALUES = 1 << 21  # frames x channels that the front end takes at a time: 8 MB


@dataclass(frozen=True, eq=False)
class BinnedLfp:
    """Holds the LFP of one session after the front end, T bins of C channels."""

    config: FrontEndConfig
    values: npt.NDArray[np.float64]  # (T, I) slow LFP in uV, then the log power of each band
    bad: Mask  # (T, C)
    gap: Mask  # (T,) frames were lost
    unsettled: Mask  # (T,) the filters have not settled since the start or a gap
    level: Level

    @property
    def slow(self) -> npt.NDArray[np.float64]:
        """Returns the slow LFP (T, C) in uV."""
        return self.values[:, : self.config.channels]

    @property
    def notes(self) -> tuple[str, ...]:
        """Returns a note where the amplitude says that the numbers in the file are not in the unit that it states."""
        deviation = robust_deviation(self.slow, ~self.bad)
        note = describe_amplitude(float(np.median(deviation[deviation > 0]))) if deviation.any() else None
        return () if note is None else (note,)

    def find_disturbed(self, known: Mapping[str, Mask]) -> tuple[Reasons, Mask]:
        """Returns further reasons for bins (T,), and the bins (T, C) in which filters ring from an artefact.

        `known` holds the reasons that the file gives.
        """
        good = ~(self.bad | (known[GAP] | known[INVALID])[:, None])
        deviation = robust_deviation(self.slow, good)
        excess = self.level.excess(self.level.offset(~good))
        rings = find_rings_of_artefacts(self.config, self.slow, known[INVALID], excess, deviation) & good
        ringing = rings.any(axis=1) & (4 * rings.sum(axis=1) >= good.sum(axis=1))
        settled = int(np.argmin(self.unsettled))  # the start of a stream is no loss
        settling = ringing | (self.unsettled & (np.arange(len(good)) >= settled))
        return [(GAP, self.gap), (ALL_BAD, self.bad.all(axis=1)), (SETTLING, settling)], rings


def default_front_end(lfp: Lfp, line_hz: float, bands: BandPower = NO_BANDS) -> FrontEndConfig:
    """Returns the settings for an LFP, in which channels that the file marks as bad are left out.

    Of the bands those are taken that the LFP holds.
    """
    marked = tuple(c for c, electrode in enumerate(lfp.electrodes) if electrode.bad is not None)
    found = find_bands(bands.bands, lfp.rate)
    return FrontEndConfig(lfp.rate, lfp.channels, line_hz=line_hz, left_out=marked, bands=found, band_ms=bands.ms)


def describe_missing_bands(wanted: BandPower, rate: Fraction) -> str | None:
    """Returns a note that names the bands which LFP at `rate` Hz does not hold or only in part, or None."""
    kept = [find_bands((band,), rate) for band in wanted.bands]
    changes = [
        f"{band[0]:g}-{band[1]:g} Hz is " + (f"cut at {found[0][1]:.4g} Hz" if found else "left out")
        for band, found in zip(wanted.bands, kept, strict=True)
        if found != (band,)
    ]
    return (
        f"band power: {', '.join(changes)}, because LFP at {float(rate):.10g} Hz does not hold it" if changes else None
    )


def bin_lfp(lfp: Lfp, clock: BinClock, config: FrontEndConfig) -> BinnedLfp:
    """Runs the LFP through the front end in blocks, so that memory grows with the bins and not with the frames."""
    front_end = FrontEnd(config)
    values = allocate((clock.bins, config.inputs), np.float64)
    bad: Mask = allocate((clock.bins, lfp.channels), np.bool_)
    gap: Mask = np.empty(clock.bins, dtype=np.bool_)
    unsettled: Mask = np.empty(clock.bins, dtype=np.bool_)
    level, first = Level(config, clock.bins), 0
    for block in lfp.read_blocks(max(1, BLOCK_VALUES // lfp.channels), stop=config.edge(clock.bins)):
        if not isinstance(block, Gap):
            level.add(block, first)
        first += block.frames if isinstance(block, Gap) else len(block)
        done = front_end.gap(block.frames) if isinstance(block, Gap) else front_end.push(block)
        at, stop = done.first_bin, min(done.first_bin + len(done.values), clock.bins)
        values[at:stop], bad[at:stop] = done.values[: stop - at], done.bad[: stop - at]
        gap[at:stop], unsettled[at:stop] = done.gap[: stop - at], done.unsettled[: stop - at]
        release_pages()
    _require_good_channel(lfp, bad[~gap] if not gap.all() else bad, config.recover_s)
    return BinnedLfp(config, values, bad, gap, unsettled, level)


def _require_good_channel(lfp: Lfp, bad: npt.NDArray[np.bool_], recover_s: float) -> None:
    """Refuses a session without a good channel. A channel counts as bad for `recover_s` seconds after a gap.

    The limit is 95 % and not all bins, because a flat channel counts as good in its first second.
    """
    share = bad.mean(axis=0)
    if share.min() > 0.95:
        raise RecordingError(
            f"{lfp.file}: all channels of {lfp.series} are bad",
            got=f"{lfp.channels} channels, even the best NaN, flat, saturated or after a gap in {share.min():.1%} of "
            "bins",
            expected="at least one channel with signal",
            causes=(
                *(
                    (f"{len(lfp.gaps)} gaps, after each of which a channel has to recover for {recover_s:g} s",)
                    * bool(lfp.gaps)
                ),
                "the array was not connected",
                "`conversion` is zero or far too small",
                "all data are NaN",
            ),
            next_step=f"edgedistill inspect {lfp.file}",
        )
