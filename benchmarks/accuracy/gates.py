"""Compares rows of the accuracy tables over seeds, and judges the gates that the project has set itself.

Rows of several seeds go in, each with R² by session. Means, paired differences with their intervals, and gates come
out. A gate whose rows were not all measured is reported as such.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rich.table import Table
from scipy.stats import t as student_t

from edgedistill.quantization.calibration.recipe import DEFAULT_RECIPE

Rows = Mapping[str, Mapping[str, Any]]  # of one seed: row -> {"r2": {session: R²}, ...}

NEW_DAY = "distilled, new day, stats"  # no label of that day was used, except by the probe
# Mean R² in the tables of version 0.1, on the simulation `reaches`: `nano` over three seeds, `edge` with seed 2 alone
VERSION_0_1 = {
    "nano": {"distilled": 0.514, "deployed": 0.715, NEW_DAY: 0.357},
    "edge": {"distilled": 0.498, "deployed": 0.689, NEW_DAY: 0.388},
}
VERSION_0_1_VARIANT = "reaches"
GAP_FLOOR, GAP_CLOSED = "single_session_lfp", 0.85
GAP_FLOOR_BIDIRECTIONAL = "single_session_lfp_bidirectional"
SAME_INPUTS = "ridge with the same inputs"  # the row that this is depends on the bands of the preset
NANO = "deployed, preset nano"  # the row of the other preset, on the same seeds


@dataclass(frozen=True)
class Gate:
    """Asks that R² of `row`, less that of `over` where there is one, is at least `limit`, as a mean over seeds.

    With `every_seed` it must be above the limit in each seed. With `former`, `row` is compared with its own figure in
    version 0.1.
    """

    row: str
    over: str | None
    limit: float
    every_seed: bool = False
    former: bool = False

    @property
    def name(self) -> str:
        """Returns what the gate compares, in words."""
        other = "its figure in version 0.1" if self.former else self.over
        return (self.row if other is None else f"{self.row} over {other}") + (" in every seed" * self.every_seed)


def name_int8(row: str) -> str:
    """Returns the row of a student in INT8 with the recipe that ships."""
    return f"{row}, int8, {DEFAULT_RECIPE}"


GATES = (
    Gate("teacher", None, 0.70),
    Gate("distilled", "single_session_lfp", 0.10),
    Gate("distilled", None, 0.10, former=True),
    Gate("distilled", SAME_INPUTS, 0.0),
    Gate("deployed", "ridge_lfp", 0.03),
    Gate("deployed", "kalman_lfp", 0.03),
    Gate("deployed", None, 0.05, former=True),
    Gate("deployed", "supervised_single_session_lfp", 0.03),
    Gate("deployed", "supervised_lfp", 0.03),
    Gate("deployed", SAME_INPUTS, 0.05),
    Gate("deployed", "best_linear_lfp", 0.0, every_seed=True),
    Gate("shipped", "supervised_lfp", 0.0),
    Gate(NEW_DAY, "multi_session_lfp, new day, stats", 0.10),
    Gate(NEW_DAY, None, 0.10, former=True),
    Gate("deployed", NANO, 0.0),
    *(Gate(name_int8(row), row, -0.002) for row in ("deployed", "distilled", NEW_DAY)),
    Gate("deployed, int8, qat", "deployed", -0.002),
    Gate("deployed, int8, four-bit", "deployed", -0.004),
    Gate(f"{name_int8('deployed')}, an artefact in the calibration data", name_int8("deployed"), -0.01),
)


def choose_gates(preset: str, variant: str, bands: bool) -> list[Gate]:
    """Returns the gates of a preset, with `bands` in its student or not, on a variant of the simulation.

    Figures of version 0.1 are compared with the variant that they come from.
    """
    known = VERSION_0_1.get(preset, {}) if variant == VERSION_0_1_VARIANT else {}
    ridge = "ridge_lfp_power" if bands else "ridge_lfp"
    gates = [replace(gate, over=ridge) if gate.over == SAME_INPUTS else gate for gate in GATES]
    return [g for g in gates if (not g.former or g.row in known) and (g.over != NANO or preset == "edge")]


def judge_gates(
    seeds: Sequence[Rows], gates: Sequence[Gate], former: Mapping[str, float], least_gap: float | None = GAP_CLOSED
) -> list[dict[str, Any]]:
    """Judges gates, and at last the share of the gap to the teacher that is closed, unless `least_gap` is None.

    `former` holds the figures of version 0.1 by row. `ok` is None where a row was not measured in every seed.
    """
    judged = []
    for gate in gates:
        needed = [gate.row] if gate.over is None else [gate.row, gate.over]
        if not all(row in seed for row in needed for seed in seeds):
            judged.append(report_gate(gate.name, None, gate.limit))
            continue
        floor = former[gate.row] if gate.former else 0.0
        found = compare_rows(seeds, gate.row, gate.over, floor)
        ok = min(found["seeds"]) > gate.limit if gate.every_seed else found["mean"] >= gate.limit
        judged.append(report_gate(gate.name, found, gate.limit, ok))
    if least_gap is not None:
        share = compute_gap_closed(seeds)["causal"]
        found = None if share is None else {"mean": share, "ci95": None}
        name = "share of the gap to the teacher closed, causal"
        judged.append(report_gate(name, found, least_gap, share is not None and share >= least_gap))
    return judged


def report_gate(name: str, found: dict[str, Any] | None, limit: float, ok: bool | None = None) -> dict[str, Any]:
    """Returns a gate as it stands in a result. `found` is None where it could not be judged."""
    if found is None:
        return {"name": name, "mean": None, "ci95": None, "limit": limit, "ok": None}
    return {"name": name, **found, "limit": limit, "ok": ok}


def tabulate_gates(gates: Sequence[Mapping[str, Any]]) -> Table:
    """Returns judged gates as a table for the terminal."""
    table = Table("gate", "found", "95 % interval", "limit", "", title="Gates")
    verdicts = {True: "met", False: "MISSED", None: "not measured"}
    for gate in gates:
        mean, half = ("" if gate[part] is None else f"{gate[part]:.3f}" for part in ("mean", "ci95"))
        table.add_row(gate["name"], mean, half and f"±{half}", f"{gate['limit']:.3f}", verdicts[gate["ok"]])
    return table


def summarize_rows(seeds: Sequence[Rows]) -> dict[str, Any]:
    """Returns mean and standard deviation over seeds of each row that every seed has.

    A seed's value is its mean over sessions.
    """
    table = {}
    for row in seeds[0]:
        if not all(row in seed for seed in seeds):
            continue
        values = [float(np.mean(list(seed[row]["r2"].values()))) for seed in seeds]
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
        table[row] = {"mean": float(np.mean(values)), "std": spread, "seeds": values}
    return table


def compare_rows(seeds: Sequence[Rows], row: str, other: str | None, floor: float = 0.0) -> dict[str, Any]:
    """Returns R² of a row less `floor` and that of another row, over the (seed, session) pairs that both have.

    The 95 % interval is one over seeds, because the sessions of a seed share their population.
    """
    pairs = []
    for seed in seeds:
        less = dict.fromkeys(seed[row]["r2"], 0.0) if other is None else seed[other]["r2"]
        pairs.append([r2 - floor - less[session] for session, r2 in seed[row]["r2"].items() if session in less])
    means = [float(np.mean(p)) for p in pairs]
    half = None
    if len(means) > 1:
        half = float(student_t.ppf(0.975, len(means) - 1) * np.std(means, ddof=1) / np.sqrt(len(means)))
    return {"mean": float(np.mean(means)), "ci95": half, "pairs": sum(map(len, pairs)), "seeds": means}


def compute_gap_closed(seeds: Sequence[Rows]) -> dict[str, float | None]:
    """Returns (distilled - single-session LFP) / (teacher - single-session LFP), causal and bidirectional.

    All three are compared on the sessions that the single-session model has, because others are easier or harder. The
    teacher is read by its features, and in `causal_to_latents` by its latents. A share is None where a row was not
    measured.
    """

    def share(row: str, floor: str, teacher: str = "teacher") -> float | None:
        if not all(name in seed for name in (row, floor, teacher) for seed in seeds):
            return None
        return float(compare_rows(seeds, row, floor)["mean"] / compare_rows(seeds, teacher, floor)["mean"])

    return {
        "causal": share("distilled", GAP_FLOOR),
        "causal_to_latents": share("distilled", GAP_FLOOR, "teacher_latents"),
        "bidirectional": share("distilled_bidirectional", GAP_FLOOR_BIDIRECTIONAL),
    }
