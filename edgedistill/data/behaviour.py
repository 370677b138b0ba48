"""The behaviour of an NWB file: which series it is, what its columns are called, its value at any time.

In: the time series of an open file. Out: `Behaviour`: velocity as it was stored, or positions from which
`at` derives velocity. Files name and nest behaviour in many ways; the choice made here is written into
`series`, `derived` and `others`, so that `inspect` can show it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.data.series import Series, nominal_rate, strided_rows
from edgedistill.errors import RecordingError, did_you_mean

BIN_S = 0.01
MIN_RATE_HZ = 5  # below it bins would be drawn from lines; also what timestamps in milliseconds look like
MAX_RATE_HZ = 1000  # faster series are read at every n-th sample: bins are 10 ms

VELOCITY_NAME = re.compile(r"(?:^|_)(?:vel|velocity|velocities|v[xyz])(?:_|$)")
VELOCITY_UNIT = re.compile(r"(?:m|cm|mm|px|deg|rad|pixels|degrees|radians)/s")
POSITION_NAME = re.compile(r"(?:^|_)(?:pos|position|positions|xy|xyz)(?:_|$)")
LIMB = re.compile(r"cursor|hand|finger|wrist|arm|joystick|mouse")
NOT_LIMB = re.compile(r"eye|pupil|gaze|target|goal|head|compass|tongue|lick")
GENERIC = (  # words of a name that do not say what moves
    *("position", "positions", "pos", "xy", "xyz", "velocity", "velocities", "vel", "v"),
    *("time", "series", "timeseries", "spatial", "data", "processing", "acquisition"),
    *("behavior", "behaviour", "behavioral", "kinematics"),
)
AXES = ("x", "y", "z")


@dataclass(frozen=True)
class Behaviour:
    """Behaviour of one session on the clock of the file; NaN samples void the bins they touch."""

    file: Path
    series: str  # path inside the file; several one-column series are joined by " + "
    names: tuple[str, ...]  # of the outputs, e.g. cursor_vel_x; velocities also where values are positions
    units: tuple[str, ...]  # of the outputs
    samples: int
    derived: str | None  # how outputs come from `values`, None where they are the same
    others: tuple[str, ...]
    _parts: tuple[Series, ...] = field(repr=False)

    @property
    def name(self) -> str:
        """Of the series, or of the first of several."""
        return self._parts[0].name

    @cached_property
    def times_s(self) -> npt.NDArray[np.float64]:
        """(n,), strictly increasing, at most about 1 kHz. Raises RecordingError on a senseless clock."""
        return self._samples[0]

    @cached_property
    def values(self) -> npt.NDArray[np.float64]:
        """(n, K) as stored, conversion and offset applied: positions where outputs are derived."""
        return self._samples[1]

    @property
    def start_s(self) -> float:
        """Of the first sample."""
        return float(self.times_s[0])

    @property
    def stop_s(self) -> float:
        """End of the last sample: it stands for one period."""
        return float(self.times_s[-1]) + self._period_s

    @cached_property
    def _period_s(self) -> float:
        return float(np.median(np.diff(self.times_s)))

    @cached_property
    def _samples(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        return _read_samples(self._parts, self.samples, self.file)

    def at(self, times_s: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        """Outputs at the ends of bins, (B,) seconds -> (B, K); NaN outside, in pauses and beside NaN.

        Values are interpolated between the two samples around. Derived velocity is the central difference
        of positions one bin either side, one-sided where only one side exists.
        """
        if self.derived is None:
            return self._interpolate(times_s).astype(np.float32)
        here, before, after = (self._interpolate(times_s + shift) for shift in (0.0, -BIN_S, BIN_S))
        speed = (after - before) / (2 * BIN_S)
        for one_sided in ((here - before) / BIN_S, (after - here) / BIN_S):
            speed = np.where(np.isnan(speed), one_sided, speed)
        return np.asarray(speed, dtype=np.float32)

    def _interpolate(self, at_s: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return interpolate(self.times_s, self.values, at_s, self._period_s)


def interpolate(
    times_s: npt.NDArray[np.float64],
    values: npt.NDArray[np.float64],
    at_s: npt.NDArray[np.float64],
    period_s: float,
) -> npt.NDArray[np.float64]:
    """Linear interpolation, (n,), (n, K) at (B,) -> (B, K).

    NaN before the first sample, later than one period after the last, and where two samples lie more than
    five periods (50 ms at least) apart: a line across the pause between trials is not data.
    """
    last = len(times_s) - 1
    after = np.searchsorted(times_s, at_s, side="right")
    low, high = np.clip(after - 1, 0, last), np.clip(after, 0, last)
    span = times_s[high] - times_s[low]
    share = np.divide(at_s - times_s[low], span, out=np.zeros_like(at_s), where=span > 0)
    on_sample = (share == 0)[:, None]  # its neighbour may be NaN
    out = np.where(on_sample, values[low], values[low] + share[:, None] * (values[high] - values[low]))
    pause = (span > max(5 * period_s, 0.05)) & (share > 0)
    out[pause | (at_s < times_s[0]) | (at_s > times_s[last] + period_s * (1 + 1e-6))] = np.nan
    return out


def find_behaviour(series: Sequence[Series], file: Path, behavior: str | None = None) -> Behaviour | None:
    """The behaviour among the series of a file, or None.

    Velocities before positions, hands and cursors before eyes and targets, two or three columns before
    others. `behavior` names one by its name or path instead; a position becomes a velocity then too.

    Raises RecordingError for an unknown `behavior`.
    """
    candidates = behaviour_series(series)
    if behavior is None:
        usable = [s for s in candidates if is_velocity(s) or is_position(s)]
        chosen = min(usable, key=_rank, default=None)
    else:
        chosen = _named(candidates, behavior, file)
    if chosen is None:
        return None
    parts = _with_axes(chosen, candidates)
    others = tuple(s.path for s in candidates if s not in parts)
    return _behaviour(parts, others, file)


def behaviour_series(series: Sequence[Series]) -> list[Series]:
    """Numeric series of one or two axes that are not voltages, images or annotations."""
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
    """By its name (`vel`, `velocity`, `vx`) or by its unit (a length or an angle per second)."""
    return bool(
        VELOCITY_NAME.search(snake(series.name)) or VELOCITY_UNIT.fullmatch(short_unit(series.node.unit))
    )


def is_position(series: Series) -> bool:
    """A SpatialSeries, or one with `pos` in its name, that is no velocity and no heading."""
    parent = type(series.node.parent).__name__
    spatial = type(series.node).__name__ == "SpatialSeries" and parent != "CompassDirection"
    return not is_velocity(series) and (spatial or bool(POSITION_NAME.search(snake(series.name))))


def _named(candidates: Sequence[Series], behavior: str, file: Path) -> Series:
    wanted = behavior.lower()
    for series in candidates:
        if wanted in (series.name.lower(), series.path.lower()):
            return series
    hint = did_you_mean(behavior, [s.name for s in candidates]) if candidates else "no behaviour at all"
    raise RecordingError(f"{file}: no behaviour series named '{behavior}'", expected=hint)


def _rank(series: Series) -> tuple[bool, bool, bool, bool, str]:
    where, columns = snake(series.path), _columns(series)
    return (
        not is_velocity(series),
        bool(NOT_LIMB.search(where)),
        not LIMB.search(where),
        columns not in (2, 3) and not _axis(series),
        series.path,
    )


def _transposed(series: Series) -> bool:
    shape = series.shape
    return len(shape) == 2 and shape[0] <= 8 < shape[1]


def _columns(series: Series) -> int:
    return 1 if len(series.shape) == 1 else min(series.shape) if _transposed(series) else series.shape[1]


def _rows(series: Series) -> int:
    return series.shape[1] if _transposed(series) else series.shape[0]


def _axis(series: Series) -> str | None:
    """x, y or z for a one-column series that says so in its name, like `vel_x` or `vx`."""
    found = re.search(r"(?:^|_)v?([xyz])(?:_|$)", snake(series.name))
    return found.group(1) if found and _columns(series) == 1 else None


def _with_axes(series: Series, candidates: Sequence[Series]) -> tuple[Series, ...]:
    """`vel_x` brings `vel_y` and `vel_z` from the same container, when these are as long."""
    if _axis(series) is None:
        return (series,)
    stem, folder = _stem(series), series.path.rpartition("/")[0]
    family = [s for s in candidates if s.path.rpartition("/")[0] == folder and _axis(s) and _stem(s) == stem]
    alike = [s for s in family if _rows(s) == _rows(series) and nominal_rate(s) == nominal_rate(series)]
    return tuple(sorted(alike, key=lambda s: _axis(s) or ""))


def _stem(series: Series) -> str:
    return re.sub(r"(^|_)(v?)[xyz](?=_|$)", r"\1\2", snake(series.name)).strip("_")


def _behaviour(parts: tuple[Series, ...], others: tuple[str, ...], file: Path) -> Behaviour:
    first = parts[0]
    derived = is_position(first)
    units = [short_unit(part.node.unit) for part in parts for _ in range(_columns(part))]
    return Behaviour(
        file=file,
        series=" + ".join(part.path for part in parts),
        names=output_names(parts, moving=derived or is_velocity(first)),
        units=tuple(f"{unit}/s" if derived else unit for unit in units),
        samples=_rows(first),
        derived=f"velocity from {first.name}, differentiated over 10 ms bins" if derived else None,
        others=others,
        _parts=parts,
    )


def output_names(parts: Sequence[Series], *, moving: bool) -> tuple[str, ...]:
    """`cursor_vel_x`, `cursor_vel_y`: what moves, `vel` for velocities, the column."""
    words: list[str] = []
    for source in (_stem(parts[0]), *reversed(snake(parts[0].path).split("/")[1:-1])):
        words = [
            word
            for word in source.split("_")
            if word and word not in GENERIC and word not in ("v", "xy", "xyz")
        ]
        if words:
            break
    stem = [*words, "vel"] if moving else words or ["behaviour"]
    columns = [_axis(part) or "" for part in parts] if _axis(parts[0]) else _column_names(parts[0])
    return tuple("_".join([*stem, column] if column else stem) for column in columns)


def _column_names(series: Series) -> list[str]:
    """Column names from the control or the description ("... (x, y)"), else x, y, z, else numbers."""
    count = _columns(series)
    control = getattr(series.node, "control_description", None)
    if control is not None and len(control) == count:
        return [snake(str(name)) for name in control]
    text = str(series.node.description or "") + " " + str(getattr(series.node, "reference_frame", None) or "")
    for inside in re.findall(r"[(\[]([^()\[\]]+)[)\]]", text):
        names = [snake(name.strip()) for name in re.split(r",|;|\band\b", inside)]
        if (
            len(names) == count
            and len(set(names)) == count
            and all(re.fullmatch(r"[a-z]\w{0,11}", n) for n in names)
        ):
            return names
    if count == 1:
        return [""]
    return list(AXES[:count]) if count <= 3 else [str(column) for column in range(count)]


def snake(name: str) -> str:
    """CursorVelocity -> cursor_velocity; slashes stay, other signs become underscores."""
    split = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return re.sub(r"[^a-z0-9/]+", "_", split.lower()).strip("_")


def short_unit(unit: object) -> str:
    """`meters/second`, `m per s` and `m*s^-1` -> m/s; unknown units pass unchanged."""
    text = str(unit or "").strip()
    for pattern, short in (
        (r"centimet(er|re)s?", "cm"), (r"millimet(er|re)s?", "mm"), (r"met(er|re)s?", "m"),
        (r"\bsec(ond)?s?\b", "s"), (r"\s+per\s+|\s*/\s*", "/"), (r"[\s*.·]*s\^?-1\b", "/s"),
    ):  # fmt: skip
        text = re.sub(pattern, short, text, flags=re.IGNORECASE)
    return text or "a.u."


def _read_samples(
    parts: Sequence[Series], rows: int, file: Path
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Times (n,) and values (n, K), at most about 1 kHz, times strictly increasing and finite."""
    first = parts[0]
    rate = nominal_rate(first)
    if rows < 2 or not rate >= MIN_RATE_HZ:
        raise RecordingError(
            f"{file}: behaviour {first.path} is too coarse",
            got=f"{rows} samples at {rate:.4g} Hz",
            expected=f"at least {MIN_RATE_HZ} Hz",
            causes=("timestamps are not in seconds", "the series holds one value a trial"),
            next_step="name another series with `behavior`, see `edgedistill inspect`",
        )
    stride = max(1, int(rate // MAX_RATE_HZ))
    times = _times(first, rows, stride, file)
    values = np.concatenate([_values(part, stride) for part in parts], axis=1)
    keep = np.isfinite(times)
    times, values = times[keep], values[keep]
    if (np.diff(times) < 0).any():
        at = int(np.argmax(np.diff(times) < 0))
        raise RecordingError(
            f"{file}: the timestamps of {first.path} run backwards",
            got=f"{times[at + 1]:.6g} s after {times[at]:.6g} s",
            expected="increasing timestamps in seconds",
            next_step="sort the series by time, or store each recording as a file of its own",
        )
    fresh = np.concatenate([[True], np.diff(times) > 0])
    return times[fresh], values[fresh]


def _times(series: Series, rows: int, stride: int, file: Path) -> npt.NDArray[np.float64]:
    if series.node.rate is not None:
        start = float(series.node.starting_time or 0.0)
        return start + np.arange(0, rows, stride) / float(series.node.rate)
    if len(series.node.timestamps) != rows:
        raise RecordingError(
            f"{file}: {series.path} has {len(series.node.timestamps)} timestamps for {rows} samples",
            next_step="write the series again with one timestamp a sample",
        )
    return strided_rows(series.node.timestamps, stride)


def _values(series: Series, stride: int) -> npt.NDArray[np.float64]:
    node: Any = series.node
    raw = strided_rows(node.data, stride, _transposed(series)).reshape(-1, _columns(series))
    scale = 1.0 if node.conversion is None else float(node.conversion)
    return raw * scale + float(getattr(node, "offset", None) or 0.0)
