"""Puts one recording on the 10 ms bin clock.

The input is a recording. The output is `SessionBins`: the LFP after the causal front end (in uV, not z-scored), the
spikes in each bin, and the behavior at the end of each bin. `bin_clock` finds the bins that all needed parts cover.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgedistill.data.behavior import Behavior
from edgedistill.data.bin_clock import compute_edges, find_extent
from edgedistill.data.lfp import MIN_RATE_HZ, Gap, Lfp
from edgedistill.data.recording import PARTS, Recording
from edgedistill.data.session import (
    BINS_PER_S,
    MIN_BINS,
    SessionBins,
    Split,
    fit_normalization,
    load_session_bins,
    save_session_bins,
    split_bins,
)
from edgedistill.data.units import Units
from edgedistill.errors import RecordingError
from edgedistill.frontend import FrontEnd, FrontEndConfig

__all__ = [
    "MIN_BINS",
    "SessionBins",
    "Split",
    "bins_from_recording",
    "file_sha256",
    "fit_normalization",
    "load_session_bins",
    "save_session_bins",
    "split_bins",
]

MIN_BEHAVIOR_BINS = 10 * BINS_PER_S
BLOCK_VALUES = 1 << 21  # frames x channels that the front end takes at a time: 8 MB


def bins_from_recording(
    recording: Recording,
    *,
    need: Iterable[str] = PARTS,
    also: Iterable[str] = (),
    line_hz: float = 60,
) -> SessionBins:
    """Returns one session on the bin clock: the parts in `need`, and those in `also` that the file has.

    The clock is that of the LFP, also when only spikes are needed. Without LFP bin 0 begins at 0 s, or at the whole
    second before a recording that starts later than a minute.

    Raises RecordingError for a missing part, LFP below 200 Hz, less than two minutes, clocks that do not overlap, and a
    session whose channels are all bad. Stretches of NaN and dead channels are no errors.
    """
    need = tuple(need)
    recording.require(need)
    parts = {*need, *(part for part in also if _has_part(recording, part))}
    if "lfp" in parts - {*need} and recording.lfp is not None and recording.lfp.rate < MIN_RATE_HZ:
        parts.remove("lfp")  # such a series is band power, but its clock is still that of the bins
    lfp = _find_clock_lfp(recording, needed="lfp" in parts)
    units = recording.units if "units" in parts else None
    behavior = recording.behavior if "behavior" in parts else None
    start_s, n_bins = find_extent(recording, lfp, units, behavior)
    ends_s = compute_edges(start_s, n_bins)
    filtered = _filter_lfp(lfp, n_bins, line_hz) if lfp is not None and "lfp" in parts else (None, None, None)
    config, values, bad = filtered
    return SessionBins(
        session_id=recording.session_id,
        path=str(recording.path),
        sha256=file_sha256(recording.path),
        subject_id=recording.subject_id,
        session_start=recording.session_start,
        start_s=start_s,
        bins=n_bins,
        frontend=config,
        channel_ids=lfp.channel_ids if lfp is not None and config is not None else (),
        output_names=behavior.names if behavior is not None else (),
        output_units=behavior.units if behavior is not None else (),
        lfp=values,
        bad=bad,
        counts=_count_spikes(units, ends_s) if units is not None else None,
        behavior=_sample_behavior(behavior, ends_s[1:]) if behavior is not None else None,
        electrodes=lfp.electrodes if lfp is not None and config is not None else (),
        series={
            name: part.series
            for name, part in (("lfp", lfp), ("units", units), ("behavior", behavior))
            if part is not None
        },
    )


def _has_part(recording: Recording, part: str) -> bool:
    """Returns whether a part exists and can be used. A broken part does not stop a command that can do without."""
    try:
        held = getattr(recording, part)
        if isinstance(held, Behavior):
            _ = held.times_s  # reading the times checks the clock
        return held is not None
    except RecordingError:
        return False


def _find_clock_lfp(recording: Recording, needed: bool) -> Lfp | None:
    lfp = recording.lfp if needed or _has_part(recording, "lfp") else None
    if needed and lfp is not None and lfp.rate < MIN_RATE_HZ:
        raise RecordingError(
            f"{recording.path}: the sampling rate of {lfp.series} is too low",
            got=f"{float(lfp.rate):g} Hz",
            expected=f"at least {MIN_RATE_HZ} Hz",
            causes=("the series holds band power or an envelope", "the rate was written in kHz"),
            next_step="store the LFP at its original rate, or correct `rate`",
        )
    return lfp


def _count_spikes(units: Units, edges_s: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    counts = np.empty((len(edges_s) - 1, len(units)), dtype=np.uint8)
    for unit, times in enumerate(units):
        counts[:, unit] = np.minimum(np.diff(np.searchsorted(times, edges_s, side="left")), 255)
    return counts


def _sample_behavior(behavior: Behavior, ends_s: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    outputs = behavior.sample_at(ends_s)
    whole = int(np.isfinite(outputs).all(axis=1).sum())
    if whole < MIN_BEHAVIOR_BINS:
        raise RecordingError(
            f"{behavior.file}: behavior {behavior.series} has too few values",
            got=f"{whole / BINS_PER_S:g} s without NaN",
            expected=f"at least {MIN_BEHAVIOR_BINS / BINS_PER_S:g} s",
            causes=("tracking was lost", "another series holds the movement"),
            next_step="name another series with `behavior`, see `edgedistill inspect`",
        )
    return outputs


def _filter_lfp(
    lfp: Lfp, n_bins: int, line_hz: float
) -> tuple[FrontEndConfig, npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Runs the LFP through the front end in blocks, so that memory grows with the bins and not with the frames."""
    config = FrontEndConfig(rate=lfp.rate, channels=lfp.channels, line_hz=line_hz)
    front_end = FrontEnd(config)
    values = np.empty((n_bins, lfp.channels))
    bad = np.empty((n_bins, lfp.channels), dtype=np.bool_)
    for block in lfp.read_blocks(max(1, BLOCK_VALUES // lfp.channels)):
        done = front_end.gap(block.frames) if isinstance(block, Gap) else front_end.push(block)
        at, stop = done.first_bin, min(done.first_bin + len(done.values), n_bins)
        values[at:stop], bad[at:stop] = done.values[: stop - at], done.bad[: stop - at]
        if stop == n_bins:
            break
    _require_good_channel(lfp, bad)
    return config, values, bad


def _require_good_channel(lfp: Lfp, bad: npt.NDArray[np.bool_]) -> None:
    """Refuses a session without a good channel.

    The limit is 95 % and not all bins, because a flat channel counts as good in its first second.
    """
    share = bad.mean(axis=0)
    if share.min() > 0.95:
        raise RecordingError(
            f"{lfp.file}: all channels of {lfp.series} are bad",
            got=f"{lfp.channels} channels, even the best NaN, flat or saturated in {share.min():.1%} of bins",
            expected="at least one channel with signal",
            causes=(
                "the array was not connected",
                "`conversion` is zero or far too small",
                "all data are NaN",
            ),
            next_step=f"edgedistill inspect {lfp.file}",
        )


def file_sha256(path: str | Path) -> str:
    """Returns the SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
