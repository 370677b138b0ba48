"""Draws the windows of the sessions that a calibration sees.

The inputs are sessions, a student's size, a recipe and a seed. The outputs are windows of the training blocks, each
with the run-up of bins that its first bin attends to, and every window that was left out, with the reason.

Windows lie on a grid, so that none overlap. They are drawn in equal numbers from strata of the behavior's speed. Strata
are equal steps from the slowest to the fastest windows, because an animal rests most of the time and strata of equal
numbers would be mostly rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from edgedistill.config import StudentSize
from edgedistill.errors import RecordingError
from edgedistill.quantization.calibration.recipe import Recipe
from edgedistill.scratch import split_rows
from edgedistill.training.batches import TrainingSession, make_generator

SPEED_ENDS = (0.02, 0.98)  # the strata lie between these quantiles of speed, so that a glitch makes no stratum


@dataclass(frozen=True)
class Window:
    """Names bins first_bin … first_bin + bins of one session. The student starts `run_up` bins before, unobserved."""

    session: str
    first_bin: int
    bins: int
    run_up: int

    def to_json(self) -> dict[str, object]:
        """Returns the window as it stands in a file of ranges."""
        return {"session": self.session, "first_bin": self.first_bin, "bins": self.bins}


@dataclass(frozen=True)
class LeftOut:
    """Names a window that was drawn and left out. `value` is its largest |bin|, where that is the reason."""

    session: str
    first_bin: int
    bins: int
    reason: str
    value: float | None

    def to_json(self) -> dict[str, object]:
        """Returns the window as it stands in a file of ranges."""
        facts = {"session": self.session, "first_bin": self.first_bin, "bins": self.bins}
        return {**facts, "reason": self.reason, "value": self.value}


@dataclass(frozen=True)
class Draw:
    """Holds the windows a calibration sees and those left out. Bins beyond `limit` are masked in run-ups."""

    windows: tuple[Window, ...]
    left_out: tuple[LeftOut, ...]
    limit: float


@dataclass(frozen=True, eq=False)
class Grid:
    """Holds all n windows of one session, in the order of time."""

    session: TrainingSession
    first: npt.NDArray[np.int64]  # (n,)
    bins: int
    run_up: int
    peaks: npt.NDArray[np.float32]  # (stop of the training block,) largest |bin| over channels, NaN where one is NaN
    speed: npt.NDArray[np.float64]  # (n,), NaN where unknown
    usable: npt.NDArray[np.bool_]  # (n,) windows whose bins are all valid

    @property
    def largest(self) -> npt.NDArray[np.float32]:
        """Returns the largest |bin| of each window (n,): NaN where one is NaN, 0 where all are masked."""
        return np.asarray(self.peaks[self.first[:, None] + np.arange(self.bins)].max(axis=1, initial=0))

    def window(self, index: int) -> Window:
        """Returns one window of the grid."""
        return Window(self.session.id, int(self.first[index]), self.bins, self.run_up)


def draw_windows(
    sessions: Sequence[TrainingSession], modality: str, size: StudentSize, recipe: Recipe, seed: int
) -> Draw:
    """Draws `recipe.windows` windows, or as many as the training blocks hold, evenly from all sessions.

    Raises RecordingError where there is no session, or no usable window in any of them.
    """
    if not sessions:
        raise RecordingError("there is nothing to calibrate on", got="no session", next_step="name at least one")
    grids = [grid_from_session(s, s.inputs(modality), size, recipe, seed, order) for order, s in enumerate(sessions)]
    largest = np.concatenate([grid.largest for grid in grids])
    known = largest[(largest > 0) & np.concatenate([grid.usable for grid in grids])]  # neither NaN nor masked
    limit = recipe.artefact_factor * float(np.median(known)) if len(known) else 0.0
    found: dict[int, tuple[list[Window], list[LeftOut]]] = {}
    missing = recipe.windows
    # sessions with few windows come first, so that those with more make up for what they lack
    for order in sorted(range(len(grids)), key=lambda one: int(((grids[one].largest > 0) & grids[one].usable).sum())):
        wanted = -(-missing // (len(grids) - len(found)))
        rings = grids[order].session.settled if modality == "lfp" else 0
        random = make_numpy_generator(seed, 2 * order + 1)
        found[order] = draw_from_grid(grids[order], wanted, recipe.strata, limit, rings, random)
        missing -= len(found[order][0])
    windows = [window for order in sorted(found) for window in found[order][0]]
    left_out = [one for order in sorted(found) for one in found[order][1]]
    if not windows:
        raise no_window_error(left_out)
    return Draw(tuple(windows), tuple(left_out), limit)


def grid_from_session(
    session: TrainingSession, bins: Tensor, size: StudentSize, recipe: Recipe, seed: int, order: int
) -> Grid:
    """Places windows side by side in the training block, after settling and a run-up, at a random start.

    The run-up is the student's receptive field. In a block too short for that it takes at most half of the bins, and
    the first windows then see what a decoder sees that was started a little before.
    """
    width, stop = recipe.window_bins, session.split.train.stop
    room = stop - session.settled
    full = size.layers * (size.window - 1) + (size.taps - 1) * size.dilation
    run_up = max(0, min(full, (room - width) // 2))
    count = max(0, (room - run_up) // width)
    slack = room - run_up - count * width
    start = session.settled + run_up + int(make_numpy_generator(seed, 2 * order).integers(slack + 1)) if count else stop
    first = start + width * np.arange(count)
    peaks = np.empty(stop, np.float32)
    for part in split_rows(slice(0, stop), bins.shape[1]):
        peaks[part] = bins[part].abs().amax(1).numpy()
    usable = session.valid.numpy()[first[:, None] + np.arange(width)].all(axis=1)
    return Grid(session, first, width, run_up, peaks, compute_speed(session, first, width), usable)


def compute_speed(session: TrainingSession, first: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.float64]:
    """Returns the mean length of the z-scored behavior in each window (n,); NaN where most of it is unknown."""
    if session.behavior is None:
        return np.full(len(first), np.nan)
    rows = session.behavior.double().square().sum(1).sqrt().numpy()[first[:, None] + np.arange(width)]
    seen = np.isfinite(rows)
    mean = np.where(seen, rows, 0).sum(1) / np.maximum(seen.sum(1), 1)
    return np.where(2 * seen.sum(1) >= width, mean, np.nan)


def draw_from_grid(
    grid: Grid, wanted: int, strata: int, limit: float, rings: int, random: np.random.Generator
) -> tuple[list[Window], list[LeftOut]]:
    """Draws `wanted` windows of one session, one stratum after another, and returns them and those left out, by time.

    A grid without windows gives one entry that says so. Windows that ring after an artefact (for `rings` bins) are
    drawn only where less than half would be left without them.
    """
    if not len(grid.first):
        return [], [LeftOut(grid.session.id, grid.session.settled, grid.bins, describe_short_block(grid), None)]
    drawn: list[int] = []
    ringing: list[int] = []
    passed: list[LeftOut] = []
    largest = grid.largest
    for index in take_in_turn(find_strata(grid.speed, strata), random):
        if len(drawn) == wanted:
            break
        value = float(largest[index])
        if not grid.usable[index]:
            passed.append(leave_out(grid, index, "the session leaves some of its bins out", None))
        elif (reason := find_fault(value, limit)) is not None:
            passed.append(leave_out(grid, index, reason, value if np.isfinite(value) else None))
        elif is_ringing(grid, index, limit, rings):
            ringing.append(index)
        else:
            drawn.append(index)
    missing = max(0, -(-min(wanted, len(grid.first)) // 2) - len(drawn))
    drawn += ringing[:missing]
    passed += [leave_out(grid, index, "it rings from an artefact before it", None) for index in ringing[missing:]]
    return [grid.window(index) for index in sorted(drawn)], sorted(passed, key=lambda one: one.first_bin)


def find_strata(speed: npt.NDArray[np.float64], strata: int) -> list[list[int]]:
    """Returns indices of the windows by speed, slowest first, then those of unknown speed. No stratum is empty."""
    known = np.isfinite(speed)
    found = [np.flatnonzero(~known)]
    if known.any():
        low, high = np.quantile(speed[known], SPEED_ENDS)
        inner = np.linspace(low, high, strata + 1)[1:-1]
        level = np.searchsorted(inner, speed, side="right")
        found = [np.flatnonzero(known & (level == one)) for one in range(strata)] + found
    return [stratum.tolist() for stratum in found if len(stratum)]


def take_in_turn(strata: Sequence[list[int]], random: np.random.Generator) -> list[int]:
    """Returns one window of each stratum, then another of each, and so on, shuffled within a stratum."""
    shuffled = [random.permutation(stratum).tolist() for stratum in strata]
    longest = max(map(len, shuffled), default=0)
    return [stratum[place] for place in range(longest) for stratum in shuffled if place < len(stratum)]


def find_fault(largest: float, limit: float) -> str | None:
    """Returns why a window cannot be used, judged by its largest |bin|; None where it can."""
    if np.isnan(largest):
        return "it holds NaN"
    if largest == 0:
        return "all its bins are masked: NaN or bad channels"
    return f"an artefact: |bin| beyond {limit:.3g}" if largest > limit else None


def is_ringing(grid: Grid, index: int, limit: float, rings: int) -> bool:
    """Returns whether an artefact lies less than `rings` bins before a window."""
    first = grid.first[index]
    return bool((grid.peaks[max(grid.session.settled, first - rings) : first] > limit).any())


def leave_out(grid: Grid, index: int, reason: str, value: float | None) -> LeftOut:
    """Returns the entry for a window that was left out."""
    return LeftOut(grid.session.id, int(grid.first[index]), grid.bins, reason, value)


def describe_short_block(grid: Grid) -> str:
    """Returns why a session has no window at all."""
    room = grid.session.split.train.stop - grid.session.settled
    return f"its training block is shorter than a window: {room} bins"


def no_window_error(passed: Sequence[LeftOut]) -> RecordingError:
    """Returns the error for a calibration set that is empty."""
    one = passed[0]
    return RecordingError(
        f"session {one.session}: no window to calibrate on",
        got=f"{len(passed)} windows left out; the first, from bin {one.first_bin} on: {one.reason}",
        expected="at least one window whose bins are known",
        causes=("the channels are bad all through the training block", "the recording is too short"),
        next_step="calibrate on another session, or with smaller window_bins in a recipe of your own",
    )


def make_numpy_generator(seed: int, step: int) -> np.random.Generator:
    """Returns the numpy generator of one step. It depends on seed and step alone."""
    return np.random.default_rng(make_generator(seed, step).initial_seed())
