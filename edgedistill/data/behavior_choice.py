"""Chooses the behavior among the series of an NWB file, and names its outputs.

The input is the time series of an open file, which every lab names and nests in its own way. The output is a
`Behavior`. Its fields `series`, `derived` and `others` record the choice, so that `inspect` can show it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgedistill.data.behavior import Behavior, count_columns, count_samples
from edgedistill.data.series import Series, read_nominal_rate
from edgedistill.errors import RecordingError, did_you_mean

VELOCITY_NAME = re.compile(r"(?:^|_)(?:vel|velocity|velocities|v[xyz])(?:_|$)")
VELOCITY_UNIT = re.compile(r"(?:m|cm|mm|px|deg|rad|pixels|degrees|radians)/s")
POSITION_NAME = re.compile(r"(?:^|_)(?:pos|position|positions|xy|xyz)(?:_|$)")
LIMB = re.compile(r"cursor|hand|finger|wrist|arm|joystick|mouse")
NOT_LIMB = re.compile(r"eye|pupil|gaze|target|goal|head|compass|tongue|lick")
GENERIC = (  # words in a name that do not say what moves
    *("position", "positions", "pos", "xy", "xyz", "velocity", "velocities", "vel", "v"),
    *("time", "series", "timeseries", "spatial", "data", "processing", "acquisition"),
    *("behavior", "behaviour", "behavioral", "kinematics"),  # files are written in both spellings
)
AXES = ("x", "y", "z")


def find_behavior(series: Sequence[Series], file: Path, behavior: str | None = None) -> Behavior | None:
    """Returns the behavior among the series of a file, or None.

    Velocities are preferred to positions, hands and cursors to eyes and targets, and two or three columns to any other
    number. `behavior` names a series by its name or path instead. A position that is named becomes a velocity too.

    Raises RecordingError for an unknown `behavior`.
    """
    candidates = find_behavior_series(series)
    if behavior is None:
        usable = [s for s in candidates if is_velocity(s) or is_position(s)]
        chosen = min(usable, key=_rank, default=None)
    else:
        chosen = _find_named(candidates, behavior, file)
    if chosen is None:
        return None
    parts = _add_other_axes(chosen, candidates)
    others = tuple(s.path for s in candidates if s not in parts)
    return _build_behavior(parts, others, file)


def find_behavior_series(series: Sequence[Series]) -> list[Series]:
    """Returns the numeric series of one or two dimensions that are not voltages, images or annotations."""
    from pynwb.base import TimeSeries
    from pynwb.behavior import SpatialSeries

    return [
        s
        for s in series
        if type(s.node) in (TimeSeries, SpatialSeries) or isinstance(s.node, SpatialSeries)
        if len(s.shape) in (1, 2) and 0 not in s.shape
        if np.issubdtype(getattr(s.node.data, "dtype", np.dtype(object)), np.number)
    ]


def is_velocity(series: Series) -> bool:
    """Returns whether the name (`vel`, `velocity`, `vx`) or the unit (a length or angle per second) says velocity."""
    name, unit = to_snake_case(series.name), shorten_unit(series.node.unit)
    return bool(VELOCITY_NAME.search(name) or VELOCITY_UNIT.fullmatch(unit))


def is_position(series: Series) -> bool:
    """Returns whether a series is a SpatialSeries or has `pos` in its name, and is neither a velocity nor a heading."""
    parent = type(series.node.parent).__name__
    spatial = type(series.node).__name__ == "SpatialSeries" and parent != "CompassDirection"
    return not is_velocity(series) and (spatial or bool(POSITION_NAME.search(to_snake_case(series.name))))


def _find_named(candidates: Sequence[Series], behavior: str, file: Path) -> Series:
    wanted = behavior.lower()
    for series in candidates:
        if wanted in (series.name.lower(), series.path.lower()):
            return series
    hint = did_you_mean(behavior, [s.name for s in candidates]) if candidates else "no behavior at all"
    raise RecordingError(f"{file}: no behavior series named '{behavior}'", expected=hint)


def _rank(series: Series) -> tuple[bool, bool, bool, bool, str]:
    where, width = to_snake_case(series.path), count_columns(series)
    return (
        not is_velocity(series),
        bool(NOT_LIMB.search(where)),
        not LIMB.search(where),
        width not in (2, 3) and not _find_axis(series),
        series.path,
    )


def _find_axis(series: Series) -> str | None:
    """Returns x, y or z for a one-column series that says so in its name, like `vel_x` or `vx`."""
    found = re.search(r"(?:^|_)v?([xyz])(?:_|$)", to_snake_case(series.name))
    return found.group(1) if found and count_columns(series) == 1 else None


def _add_other_axes(series: Series, candidates: Sequence[Series]) -> tuple[Series, ...]:
    """Adds `vel_y` and `vel_z` of the same container to `vel_x`, when these are as long."""
    if _find_axis(series) is None:
        return (series,)
    stem, folder = _remove_axis(series), _folder(series)
    family = [s for s in candidates if _folder(s) == folder and _find_axis(s) and _remove_axis(s) == stem]
    length, rate = count_samples(series), read_nominal_rate(series)
    alike = [s for s in family if count_samples(s) == length and read_nominal_rate(s) == rate]
    return tuple(sorted(alike, key=lambda s: _find_axis(s) or ""))


def _folder(series: Series) -> str:
    return series.path.rpartition("/")[0]


def _remove_axis(series: Series) -> str:
    return re.sub(r"(^|_)(v?)[xyz](?=_|$)", r"\1\2", to_snake_case(series.name)).strip("_")


def _build_behavior(parts: tuple[Series, ...], others: tuple[str, ...], file: Path) -> Behavior:
    first = parts[0]
    derived = is_position(first)
    units = [shorten_unit(part.node.unit) for part in parts for _ in range(count_columns(part))]
    return Behavior(
        file=file,
        series=" + ".join(part.path for part in parts),
        names=name_outputs(parts, moving=derived or is_velocity(first)),
        units=tuple(f"{unit}/s" if derived else unit for unit in units),
        samples=count_samples(first),
        derived=f"velocity from {first.name}, differentiated over 10 ms bins" if derived else None,
        others=others,
        _parts=parts,
    )


def name_outputs(parts: Sequence[Series], *, moving: bool) -> tuple[str, ...]:
    """Returns names like `cursor_vel_x`: what moves, then `vel` for a velocity, then the column."""
    words: list[str] = []
    for source in (_remove_axis(parts[0]), *reversed(to_snake_case(parts[0].path).split("/")[1:-1])):
        words = [word for word in source.split("_") if word and word not in GENERIC and word not in ("v", "xy", "xyz")]
        if words:
            break
    stem = [*words, "vel"] if moving else words or ["behavior"]
    labels = [_find_axis(part) or "" for part in parts] if _find_axis(parts[0]) else _read_column_names(parts[0])
    return tuple("_".join([*stem, label] if label else stem) for label in labels)


def _read_column_names(series: Series) -> list[str]:
    """Returns column names from the control or the description ("... (x, y)"), else x, y, z, else numbers."""
    count = count_columns(series)
    control = getattr(series.node, "control_description", None)
    if control is not None and len(control) == count:
        return [to_snake_case(str(name)) for name in control]
    text = str(series.node.description or "") + " " + str(getattr(series.node, "reference_frame", None) or "")
    for inside in re.findall(r"[(\[]([^()\[\]]+)[)\]]", text):
        names = [to_snake_case(name.strip()) for name in re.split(r",|;|\band\b", inside)]
        if len(names) == count and len(set(names)) == count and all(re.fullmatch(r"[a-z]\w{0,11}", n) for n in names):
            return names
    if count == 1:
        return [""]
    return list(AXES[:count]) if count <= 3 else [str(column) for column in range(count)]


def to_snake_case(name: str) -> str:
    """Turns CursorVelocity into cursor_velocity. Slashes stay, other signs become underscores."""
    split = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return re.sub(r"[^a-z0-9/]+", "_", split.lower()).strip("_")


def shorten_unit(unit: object) -> str:
    """Shortens `meters/second`, `m per s` and `m*s^-1` to m/s. An unknown unit stays as it is."""
    text = str(unit or "").strip()
    for pattern, short in (
        (r"centimet(er|re)s?", "cm"), (r"millimet(er|re)s?", "mm"), (r"met(er|re)s?", "m"),
        (r"\bsec(ond)?s?\b", "s"), (r"\s+per\s+|\s*/\s*", "/"), (r"[\s*.·]*s\^?-1\b", "/s"),
    ):  # fmt: skip
        text = re.sub(pattern, short, text, flags=re.IGNORECASE)
    return text or "a.u."
