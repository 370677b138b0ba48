"""Makes the parts of a result that only a report draws.

These are decoded traces, robustness curves, the model of the whole implant, where the work of a step lies, and the
calibration of the bundle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgedistill.bench.holdout_scores import HOLDOUT, DecodedHoldout
from edgedistill.bench.intervals import count_lost
from edgedistill.bench.result import ImplantBudget, Subject, Trace
from edgedistill.bench.robustness_subjects import choose_subjects
from edgedistill.bench.subjects import (
    LFP_INT8,
    LFP_STUDENT,
    SPIKE_INT8,
    SPIKE_STUDENT,
    Candidate,
)
from edgedistill.bundle import Bundle
from edgedistill.bundle.contents import Floats, Holdout, read_decoder_spec, read_deviation_model, read_spatial_model
from edgedistill.decoding import BINS_PER_S
from edgedistill.measure.robustness import Curve, Truth, list_harms, measure_curves
from edgedistill.measure.system_budget import Assumption, Load, estimate_system_budget, replace_assumptions
from edgedistill.measure.work import Work, count_work, count_work_by_part

TRACED = ((LFP_INT8, LFP_STUDENT), (SPIKE_INT8, SPIKE_STUDENT))  # the first of each pair that was decoded is drawn
TRACE_S = 12
FLAT_OUT = "this machine, flat out, as if each step cost that at 100 Hz"


def make_trace(bundle: Bundle, holdout: Holdout, decoded: Mapping[str, DecodedHoldout]) -> Trace | None:
    """Returns the first seconds of the scored holdout, or None where no student decoded it."""
    truth = holdout.kinematics[holdout.score_from :][: TRACE_S * BINS_PER_S]
    shown = {}
    for names in TRACED:
        name = next((n for n in names if n in decoded and decoded[n].guess is not None), None)
        if name is not None and (guess := decoded[name].guess) is not None:
            shown[name] = guess[holdout.score_from :][: len(truth)]
    if not len(truth) or not shown:
        return None
    spec = read_decoder_spec(bundle)
    return Trace(
        seconds=np.arange(len(truth)) / BINS_PER_S,
        names=spec.output_names,
        units=spec.output_units,
        truth=truth,
        decoded=shown,
        deviation={name: find_deviations(bundle, holdout, guess) for name, guess in shown.items() if name in TRACED[0]},
        source=f"{HOLDOUT}, streamed; nothing of it was seen in training",
    )


def find_deviations(bundle: Bundle, holdout: Holdout, guess: Floats) -> Floats:
    """Returns the standard deviations (T, K) of what was decoded (T, K) in the first scored bins of the holdout."""
    spec = read_decoder_spec(bundle)
    there = holdout.there[holdout.score_from :][: len(guess)]
    lost = count_lost(read_spatial_model(bundle, spec.front_end), there)
    return read_deviation_model(bundle, spec.front_end.channels, spec.shape.outputs).deviations(guess, lost)


def measure_robustness(
    bundle: Bundle, candidates: Sequence[Candidate], holdout: Holdout, decoded: Mapping[str, DecodedHoldout]
) -> tuple[Curve, ...]:
    """Measures the curves of the students on LFP and spikes and of the ridge. The limits are set on the LFP student."""
    subjects = choose_subjects(bundle, holdout, candidates, decoded)
    if not subjects:
        return ()
    harms = list_harms(holdout.there.shape[1])
    judged = next((name for name in (LFP_INT8, LFP_STUDENT) if name in subjects), None)
    return measure_curves(subjects, Truth(holdout.kinematics, holdout.score_from), harms, judged)


def estimate_budget(bundle: Bundle, subjects: Sequence[Subject], assume: Mapping[str, float]) -> ImplantBudget:
    """Computes the power of the whole implant from a model.

    Only the compute may be a measurement: it is the power measured here where there was a sensor. Raises ConfigError
    for an unknown assumption.
    """
    spec = read_decoder_spec(bundle)
    assumptions, work = replace_assumptions(assume), count_work(spec.shape)
    if "lfp_rate_hz" not in assume:
        own = Assumption(float(spec.front_end.rate), "samples/s", "the rate of the recording")
        assumptions["lfp_rate_hz"] = own
    measured = next((s.energy for s in subjects if s.name == LFP_INT8), None)
    power = None if measured is None or measured.mj_per_step is None else measured.mj_per_step * BINS_PER_S
    highest = max((high for _, high in spec.front_end.bands), default=0)
    sizes = (spec.front_end.channels, spec.shape.outputs, work.multiply_adds, work.bytes)
    load = Load(*sizes, power, FLAT_OUT, highest)
    source = "a model: nothing of it was measured but the compute, where it says so"
    return ImplantBudget(estimate_system_budget(load, assumptions), assumptions, source)


def list_work(bundle: Bundle) -> dict[str, Work]:
    """Returns what each part of a step reads and multiplies, in the order of the step."""
    return count_work_by_part(read_decoder_spec(bundle).shape)
