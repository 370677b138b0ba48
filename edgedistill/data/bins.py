"""Puts one recording on the 10 ms bin clock.

The input is a recording. The output is `SessionBins`: the LFP after the causal front end (in uV, not z-scored), the
spikes in each bin, and the behavior at the end of each bin. `bin_clock` finds the bins that all needed parts cover.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from edgedistill.config import NO_BANDS, BandPower
from edgedistill.data.behavior.behavior import Behavior
from edgedistill.data.bin_clock import BinClock, find_clock
from edgedistill.data.binned_lfp import bin_lfp, default_front_end, describe_missing_bands
from edgedistill.data.coverage import (
    GAP,
    INVALID,
    NO_BEHAVIOR,
    SETTLING,
    UNOBSERVED,
    Reasons,
    after_end,
    cover,
    mask_covered,
    mask_intervals,
)
from edgedistill.data.lfp.lfp import MIN_RATE_HZ, Lfp
from edgedistill.data.opening.digest import file_sha256
from edgedistill.data.recording import PARTS, Recording
from edgedistill.data.session import (
    BINS_PER_S,
    MIN_BINS,
    Mask,
    SessionBins,
    Split,
    fit_normalization,
    split_bins,
)
from edgedistill.data.session_store import load_session_bins, save_session_bins
from edgedistill.data.units.units import Units
from edgedistill.errors import RecordingError
from edgedistill.frontend import FrontEndConfig, find_bin
from edgedistill.scratch import allocate

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

MIN_VALID_BINS = 10 * BINS_PER_S  # of the session, and of its behavior


def bins_from_recording(
    recording: Recording,
    *,
    need: Iterable[str] = PARTS,
    also: Iterable[str] = (),
    line_hz: float = 60,
    bands: BandPower = NO_BANDS,
    frontend: FrontEndConfig | None = None,
    sha256: str | None = None,
    least_bins: int = MIN_BINS,
    most_bins: int | None = None,
) -> SessionBins:
    """Returns one session on the bin clock: the parts in `need`, and those in `also` that the file has.

    `frontend` holds the settings of a bundle's front end, for the rate and the channels of this LFP; without it, they
    follow from `line_hz` and `bands`. `sha256` is the digest of the session, where the caller has computed it. Of a
    long recording only the first `most_bins` are read.

    The clock is that of the LFP, also when only spikes are needed. Without LFP bin 0 begins at 0 s, or at the whole
    second before a recording that starts later than a minute.

    Bins that the file says are invalid, that lie in a gap, in which the filters still settle from one, or in which no
    channel or no unit is there, are not `valid`. `left_out_s` counts them, and those without behavior, by reason.

    Raises RecordingError for a missing part, LFP below 200 Hz, fewer than `least_bins`, clocks that do not overlap, and
    a session whose channels are all bad or of which less than ten seconds are valid. Stretches of NaN and dead channels
    are no errors.
    """
    need = tuple(need)
    recording.require(need)
    refused: dict[str, str] = {}
    parts = {*need, *(part for part in also if _has_part(recording, part, refused))}
    if "lfp" in parts - {*need} and recording.lfp is not None and recording.lfp.rate < MIN_RATE_HZ:
        parts.remove("lfp")  # such a series is band power, but its clock is still that of the bins
    lfp = _find_clock_lfp(recording, "lfp" in parts, refused)
    units = recording.units if "units" in parts else None
    behavior = recording.behavior if "behavior" in parts else None
    clock = find_clock(recording, lfp, units, behavior if "behavior" in need else None, least_bins).cut(most_bins)
    outputs = behavior.sample_at(clock.edges_s[1:]) if behavior is not None else None
    if behavior is not None and outputs is not None and (lack := _find_lack(behavior, outputs, clock.bins)):
        if "behavior" in need:
            raise lack
        behavior, outputs, refused["behavior"] = None, None, lack.what
    reasons = list_known_reasons(recording, clock, lfp if "lfp" in parts else None, units)
    _require_valid(recording, clock, reasons)
    field = None
    if lfp is not None and "lfp" in parts:
        field = bin_lfp(lfp, clock, frontend or default_front_end(lfp, line_hz, bands))
    disturbed = None
    if field is not None:
        further, disturbed = field.find_disturbed(dict(reasons))
        reasons += further
        _require_valid(recording, clock, reasons)
    valid = ~np.any([mask for _, mask in reasons], axis=0)
    if behavior is not None and outputs is not None:
        outputs[~valid] = np.nan
        if "behavior" in need:
            if lack := _find_lack(behavior, outputs, int(valid.sum())):
                raise lack
            reasons.append((NO_BEHAVIOR, np.asarray(np.isnan(outputs).any(axis=1))))
    missing = None if lfp is None or field is None or frontend else describe_missing_bands(bands, lfp.rate)
    coverage = cover(clock.span_s, clock.edges_s, after_end(clock.ends_first), reasons)
    read = {"lfp": lfp, "units": units, "behavior": behavior}  # an LFP gives the clock also where it is not used
    return SessionBins(
        session_id=recording.session_id,
        identifier=recording.identifier,
        path=str(recording.path),
        sha256=sha256 or file_sha256(recording.path),
        subject_id=recording.subject_id,
        session_start=recording.session_start,
        start_s=float(clock.edges_s[0]),
        bins=clock.bins,
        frontend=field.config if field is not None else None,
        channel_ids=lfp.channel_ids if lfp is not None and field is not None else (),
        output_names=behavior.names if behavior is not None else (),
        output_units=behavior.units if behavior is not None else (),
        lfp=field.values if field is not None else None,
        bad=field.bad if field is not None else None,
        disturbed=disturbed | ~valid[:, None] if disturbed is not None else None,
        counts=_count_spikes(units, clock.edges_s) if units is not None else None,
        behavior=outputs,
        valid=None if valid.all() else valid,
        observed=_find_observed(units, clock),
        session_s=coverage.session_s,
        left_out_s=coverage.left_out_s,
        notes=(
            *(f"{part} is not read: {why}" for part, why in refused.items()),
            *clock.notes,
            *(() if missing is None else (missing,)),
            *(note for part in (*read.values(), field) if part is not None for note in part.notes),
        ),
        names=recording.names,
        series={name: part.series for name, part in read.items() if part is not None},
        electrodes=lfp.electrodes if lfp is not None and field is not None else (),
    )


def _has_part(recording: Recording, part: str, refused: dict[str, str]) -> bool:
    """Returns whether a part exists and can be used. A broken part does not stop a command that can do without.

    Why a part cannot be used is added to `refused`.
    """
    try:
        held = getattr(recording, part)
        if isinstance(held, Behavior):
            _ = held.times_s  # reading the times checks the clock
        return held is not None
    except RecordingError as error:
        refused[part] = error.what
        return False


def _find_clock_lfp(recording: Recording, needed: bool, refused: dict[str, str]) -> Lfp | None:
    lfp = recording.lfp if needed or _has_part(recording, "lfp", refused) else None
    if needed and lfp is not None and lfp.rate < MIN_RATE_HZ:
        raise RecordingError(
            f"{recording.path}: the sampling rate of {lfp.series} is too low",
            got=f"{float(lfp.rate):g} Hz",
            expected=f"at least {MIN_RATE_HZ} Hz",
            causes=(
                "the timestamps are in milliseconds or samples instead of seconds",
                "the rate was written in kHz",
                "the series holds band power or an envelope",
            ),
            next_step=f"correct the clock in the file, or choose another series: edgedistill inspect {recording.path} "
            "lists them",
        )
    return lfp


def _count_spikes(units: Units, edges_s: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    counts = allocate((len(edges_s) - 1, len(units)), np.uint8)
    for unit, times in enumerate(units):
        counts[:, unit] = np.minimum(np.diff(np.searchsorted(times, edges_s, side="left")), 255)
    return counts


def _find_observed(units: Units | None, clock: BinClock) -> Mask | None:
    """Returns where each unit was observed (T, U), or None where all were in every bin."""
    if units is None or units.observed is None:
        return None
    observed = np.stack([mask_covered(clock.edges_s, intervals) for intervals in units.observed], axis=1)
    return None if observed.all() else observed


def _require_valid(recording: Recording, clock: BinClock, reasons: Reasons) -> None:
    """Raises RecordingError where less than ten seconds of the session can be used, whatever the reasons are."""
    coverage = cover(clock.span_s, clock.edges_s, after_end(clock.ends_first), reasons)
    if coverage.kept_s >= MIN_VALID_BINS / BINS_PER_S:
        return
    causes = {
        GAP: "the LFP was stored trial by trial",
        SETTLING: "lost packets are so frequent that the filters never settle",
        INVALID: "invalid_times marks what should be kept, or is on another clock",
        UNOBSERVED: "obs_intervals is on another clock",
    }
    raise RecordingError(
        f"{recording.path}: almost nothing of the session can be used",
        got=coverage.to_text(),
        expected=f"at least {MIN_VALID_BINS / BINS_PER_S:g} s",
        causes=[cause for reason, cause in causes.items() if coverage.left_out_s.get(reason, 0.0) > 1.0],
        next_step=f"leave this session out, or correct the file, then edgedistill inspect {recording.path}",
    )


def _find_lack(behavior: Behavior, outputs: npt.NDArray[np.float32], usable: int) -> RecordingError | None:
    """Returns the error for behavior with less than ten seconds of values in `usable` bins, or None."""
    whole = int(np.isfinite(outputs).all(axis=1).sum())
    if whole >= MIN_VALID_BINS:
        return None
    return RecordingError(
        f"{behavior.file}: behavior {behavior.series} has too few values",
        got=f"{whole / BINS_PER_S:g} s without NaN in {usable / BINS_PER_S:g} s that can be used",
        expected=f"at least {MIN_VALID_BINS / BINS_PER_S:g} s",
        causes=("tracking was lost", "another series holds the movement"),
        next_step=f"edgedistill inspect {behavior.file} lists the series that --behavior can name",
    )


def list_known_reasons(recording: Recording, clock: BinClock, lfp: Lfp | None, units: Units | None) -> Reasons:
    """Returns why bins (T,) cannot be used, as far as the file says so without its samples, with the reasons' masks."""
    reasons: Reasons = []
    if lfp is not None:
        gap: Mask = np.zeros(clock.bins, np.bool_)
        for first, count in lfp.gaps:
            gap[find_bin(lfp.rate, first) : find_bin(lfp.rate, first + count - 1) + 1] = True
        reasons.append((GAP, gap))
    invalid = np.array([(one.start_s, one.stop_s) for one in recording.invalid_times]).reshape(-1, 2)
    reasons.append((INVALID, mask_intervals(clock.edges_s, invalid)))
    if (observed := _find_observed(units, clock)) is not None:
        reasons.append((UNOBSERVED, np.asarray(~observed.any(axis=1))))
    return reasons
