"""Says which behavior was chosen, what was put together or left out, and with which option another one is read.

The input is a `Choice`. The outputs are a `Candidate` for each series that could be behavior, and sentences for the
user. No sample is read here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from edgedistill.data.behavior.candidates import BehaviorSeries
from edgedistill.data.behavior.columns import is_clock_name, read_column_names
from edgedistill.data.behavior.families import Family, Track
from edgedistill.data.candidates import Candidate

OPTION = "--behavior"
KINDS = {"other": "neither a velocity nor a position"}


@dataclass(frozen=True)
class Choice:
    """Holds the family of series that is read, and what it was chosen from."""

    family: Family
    equals: tuple[Family, ...]  # of the same rank as the chosen one
    columns: tuple[int, ...] | None  # that the user named
    named: bool
    paths: tuple[str, ...]  # everything that the option can name

    def write_option(self, path: str, columns: Sequence[int] = ()) -> str:
        """Returns the option that names a path, by its last part where that is enough."""
        return write_option(path, self.paths, columns)


def write_option(path: str, paths: Sequence[str], columns: Sequence[int] = ()) -> str:
    """Returns the option that names `path` among `paths`, by its last part where that is enough."""
    last = path.rpartition("/")[2]
    alike = [other for other in paths if f"/{other}/".lower().endswith(f"/{last}/".lower())]
    name = last if len(alike) == 1 else path
    listed = f"{name}[{','.join(map(str, columns))}]" if columns else name
    return f'{OPTION} "{listed}"' if columns or " " in name else f"{OPTION} {listed}"


def list_candidates(found: Sequence[BehaviorSeries], choice: Choice | None) -> tuple[Candidate, ...]:
    """Returns every series that could be behavior, with the reason why it is read or not."""
    read = choice.family.members if choice is not None else ()
    return tuple(Candidate(one.path, one in read, _explain(one, choice, found)) for one in found)


def _explain(one: BehaviorSeries, choice: Choice | None, found: Sequence[BehaviorSeries]) -> str:
    kind = KINDS.get(one.meaning.kind, f"a {one.meaning.kind}")
    if choice is not None and one in choice.family.members:
        count = len(choice.family.members)
        together = f", one of {count} series that are put together" if count > 1 else ""
        return f"named by {OPTION}{together}" if choice.named else kind + together
    paths = choice.paths if choice is not None else [other.path for other in found]
    for equal in choice.equals if choice is not None else ():
        if one in equal.members:
            return f"{kind}, as good as the one that is read; {write_option(equal.path, paths)} reads it"
    option = f"{write_option(one.path, paths)} reads it"
    if choice is not None and choice.named:
        return f"{kind}, not named; {option}"
    if one.meaning.never:
        return f"an eye, a target or the output of a decoder; {option}"
    if one.meaning.kind == "other":
        return f"{kind}; {option}"
    return f"{kind}, but another series comes first; {option}"


def describe_choice(choice: Choice, columns: Sequence[Sequence[int]]) -> Iterator[str]:
    """Yields a sentence for all that was put together, left out or doubtful. `columns` are those of each track."""
    family = choice.family
    for one in family.members:
        if one.meaning.doubt:
            yield one.meaning.doubt
        if one.transposed:
            yield f"{one.path} is stored (columns, time); read as such"
    if choice.equals:
        others = " or ".join(choice.write_option(equal.path) for equal in choice.equals[:8])
        yield f"{family.path} is read, the first of {len(choice.equals) + 1} equals; {others} reads another"
    for track, read in zip(family.tracks, columns, strict=True):
        yield from _describe_epochs(track)
        yield from _describe_columns(track, read, choice)
    yield from _describe_clocks(family)


def _describe_epochs(track: Track) -> Iterator[str]:
    if len(track.parts) > 1:
        pauses = [max(0.0, after.span[0] - before.span[1]) for before, after in pairwise(track.parts)]
        yield (
            f"{len(track.parts)} epochs from {track.parts[0].path} to {track.parts[-1].path} are put together, "
            f"with {sum(pauses):.2f} s between them"
        )


def _describe_columns(track: Track, read: Sequence[int], choice: Choice) -> Iterator[str]:
    first = track.parts[0]
    left = [column for column in range(first.columns) if column not in read]
    if not left:
        return
    known = read_column_names(first)
    names = known or [str(column) for column in range(first.columns)]
    places = [column for column in left if known is None or not is_clock_name(known[column])]
    option = f"; {choice.write_option(first.path, places)} reads others" if places else ""
    yield (
        f"{first.path}: columns {', '.join(names[column] for column in read)} are read, "
        f"{', '.join(names[column] for column in left)} are not{option}"
    )


def _describe_clocks(family: Family) -> Iterator[str]:
    """Yields a note on axes that differ in rate, start or length."""
    firsts = [(track.parts[0].rate, track.parts[0].span[0]) for track in family.tracks]
    stops = [track.parts[-1].span[1] for track in family.tracks]
    lengths = [sum(part.samples for part in track.parts) for track in family.tracks]
    if len(set(firsts)) == 1 and len(set(lengths)) == 1:
        return
    listed = [
        f"{track.parts[0].path} ({rate:.6g} Hz from {start:.6g} to {stop:.6g} s, {length} samples)"
        for track, (rate, start), stop, length in zip(family.tracks, firsts, stops, lengths, strict=True)
    ]
    lost = max(start for _, start in firsts) - min(start for _, start in firsts) + max(stops) - min(stops)
    yield (
        f"the axes have clocks of their own: {', '.join(listed)}. Each is resampled to the bins, and {lost:.2f} s at "
        "the ends that not all of them cover are left out"
    )
