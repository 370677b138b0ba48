"""Parts of a result that a report draws: traces, curves, the implant's budget, where the work lies, calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from edgedistill.bench.holdout_scores import HOLDOUT, Decoded
from edgedistill.bench.result import Subject
from edgedistill.bench.subjects import (
    LFP_INT8,
    LFP_STUDENT,
    SPIKE_INT8,
    SPIKE_STUDENT,
    Candidate,
)
from edgedistill.bundle import Bundle
from edgedistill.bundle.contents import Holdout, read_decoder_spec, read_range_table
from edgedistill.decoding import BINS_PER_S
from edgedistill.measure.robustness import Curve, Stream, curves
from edgedistill.measure.system_budget import Assumption, Load, assumptions_with, system_budget
from edgedistill.measure.work import work_by_part, work_of

TRACED = ((LFP_INT8, LFP_STUDENT), (SPIKE_INT8, SPIKE_STUDENT))  # the first of each that there is
TRACE_S = 12
FLAT_OUT = "this machine, flat out, as if each step cost that at 100 Hz"
CURVES = (LFP_INT8, SPIKE_INT8)


def trace_of(bundle: Bundle, holdout: Holdout, decoded: Mapping[str, Decoded]) -> dict[str, Any] | None:
    """The first seconds of the scored holdout; what is not known of them is null."""
    truth = holdout.kinematics[holdout.score_from :][: TRACE_S * BINS_PER_S]
    shown = {}
    for names in TRACED:
        name = next((n for n in names if n in decoded and decoded[n].guess is not None), None)
        if name is not None and (guess := decoded[name].guess) is not None:
            shown[name] = guess[holdout.score_from :][: len(truth)]
    if not len(truth) or not shown:
        return None
    spec = read_decoder_spec(bundle)
    return {
        "seconds": (np.arange(len(truth)) / BINS_PER_S).tolist(),
        "names": list(spec.output_names),
        "units": list(spec.output_units),
        "truth": _rows(truth),
        "decoded": {name: _rows(guess) for name, guess in shown.items()},
        "source": f"{HOLDOUT}, streamed; nothing of it was seen in training",
    }


def _rows(values: Any) -> list[list[float | None]]:
    """(T, K) as JSON, which has no NaN."""
    return [[float(f"{v:.5g}") if np.isfinite(v) else None for v in row] for row in np.asarray(values, np.float64)]


def robustness_of(
    candidates: Sequence[Candidate], holdout: Holdout, decoded: Mapping[str, Decoded]
) -> tuple[Curve, ...]:
    """Curves of the INT8 students, LFP and spikes, where there are both or one; else of the float ones. None of those
    without an R² on the holdout as it is."""
    rows = {c.name: c for c in candidates if decoded[c.name].fit.r2 is not None}
    chosen = [name for name in CURVES if name in rows] or [n for n in (LFP_STUDENT, SPIKE_STUDENT) if n in rows]
    streams = {
        name: Stream(rows[name].engine, rows[name].inputs, holdout.kinematics, holdout.score_from, "spike" in name)
        for name in chosen
    }
    return curves(streams) if streams else ()


def budget_of(bundle: Bundle, subjects: Sequence[Subject], assume: Mapping[str, float]) -> dict[str, Any]:
    """The model of the whole implant, with the power that was measured here where there was a sensor."""
    spec = read_decoder_spec(bundle)
    shape = spec.shape
    assumptions, work = assumptions_with(assume), work_of(shape)
    if "lfp_rate_hz" not in assume:
        own = Assumption(float(spec.front_end.rate), "samples/s", "the rate of the recording")
        assumptions["lfp_rate_hz"] = own
    measured = next((s.energy for s in subjects if s.name == LFP_INT8), None)
    power = None if measured is None or measured.mj_per_step is None else measured.mj_per_step * BINS_PER_S
    load = Load(shape.channels, shape.outputs, work.multiply_adds, work.bytes, power, FLAT_OUT)
    return {
        "rows": [row.to_json() for row in system_budget(load, assumptions)],
        "assumptions": {name: asdict(assumption) for name, assumption in assumptions.items()},
        "source": "a model: nothing of it was measured but the compute, where it says so",
    }


def layers_of(bundle: Bundle) -> list[dict[str, Any]]:
    """What each part of a step reads and multiplies."""
    shape = read_decoder_spec(bundle).shape
    return [{"name": name, **asdict(work)} for name, work in work_by_part(shape).items()]


def calibration_of(bundle: Bundle) -> list[dict[str, Any]]:
    """The table of `ranges.json`; empty where the bundle has none."""
    return [asdict(row) for row in read_range_table(bundle)]
