"""Chooses what the robustness curves of a bundle compare, with the signal that each of them decodes.

A bundle, its holdout and candidates go in. Students on LFP and spikes come out, and the bundle's lagged ridge, which
decodes the same filled-in LFP as the student.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.bench.holdout_scores import DecodedHoldout
from edgedistill.bench.peers import LaggedRidge
from edgedistill.bench.subjects import (
    LFP_INT8,
    LFP_STUDENT,
    NOT_IN_BUNDLE,
    SPIKE_INT8,
    SPIKE_STUDENT,
    Absent,
    Candidate,
)
from edgedistill.bundle import Bundle
from edgedistill.bundle.contents import RIDGE, Floats, Holdout, read_decoder_spec, read_ridge, read_standardization
from edgedistill.measure.damage import LfpSignal, SpikeSignal
from edgedistill.measure.robustness import Engine, Subject
from edgedistill.numerics.smoothing import OutputSmoother, SmoothingModel

LFP_RIDGE = "lfp-ridge"
STUDENTS = ((LFP_INT8, LFP_STUDENT), (SPIKE_INT8, SPIKE_STUDENT))  # the first of each pair that has an R² is measured


def choose_subjects(
    bundle: Bundle, holdout: Holdout, candidates: Sequence[Candidate], decoded: Mapping[str, DecodedHoldout]
) -> dict[str, Subject]:
    """Returns the subjects of the curves, the LFP student first. Those without an R² on the holdout are left out."""
    rows = {c.name: c for c in candidates if decoded[c.name].fit.r2 is not None}
    ours, spikes = (next((name for name in pair if name in rows), None) for pair in STUDENTS)
    found: dict[str, Subject] = {}
    if ours is not None:
        spec = read_decoder_spec(bundle)
        signal = LfpSignal(holdout.present, holdout.there, read_standardization(bundle, spec))
        found[ours] = Subject(smooth_engine(rows[ours].engine, rows[ours].smoothing), signal)
        if RIDGE in bundle.names:
            ridge = read_ridge(bundle, spec.shape)
            found[LFP_RIDGE] = Subject(smooth_engine(LaggedRidge(ridge), ridge.smoothing), signal)
    if spikes is not None:
        row = rows[spikes]
        found[spikes] = Subject(smooth_engine(row.engine, row.smoothing), SpikeSignal(row.inputs))
    return found


class SmoothedEngine:
    """Decodes with an engine and smooths its outputs."""

    def __init__(self, engine: Engine, smoothing: SmoothingModel) -> None:
        """Takes an engine that does not smooth its outputs itself."""
        self._engine, self._smoother = engine, OutputSmoother(smoothing)

    def reset(self) -> None:
        """Starts a fresh stream."""
        self._engine.reset()
        self._smoother.reset()

    def step(self, bin: npt.NDArray[np.floating[Any]]) -> Floats:
        """Returns the smoothed kinematics (K,) of one bin (C,)."""
        return self._smoother.step(self._engine.step(bin))


def smooth_engine(engine: Engine, smoothing: SmoothingModel | None) -> Engine:
    """Returns an engine whose outputs are smoothed, which is `engine` itself where there is no filter."""
    return engine if smoothing is None else SmoothedEngine(engine, smoothing)


def list_absent(bundle: Bundle) -> tuple[Absent, ...]:
    """Returns the ridge with the reason where the bundle does not hold it."""
    return () if RIDGE in bundle.names else (Absent(LFP_RIDGE, NOT_IN_BUNDLE),)
