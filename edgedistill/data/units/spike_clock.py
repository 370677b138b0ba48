"""Holds spike times against the span of the recording that they belong to.

Times in samples or milliseconds, times relative to trials and times on another clock would all give bins, with wrong
counts. Each is told by where the spikes lie, and refused.
"""

from __future__ import annotations

import numpy as np

from edgedistill.data.units.units import Units
from edgedistill.errors import RecordingError

MAX_OUTSIDE = 0.01  # share of the spikes
FEW = 10  # spikes, of which a share would say nothing
TRIAL_SHARE = 0.05  # spikes that fill less of the recording than this are relative to something else
MIN_SPIKES = 100  # so many spikes tell where their unit fires
UNIX_S = 1e9  # later times are seconds since 1970
KNOWN_RATIOS = ((1e3, "milliseconds, or samples at 1 kHz"), (1e6, "microseconds"), (1e9, "nanoseconds"))


def require_spikes_inside(
    units: Units, span: tuple[float, float], what: str = "the LFP", shared: tuple[float, float] | None = None
) -> tuple[str, ...]:
    """Returns a note where up to 1 % of the spikes, or up to ten, lie outside `span` in s, which `what` covers.

    `shared` is the time in which all parts of the recording run. Spikes have to run through that time only, since units
    are often sorted in the task alone.

    Raises RecordingError where more spikes lie outside, and where all of them lie within a small part of minutes.
    """
    start, stop = span
    heard = [unit for unit in units if len(unit)]
    if not heard:
        return ()
    first, last = min(float(unit[0]) for unit in heard), max(float(unit[-1]) for unit in heard)
    inside = [int(np.searchsorted(unit, stop, side="right") - np.searchsorted(unit, start)) for unit in units]
    total = sum(map(len, units))
    outside = total - sum(inside)
    length = stop - start if shared is None else shared[1] - shared[0]
    where = f"{units.file}: {units.series}"
    again = f"then edgedistill inspect {units.file}"
    if total >= MIN_SPIKES and length >= 60 and last - first < TRIAL_SHARE * length:
        raise RecordingError(
            f"{where}: the spike times do not run through the recording",
            got=f"all {total} spikes lie between {first:.3f} and {last:.3f} s, {what} between {start:.3f} "
            f"and {stop:.3f} s",
            expected="times on the clock of the file",
            causes=(
                "times relative to trials or to a stimulus",
                "times in minutes or hours",
                "a test of a few seconds",
            ),
            next_step=f"add to every spike the start of its trial and write the units again, {again}",
        )
    if outside <= MAX_OUTSIDE * total or (outside <= FEW and 2 * outside < total):
        return (f"{outside} of {total} spikes lie outside {what} ({start:.3f} to {stop:.3f} s)",) if outside else ()
    lost = [len(unit) - held for unit, held in zip(units, inside, strict=True)]
    worst = int(np.argmax(lost))
    name = units.names[worst] if units.names else f"unit {worst}"
    raise RecordingError(
        f"{where}: {100 * outside / total:.3g} % of the spikes lie outside {what}",
        got=f"{outside} of {total} spikes outside {start:.3f} to {stop:.3f} s, {lost[worst]} of them of {name}; "
        f"the first spike lies at {first:.3f} s, the last at {last:.3f} s",
        expected=f"at most {100 * MAX_OUTSIDE:g} % outside, all times in seconds on one clock",
        causes=_guess_causes(first, last, start, stop),
        next_step=f"write spikes and field on one clock, in seconds, {again}",
    )


def _guess_causes(first: float, last: float, start: float, stop: float) -> tuple[str, ...]:
    """Returns the likely causes, the likeliest first, by how the span of the spikes compares with the recording's."""
    if first > stop and 0.5 < (last - first) / (stop - start) < 2:
        began = f"spikes on a clock that began {first - start:.0f} s earlier"
        since = "the spike times count from 1970 or another date"
        return (since, began) if first > UNIX_S else ("a missing `starting_time`", began)
    ratio = last / stop if stop > 0 else 0.0
    for known, unit in KNOWN_RATIOS:
        if 0.7 < ratio / known < 1.4:
            return (f"the spike times are in {unit}", "parts of two recordings in one file")
    if ratio > 100:
        return (f"the spike times are in samples, about {ratio:.0f} a second", "times in another unit than seconds")
    if last < start or first > stop:
        return ("a missing `starting_time`", "two clocks that start at different times")
    return ("parts of two recordings in one file", "a clock that runs at another speed", "a missing `starting_time`")
