"""Names the outputs of a behavior: what moves, then `vel` for a velocity, then the axis or column.

The input is a family of series and the columns that are read of each. The output is a name like `cursor_vel_x` for each
column. Bundles and result files hold these names, so they depend on nothing but the names in the file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgedistill.data.behavior.columns import read_column_names
from edgedistill.data.behavior.families import Family, Track, remove_axis

GENERIC = re.compile(  # words in a name that do not say what moves
    r"positions?|pos|xyz?|v|vel|velo|velocity|velocities|time|series|timeseries|spatial|data|processing|acquisition|"
    r"behaviou?r|behavioral|kinematics"  # files are written in both spellings
)
AXES = ("x", "y", "z")


def name_outputs(family: Family, columns: Sequence[Sequence[int]], *, moving: bool) -> tuple[str, ...]:
    """Returns one name for each of the `columns` of each track. `moving` says that the outputs are velocities."""
    names = [
        "_".join([*_find_stem(track, moving), *([label] if label else [])])
        for track, chosen in zip(family.tracks, columns, strict=True)
        for label in _label_columns(track, chosen)
    ]
    return tuple(
        f"{name}_{names[:at].count(name) + 1}" if name in names[:at] else name for at, name in enumerate(names)
    )


def _find_stem(track: Track, moving: bool) -> list[str]:
    words = _find_words(track)
    return [*words, "vel"] if moving else words or ["behavior"]


def _find_words(track: Track) -> list[str]:
    for name in track.stem.split("/")[:0:-1]:
        words = [word for word in remove_axis(name).split("_") if word and not GENERIC.fullmatch(word)]
        if any(not word.isdigit() for word in words):
            return words
    return []


def _label_columns(track: Track, columns: Sequence[int]) -> list[str]:
    """Returns the axis of a track that is one, else names of columns, else x, y, z, else numbers."""
    if track.axis:
        return [track.axis]
    first = track.parts[0]
    if (names := read_column_names(first)) is not None:
        return [names[column] for column in columns]
    if first.columns == 1:
        return [""]
    axes = first.columns <= len(AXES) and 0 in columns  # columns 1 and 2 after a counter are hardly y and z
    return [AXES[column] if axes else str(column) for column in columns]
