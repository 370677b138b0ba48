"""Chooses what the robustness curves of a bundle compare, with the signal that each of them decodes.

A bundle, its holdout and candidates go in. Students on LFP and spikes come out, and the bundle's lagged ridge, which
decodes the same filled-in LFP as the student.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
from edgedistill.bundle.contents import RIDGE, Holdout, read_decoder_spec, read_ridge, read_standardization
from edgedistill.measure.damage import LfpSignal, SpikeSignal
from edgedistill.measure.robustness import Subject

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
        found[ours] = Subject(rows[ours].engine, signal)
        if RIDGE in bundle.names:
            found[LFP_RIDGE] = Subject(LaggedRidge(read_ridge(bundle, spec.shape)), signal)
    if spikes is not None:
        found[spikes] = Subject(rows[spikes].engine, SpikeSignal(rows[spikes].inputs))
    return found


def list_absent(bundle: Bundle) -> tuple[Absent, ...]:
    """Returns the ridge with the reason where the bundle does not hold it."""
    return () if RIDGE in bundle.names else (Absent(LFP_RIDGE, NOT_IN_BUNDLE),)
