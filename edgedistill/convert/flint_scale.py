"""Tells the units of a recording of Flint and others, 2012, which the data set does not state.

The inputs are the trials. The outputs are the unit of the hand's position and of the LFP. Both are told from their
size, which leaves only one choice: the hand of a monkey that reaches to targets moves between 2 cm and 2 m, and a field
potential in motor cortex has a deviation between 5 uV and 5 mV.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgedistill.convert.flint_source import FlintTrial
from edgedistill.errors import RecordingError

LENGTHS = {"m": (0.02, 2.0), "cm": (2.0, 200.0), "mm": (200.0, 2000.0)}  # what the hand's span may be in each
VOLTAGES = {"V": (5e-6, 5e-3), "mV": (5e-3, 5.0), "uV": (5.0, 5e3)}  # what the LFP's deviation may be in each
VOLTS = {"V": 1.0, "mV": 1e-3, "uV": 1e-6}
NEAR_ONE = (0.8, 1.25)

Array = npt.NDArray[np.float64]


def tell_hand_unit(trials: Sequence[FlintTrial], where: str) -> tuple[str, str]:
    """Returns m, cm or mm, and a note that says why. Raises RecordingError where the span fits none of them."""
    places = np.concatenate([trial.hand_pos[:, :2] for trial in trials])
    places = places[np.isfinite(places).all(axis=1)]
    span = float(np.ptp(np.percentile(places, [1, 99], axis=0), axis=0).max()) if len(places) else 0.0
    unit = next((unit for unit, (low, high) in LENGTHS.items() if low <= span < high), None)
    if unit is None:
        raise _unknown_unit_error(
            f"{where}: the unit of HandPos cannot be told", f"a span of {span:.3g}", "--hand-unit"
        )
    return unit, f"HandPos is in {unit}: its span is {span:.3g}"


def tell_lfp_unit(spread: float, where: str) -> tuple[str, str]:
    """Returns V, mV or uV for the median standard deviation of the channels, and a note that says why."""
    unit = next((unit for unit, (low, high) in VOLTAGES.items() if low <= spread < high), None)
    if unit is None:
        raise _unknown_unit_error(
            f"{where}: the unit of the LFP cannot be told", f"a standard deviation of {spread:.3g}", "--lfp-unit"
        )
    return unit, f"the LFP is in {unit}: its standard deviation is {spread:.3g}"


def check_velocity(trials: Sequence[FlintTrial]) -> list[str]:
    """Returns a note where HandVel is not the derivative of HandPos, so that its unit is in doubt."""
    slopes = [np.gradient(t.hand_pos[:, :2], t.times_s, axis=0).ravel() for t in trials]
    moved, stored = np.concatenate(slopes), np.concatenate([t.hand_vel[:, :2].ravel() for t in trials])
    known = np.isfinite(moved) & np.isfinite(stored)
    power = float(moved[known] @ moved[known])
    ratio = float(moved[known] @ stored[known]) / power if power else 0.0
    if NEAR_ONE[0] <= ratio <= NEAR_ONE[1]:
        return []
    return [f"HandVel is {ratio:.3g} times the derivative of HandPos: its unit is in doubt"]


def _unknown_unit_error(what: str, got: str, option: str) -> RecordingError:
    choices = "|".join(LENGTHS if option == "--hand-unit" else VOLTAGES)
    return RecordingError(
        what,
        got=got,
        expected="the size of a reaching hand" if option == "--hand-unit" else "the size of a field potential",
        causes=("another data set", "a damaged file"),
        next_step=f"name it: {option} {choices}",
    )
