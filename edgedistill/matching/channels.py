"""Finds the order of a recording's channels: the electrodes of both sides come in, the bundle's order goes out.

Labels decide, since they name the contact itself. Without them the ids of the electrode table decide. Positions never
put channels in order, because tables often hold positions that were filled in row by row. They only tell that an order
cannot be trusted.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from edgedistill.bundle.manifest import Channel
from edgedistill.data.lfp.electrodes import Electrode
from edgedistill.errors import RecordingError

Place = tuple[float, ...]


@dataclass(frozen=True)
class ChannelOrder:
    """Says which column of a recording holds each channel of a bundle."""

    columns: tuple[int, ...]
    warnings: tuple[str, ...] = ()

    @property
    def as_stored(self) -> bool:
        """Returns whether the columns already stand in the order of the bundle."""
        return self.columns == tuple(range(len(self.columns)))


def find_order(channels: Sequence[Channel], electrodes: Sequence[Electrode], where: str) -> ChannelOrder:
    """Returns the column of the recording for each channel of the bundle. Both have the same number.

    `where` names the file and the series for messages. Other ids, labels or positions are warnings. Raises
    RecordingError where labels or positions contradict the order and cannot put it right.
    """
    by_label = _find_permutation([c.label for c in channels], [e.label for e in electrodes])
    by_id = _find_permutation([c.id for c in channels], [e.id for e in electrodes])
    order = ChannelOrder(by_label or by_id or tuple(range(len(channels))))
    found = [electrodes[column] for column in order.columns]
    warnings = []
    if not order.as_stored:
        first = next(i for i, column in enumerate(order.columns) if i != column)
        what = "labels" if by_label else "electrode ids"
        warnings.append(
            f"the channels were put in the order of the bundle by their {what}: its channel {first + 1} is column "
            f"{order.columns[first] + 1} of the recording"
        )
    misplaced = _find_misplaced(_places(channels), _places(found))
    if by_label:
        if misplaced is not None:
            warnings.append(
                "the labels of the channels agree with the bundle, but their positions are in another order: the "
                f"labels were followed ({_describe(channels, found, misplaced, 'position')})"
            )
        return ChannelOrder(order.columns, tuple(warnings))
    mislabeled = _find_mislabeled(channels, found)
    for at, what in ((mislabeled, "label"), (misplaced, "position")):
        if at is not None:
            raise _wrong_order(channels, found, at, what, where)
    warnings += _list_differences(channels, found)
    return ChannelOrder(order.columns, tuple(warnings))


def _find_permutation(wanted: Sequence[Hashable | None], found: Sequence[Hashable | None]) -> tuple[int, ...] | None:
    """Returns where each wanted name stands among those found, or None where they are not one set of unique names."""
    at = {name: i for i, name in enumerate(found)}
    if None in at or len(at) != len(found) or at.keys() != set(wanted):
        return None
    return tuple(at[name] for name in wanted)


def _places(electrodes: Sequence[Channel] | Sequence[Electrode]) -> list[Place | None]:
    """Returns the positions to six digits, so that float32 and float64 agree. One that is not finite is unknown."""
    return [
        tuple(float(f"{x:.6g}") for x in one.position) if one.position and np.isfinite(one.position).all() else None
        for one in electrodes
    ]


def _find_misplaced(wanted: Sequence[Place | None], found: Sequence[Place | None]) -> int | None:
    """Returns the first channel that is out of place, where the positions are those of the bundle in another order."""
    order = _find_permutation(wanted, found)
    return None if order is None else next((i for i, at in enumerate(order) if i != at), None)


def _find_mislabeled(channels: Sequence[Channel], found: Sequence[Electrode]) -> int | None:
    """Returns the first channel whose label belongs to another channel of the bundle."""
    known = {channel.label: i for i, channel in enumerate(channels) if channel.label is not None}
    return next((i for i, one in enumerate(found) if one.label in known and known[one.label] != i), None)


def _list_differences(channels: Sequence[Channel], found: Sequence[Electrode]) -> list[str]:
    """Returns a warning for ids, labels and positions that differ, each with the first channel that does."""
    pairs = list(zip(channels, found, strict=True))
    places = list(zip(_places(channels), _places(found), strict=True))
    labeled = [i for i, (channel, one) in enumerate(pairs) if channel.label is not None and one.label is not None]
    differing = {
        "id": [i for i, (channel, one) in enumerate(pairs) if channel.id != one.id],
        "label": [i for i in labeled if channels[i].label != found[i].label],
        "position": [i for i, (a, b) in enumerate(places) if a and b and len(a) == len(b) and a != b],
    }
    warnings = [
        f"{len(at)} of {len(pairs)} channels have another {what} than in the bundle, and are taken in the order of the "
        f"columns: {_describe(channels, found, at[0], what)}"
        for what, at in differing.items()
        if at
    ]
    if 0 < len(labeled) < len(pairs):
        warnings.append(
            f"only {len(labeled)} of {len(pairs)} channels have a label both here and in the bundle: the order of the "
            "others was not compared by labels"
        )
    return warnings


def _describe(channels: Sequence[Channel], found: Sequence[Electrode], at: int, what: str) -> str:
    return f"channel {at + 1} has {_show(found[at], what)}, in the bundle {_show(channels[at], what)}"


def _show(one: Channel | Electrode, what: str) -> str:
    if what != "position":
        return f"the {what} '{one.id if what == 'id' else one.label}'"
    return f"the position ({', '.join(f'{x:g}' for x in one.position or ())})"


def _wrong_order(
    channels: Sequence[Channel], found: Sequence[Electrode], at: int, what: str, where: str
) -> RecordingError:
    return RecordingError(
        f"{where}: the channels are not in the order of the bundle, and nothing says how to put them right",
        got=f"channel {at + 1} ('{found[at].id}') with {_show(found[at], what)}",
        expected=f"{_show(channels[at], what)}, as in the bundle",
        causes=("the headstage was plugged in differently", "the electrode table was written in another order"),
        next_step="store the columns in the order of the bundle, or name the contacts in a column `channel_name` of "
        "the electrode table in all sessions, and run `edgedistill build` again",
    )
