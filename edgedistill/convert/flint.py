"""Converts the recordings of Flint and others, 2012: each "Subject" of a MATLAB file becomes one NWB 2 file.

The input is a path. The outputs are files that appear whole or not at all. The trials of a recording follow each other
with pauses. LFP and hand are therefore series with timestamps that step at the pauses, and units were observed in the
trials alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from edgedistill.convert.flint_lfp import join_lfp
from edgedistill.convert.flint_nwb import FlintFile, build_nwb
from edgedistill.convert.flint_scale import check_velocity, tell_hand_unit
from edgedistill.convert.flint_source import FlintTrial, read_flint
from edgedistill.convert.nwb_parts import FREE_SPACE, check_output, describe_zone, in_zone, parse_start
from edgedistill.convert.summary import ConvertedFile, LfpSummary, Progress
from edgedistill.data.nwb_writing import write_large_nwb
from edgedistill.errors import OutputError
from edgedistill.files import atomic_write, output_error

ZONE = "America/Chicago"
DAYS = {"e2": (2010, 7, 19), "e3": (2010, 7, 20), "e4": (2010, 8, 31), "e5": (2010, 9, 1)}  # as published with the data
UNKNOWN_DAY = (2010, 1, 1)


def convert_flint(
    mat: Path,
    out: Path,
    *,
    hand_unit: str | None = None,
    lfp_unit: str | None = None,
    session_start: str | None = None,
    progress: Progress | None = None,
) -> list[ConvertedFile]:
    """Writes one NWB 2 file a recording of `mat`: to `out` where it ends in .nwb and there is one, else into `out`.

    `hand_unit` (m, cm, mm) and `lfp_unit` (V, mV, uV) replace what is told from the data. `session_start` (ISO 8601)
    replaces the published day. Raises RecordingError for a file of another kind or with odd trials, and OutputError
    where a file cannot be written.
    """
    start, notes = _find_start(mat, parse_start(session_start, ZONE))
    notes = [*notes, *describe_zone(start, ZONE)]
    recordings = list(read_flint(mat))
    written = []
    for i, (path, (trials, short)) in enumerate(zip(_name_files(mat, out, len(recordings)), recordings, strict=True)):
        name = f"{mat.stem.lower()}_s{i + 1}"
        skipped = [f"{short} trials have no samples and were left out"] if short else []
        facts = _prepare(trials, name, start, hand_unit, lfp_unit, f"{mat}: Subject({i + 1})")
        check_output(path, (mat,), facts.bytes)
        with atomic_write(path, "the converted session", next_step=FREE_SPACE) as partial:
            write_large_nwb(build_nwb(facts), partial, {})
        written.append(_summarize(path, facts, [*notes, *skipped]))
        if progress is not None:
            progress(name, i + 1, len(recordings))
    return written


def _prepare(
    trials: list[FlintTrial], name: str, start: datetime, hand_unit: str | None, lfp_unit: str | None, where: str
) -> FlintFile:
    notes = []
    if hand_unit is None:
        hand_unit, note = tell_hand_unit(trials, where)
        notes.append(note)
    lfp = join_lfp(trials, lfp_unit, where)
    notes += [*lfp.notes, *check_velocity(trials)]
    return FlintFile(name, start, trials, hand_unit, lfp, tuple(notes))


def _name_files(mat: Path, out: Path, recordings: int) -> list[Path]:
    """Returns the path of each file. Raises OutputError for one name where there are several recordings."""
    if out.suffix.lower() == ".nwb" and not out.is_dir():
        if recordings == 1:
            return [out]
        raise OutputError(
            f"{out}: one file cannot hold {recordings} recordings",
            got=f"{recordings} elements of Subject in {mat}",
            expected="a folder",
            next_step=f"edgedistill convert flint {mat} --out {out.with_suffix('')}",
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(out, "the converted sessions", error) from error
    return [out / f"{mat.stem}_s{i + 1}.nwb" for i in range(recordings)]


def _find_start(mat: Path, given: datetime | None) -> tuple[datetime, list[str]]:
    """Returns the day of the file, from what was published with the data, and a note where it was not."""
    if given is not None:
        return given, []
    found = re.search(r"_(e\d)$", mat.stem, re.IGNORECASE)
    day = DAYS.get(found[1].lower()) if found else None
    if day is not None:
        return in_zone(datetime(*day), ZONE), []
    note = f"the day of this recording is not published; {UNKNOWN_DAY[0]}-01-01 stands for it, see --session-start"
    return in_zone(datetime(*UNKNOWN_DAY), ZONE), [note]


def _summarize(path: Path, facts: FlintFile, notes: Sequence[str]) -> ConvertedFile:
    lfp = facts.lfp
    summary = LfpSummary(
        series=("processing/ecephys/LFP/lfp",),
        channels=len(lfp.neurons),
        rate_hz=lfp.rate_hz,
        seconds=len(lfp.times_s) / lfp.rate_hz,
        gaps=len(lfp.gaps_s),
        gap_seconds=float(sum(after - before for before, after in lfp.gaps_s)),
    )
    if outside := facts.count_unobserved():
        notes = [*notes, f"{outside} spikes lie outside all trials, where nothing counts as observed"]
    unit = facts.hand_unit
    behavior = (("hand_pos", "Position", unit), ("target_pos", "Position", unit), ("hand_vel", "Velocity", f"{unit}/s"))
    return ConvertedFile(
        path=path,
        session_id=facts.session_id,
        session_start=facts.start.isoformat(),
        lfp=summary,
        units=len(facts.unit_spikes),
        spikes=sum(len(times) for _, times in facts.unit_spikes),
        behavior=tuple({"series": f"processing/behavior/{place}/{name}", "unit": u} for name, place, u in behavior),
        notes=(*facts.notes, *notes),
    )
