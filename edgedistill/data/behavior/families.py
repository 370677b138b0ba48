"""Puts series together that hold one movement in pieces: epoch after epoch, axis beside axis, finger beside finger.

The input is the list of behavior series. The output is a list of `Family`. Each has one `Track` for an axis, a finger
or a whole movement, and each track has one series for an epoch. Only names, columns, units and spans are compared here;
no sample is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from edgedistill.data.behavior.candidates import BehaviorSeries
from edgedistill.data.behavior.meaning import LIMB, SELDOM_LIMB, Kind, shorten_unit, to_snake_case

EPOCH_WORDS = "epoch|trial|block|segment|session|run"  # series that are numbered so never run at the same time
EPOCH_NAMES = "pre|post|baseline|adaptation|washout|sleep|rest|task"
NUMBER = re.compile(rf"\d+|(?<=_)(?:{EPOCH_NAMES})(?=_|$)")
NUMBERED = re.compile(rf"(?:(?<![a-z0-9])(?:series|seg|part|{EPOCH_WORDS}))?_?#")
AXIS = re.compile(
    r"(?:^|_)(v|vel|pos|p)?(?:([xyz])(?=_|$)|([xyz])(?=(?:vel|pos|loc)(?:_|$))|(horizontal|vertical)(?=_|$))"
)
FINGERS = ("thumb", "index", "middle", "ring", "little", "pinky", "small", "mrp", "mrs")
FINGER = re.compile(rf"(?:^|_)(?:({'|'.join(FINGERS)})|finger_?(\d+))(?=_|$)")


@dataclass(frozen=True)
class Track:
    """Holds the series, in the order of time, that are epochs of the same columns. Usually there is one."""

    parts: tuple[BehaviorSeries, ...]
    stem: str  # the path in snake case, without the number of the epoch
    overlap: str | None = None  # two series that are numbered as epochs and yet run at the same time

    @property
    def axis(self) -> str:
        """Returns x, y, z, horizontal or vertical for a track of one column that is named so, else nothing."""
        return next((label for name in _list_names(self.stem) if (label := find_axis(name))), "") if self.single else ""

    @property
    def finger(self) -> tuple[int, str]:
        """Returns the rank of the finger in the hand and its name, else (-1, "")."""
        found = next((match for name in _list_names(self.stem) if (match := FINGER.search(name))), None)
        if found is None:
            return -1, ""
        return (FINGERS.index(found[1]), found[1]) if found[1] else (len(FINGERS) + int(found[2]), f"finger{found[2]}")

    @property
    def single(self) -> bool:
        """Returns whether the track has one column."""
        return self.parts[0].columns == 1


@dataclass(frozen=True)
class Family:
    """Holds the tracks that are read together, in the order of the outputs."""

    tracks: tuple[Track, ...]
    path: str  # the folder and the words that all members share, e.g. processing/behavior/Position/led_0

    @property
    def kind(self) -> Kind:
        """Returns what the members measure. They all measure the same."""
        return self.tracks[0].parts[0].meaning.kind

    @property
    def members(self) -> tuple[BehaviorSeries, ...]:
        """Returns all series of the family."""
        return tuple(part for track in self.tracks for part in track.parts)

    @property
    def rank(self) -> tuple[bool, bool, int, bool, bool]:
        """Returns the order of preference, the lowest first. Families of one rank are equals."""
        never = self.members[0].meaning.never
        where = to_snake_case(self.members[0].path)
        width = sum(track.parts[0].columns for track in self.tracks)
        fit = width in (2, 3) or self.tracks[0].axis or (len(self.tracks) > 1 and self.tracks[0].finger[1])
        order = ("velocity", "position", "speed", "other").index(self.kind)
        return never, bool(SELDOM_LIMB.search(where)), order, not LIMB.search(where), not fit


def find_families(series: Sequence[BehaviorSeries]) -> list[Family]:
    """Groups series by epoch, then by axis and finger. Every series is in exactly one family."""
    tracks = _group_epochs(sorted(series, key=lambda s: natural_order(s.path)))
    groups: dict[tuple[str, str], list[Track]] = {}
    for track in tracks:
        label = track.axis or track.finger[1]
        shared = _remove_labels(track) if label else track.stem
        groups.setdefault((shared if label else f"={shared}", track.parts[0].meaning.kind), []).append(track)
    families = []
    for group in groups.values():
        distinct = {(track.finger, track.axis): track for track in reversed(group)}
        joined = [distinct[at] for at in sorted(distinct)]
        families.append(_make_family(joined))
        families += [_make_family([track]) for track in group if all(track is not member for member in joined)]
    return families


def natural_order(text: str) -> tuple[tuple[int, str], ...]:
    """Returns a key that puts led_2 before led_10."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text))


