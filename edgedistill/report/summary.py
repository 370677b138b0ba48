"""Writes the sentences at the top of a report, which say honestly what is gained and lost, from the figures alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgedistill.report.svg import format_number

MOST_MINUTES = 1e6  # of labels, two years; what says more is no number of minutes
STUDENTS = ("lfp-student-int8", "lfp-student-fp32")
SPIKES = ("spike-student-int8", "spike-student")
TEACHERS = ("spike-teacher-published", "spike-teacher")
LINEAR = {  # metric of the build -> the decoder
    "ridge_lfp_r2": "a lagged ridge on slow LFP",
    "kalman_lfp_r2": "a Kalman filter on slow LFP",
    "ridge_power_r2": "a lagged ridge on band power",
    "kalman_power_r2": "a Kalman filter on band power",
    "ridge_lfp_power_r2": "a lagged ridge on slow LFP and band power",
    "kalman_lfp_power_r2": "a Kalman filter on slow LFP and band power",
}


def summarize_result(result: Mapping[str, Any]) -> str:
    """Returns what decoding from LFP gains and loses on this device. It says so where something was not measured."""
    rows = {s["name"]: s for s in result["subjects"]}
    ours, spikes = _pick_first(rows, STUDENTS), _pick_first(rows, SPIKES)
    if ours is None:
        return "This result holds no LFP student."
    words = [f"One step of the LFP student ({ours['precision']}) takes {_format_us(ours)} (median)"]
    if teacher := _pick_first(rows, TEACHERS):
        kind = "in its published shape " if teacher["name"].endswith("published") else ""
        words[0] += (
            f"; the spike teacher {kind}run again over its window takes {_format_us(teacher)}, "
            f"{_format_ratio(teacher, ours)} as much"
        )
    words[0] += "."
    words.append(_describe_accuracy(ours, spikes, rows.get("spike-teacher")))
    if spikes is not None:
        same = spikes.get("engine") == ours.get("engine") and spikes.get("precision") == ours.get("precision")
        cost = (
            f"({_format_us(spikes)})"
            if same
            else f"(here it ran on another engine, {spikes.get('engine')}: {_format_us(spikes)})"
        )
        words.append(
            f"A spike student of the same size costs the same compute {cost}: what LFP saves is acquisition, "
            "transport and longevity, what distillation saves is the teacher."
        )
    if minutes := read_label_minutes(result.get("bundle") or {}):
        words.append(f"Behavior was learned from {minutes:g} min of labels of one session.")
    words += _compare_with_linear((result.get("bundle") or {}).get("metrics") or {})
    words += [
        _describe_lost_channels(curve) for curve in result.get("robustness") or [] if curve["kind"] == "lost channels"
    ]
    return " ".join(words)


def read_label_minutes(bundle: Mapping[str, Any]) -> float | None:
    """Returns how many minutes of labels a bundle learned from, or None where it does not say a possible number.

    The number comes from a manifest, which may say anything.
    """
    minutes = bundle.get("label_minutes")
    if isinstance(minutes, (int, float)) and not isinstance(minutes, bool) and 0 < minutes < MOST_MINUTES:
        return float(minutes)
    return None


def _compare_with_linear(metrics: Mapping[str, Any]) -> list[str]:
    """Returns what the best linear decoder of the same LFP reaches, by the test block of the build, and what ours does.

    The best is the one with the highest R² on the test block itself, which favors it.
    """
    known = {name: metrics[name] for name in LINEAR if metrics.get(name) is not None}
    if not known:
        return []
    best = max(known, key=lambda name: known[name])
    words = f"The best linear decoder of the same LFP, {LINEAR[best]}, reaches R² {known[best]:.3f} in the build"
    ours = metrics.get("int8_r2")
    if ours is None:
        return [words + "."]
    gain = ours - known[best]
    return [
        f"{words}, and the LFP student in INT8 {ours:.3f}, which is {abs(gain):.3f} {'more' if gain >= 0 else 'less'}."
    ]


def _describe_lost_channels(curve: Mapping[str, Any]) -> str:
    """Returns what each subject keeps of its R² with a quarter of the channels lost, or with the nearest share."""
    levels = curve["levels"]
    at = min(range(len(levels)), key=lambda i: abs(levels[i] - 0.25))
    kept = "; ".join(
        f"{name} {series[at]['mean']:.2f}{_format_kept(series, at)}" for name, series in curve["r2"].items()
    )
    return f"With {levels[at]:.0%} of the channels lost R² is: {kept}."


def _format_kept(series: Sequence[Mapping[str, Any]], at: int) -> str:
    intact = series[0]["mean"]
    return f" ({series[at]['mean'] / intact:.0%} of what it was)" if intact > 0 and series[at]["mean"] > 0 else ""


def _describe_accuracy(
    ours: Mapping[str, Any], spikes: Mapping[str, Any] | None, teacher: Mapping[str, Any] | None
) -> str:
    if ours.get("r2") is None:
        return f"Its accuracy is unknown here ({ours.get('r2_source', 'not measured')})."
    against = [
        f"{row['r2']:.3f} of {name}"
        for name, row in (("the spike student", spikes), ("the spike teacher", teacher))
        if row is not None and row.get("r2") is not None
    ]
    compared = f", against {' and '.join(against)}" if against else ""
    return f"The LFP student decodes with R² {ours['r2']:.3f}{compared}."


def _pick_first(rows: Mapping[str, Any], names: tuple[str, ...]) -> Mapping[str, Any] | None:
    return next((rows[name] for name in names if rows.get(name, {}).get("latency_us")), None)


def _format_us(row: Mapping[str, Any]) -> str:
    us = row["latency_us"]["p50"]
    return f"{format_number(us)} µs" if us < 1e4 else f"{format_number(us / 1e3)} ms"


def _format_ratio(row: Mapping[str, Any], than: Mapping[str, Any]) -> str:
    return f"{format_number(row['latency_us']['p50'] / than['latency_us']['p50'])} times"
