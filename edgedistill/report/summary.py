"""The sentence that says the honest thing about a result, from its figures alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgedistill.report.svg import number

STUDENTS = ("lfp-student-int8", "lfp-student-fp32")
SPIKES = ("spike-student-int8", "spike-student")
TEACHERS = ("spike-teacher-published", "spike-teacher")


def summarize_result(result: Mapping[str, Any]) -> str:
    """Gain and loss of decoding from LFP on this device; what was not measured is said to be missing."""
    rows = {s["name"]: s for s in result["subjects"]}
    ours, spikes = _first(rows, STUDENTS), _first(rows, SPIKES)
    if ours is None:
        return "This result holds no LFP student."
    words = [f"One step of the LFP student ({ours['precision']}) takes {_us(ours)} (median)"]
    if teacher := _first(rows, TEACHERS):
        kind = "in its published shape " if teacher["name"].endswith("published") else ""
        words[0] += (
            f"; the spike teacher {kind}run again over its window takes {_us(teacher)}, {_times(teacher, ours)} as much"
        )
    words[0] += "."
    words.append(_accuracy(ours, spikes, rows.get("spike-teacher")))
    if spikes is not None:
        same = spikes.get("engine") == ours.get("engine") and spikes.get("precision") == ours.get("precision")
        cost = f"({_us(spikes)})" if same else f"(here it ran on another engine, {spikes.get('engine')}: {_us(spikes)})"
        words.append(
            f"A spike student of the same size costs the same compute {cost}: what LFP saves is acquisition, "
            "transport and longevity, what distillation saves is the teacher."
        )
    if ridge := ((result.get("bundle") or {}).get("metrics") or {}).get("ridge_lfp_r2"):
        words.append(f"A lagged ridge on the same LFP, with no network at all: R² {ridge:.3f} (from the build).")
    words += [_when_channels_die(curve) for curve in result.get("robustness") or [] if curve["kind"] == "lost channels"]
    return " ".join(words)


def _when_channels_die(curve: Mapping[str, Any]) -> str:
    """R² of each with the smallest share of channels lost that was tried."""
    kept = "; ".join(f"{name} {series[1]['mean']:.2f}" for name, series in curve["r2"].items())
    return f"With {curve['levels'][1]:.0%} of the channels lost R² is: {kept}."


def _accuracy(ours: Mapping[str, Any], spikes: Mapping[str, Any] | None, teacher: Mapping[str, Any] | None) -> str:
    if ours.get("r2") is None:
        return f"Its accuracy is unknown here ({ours.get('r2_source', 'not measured')})."
    against = [
        f"{row['r2']:.3f} of {name}"
        for name, row in (("the spike student", spikes), ("the spike teacher", teacher))
        if row is not None and row.get("r2") is not None
    ]
    compared = f", against {' and '.join(against)}" if against else ""
    return f"The LFP student decodes with R² {ours['r2']:.3f}{compared}."


def _first(rows: Mapping[str, Any], names: tuple[str, ...]) -> Mapping[str, Any] | None:
    return next((rows[name] for name in names if rows.get(name, {}).get("latency_us")), None)


def _us(row: Mapping[str, Any]) -> str:
    us = row["latency_us"]["p50"]
    return f"{number(us)} µs" if us < 1e4 else f"{number(us / 1e3)} ms"


def _times(row: Mapping[str, Any], than: Mapping[str, Any]) -> str:
    return f"{number(row['latency_us']['p50'] / than['latency_us']['p50'])} times"