def find_axis(name: str) -> str | None:
    """Returns the axis that a name in snake case holds, as in `vel_x`, `vx`, `velx` or `x_pos`."""
    match = AXIS.search(name)
    return next((group for group in match.groups()[1:] if group), None) if match else None


def remove_axis(name: str) -> str:
    """Returns a name in snake case without its axis."""
    return AXIS.sub(
        lambda match: match.group(0)[: match.group(0).startswith("_")] + (match.group(1) or ""), name
    ).strip("_")


def _make_family(tracks: Sequence[Track]) -> Family:
    first = tracks[0]
    if len(tracks) == 1 and len(first.parts) == 1:
        return Family(tuple(tracks), first.parts[0].path)
    folder, _, own = first.stem.rpartition("/")
    shared = _remove_labels(first).rpartition("/")[2] if len(tracks) > 1 else own
    real = first.parts[0].path.rpartition("/")[0]
    inside = real if to_snake_case(real) == folder else folder
    return Family(tuple(tracks), f"{inside}/{shared}".rstrip("/"))


def _remove_labels(track: Track) -> str:
    parts = track.stem.split("/")
    clean = [FINGER.sub("", remove_axis(part) if track.axis else part).strip("_") for part in parts[1:]]
    return "/".join([parts[0], *clean])


def _list_names(path: str) -> list[str]:
    """Returns the parts of a path in snake case that can hold a label, the last first."""
    return path.split("/")[:0:-1]


def _group_epochs(series: Sequence[BehaviorSeries]) -> list[Track]:
    groups: dict[tuple[object, ...], list[BehaviorSeries]] = {}
    for one in series:
        for numbered in _number_paths(one):
            groups.setdefault((numbered, *_describe_columns(one)), []).append(one)
    tracks: list[Track] = []
    taken: set[str] = set()
    overlaps: dict[str, str] = {}
    for (pattern, *_), group in groups.items():
        free = [one for one in group if one.path not in taken]
        if len(free) < 2:
            continue
        ordered = sorted(free, key=lambda one: one.span)
        clash = _find_overlap(ordered)
        if clash is None:
            taken |= {one.path for one in free}
            words = [re.sub(r"_+", "_", name).strip("_") for name in NUMBERED.sub("", str(pattern)).split("/")]
            tracks.append(Track(tuple(ordered), "/".join(filter(None, words))))
        elif re.search(rf"(?:^|[_/])(?:{EPOCH_WORDS})_?#", str(pattern)):
            overlaps |= {one.path: clash for one in free}
    tracks += [Track((s,), to_snake_case(s.path), overlaps.get(s.path)) for s in series if s.path not in taken]
    return sorted(tracks, key=lambda track: natural_order(track.parts[0].path))


def _number_paths(series: BehaviorSeries) -> Iterator[str]:
    """Yields the path in snake case with one of its numbers replaced by #, those of the last name first."""
    path = to_snake_case(series.path)
    start = path.find("/") + 1
    for match in reversed(list(NUMBER.finditer(path, start))):
        yield path[: match.start()] + "#" + path[match.end() :]


def _describe_columns(series: BehaviorSeries) -> tuple[object, ...]:
    names = getattr(series.node, "control_description", None)
    listed = None if names is None else tuple(map(str, names))
    return series.meaning.kind, series.columns, shorten_unit(series.node.unit), listed


def _find_overlap(ordered: Sequence[BehaviorSeries]) -> str | None:
    for before, after in pairwise(ordered):
        if not after.span[0] >= before.span[1]:
            spans = [f"{one.path} from {one.span[0]:.6g} to {one.span[1]:.6g} s" for one in (before, after)]
            return ", ".join(spans)
    return None
