"""Tells velocities from positions, and both from everything else that a session stores as a time series.

The input is a series with its path. The output is a `Meaning`. Three things speak: the name of the series, its unit,
and the names of its containers, in this order. A contradiction between them is kept as a sentence for the user.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

from edgedistill.data.series import Series

Kind = Literal["velocity", "position", "speed", "other"]

VELOCITY_NAME = re.compile(r"(?:^|_)(?:vel|velo|velocity|velocities|v[xyz]|vel[xyz]|[xyz]vel)\d*(?:_|$)")
SPEED_NAME = re.compile(r"(?:^|_)speed\d*(?:_|$)")
POSITION_NAME = re.compile(r"(?:^|_)(?:pos|position|positions|xyz?|pos[xyz]|[xyz](?:pos|loc)|coordinates?)\d*(?:_|$)")
OTHER_NAME = re.compile(
    r"(?:^|_)(?:acc|accel|accelerations?|jerk|forces?|torques?|moments?|emg|pupil|licks?|licking|diameter|confidence|"
    r"likelihood|reward|pressure)\d*(?:_|$)"
)
LENGTH = r"(?:m|cm|mm|um|µm|microm|in|inch|inches|px|pixels?)"
POSITION_UNIT = re.compile(rf"(?:{LENGTH}|deg|degrees?|rad|radians?)", re.IGNORECASE)
VELOCITY_UNIT = re.compile(rf"(?:{LENGTH}|deg|degrees?|rad|radians?|a\.?u\.?)/s", re.IGNORECASE)
TIME_UNIT = re.compile(r"(?:n|u|µ|m|milli|micro|nano)?s")  # of the times at which a speed was measured
AXIS_NAME = re.compile(r"(?:^|_)(?:[xyz]|horizontal|vertical)(?:_|$)")
LIMB = re.compile(r"cursor|hand|finger|wrist|arm|elbow|shoulder|limb|paw|joystick|stylus|mouse")
NO_LIMB = re.compile(
    r"(?:^|_)(?:eyes?|pupil|gaze|saccades?|targets?|goals?|decoded?|decoder|predict(?:ed|ion)s?)(?:_|$)"
)
SELDOM_LIMB = re.compile(r"eye|pupil|gaze|target|goal|head|compass|tongue|lick")


@dataclass(frozen=True)
class Meaning:
    """Says what a series measures. `doubt` is a sentence where name, unit and container contradict each other."""

    kind: Kind
    doubt: str | None = None
    never: bool = False  # an eye, a target or the output of another decoder: read only where it is named


def read_meaning(series: Series) -> Meaning:
    """Returns what a series measures.

    A unit of time says a clock. Else the name of the series decides. Where it is silent, a unit of length or angle per
    second says velocity, then the name of the nearest container that is not silent decides. Then a SpatialSeries that
    is no compass direction is a position, and so is a series that is named after an axis or a limb and has a unit of
    length.
    """
    own, unit = to_snake_case(series.name), shorten_unit(series.node.unit)
    never = _is_never_behavior(series, own)
    unit_kind: Kind | None = None
    if TIME_UNIT.fullmatch(unit):
        return Meaning("other", None, never)
    if VELOCITY_UNIT.fullmatch(unit):
        unit_kind = "velocity"
    elif POSITION_UNIT.fullmatch(unit):
        unit_kind = "position"
    named = _read_kind_from_name(own)
    around = next((kind for name in _list_containers(series) if (kind := _read_kind_from_name(name))), None)
    if named is not None:
        return Meaning(named, _find_doubt(series, named, unit_kind, f"its name says {named}"), never)
    if unit_kind == "velocity" and around != "other":
        doubt = f"{series.path} has the unit {unit} and lies in a container of positions. It is read as a velocity"
        return Meaning("velocity", doubt if around == "position" else None, never)
    if around in ("velocity", "speed", "other"):
        return Meaning(around, _find_doubt(series, around, unit_kind, f"its container says {around}"), never)
    return Meaning("position" if _is_position(series, own, unit, around) else "other", None, never)


def _read_kind_from_name(name: str) -> Kind | None:
    if OTHER_NAME.search(name):
        return "other"
    if VELOCITY_NAME.search(name):
        return "velocity"
    if SPEED_NAME.search(name):
        return "speed"
    return "position" if POSITION_NAME.search(name) else None


def _is_position(series: Series, own: str, unit: str, around: Kind | None) -> bool:
    from pynwb.behavior import SpatialSeries

    if isinstance(series.node, SpatialSeries):
        return type(series.node.parent).__name__ != "CompassDirection"
    if type(series.node.parent).__name__ == "BehavioralEvents":
        return False
    return around == "position" or bool(
        (LIMB.search(own) or AXIS_NAME.search(own)) and re.fullmatch(LENGTH, unit, re.IGNORECASE)
    )


def _find_doubt(series: Series, kind: Kind, unit_kind: Kind | None, said: str) -> str | None:
    stored = "position" if kind == "position" else "velocity"
    if kind == "other" or unit_kind is None or unit_kind == stored:
        return None
    return f"{series.path} has the unit {shorten_unit(series.node.unit)}, but {said}. It is read as a {kind}"


def _is_never_behavior(series: Series, own: str) -> bool:
    if NO_LIMB.search(own):
        return True
    kinds = [*_list_containers(series)[:1], to_snake_case(type(series.node.parent).__name__)]
    return not LIMB.search(own) and any(NO_LIMB.search(name) for name in kinds)


def _list_containers(series: Series) -> list[str]:
    """Returns the names of the containers, the nearest first."""
    return [to_snake_case(name) for name in reversed(series.path.split("/")[1:-1])]


def to_snake_case(name: str) -> str:
    """Turns CursorVelocity into cursor_velocity and hånd into hand. Slashes stay, other signs become underscores."""
    plain = "".join(sign for sign in unicodedata.normalize("NFKD", name) if not unicodedata.combining(sign))
    split = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", plain)
    return re.sub(r"[^a-z0-9/]+", "_", split.lower()).strip("_")


def shorten_unit(unit: object) -> str:
    """Shortens `meters/second`, `m per s` and `m*s^-1` to m/s. An unknown unit stays as it is."""
    text = str(unit or "").strip()
    for pattern, short in (
        (r"centimet(er|re)s?", "cm"), (r"millimet(er|re)s?", "mm"), (r"met(er|re)s?", "m"),
        (r"\bsec(ond)?s?\b", "s"), (r"\s+per\s+|\s*/\s*", "/"), (r"[\s*.·⋅]*s(?:\^|\*\*)?(?:\(-1\)|-1|⁻¹)(?!\d)", "/s"),
    ):  # fmt: skip
        text = re.sub(pattern, short, text, flags=re.IGNORECASE)
    return text or "a.u."
