"""Chooses the behavior among the series of an NWB file, and says what was not chosen and why.

The input is the time series of an open file, which every lab names and nests in its own way. The output is a
`Behavior`. Its fields `series`, `derived`, `candidates` and `remarks` record the choice, so that `inspect` can show it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgedistill.data.behavior.behavior import Behavior
from edgedistill.data.behavior.candidates import BehaviorSeries, explain_unusable, find_behavior_series
from edgedistill.data.behavior.columns import choose_columns, read_column_names
from edgedistill.data.behavior.families import Family, Track, find_families, natural_order
from edgedistill.data.behavior.meaning import VELOCITY_UNIT, shorten_unit
from edgedistill.data.behavior.names import name_outputs
from edgedistill.data.behavior.report import OPTION, Choice, describe_choice, list_candidates
from edgedistill.data.candidates import find_named
from edgedistill.data.series import Series
from edgedistill.errors import RecordingError

__all__ = ["find_behavior", "find_behavior_series"]

MOST_PATHS = 8  # that are listed one by one
TOGETHER = " + "  # between the names of series that are read together
COLUMN_LIST = re.compile(r"(.+)\[\s*(\d+(?:\s*,\s*\d+)*)\s*\]")


@dataclass(frozen=True)
class _Entry:
    """Holds what a name can stand for: one series, or a family of several."""

    path: str
    members: tuple[BehaviorSeries, ...]


def find_behavior(series: Sequence[Series], file: Path, behavior: str | None = None) -> Behavior | None:
    """Returns the behavior among the series of a file, or None where none is a velocity or a position.

    Velocities are preferred to positions, and these to speeds; hands and cursors to other things that move; two or
    three columns to any other number. Eyes, targets and outputs of decoders are read only where they are named.
    `behavior` names a series by its name or path, a container, or what epochs or axes have in common; `NAME[0,1]` names
    columns too, and `NAME + NAME` several series that are read together. `Behavior.series` can be named again. A
    position that is named becomes a velocity as well. See docs/sessions.md, "Behavior".

    Raises RecordingError for an unknown `behavior`, for a series that holds no numbers over time, for velocities and
    positions that are named together, and for epochs that run at the same time.
    """
    found = find_behavior_series(series)
    choice = _choose(series, found, file, behavior)
    if choice is None:
        return None
    for track in choice.family.tracks:
        if track.overlap is not None and (choice.equals or not choice.named):
            raise _overlap_error(track, file)
    return _build_behavior(choice, found, file)


def name_of(path: str) -> str:
    """Returns the last part of a path."""
    return path.rpartition("/")[2]


def find_behavior_like(series: Sequence[Series], path: str) -> str | None:
    """Returns the name that reads the movement which `Behavior.series` of another session calls `path`.

    All epochs of the same axes and columns are read with it. Returns None where the file has no such movement, or
    several.
    """
    families = find_families(find_behavior_series(series))
    with_columns = COLUMN_LIST.fullmatch(path)
    paths = set((with_columns[1] if with_columns else path.partition(" (")[0]).split(TOGETHER))
    names = {name_of(one) for one in paths}
    tests: tuple[Callable[[str], bool], ...] = (lambda one: one in paths, lambda one: name_of(one) in names)
    for matches in tests:
        found = [f for f in families if matches(f.path) or any(matches(one.path) for one in f.members)]
        if len(found) == 1:
            columns = f"[{with_columns[2]}]" if with_columns else ""
            return _name_alike(found[0], matches) + columns
    return None


def _name_alike(family: Family, matches: Callable[[str], bool]) -> str:
    """Returns the name of a family, or of those of its tracks that match where only some do."""
    alike = [track for track in family.tracks if any(matches(part.path) for part in track.parts)]
    if alike and len(alike) < len(family.tracks):
        return TOGETHER.join(part.path for track in alike for part in track.parts)
    return family.path if len(family.members) > 1 else family.members[0].path


def _choose(
    series: Sequence[Series], found: Sequence[BehaviorSeries], file: Path, behavior: str | None
) -> Choice | None:
    families = find_families(found)
    if behavior is None:
        usable = [f for f in families if f.kind != "other" and not f.members[0].meaning.never]
        return _pick_best(usable, families, None, named=False) if usable else None
    entries = [_Entry(one.path, (one,)) for one in found]
    entries += [_Entry(f.path, f.members) for f in families if len(f.members) > 1]
    asked = "/" + behavior.strip("/").lower()
    whole = any(f"/{one.path}".lower().endswith(asked) for one in found)  # a series may be called `x + y`
    with_columns = None if whole else COLUMN_LIST.fullmatch(behavior.strip())
    wanted = with_columns[1] if with_columns else behavior
    columns = tuple(int(column) for column in with_columns[2].split(",")) if with_columns else None
    together = [wanted] if whole else wanted.split(TOGETHER)
    named = [entry for name in together for entry in _find_named(entries, series, name, file)]
    members = {one.path: one for entry in named for one in entry.members}
    usable = find_families(list(members.values()))
    if len(together) > 1:
        order = list(members)
        usable = [_join(sorted(usable, key=lambda f: order.index(f.members[0].path)), file)]
    else:
        usable = [_add_other_axes(f, families, columns) for f in usable]
    choice = _pick_best(usable, families, columns, named=True)
    if columns is not None:
        _require_columns(choice.family, columns, file)
    return choice


def _find_named(entries: Sequence[_Entry], series: Sequence[Series], wanted: str, file: Path) -> list[_Entry]:
    try:
        return find_named(entries, wanted, OPTION, file)
    except RecordingError as error:
        usable = {entry.path for entry in entries}
        try:
            one = find_named([one for one in series if one.path not in usable], wanted, OPTION, file)[0]
        except RecordingError:
            raise error from None
        raise RecordingError(
            f"{file}: {OPTION} {wanted}: {one.path} cannot be read as behavior",
            got=explain_unusable(one),
            expected="numbers over time",
            next_step=f"edgedistill inspect {file} lists every series that could be read",
        ) from None


def _join(families: Sequence[Family], file: Path) -> Family:
    """Returns one family of those that the user named together."""
    if len(families) == 1:
        return families[0]
    if len(kinds := {family.kind for family in families}) > 1:
        raise RecordingError(
            f"{file}: {OPTION} names series that measure unlike things",
            got=", ".join(f"{family.path} ({family.kind})" for family in families),
            expected="velocities alone, or positions alone",
            next_step=f"name one kind of {' and '.join(sorted(kinds))}; edgedistill inspect {file} lists both",
        )
    tracks = tuple(track for family in families for track in family.tracks)
    return Family(tracks, TOGETHER.join(family.path for family in families))


def _pick_best(
    usable: Sequence[Family], families: Sequence[Family], columns: tuple[int, ...] | None, *, named: bool
) -> Choice:
    ordered = sorted(usable, key=lambda f: (f.rank, not f.path.startswith("processing/"), natural_order(f.path)))
    best = ordered[0]
    paths = {f.path for f in families} | {one.path for f in families for one in f.members}
    return Choice(best, tuple(f for f in ordered[1:] if f.rank == best.rank), columns, named, tuple(paths))


def _add_other_axes(family: Family, families: Sequence[Family], columns: tuple[int, ...] | None) -> Family:
    """Returns the family of a single axis that was named, so that `vel_x` brings `vel_y` along."""
    if len(family.members) > 1 or columns is not None or not family.tracks[0].axis:
        return family
    whole = next(f for f in families if family.members[0] in f.members)
    alike = [track for track in whole.tracks if track.axis and track.finger == family.tracks[0].finger]
    if len(alike) < 2 or any(len(track.parts) > 1 for track in alike):
        return family
    return whole if len(alike) == len(whole.tracks) else find_families([t.parts[0] for t in alike])[0]


def _require_columns(family: Family, columns: Sequence[int], file: Path) -> None:
    width = family.members[0].columns
    if len(family.tracks) == 1 and max(columns) < width and len(set(columns)) == len(columns):
        return
    raise RecordingError(
        f"{file}: {OPTION} names columns that {family.path} does not have",
        got=", ".join(map(str, columns)),
        expected=f"columns 0 to {width - 1} of one series, each once",
        next_step=f"edgedistill inspect {file}",
    )


def _overlap_error(track: Track, file: Path) -> RecordingError:
    return RecordingError(
        f"{file}: behavior is numbered by trials or epochs, but they run at the same time",
        got=track.overlap,
        expected="one epoch after another on the clock of the session",
        causes=("the times count from the start of each trial",),
        next_step=f"add the start of each trial to its times and write the file again, or read one series alone with "
        f"{OPTION} {track.parts[0].path}",
    )


def _build_behavior(choice: Choice, found: Sequence[BehaviorSeries], file: Path) -> Behavior:
    family = choice.family
    first = family.members[0]
    derived = family.kind == "position"
    moving = family.kind in ("position", "velocity") or bool(VELOCITY_UNIT.fullmatch(shorten_unit(first.node.unit)))
    columns = tuple(
        choice.columns or choose_columns(read_column_names(t.parts[0]), t.parts[0].columns) for t in family.tracks
    )
    units = [shorten_unit(t.parts[0].node.unit) for t, read in zip(family.tracks, columns, strict=True) for _ in read]
    return Behavior(
        file=file,
        series=_join_paths(family) + (f"[{','.join(map(str, choice.columns))}]" if choice.columns else ""),
        names=name_outputs(family, columns, moving=moving),
        units=tuple(unit if not derived or VELOCITY_UNIT.fullmatch(unit) else f"{unit}/s" for unit in units),
        samples=sum(part.samples for part in family.tracks[0].parts),
        derived=f"velocity from {first.name}, differentiated over 10 ms bins" if derived else None,
        others=tuple(one.path for one in found if one not in family.members),
        candidates=list_candidates(found, choice),
        remarks=tuple(describe_choice(choice, columns)),
        _tracks=family.tracks,
        _columns=columns,
        _trusted=choice.columns is not None,
    )


def _join_paths(family: Family) -> str:
    """Returns the paths of the members, or what they have in common where there are many."""
    count = len(family.members)
    if count <= MOST_PATHS:
        return TOGETHER.join(one.path for one in family.members)
    return f"{family.path} ({count} series)"
