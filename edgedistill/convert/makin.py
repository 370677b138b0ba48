"""Converts a session of O'Doherty, Makin and Sabes: a MATLAB file and its broadband become one NWB 2 file.

The inputs are two paths. The output is a file that appears whole or not at all: the broadband as int16 with its true
rate, every unit, and the positions of cursor, finger and target. Where the timestamps step, the broadband becomes one
series a segment, over the same electrodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy.typing as npt

from edgedistill.convert.broadband import Broadband, read_broadband
from edgedistill.convert.clock import sum_gaps
from edgedistill.convert.makin_nwb import NOMINAL_HZ, UNITS, build_nwb, name_series
from edgedistill.convert.makin_source import NAME, USAGE, MakinSession, read_makin
from edgedistill.convert.nwb_parts import FREE_SPACE, check_output, describe_zone, in_zone, parse_start
from edgedistill.convert.source_files import MATLAB_73, NWB_1, open_hdf5
from edgedistill.convert.summary import ConvertedFile, LfpSummary, Progress
from edgedistill.data.nwb_writing import write_large_nwb
from edgedistill.errors import RecordingError
from edgedistill.files import atomic_write

ZONE = "America/Los_Angeles"
MOST_PPM = 1000  # a rate farther from the nominal one is another rate


def convert_makin(
    mat: Path, broadband: Path, out: Path, *, session_start: str | None = None, progress: Progress | None = None
) -> ConvertedFile:
    """Writes `out`, an NWB 2 file, from the MATLAB file of a session and its broadband.

    `session_start` (ISO 8601) replaces what the broadband or the names of the files say. Raises RecordingError for
    inputs of another kind, damaged or of two sessions, and OutputError where `out` cannot be written.
    """
    given_start = parse_start(session_start, ZONE)
    with open_hdf5(mat, MATLAB_73, USAGE) as mat_file, open_hdf5(broadband, NWB_1, USAGE) as broadband_file:
        _require_one_session(mat, broadband)
        session, wide = read_makin(mat_file, mat), read_broadband(broadband_file, broadband)
        _require_overlap(session, wide, mat)
        start = given_start or _find_start(mat, broadband, wide)
        check_output(out, (mat, broadband), wide.bytes + 8 * sum(len(unit.times_s) for unit in session.units))
        nwb, notes = build_nwb(session, wide, mat.stem, start)
        names = [name_series(i) for i in range(len(wide.clock.segments))]
        blocks = _read_all_blocks(wide, names, mat.stem, progress)
        with atomic_write(out, "the converted session", next_step=FREE_SPACE) as partial:
            write_large_nwb(nwb, partial, blocks)
    notes = [*describe_zone(start, ZONE), *_describe_clock(wide), *notes]
    return _summarize(out, session, wide, mat.stem, start, names, notes)


def _read_all_blocks(
    wide: Broadband, names: list[str], session: str, progress: Progress | None
) -> dict[str, Iterator[npt.NDArray[Any]]]:
    """Returns, for the dataset of each segment, its frames block by block."""
    total, done = wide.count_blocks(), 0

    def counted(blocks: Iterator[npt.NDArray[Any]]) -> Iterator[npt.NDArray[Any]]:
        nonlocal done
        for block in blocks:
            yield block
            done += 1
            if progress is not None:
                progress(session, done, total)

    pairs = zip(names, wide.clock.segments, strict=True)
    return {f"acquisition/{name}/data": counted(wide.read_blocks(segment)) for name, segment in pairs}


def _require_one_session(mat: Path, broadband: Path) -> None:
    first, second = NAME.match(mat.stem), NAME.match(broadband.stem)
    if first and second and first[0] != second[0]:
        raise RecordingError(
            f"{mat} and {broadband} are of two sessions",
            got=f"{first[0]} and {second[0]}",
            expected="the MATLAB file and the broadband of one session",
            next_step=f"edgedistill convert makin {mat} {broadband.with_name(first[0] + '.nwb')} --out OUT.nwb",
        )


def _require_overlap(session: MakinSession, wide: Broadband, mat: Path) -> None:
    segments = wide.clock.segments
    first, last = segments[0].start_s, segments[-1].stop_s(wide.clock.rate_hz)
    moved_first, moved_last = float(session.times_s[0]), float(session.times_s[-1])
    shared = min(last, moved_last) - max(first, moved_first)
    if shared < 0.5 * min(last - first, moved_last - moved_first):
        raise RecordingError(
            f"{mat} and {wide.path} do not run at the same time",
            got=f"movement from {moved_first:.3f} to {moved_last:.3f} s, broadband from {first:.3f} to {last:.3f} s",
            expected="one session on one clock",
            causes=("the files are of two sessions",),
            next_step=USAGE,
        )


def _find_start(mat: Path, broadband: Path, wide: Broadband) -> datetime:
    """Returns when the session started: what the broadband says, else the day in the name of a file."""
    if wide.session_start is not None:
        return in_zone(wide.session_start, ZONE)
    if found := NAME.match(mat.stem) or NAME.match(broadband.stem):
        return in_zone(datetime(int(found[2]), int(found[3]), int(found[4])), ZONE)
    raise RecordingError(
        f"{mat}: the day of this session is unknown",
        got=f"no session_start_time in {broadband}, and no day in the names",
        expected="names as published, like indy_20160407_02.mat",
        next_step=f"{USAGE} --session-start 2016-04-07",
    )


def _describe_clock(wide: Broadband) -> list[str]:
    clock = wide.clock
    ppm = (clock.rate_hz / NOMINAL_HZ - 1) * 1e6
    drift = f", {ppm:+.1f} ppm from {NOMINAL_HZ:.10g} Hz" if abs(ppm) < MOST_PPM else ""
    notes = [f"the rate is {clock.rate_hz:.10g} Hz by the timestamps{drift}"]
    if clock.wander_s > 0.5 / clock.rate_hz:
        notes.append(f"the timestamps wander by {clock.wander_s * 1e6:.0f} us from that rate")
    elif clock.off_grid:
        notes.append(f"{clock.off_grid} timestamps lie more than half a frame off that rate, which places the frames")
    for before, after in clock.gaps:
        notes.append(f"a gap in the broadband from {before:.6f} to {after:.6f} s ({(after - before) * 1e3:.3f} ms)")
    return notes


def _summarize(
    out: Path,
    session: MakinSession,
    wide: Broadband,
    name: str,
    start: datetime,
    names: list[str],
    notes: list[str],
) -> ConvertedFile:
    clock = wide.clock
    lfp = LfpSummary(
        series=tuple(f"acquisition/{series}" for series in names),
        channels=wide.channels,
        rate_hz=clock.rate_hz,
        seconds=sum(segment.stop - segment.first for segment in clock.segments) / clock.rate_hz,
        gaps=len(clock.gaps),
        gap_seconds=sum_gaps(clock.gaps),
    )
    return ConvertedFile(
        path=out,
        session_id=name,
        session_start=start.isoformat(),
        lfp=lfp,
        units=len(session.units),
        spikes=sum(len(unit.times_s) for unit in session.units),
        behavior=tuple({"series": f"processing/behavior/Position/{key}", "unit": unit} for key, unit in UNITS.items()),
        notes=tuple(notes),
    )
