"""Chooses which ElectricalSeries of a file are read as its LFP, and says of every one why or why not.

The inputs are the time series of a file and the name that the user gave, if any. The output is a `Choice`: the series
to read, one after another in time, and a `Candidate` for every ElectricalSeries.

The order is: 200 Hz or more before slower ones; low frequencies, then what names no band, then narrow bands, then the
spike band; processed before raw data of the same electrodes. Several series of the same electrodes that follow each
other in time are segments of one array. Where several arrays remain, the user has to choose.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np

from edgedistill.data.candidates import Candidate, find_named
from edgedistill.data.lfp.clock import SAME_RATE
from edgedistill.data.lfp.electrodes import read_electrode_rows
from edgedistill.data.lfp.timestamp_rate import read_typical_rate
from edgedistill.data.lfp.words import Band, tell_band
from edgedistill.data.series import Series, name_dataset_in_errors
from edgedistill.errors import RecordingError

MIN_RATE_HZ = 200
ROUNDED_START_S = 1e-3  # starts of segments are often rounded to a millisecond


@dataclass(frozen=True)
class Stream:
    """Holds what the choice needs to know of one ElectricalSeries."""

    series: Series
    rate_hz: float  # where no frames are lost
    start_s: float
    stop_s: float
    electrodes: tuple[int, ...] | None
    band: Band
    why: str

    @property
    def path(self) -> str:
        """Returns the path inside the file."""
        return self.series.path

    @property
    def rank(self) -> tuple[bool, Band]:
        """Returns what decides between arrays; the smallest is read."""
        return not self.rate_hz >= MIN_RATE_HZ, self.band

    @property
    def place(self) -> int:
        """Returns 0 for an LFP in a processing module, 1 for other processed series and 2 for raw acquisition."""
        if self.path.startswith("acquisition/"):
            return 2
        return 0 if self.band is Band.LOW else 1


@dataclass(frozen=True)
class Choice:
    """Holds the series to read, in the order of time, and the verdict on every candidate."""

    parts: tuple[Series, ...]
    candidates: tuple[Candidate, ...]


def find_electrical_series(series: Sequence[Series]) -> list[Series]:
    """Returns the series of continuous voltages, and of types derived from them. Spike snippets are left out."""
    from pynwb.ecephys import ElectricalSeries, SpikeEventSeries

    return [s for s in series if isinstance(s.node, ElectricalSeries) and not isinstance(s.node, SpikeEventSeries)]


def choose_lfp(
    series: Sequence[Series],
    file: Path,
    named: str | None,
    find_fault: Callable[[Sequence[Series]], str | None] = lambda parts: None,
) -> Choice | None:
    """Returns the choice, or None where a file has no ElectricalSeries.

    `find_fault` says what is wrong with the data of an array, e.g. that it is the spike band, or None. It is asked only
    of the array that would be read, and not where the user named it.

    Raises RecordingError where several arrays remain, where all have a fault, and where nothing has the given name.
    """
    streams = [_describe(s, file) for s in find_electrical_series(series)]
    if named is not None:
        parts = _find_named_array(streams, named, file)
        return _tell(streams, parts, {s.path: "another series was named by --lfp" for s in streams}, "named by --lfp")
    if not streams:
        return None
    faults: dict[str, str] = {}
    while left := [s for s in streams if s.path not in faults]:
        parts, why_not = _choose_by_rules(streams, left, file)
        fault = find_fault([s.series for s in parts])
        if fault is None:
            return _tell(streams, parts, {**why_not, **faults}, _say_why(parts[0], len(streams)))
        faults |= {s.path: fault for s in parts}
    first = next(iter(faults))
    raise RecordingError(
        f"{file}: {first} is not an LFP",
        got=faults[first],
        expected="a series that was not high-pass filtered, of broadband or low frequencies",
        causes=("the LFP was stored in another file", "the series holds the spike band only"),
        next_step=f"--lfp {first} reads it nevertheless; edgedistill inspect {file} lists every series",
    )


def _describe(series: Series, file: Path) -> Stream:
    band, why = tell_band(series)
    times = series.node.timestamps
    with name_dataset_in_errors(file, f"{series.path}/timestamps"):
        rate = read_typical_rate(series)
        ends = (float(times[0]), float(times[-1])) if times is not None and len(times) else None
    if series.node.rate is None and ends is not None:
        start, stop = ends[0], ends[1] + (1 / rate if rate > 0 else 0.0)
    else:
        start = float(series.node.starting_time or 0.0)
        stop = start + (_count_frames(series) / rate if rate > 0 else 0.0)
    return Stream(series, rate, start, stop, read_electrode_rows(series.node), band, why)


def _count_frames(series: Series) -> int:
    rows = read_electrode_rows(series.node)
    shape = series.shape or (0,)
    return max(shape) if rows is None or len(rows) == shape[0] else shape[0]


# ------------------------------------------------------------------------------------------- by the rules


def _choose_by_rules(streams: list[Stream], left: list[Stream], file: Path) -> tuple[list[Stream], dict[str, str]]:
    best = min(s.rank for s in left)
    why_not = {s.path: _explain(s, best) for s in left if s.rank != best}
    kept = []
    for stream in (s for s in left if s.rank == best):
        finer = [s for s in left if s.rank == best and s.place < stream.place and _share_electrodes(s, stream)]
        if finer:
            why_not[stream.path] = f"{finer[0].path} holds the same electrodes, processed"
        else:
            kept.append(stream)
    arrays = group_segments(kept)
    if len(arrays) > 1:
        raise _ambiguous_error(file, arrays, streams, "several series could be the LFP")
    return arrays[0], why_not


def _explain(stream: Stream, best: tuple[bool, Band]) -> str:
    if stream.rank[0] and not best[0]:
        return f"{stream.rate_hz:g} Hz is below {MIN_RATE_HZ} Hz"
    what = {
        Band.UNKNOWN: "another series says that it is the LFP",
        Band.NARROW: f"a narrow-band copy: {stream.why}",
        Band.HIGH: f"the spike band: {stream.why}",
    }
    return what.get(stream.band, stream.why)


def _say_why(chosen: Stream, candidates: int) -> str:
    if chosen.band in (Band.NARROW, Band.HIGH):
        return f"nothing better is there, although {chosen.why}"
    return chosen.why if candidates > 1 else "the only one"


def _share_electrodes(one: Stream, other: Stream) -> bool:
    if one.electrodes is None or other.electrodes is None:
        return True
    return bool(set(one.electrodes) & set(other.electrodes))


def _tell(streams: list[Stream], parts: list[Stream], why_not: dict[str, str], why: str) -> Choice:
    chosen = {s.path for s in parts}
    if len(parts) > 1:
        why += f"; one of {len(parts)} segments of one array"
    candidates = tuple(
        Candidate(s.path, s.path in chosen, why if s.path in chosen else why_not[s.path]) for s in streams
    )
    return Choice(tuple(s.series for s in parts), candidates)


# ------------------------------------------------------------------------------------------- segments and names


def group_segments(streams: Sequence[Stream]) -> list[list[Stream]]:
    """Returns arrays: series of the same electrodes and rate that follow each other in time are one, in that order."""
    arrays: list[list[Stream]] = []
    for stream in sorted(streams, key=lambda s: (s.start_s, s.path)):
        fitting = [array for array in arrays if _follows(array[-1], stream) and _keeps_stem(array, stream)]
        if fitting:
            max(fitting, key=lambda array: len(find_stem([*array, stream]))).append(stream)
        else:
            arrays.append([stream])
    return arrays


def _keeps_stem(array: Sequence[Stream], stream: Stream) -> bool:
    return len(array) == 1 or find_stem(array) == find_stem([*array, stream])


def _follows(before: Stream, after: Stream) -> bool:
    same_rate = abs(before.rate_hz - after.rate_hz) <= SAME_RATE * before.rate_hz
    same = before.electrodes == after.electrodes and before.series.shape[1:] == after.series.shape[1:]
    known = before.electrodes is not None or bool(find_stem([before, after]))
    slack = max(1 / before.rate_hz, ROUNDED_START_S) if before.rate_hz > 0 else 0.0
    return bool(same_rate and same and known and before.rank == after.rank and after.start_s >= before.stop_s - slack)


def find_stem(array: Sequence[Stream]) -> str:
    """Returns the beginning that the names of segments share: `M1` for M1_1 and M1_2. Numbers are never cut."""
    split = [re.findall(r"\d+|\D+", s.series.name) for s in array]
    if len(split) == 1 or len({s.series.name for s in array}) == 1:
        return str(array[0].series.name)
    shared = takewhile(lambda pieces: len(set(pieces)) == 1, zip(*split, strict=False))
    return "".join(pieces[0] for pieces in shared).rstrip("_-. ")


def _find_named_array(streams: list[Stream], named: str, file: Path) -> list[Stream]:
    arrays = _match_arrays(streams, named, file)
    if len(arrays) > 1:
        raise _ambiguous_error(file, arrays, streams, f"--lfp {named} stands for several series")
    return arrays[0]


def _match_arrays(streams: Sequence[Stream], named: str, file: Path) -> list[list[Stream]]:
    """Returns the arrays that a name, a path, a container or the stem of segments stands for."""
    try:
        return group_segments(find_named(streams, named, "--lfp", file))
    except RecordingError:
        asked = "/" + named.strip("/").lower()
        arrays = [array for array in group_segments(streams) if len(array) > 1]
        stems = [array for array in arrays if f"/{_get_stem_path(array).lower()}".endswith(asked)]
        if not stems:
            raise
        return stems


def _get_stem_path(array: Sequence[Stream]) -> str:
    return f"{array[0].path.rpartition('/')[0]}/{find_stem(array)}"


def _ambiguous_error(file: Path, arrays: list[list[Stream]], streams: list[Stream], what: str) -> RecordingError:
    lines = [f"--lfp {find_option(array, streams)}  ({_describe_array(array)})" for array in arrays]
    return RecordingError(
        f"{file}: {what}",
        got=", ".join(" + ".join(s.path for s in array) for array in arrays),
        expected="one of these: " + "; ".join(lines),
        next_step=f"choose one with {lines[0].partition('  ')[0]}; edgedistill inspect {file} lists every series",
    )


def _describe_array(array: Sequence[Stream]) -> str:
    first, seconds = array[0], sum(s.stop_s - s.start_s for s in array)
    channels = len(first.electrodes) if first.electrodes else int(np.prod(first.series.shape[1:]))
    segments = f", {len(array)} segments" if len(array) > 1 else ""
    return f"{channels} channels, {first.rate_hz:g} Hz, {seconds:.1f} s{segments}"


def find_option(array: Sequence[Stream], streams: Sequence[Stream]) -> str:
    """Returns the shortest name that stands for an array and nothing else: a name, a stem, a container or a path."""
    wanted = {s.path for s in array}
    containers = {s.path.rpartition("/")[0] for s in array}
    options = [find_stem(array), _get_stem_path(array)]
    options += [c.rpartition("/")[2] for c in containers] + list(containers) if len(containers) == 1 else []
    for option in filter(None, options):
        try:
            found = _match_arrays(streams, option, Path())
        except RecordingError:
            continue
        if len(found) == 1 and {s.path for s in found[0]} == wanted:
            return option
    return " + ".join(s.path for s in array)


def find_option_like(series: Sequence[Series], path: str, file: Path) -> str | None:
    """Returns the name that reads the array which `Lfp.series` of another session calls `path`.

    A series at one of its paths belongs to that array, else a series of one of its names. Its segments are read with
    it. Returns None where the file has no such array, or several.
    """
    streams = [_describe(s, file) for s in find_electrical_series(series)]
    arrays, paths = group_segments(streams), path.split(" + ")
    names = {one.rpartition("/")[2] for one in paths}
    for found in (
        [array for array in arrays if any(s.path in paths for s in array)],
        [array for array in arrays if any(s.series.name in names for s in array)],
    ):
        if len(found) == 1:
            option = find_option(found[0], streams)
            return None if " + " in option else option  # nothing stands for all segments and for nothing else
    return None
