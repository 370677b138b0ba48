"""Reports what a session file holds, what each command still needs, and what looks odd.

The input is a path. The output is an `Inspection`, as JSON or as text for `edgedistill inspect`. Only a file that
cannot be read raises an error. Everything else that is wrong becomes a line of the report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from edgedistill.config import load_preset
from edgedistill.data.behavior.choice import find_behavior_series
from edgedistill.data.behavior.report import list_candidates
from edgedistill.data.bin_clock import find_clock
from edgedistill.data.binned_lfp import describe_missing_bands
from edgedistill.data.bins import list_known_reasons
from edgedistill.data.candidates import NO_NAMES, Candidate
from edgedistill.data.coverage import NO_BEHAVIOR, Coverage, after_end, cover
from edgedistill.data.lfp.choice import find_electrical_series
from edgedistill.data.lfp.layout import describe_amplitude
from edgedistill.data.lfp.lfp import MIN_RATE_HZ
from edgedistill.data.recording import PART_NAMES, Behavior, Lfp, Recording, SeriesNames, Units, open_recording
from edgedistill.errors import RecordingError, hang_lines

MIN_SECONDS = 120
PRESET = "edge"  # the default, whose bands an LFP should hold

# what each command needs
NEEDS = {
    "pretrain": ("units",),
    "distill": ("units", "lfp"),
    "build": ("units", "lfp", "behavior"),
    "calibrate": ("lfp",),
    "run": ("lfp",),
    "adapt": ("lfp",),
    "bench": ("lfp", "behavior"),
    "probe": ("behavior",),
}
SHORT_IS_FINE = ("run", "adapt", "bench")

T = TypeVar("T")


@dataclass(frozen=True)
class Inspection:
    """Holds the report on one file. `missing` lists what each command lacks. A command without entries is ready."""

    path: str
    session_id: str
    subject_id: str | None
    session_start: str
    units: dict[str, object] | None
    lfp: dict[str, object] | None
    behavior: dict[str, object] | None
    electrodes: int
    coverage: Coverage | None  # of the parts that are there, as the file says without the samples of its LFP
    candidates: dict[str, list[dict[str, object]]]  # of each part
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    missing: dict[str, tuple[str, ...]]

    def to_json(self) -> dict[str, object]:
        """Returns plain dicts, lists, strings and numbers. `commands` says which commands are ready."""
        whole = asdict(self)
        missing = whole.pop("missing")
        commands = {name: {"ready": not lacks, "missing": list(lacks)} for name, lacks in missing.items()}
        return whole | {"problems": list(self.problems), "notes": list(self.notes), "commands": commands}

    def to_text(self) -> str:
        """Returns the report for a person, one fact a line."""
        lines = [
            self.path,
            f"  session    {self.session_id}"
            + (f", subject {self.subject_id}" if self.subject_id else "")
            + f", {self.session_start}",
            f"  units      {_format_units(self.units)}",
            f"  lfp        {_format_lfp(self.lfp)}",
            f"  behavior   {_format_behavior(self.behavior)}",
            f"  electrodes {self.electrodes}",
        ]
        if self.coverage is not None:
            unread = " (the samples of the LFP were not looked at)" if self.lfp is not None else ""
            lines.append(f"  seconds    {self.coverage.to_text()}{unread}")
        for part, listed in self.candidates.items():
            if len(listed) > 1 or not all(one["read"] for one in listed):
                lines.append(f"  candidates for {part}")
                lines += [
                    f"    {'read  ' if one['read'] else 'not   '} {one['series']}: {one['why']}" for one in listed
                ]
        lines += [f"  problem    {problem}" for problem in self.problems]
        lines += [f"  note       {note}" for note in self.notes]
        width = max(map(len, self.missing))
        for command, lacks in self.missing.items():
            lines.append(f"  {command:<{width}}  " + ("ready" if not lacks else "needs " + ", ".join(lacks)))
        return "\n".join(hang_lines(line, 13) for line in lines)


def describe(path: str | Path, names: SeriesNames = NO_NAMES) -> Inspection:
    """Inspects one NWB file. Raises RecordingError only when it cannot be read at all."""
    with open_recording(path, names) as recording:
        problems = [f"{path}: this part cannot be read: {part}" for part in recording.unreadable]
        units = _attempt(lambda: recording.units, problems)
        lfp = _attempt(lambda: recording.lfp, problems)
        moved = _attempt(lambda: _read_checked_behavior(recording), problems)
        measured = _attempt(lambda: _measure_coverage(recording, lfp, units, moved), problems)
        coverage, notes = measured if measured is not None else (None, ())
        return Inspection(
            path=str(path),
            session_id=recording.session_id,
            subject_id=recording.subject_id,
            session_start=recording.session_start,
            units=_describe_units(units) if units is not None else None,
            lfp=_describe_lfp(lfp) if lfp is not None else None,
            behavior=_describe_behavior(moved) if moved is not None else None,
            electrodes=len(recording.electrodes),
            coverage=coverage,
            candidates=_list_candidates(recording, lfp, units, moved),
            problems=tuple(problems),
            notes=(*notes, *_write_notes(recording, lfp, units, moved)),
            missing={command: _find_lacks(command, units, lfp, moved) for command in NEEDS},
        )


def _attempt(read: Callable[[], T], problems: list[str]) -> T | None:
    try:
        return read()
    except RecordingError as error:
        got = f" ({error.got})" if error.got is not None else ""
        expected = f"; expected {error.expected}" if error.expected is not None else ""
        here = error.next_step is None or error.next_step.startswith("edgedistill inspect")
        problems.append(f"{error.what}{got}{expected}" + ("" if here else f"; next: {error.next_step}"))
        return None


def _measure_coverage(
    recording: Recording, lfp: Lfp | None, units: Units | None, behavior: Behavior | None
) -> tuple[Coverage, tuple[str, ...]] | None:
    """Returns the seconds that the parts share and those that are left out, with notes, or None where nothing is."""
    if (lfp is None and behavior is None and units is None) or (lfp is not None and lfp.duration_s < MIN_SECONDS):
        return None
    clock = find_clock(recording, lfp, units, behavior)
    reasons = list_known_reasons(recording, clock, lfp, units)
    if behavior is not None:
        missing = np.isnan(behavior.sample_at(clock.edges_s[1:])).any(axis=1)
        reasons.append((NO_BEHAVIOR, np.asarray(missing)))
    return cover(clock.span_s, clock.edges_s, after_end(clock.ends_first), reasons), clock.notes


def _list_candidates(
    recording: Recording, lfp: Lfp | None, units: Units | None, behavior: Behavior | None
) -> dict[str, list[dict[str, object]]]:
    """Returns all candidates of each part. None of a part that was refused is read."""

    def list_unread(paths: Iterable[str]) -> tuple[Candidate, ...]:
        return tuple(Candidate(path, False, "see the problem") for path in paths)

    found = {
        "lfp": lfp.candidates
        if lfp is not None
        else list_unread(one.path for one in find_electrical_series(recording.series)),
        "units": units.candidates if units is not None else list_unread(recording.unit_tables),
        "behavior": behavior.candidates
        if behavior is not None
        else list_candidates(find_behavior_series(recording.series), None),
    }
    return {part: [candidate.to_json() for candidate in listed] for part, listed in found.items()}


def _read_checked_behavior(recording: Recording) -> Behavior | None:
    behavior = recording.behavior
    if behavior is not None:
        _ = behavior.times_s  # reading the times checks the clock
    return behavior


def _find_lacks(command: str, units: object, lfp: Lfp | None, behavior: Behavior | None) -> tuple[str, ...]:
    held = {"units": units, "lfp": lfp, "behavior": behavior}
    lacks = [PART_NAMES[part] for part in NEEDS[command] if held[part] is None]
    if lfp is not None and "lfp" in NEEDS[command]:
        if lfp.rate < MIN_RATE_HZ:
            lacks.append(f"LFP of at least {MIN_RATE_HZ} Hz")
        if lfp.duration_s < MIN_SECONDS and command not in SHORT_IS_FINE:
            lacks.append("two minutes of LFP")
    return tuple(lacks)


def _describe_units(units: Units) -> dict[str, object]:
    spikes = sum(map(len, units))
    heard = [unit for unit in units if len(unit)]
    first, last = (min(u[0] for u in heard), max(u[-1] for u in heard)) if heard else (None, None)
    return {
        "count": len(units),
        "spikes": spikes,
        "silent": len(units) - len(heard),
        "first_s": None if first is None else float(first),
        "last_s": None if last is None else float(last),
    }


def _describe_lfp(lfp: Lfp) -> dict[str, object]:
    return {
        "series": lfp.series,
        "rate_hz": float(lfp.rate),
        "rate": f"{lfp.rate.numerator}/{lfp.rate.denominator}",
        "channels": lfp.channels,
        "channel_ids": list(lfp.channel_ids),
        "frames": lfp.frames,
        "start_s": lfp.start_s,
        "duration_s": lfp.duration_s,
        "others": list(lfp.others),
    }


def _describe_behavior(behavior: Behavior) -> dict[str, object]:
    return {
        "series": behavior.series,
        "names": list(behavior.names),
        "units": list(behavior.units),
        "derived": behavior.derived,
        "samples": behavior.samples,
        "first_s": behavior.start_s,
        "last_s": float(behavior.times_s[-1]),
        "missing_share": float(np.isnan(behavior.values).any(axis=1).mean()),
        "others": list(behavior.others),
    }


def _write_notes(recording: Recording, lfp: Lfp | None, units: Units | None, behavior: Behavior | None) -> list[str]:
    notes = [note for part in (lfp, units, behavior) if part is not None for note in part.notes]
    if lfp is not None:
        notes += [f"channel {one.id} is masked: {one.bad}" for one in lfp.electrodes if one.bad is not None]
        notes += _write_amplitude_notes(lfp)
        missing = describe_missing_bands(load_preset(PRESET).band_power, lfp.rate)
        notes += [] if missing is None or lfp.rate < MIN_RATE_HZ else [f"with the preset {PRESET}, {missing}"]
    if behavior is not None and behavior.derived:
        notes.append(f"behavior: {behavior.derived}")
    if behavior is None and (held := find_behavior_series(recording.series)):
        notes.append(f"series that --behavior could name: {', '.join(s.path for s in held)}")
    return notes


def _write_amplitude_notes(lfp: Lfp) -> list[str]:
    """Returns notes on the amplitude and on dead channels, from ten seconds in the middle."""
    ten_s = int(10 * lfp.rate)
    at = max(0, lfp.frames // 2 - ten_s // 2)
    frames = lfp.read(at, at + ten_s).astype(np.float64)
    finite = np.isfinite(frames)
    if not finite.any():
        return ["ten seconds of LFP in the middle of the file hold no number"]
    spread = np.where(finite, frames, 0).std(axis=0)
    notes = []
    if dead := [lfp.channel_ids[c] for c in np.flatnonzero(spread < 1e-3)]:
        notes.append(f"channels without signal in the middle of the file: {', '.join(dead)}")
    amplitude = describe_amplitude(float(np.median(spread)))
    return notes if amplitude is None else [*notes, amplitude]


def _format_units(units: dict[str, object] | None) -> str:
    return "none" if units is None else f"{units['count']}, {units['spikes']} spikes"


def _format_lfp(lfp: dict[str, object] | None) -> str:
    if lfp is None:
        return "none"
    return (
        f"{lfp['channels']} channels, {lfp['rate_hz']:.10g} Hz, {lfp['duration_s']:.1f} s "
        f"from {lfp['start_s']:g} s, {lfp['series']}"
    )


def _format_behavior(behavior: dict[str, object] | None) -> str:
    if behavior is None:
        return "none"
    names, units = behavior["names"], behavior["units"]
    assert isinstance(names, list)
    assert isinstance(units, list)
    listed = ", ".join(f"{name} ({unit})" for name, unit in zip(names, units, strict=True))
    derived = f", {behavior['derived']}" if behavior["derived"] else ""
    return f"{listed}, {behavior['samples']} samples, {behavior['series']}{derived}"
