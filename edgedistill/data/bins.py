"""Recordings onto the 10 ms bin clock.

In: recordings. Out: `SessionBins`: LFP through the causal front end (uV, not z-scored), spikes a bin and the
behavior at the end of each bin. Bin k begins k / 100 s after the first LFP frame, so that bins count from
raw frame 0 and nothing is cut off at the start; the end is cut to what all needed parts cover.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgedistill.data.behavior import Behavior
from edgedistill.data.lfp import MIN_RATE_HZ, Lfp
from edgedistill.data.recording import PARTS, Recording, open_recording, session_files
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
    "load_sessions",
    "save_session_bins",
    "split_bins",
]

MIN_BEHAVIOR_BINS = 10 * BINS_PER_S
QUIET_S = 5  # units may be silent this long before the end of a recording
BLOCK_VALUES = 1 << 21  # frames x channels pushed at a time: 8 MB

Spikes = tuple[npt.NDArray[np.float64], ...]


def load_sessions(
    paths: Sequence[str | Path],
    need: Iterable[str] = PARTS,
    *,
    also: Iterable[str] = (),
    line_hz: float = 60,
    behavior: str | None = None,
) -> list[SessionBins]:
    """Sessions from files and folders, as `combine_sessions` puts them together.

    Raises RecordingError when a session lacks what is needed.
    """
    need, also = tuple(need), tuple(also)
    sessions = []
    for path in session_files(paths):
        with open_recording(path, behavior=behavior) as recording:
            sessions.append(bins_from_recording(recording, need=need, also=also, line_hz=line_hz))
    return combine_sessions(sessions)


def combine_sessions(sessions: Iterable[SessionBins]) -> list[SessionBins]:
    """Sorted by their start; equal session ids are replaced by the names of the files, then by their paths.

    Raises RecordingError when sessions differ in the names or units of their behavior.
    """
    ordered = sorted(sessions, key=lambda session: (session.session_start, session.path))
    _check_outputs(ordered)
    for name_of in (lambda path: path.stem, lambda path: str(path.with_suffix(""))):  # monday/rec, tuesday/rec
        ids = [session.session_id for session in ordered]
        ordered = [
            replace(session, session_id=name_of(Path(session.path))) if ids.count(session.session_id) > 1 else session
            for session in ordered
        ]
    return ordered


def bins_from_recording(
    recording: Recording,
    *,
    need: Iterable[str] = PARTS,
    also: Iterable[str] = (),
    line_hz: float = 60,
) -> SessionBins:
    """One session on the bin clock: the parts in `need`, and those in `also` where the file has them.

    The clock is that of the LFP, also when only spikes are needed. Without LFP bin 0 begins at 0 s, or at
    the second in which a recording begins that starts later than a minute.

    Raises RecordingError: a missing part, LFP below 200 Hz, under two minutes, clocks that do not overlap,
    all channels bad. NaN stretches and dead channels are no errors.
    """
    need = tuple(need)
    recording.require(need)
    parts = {*need, *(part for part in also if _has(recording, part))}
    if "lfp" in parts - {*need} and recording.lfp is not None and recording.lfp.rate < MIN_RATE_HZ:
        parts.remove("lfp")  # band power: its clock is still that of the bins
    lfp = _clock_lfp(recording, needed="lfp" in parts)
    units = recording.units if "units" in parts else None
    behavior = recording.behavior if "behavior" in parts else None
    start_s, n_bins = _extent(recording, lfp, units, behavior)
    ends_s = _edges_s(start_s, n_bins)
    filtered = _filter(lfp, n_bins, line_hz) if lfp is not None and "lfp" in parts else (None, None, None)
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
        behavior=_behavior_at(behavior, ends_s[1:]) if behavior is not None else None,
    )


def _has(recording: Recording, part: str) -> bool:
    """A part that cannot be read or used does not stop a command that could do without it."""
    try:
        held = getattr(recording, part)
        if isinstance(held, Behavior):
            _ = held.times_s  # a clock without sense shows here
        return held is not None
    except RecordingError:
        return False


def _clock_lfp(recording: Recording, needed: bool) -> Lfp | None:
    lfp = recording.lfp if needed or _has(recording, "lfp") else None
    if needed and lfp is not None and lfp.rate < MIN_RATE_HZ:
        raise RecordingError(
            f"{recording.path}: the sampling rate of {lfp.series} is too low",
            got=f"{float(lfp.rate):g} Hz",
            expected=f"at least {MIN_RATE_HZ} Hz",
            causes=("the series holds band power or an envelope", "the rate was written in kHz"),
            next_step="store the LFP at its original rate, or correct `rate`",
        )
    return lfp


def _extent(
    recording: Recording, lfp: Lfp | None, units: Spikes | None, behavior: Behavior | None
) -> tuple[float, int]:
    """Start in s and number of bins, after a check of the parts' spans against each other."""
    spans: dict[str, tuple[float, float]] = {}
    if lfp is not None:
        spans["LFP"] = (lfp.start_s, lfp.start_s + lfp.duration_s)
    if behavior is not None:
        spans["behavior"] = (behavior.start_s, behavior.stop_s)
    if units is not None:
        if not (heard := [unit for unit in units if len(unit)]):
            raise RecordingError(f"{recording.path}: the units hold no spikes", got=recording.contents())
        quiet = QUIET_S if spans else 0.0
        spans["units"] = (float(min(u[0] for u in heard)), float(max(u[-1] for u in heard)) + quiet)
    _check_overlap(recording.path, spans)
    if lfp is not None and units is not None:
        _check_spikes_inside(recording.path, units, spans["LFP"])
    earliest = min(first for first, _ in spans.values())
    start_s = lfp.start_s if lfp is not None else float(np.floor(earliest)) if earliest >= 60 else 0.0
    lengths = [_bins_until(stop - start_s) for part, (_, stop) in spans.items() if part != "LFP"]
    if lfp is not None:
        lengths.append(lfp.frames * BINS_PER_S * lfp.rate.denominator // lfp.rate.numerator)
    if min(lengths) < MIN_BINS:
        raise _too_short(recording.path, f"{min(lengths) / BINS_PER_S:g} s from the start of bin 0")
    return start_s, min(lengths)


def _bins_until(seconds: float) -> int:
    return int(seconds * BINS_PER_S + 1e-6)


def _check_overlap(path: Path, spans: dict[str, tuple[float, float]]) -> None:
    listed = ", ".join(f"{part} {first:.3f} to {last:.3f} s" for part, (first, last) in spans.items())
    shared = min(last for _, last in spans.values()) - max(first for first, _ in spans.values())
    if shared >= MIN_BINS / BINS_PER_S - 1:  # the first spike may come late
        return
    if min(last - first for first, last in spans.values()) < MIN_BINS / BINS_PER_S:
        raise _too_short(path, listed)
    raise _unequal_clocks(path, listed, "two minutes in which all of them run")


def _check_spikes_inside(path: Path, units: Spikes, span: tuple[float, float]) -> None:
    """Spike times in samples or milliseconds overlap the LFP too, but only with their very first part."""
    inside = sum(int(np.searchsorted(u, span[1]) - np.searchsorted(u, span[0])) for u in units)
    total = sum(map(len, units))
    if inside < 0.02 * total:
        last = max(float(u[-1]) for u in units if len(u))
        during = f"{inside} of {total} spikes during the LFP ({span[0]:.3f} to {span[1]:.3f} s)"
        got = f"{during}, the last at {last:.3f} s"
        raise _unequal_clocks(path, got, "spikes and LFP on one clock")


def _unequal_clocks(path: Path, got: str, expected: str) -> RecordingError:
    return RecordingError(
        f"{path}: LFP, units and behavior run on unequal clocks",
        got=got,
        expected=expected,
        causes=(
            "times in samples or milliseconds instead of seconds",
            "a missing `starting_time`",
            "parts of two recordings in one file",
        ),
        next_step=f"compare the times in `edgedistill inspect {path}` and write the file again",
    )


def _too_short(path: Path, got: str) -> RecordingError:
    return RecordingError(
        f"{path}: fewer than two minutes of data",
        got=got,
        expected="at least 120 s",
        causes=("a test recording", "a file that was cut while it was written"),
        next_step="leave this session out",
    )


def _edges_s(start_s: float, n_bins: int) -> npt.NDArray[np.float64]:
    """Edges of all bins in s, (n_bins + 1,): start + k / 100, each rounded once.

    In integers, since 0.29 * 100 is below 29: a spike stored at 0.29 s must open bin 29.
    """
    top, bottom = start_s.as_integer_ratio()
    first, below = BINS_PER_S * top, BINS_PER_S * bottom
    return np.array([(first + k * bottom) / below for k in range(n_bins + 1)])


def _count_spikes(units: Spikes, edges_s: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    counts = np.empty((len(edges_s) - 1, len(units)), dtype=np.uint8)
    for unit, times in enumerate(units):
        counts[:, unit] = np.minimum(np.diff(np.searchsorted(times, edges_s, side="left")), 255)
    return counts


def _behavior_at(behavior: Behavior, ends_s: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    outputs = behavior.at(ends_s)
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


def _filter(
    lfp: Lfp, n_bins: int, line_hz: float
) -> tuple[FrontEndConfig, npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """LFP through the front end in blocks: memory is that of the bins, not of the frames."""
    config = FrontEndConfig(rate=lfp.rate, channels=lfp.channels, line_hz=line_hz)
    front_end = FrontEnd(config)
    values = np.empty((n_bins, lfp.channels))
    bad = np.empty((n_bins, lfp.channels), dtype=np.bool_)
    for frames in lfp.blocks(max(1, BLOCK_VALUES // lfp.channels)):
        done = front_end.push(frames)
        at, stop = done.first_bin, min(done.first_bin + len(done.values), n_bins)
        values[at:stop], bad[at:stop] = done.values[: stop - at], done.bad[: stop - at]
        if stop == n_bins:
            break
    _check_channels(lfp, bad)
    return config, values, bad


def _check_channels(lfp: Lfp, bad: npt.NDArray[np.bool_]) -> None:
    """A flat channel passes as good in its first second, hence 5 % and not 0."""
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


def _check_outputs(sessions: Sequence[SessionBins]) -> None:
    """One decoder needs one set of outputs; cm/s beside m/s would train it on a hundredfold error."""
    kinds: dict[tuple[str, ...], list[str]] = {}
    for session in sessions:
        if session.behavior is not None:
            outputs = zip(session.output_names, session.output_units, strict=True)
            kinds.setdefault(tuple(f"{name} ({unit})" for name, unit in outputs), []).append(session.path)
    if len(kinds) > 1:
        raise RecordingError(
            "the sessions differ in their behavior: "
            + "; ".join(
                f"{paths[0]}" + (f" and {len(paths) - 1} more" if paths[1:] else "") for paths in kinds.values()
            ),
            got="; ".join(", ".join(outputs) for outputs in kinds),
            expected="the same names and units in every session",
            next_step="leave some sessions out, or name a series that all of them hold with `behavior`",
        )


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
