"""Reads the trials of a file of Flint and others, 2012: spikes, field potentials and the movement of the hand.

The input is a MATLAB 5 file that holds `Subject(i).Trial(j)`. A "Subject" is one recording of the same monkey. The
output is the list of trials of each. Published at crcns.org in the collection DREAM; times are seconds on one clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.convert.source_files import read_matlab5
from edgedistill.errors import RecordingError

Array = npt.NDArray[np.float64]
USAGE = "edgedistill convert flint Flint_2012_e1.mat --out FOLDER"
HAND_RATE_HZ = 100.0
FEW_SAMPLES = 2  # a shorter trial has no rate
MOST_OUTSIDE = 0.01  # share of the spikes that may lie outside the times of their trials


@dataclass(frozen=True)
class FlintTrial:
    """Holds one trial. Hand and target are (n, columns) at `times_s` (n,); spikes and LFP have one array a neuron."""

    number: int  # as in the file, counted from 1
    times_s: Array
    hand_pos: Array
    hand_vel: Array
    target_pos: Array
    condition: str
    spikes_s: tuple[Array, ...]
    lfp: tuple[Array, ...]  # empty for a neuron without one

    @property
    def stop_s(self) -> float:
        """Returns the end of the last sample in seconds."""
        return float(self.times_s[-1]) + 1 / HAND_RATE_HZ


def read_flint(path: Path) -> Iterator[tuple[list[FlintTrial], int]]:
    """Yields the trials of each recording in the order of time, and how many were too short to use.

    Raises RecordingError that names subject, trial and field of what is missing or does not fit.
    """
    subjects = read_matlab5(path, "Subject", USAGE)
    _require_fields(subjects, ("Trial",), f"{path}: Subject")
    for i, subject in enumerate(subjects.ravel(), 1):
        trials, short = [], 0
        rows = subject["Trial"]
        _require_fields(rows, ("Time", "HandPos", "HandVel", "Neuron"), f"{path}: Subject({i}).Trial")
        for j, row in enumerate(rows.ravel(), 1):
            where = f"{path}: Subject({i}).Trial({j})"
            if row["Time"].size < FEW_SAMPLES:
                short += 1
                continue
            trials.append(_read_trial(row, j, where))
        if not trials:
            raise RecordingError(f"{path}: Subject({i}) has no trials", got=f"{short} that are too short")
        yield _put_in_order(trials, f"{path}: Subject({i})"), short


def _require_fields(found: Any, fields: tuple[str, ...], where: str) -> None:
    held = getattr(getattr(found, "dtype", None), "names", None) or ()
    if missing := [field for field in fields if field not in held]:
        raise RecordingError(
            f"{where} has no field {' and no '.join(missing)}",
            got=", ".join(held) or f"{type(found).__name__} of {getattr(found, 'dtype', '?')}",
            expected=", ".join(fields),
            causes=("another data set",),
            next_step=USAGE,
        )


def _read_trial(row: Any, number: int, where: str) -> FlintTrial:
    neurons = row["Neuron"]
    _require_fields(neurons, ("Spike", "LFP"), f"{where}.Neuron")
    times = np.asarray(row["Time"], np.float64).ravel()
    if not (np.diff(times) > 0).all():
        at = int(np.argmin(np.diff(times)))
        raise RecordingError(
            f"{where}.Time does not increase",
            got=f"{times[at]:.4f} s, then {times[at + 1]:.4f} s",
            expected="times in seconds that increase",
        )
    held = row.dtype.names
    return FlintTrial(
        number=number,
        times_s=times,
        hand_pos=_read_columns(row["HandPos"], len(times), f"{where}.HandPos"),
        hand_vel=_read_columns(row["HandVel"], len(times), f"{where}.HandVel"),
        target_pos=_read_columns(row["TargetPos"], len(times), f"{where}.TargetPos")
        if "TargetPos" in held and row["TargetPos"].size
        else np.full((len(times), 2), np.nan),
        condition="".join(map(str, np.ravel(row["Condition"]))) if "Condition" in held else "",
        spikes_s=tuple(_read_spikes(neuron["Spike"]) for neuron in neurons.ravel()),
        lfp=tuple(np.asarray(neuron["LFP"], np.float64).ravel() for neuron in neurons.ravel()),
    )


def _read_columns(found: Any, samples: int, where: str) -> Array:
    values = np.asarray(found, np.float64)
    if values.ndim == 2 and values.shape[0] == samples and values.shape[1] >= 2:
        return values
    raise RecordingError(
        f"{where} does not fit the times of the trial",
        got=f"shape {values.shape}",
        expected=f"({samples}, 2 or 3)",
        next_step="download the file again",
    )


def _read_spikes(found: Any) -> Array:
    times = np.asarray(found, np.float64).ravel()
    return np.sort(times[np.isfinite(times)])


def _put_in_order(trials: list[FlintTrial], where: str) -> list[FlintTrial]:
    """Returns trials in the order of time. Raises RecordingError where they overlap or have other neurons."""
    ordered = sorted(trials, key=lambda trial: float(trial.times_s[0]))
    for before, after in pairwise(ordered):
        if after.times_s[0] <= before.times_s[-1]:
            raise RecordingError(
                f"{where}: the trials {before.number} and {after.number} overlap",
                got=f"{before.times_s[-1]:.3f} s is the end of one, {after.times_s[0]:.3f} s the start of the other",
                expected="trials one after another on one clock",
                causes=("times that begin anew in each trial",),
            )
    counts = {len(trial.spikes_s) for trial in ordered}
    if len(counts) > 1:
        raise RecordingError(
            f"{where}: the number of neurons changes between trials",
            got=", ".join(map(str, sorted(counts))),
            expected="the same neurons in all trials",
        )
    _require_spikes_inside(ordered, where)
    return ordered


def _require_spikes_inside(trials: list[FlintTrial], where: str) -> None:
    total, outside, worst = 0, 0, trials[0]
    for trial in trials:
        spikes = np.concatenate(trial.spikes_s) if trial.spikes_s else np.zeros(0)
        off = int(np.count_nonzero((spikes < trial.times_s[0]) | (spikes > trial.stop_s)))
        total, outside = total + len(spikes), outside + off
        worst = trial if off else worst
    if outside > MOST_OUTSIDE * total:
        spikes = np.concatenate(worst.spikes_s)
        raise RecordingError(
            f"{where}: {outside} of {total} spikes lie outside their trials",
            got=f"in trial {worst.number} spikes from {spikes.min():.3f} to {spikes.max():.3f} s",
            expected=f"times within {worst.times_s[0]:.3f} to {worst.stop_s:.3f} s",
            causes=("spike times that begin anew in each trial", "another version of the data set"),
        )
