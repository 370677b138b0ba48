"""Runs the stage that fits the linear baselines of a session, and the lagged ridge that a bundle holds.

A session goes in, once with its own normalization and once with that of the student. The ridge and the R² of every
baseline come out. They are kept under a hash of their inputs, because the search takes half a minute.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from edgedistill.pipeline.run_context import Run, session_inputs
from edgedistill.training.baselines import LaggedRidge, fit_bundle_ridge, fit_linear_baselines
from edgedistill.training.batches import TrainingSession
from edgedistill.training.evaluate import Readout, Score

RIDGE, SCORES = "ridge.npz", "scores.json"


def fit_linear(
    run: Run, session: TrainingSession, decoded: TrainingSession
) -> tuple[LaggedRidge, dict[str, float | None]]:
    """Returns a lagged ridge on the session as it is decoded, and the R² of the linear baselines of the session.

    `decoded` is the session with the normalization that the student uses, which may be that of another day. The ridge
    sees the student's inputs as they are, because it runs beside the student in a bench.
    """
    inputs, channels = decoded.inputs("lfp"), decoded.standardization.spatial.channels

    def make(folder: Path) -> None:
        found = fit_linear_baselines(session, "lfp")
        if session.spikes is not None:
            found |= fit_linear_baselines(session, "spikes")
        lags = {found[name].lags for name in ("ridge_lfp", "ridge_lfp_power") if name in found}
        ridge = fit_bundle_ridge(inputs.numpy(), channels, decoded, sorted(lags))
        np.savez(folder / RIDGE, lags=ridge.lags, **asdict(ridge.readout))
        scores = {f"{name}_r2": baseline.score.r2 for name, baseline in found.items()}
        (folder / SCORES).write_text(json.dumps({"metrics": scores, "ridge": asdict(ridge.score)}), encoding="utf-8")

    seen = [session_inputs(one, "lfp", "spikes", "behavior") for one in (session, decoded)]
    folder = run.cache.stage("linear-baselines", seen, make)
    scores = json.loads((folder / SCORES).read_text(encoding="utf-8"))
    with np.load(folder / RIDGE) as kept:
        readout = Readout(kept["weight"], kept["bias"], float(kept["penalty"]), float(kept["validation_r2"]))
        lags = int(kept["lags"])
    score = scores["ridge"] | {"r2_per_output": tuple(scores["ridge"]["r2_per_output"])}
    return LaggedRidge(readout, lags, Score(**score)), scores["metrics"]
