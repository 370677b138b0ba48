"""Reads the clock that the timestamps of a series tell: its true rate, its gaps, and how it wanders.

The input is a dataset of timestamps, which is read in blocks, because an hour at 30 kHz has 0.9 GB of them. The output
is a `TimestampClock`. Only lasting steps forward are gaps. Jitter and packets are smoothed, slow drift is followed, and
a constant drift against the rate of the data sheet makes the measured rate the true one.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.data.lfp.nominal_rates import find_nominal_rate
from edgedistill.data.lfp.timestamp_levels import BLOCK, NOT_SECONDS, Levels, require_finite, scan_timestamps
from edgedistill.data.lfp.timestamp_rate import ROUNDED_S, Pace, explain_rounding, find_rounding, measure_pace
from edgedistill.data.lfp.timestamp_steps import LEAST_STEP, Step, take_back_returns
from edgedistill.data.series import find_exact_rate
from edgedistill.errors import RecordingError

Times = npt.NDArray[np.float64]

BACKWARD_S = 1e-3  # a smaller lasting step backward is a correction of the clock, which the times follow
CHANGED = 1000e-6  # relative; a rate that changes by more is not drift


@dataclass(frozen=True, eq=False)
class TimestampClock:
    """Holds what timestamps say. `runs` are (grid frame, frames, first stored frame)."""

    start_s: float
    rate: Fraction
    runs: tuple[tuple[int, int, int], ...]
    anchor_frames: Times  # on the grid, increasing
    anchor_times: Times  # in s
    notes: tuple[str, ...]


def read_timestamp_clock(times: Any, frames: int, file: Path, path: str) -> TimestampClock:
    """Returns the clock of `frames` frames with one timestamp in seconds each.

    Raises RecordingError for another number of timestamps, for values that are not finite, and for times that run
    backwards or change their rate.
    """
    where = f"{file}: the timestamps of {path}"
    if len(times) != frames:
        raise RecordingError(
            f"{file}: {path} has {len(times)} timestamps for {frames} frames",
            causes=("the file was cut while it was written", "data and timestamps come from two recordings"),
            next_step="write the series again with `rate` and `starting_time`",
        )
    pace = measure_pace(times, frames)
    if frames < 2 or not (np.isfinite(pace.period_s) and pace.period_s > 0):
        for first in range(0, frames, BLOCK):
            require_finite(np.asarray(times[first : first + BLOCK], dtype=np.float64), first, where)
        raise RecordingError(
            f"{where} are no usable clock",
            got=f"{frames} timestamps from {float(times[0]):.6g} to {float(times[-1]):.6g} s",
            expected="increasing timestamps in seconds",
            next_step="write the series again with `rate` and `starting_time`",
        )
    levels = scan_timestamps(times, frames, pace, where)
    steps, stretches = take_back_returns(list(levels.steps), pace.period_s)
    _require_forward(times, steps, pace, where)
    gaps = [step for step in steps if step.frames >= LEAST_STEP]
    if _is_staircase(gaps, frames):
        gaps = []
    _require_one_rate(levels, times, pace, where)
    _require_fine_steps(gaps, times, frames, pace, where)
    return _build(times, frames, pace, levels.outside(stretches), gaps, len(stretches))


def _require_forward(times: Any, steps: list[Step], pace: Pace, where: str) -> None:
    least = max(BACKWARD_S / pace.period_s, 1 + 0.1)
    for step in steps:
        if step.frames < -least:
            raise RecordingError(
                f"{where} run backwards",
                got=f"{float(times[step.at + 1]):.6f} s at frame {step.at + 1}, "
                f"after {float(times[step.at]):.6f} s at frame {step.at}",
                expected="increasing timestamps in seconds",
                causes=("the clock was reset", "two recordings were stored as one series"),
                next_step="store each recording as a series of its own, with its own start",
            )


def _require_one_rate(levels: Levels, times: Any, pace: Pace, where: str) -> None:
    """Refuses a rate that changes: the level without the steps then rises or falls for nine levels on end."""
    at, off = levels.frames, levels.without_steps()
    lag = 4
    if len(at) <= 2 * lag:
        return
    slopes = (off[lag:] - off[:-lag]) / (at[lag:] - at[:-lag])
    lasting = np.minimum(np.abs(slopes[lag:]), np.abs(slopes[:-lag]))  # one odd level spoils only one of the two
    same = np.sign(slopes[lag:]) == np.sign(slopes[:-lag])
    odd = np.flatnonzero(same & (lasting > max(CHANGED, 4 * levels.noise / (at[lag] - at[0]))))
    if odd.size:
        frame = int(at[odd[0]])
        slope = float(slopes[odd[0] + lag])
        raise RecordingError(
            f"{where} change their rate",
            got=f"about {1 / (pace.period_s * (1 + slope)):.6g} Hz from frame {frame} at {float(times[frame]):.3f} s, "
            f"{1 / pace.period_s:.6g} Hz in most of the series",
            expected=f"one rate, with at most {CHANGED * 1e6:.0f} ppm of drift",
            causes=(*explain_rounding(times, pace), "recordings of two rates were joined", NOT_SECONDS),
            next_step="store each rate as a series of its own",
        )


def _require_fine_steps(gaps: list[Step], times: Any, frames: int, pace: Pace, where: str) -> None:
    """Refuses frequent steps forward that are no longer than the rounding of float32, as no frame was lost there."""
    typical_s = float(np.median([gap.frames for gap in gaps])) * pace.period_s if gaps else np.inf
    if len(gaps) > CHANGED * frames and typical_s < 1.5 * find_rounding(times):
        raise RecordingError(
            f"{where} are no usable clock",
            got=f"{len(gaps)} steps forward of {typical_s * 1e3:.3g} ms",
            expected="times that are exact to a part of a frame",
            causes=explain_rounding(times, pace),
            next_step="write the series again with `rate` and `starting_time`, or with timestamps in float64",
        )


def _is_staircase(gaps: list[Step], frames: int) -> bool:
    """Returns whether the steps are drift in times that were rounded to whole frames.

    Then they are one frame each, at one slow pace, from the beginning of the series to its end.
    """
    if len(gaps) < 3 or any(abs(gap.frames - 1) > 0.3 for gap in gaps):
        return False
    paces = np.diff([gap.at for gap in gaps])
    pace = float(np.median(paces))
    throughout = gaps[0].at <= 1.1 * pace and frames - gaps[-1].at <= 1.1 * pace
    return bool(throughout and pace > 1 / CHANGED and np.abs(paces - pace).max() <= max(2, 0.02 * pace))


def _build(times: Any, frames: int, pace: Pace, levels: Levels, gaps: list[Step], returned: int) -> TimestampClock:
    period, first_s = pace.period_s, float(times[0])
    bounds = [0, *(gap.at + 1 for gap in gaps), frames]
    run_of = np.searchsorted(np.array(bounds[1:-1], dtype=np.int64), levels.frames, side="right")
    seconds = first_s + (levels.frames + levels.off) * period
    slope, off_line_s = _fit_slope(levels.frames, seconds, run_of, gaps, period)
    rate, notes = _choose_rate(slope, off_line_s, frames)
    sizes = _round_gaps(gaps, float(rate) * period, levels.noise)
    shifts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    runs = tuple(
        (int(first + shift), int(stop - first), int(first))
        for first, stop, shift in zip(bounds, bounds[1:], shifts, strict=False)
    )
    at, known = _place_anchors(levels.frames, seconds, run_of, bounds, shifts, gaps, float(rate), period)
    exact = not (pace.packets or pace.noisy) and levels.noise < 0.05
    start_s = first_s if exact or not len(at) else float(known[0] - at[0] / float(rate))
    if pace.packets:
        notes.append("frames came in packets that carry the time of arrival: spread evenly")
    elif pace.noisy:
        notes.append("the timestamps jitter by more than half a frame: smoothed")
    if returned:
        notes.append(f"timestamps were late or early for a moment {returned} times: smoothed")
    if sizes:
        lost = sum(sizes) / float(rate)
        notes.append(f"the timestamps step forward {len(sizes)} times, {lost:.3f} s in all: declared as gaps")
    line = start_s + at / float(rate)
    wander = float(np.abs(known - line).max()) if len(at) else 0.0
    if wander * float(rate) > 1:
        notes.append(f"the clock wanders by up to {wander * 1e3:.2f} ms: the times follow it")
    return TimestampClock(start_s, rate, runs, at, known, tuple(notes))


def _fit_slope(
    at: Times, seconds: Times, run_of: npt.NDArray[np.intp], gaps: list[Step], period: float
) -> tuple[float, float]:
    """Returns the seconds per frame within runs, and the largest distance in s of the levels from that line.

    Where no run is long enough, the line goes through all runs, with gaps of whole frames between them.
    """
    x, y, group = at.astype(np.float64), seconds, run_of
    if not len(x) or np.bincount(run_of).max() < 8:
        shifts = np.concatenate([[0], np.cumsum([round(gap.frames) for gap in gaps])])
        x, group = x + shifts[run_of], np.zeros(len(x), np.intp)
    if len(x) < 2:
        return period, 0.0
    keep = np.ones(len(x), dtype=np.bool_)
    slope, rest = period, np.zeros(len(x))
    for _ in range(3):  # late stretches are outliers
        count = np.maximum(np.bincount(group[keep], minlength=group.max() + 1), 1)
        mean_x = np.bincount(group[keep], x[keep], minlength=len(count)) / count
        mean_y = np.bincount(group[keep], y[keep], minlength=len(count)) / count
        dx, dy = x - mean_x[group], y - mean_y[group]
        if not (lever := float((dx[keep] ** 2).sum())) > 0:
            return period, 0.0
        slope = float((dx[keep] * dy[keep]).sum() / lever)
        rest = dy - slope * dx
        near = 8 * 1.48 * np.median(np.abs(rest[keep]))
        keep = np.abs(rest) <= max(float(near), 1e-9)
    return slope, float(np.abs(rest[keep]).max(initial=0.0))


def _choose_rate(slope: float, off_line_s: float, frames: int) -> tuple[Fraction, list[str]]:
    """Returns the nominal rate where the timestamps cannot tell it from the true one, else the measured one."""
    measured, lasted_s = 1 / slope, frames * slope
    blur = max(ROUNDED_S + 2 * off_line_s, 0.5 * slope) / lasted_s  # half a frame in all changes no frame's place
    nominal = find_nominal_rate(measured, blur)
    if nominal is not None and abs(float(nominal) / measured - 1) <= max(blur, 1e-9):
        return nominal, []
    rate = find_exact_rate(measured, max(1e-9, ROUNDED_S / lasted_s))
    if nominal is None:
        return rate, []
    ppm = (measured / float(nominal) - 1) * 1e6
    return rate, [
        f"by its timestamps the clock runs at {measured:.10g} Hz, {ppm:+.1f} ppm off the nominal "
        f"{float(nominal):.10g} Hz: the measured rate is used"
    ]


def _round_gaps(gaps: list[Step], stretch: float, noise: float) -> list[int]:
    """Returns whole frames. What rounding one gap leaves over is added to the next, unless it is only noise."""
    sizes, rest = [], 0.0
    for gap in gaps:
        exact = (1 + gap.frames) * stretch - 1 + rest
        size = max(1, round(exact))
        rest = exact - size
        if abs(rest) < 0.02 + noise:
            rest = 0.0
        sizes.append(size)
    return sizes


def _place_anchors(
    at: Times,
    seconds: Times,
    run_of: npt.NDArray[np.intp],
    bounds: list[int],
    shifts: npt.NDArray[np.int64],
    gaps: list[Step],
    rate: float,
    period: float,
) -> tuple[Times, Times]:
    """Returns grid frames and times: about one a second in each run, and one at either end of it."""
    frames: list[Times] = []
    times: list[Times] = []
    before = 0.0
    firsts = np.searchsorted(run_of, np.arange(len(bounds)))
    for run, (first, stop) in enumerate(pairwise(bounds)):
        x, y = at[firsts[run] : firsts[run + 1]], seconds[firsts[run] : firsts[run + 1]]
        if not len(x):  # a run that is too short for a level continues from the run before
            middle = np.array([float(first)])
            y, x = np.array([before + (1 + gaps[run - 1].frames) * period if run else seconds[0]]), middle
        pieces = max(1, round((stop - first) / rate))
        groups = [g for g in np.array_split(np.arange(len(x)), min(pieces, len(x))) if len(g)]
        mean_x = np.array([x[g].mean() for g in groups])
        mean_y = np.array([y[g].mean() for g in groups])
        ends = np.array([first, stop], dtype=np.float64)
        end_y = np.array([mean_y[0] + (first - mean_x[0]) / rate, mean_y[-1] + (stop - mean_x[-1]) / rate])
        before = float(end_y[1]) - 1 / rate
        inner = (mean_x > first) & (mean_x < stop)
        frames.append(np.concatenate([ends[:1], mean_x[inner], ends[1:]]) + shifts[run])
        times.append(np.concatenate([end_y[:1], mean_y[inner], end_y[1:]]))
    return np.concatenate(frames), np.concatenate(times)
