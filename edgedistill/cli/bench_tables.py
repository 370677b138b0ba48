"""Prints the result of a bench as tables and lines on stdout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgedistill.cli.output import format_value, print_facts, print_gates, print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgedistill.bench import BenchResult
    from edgedistill.bench.intervals import Intervals
    from edgedistill.bench.result import ImplantBudget
    from edgedistill.measure.robustness import Curve

LATENCY = ("p50", "p95", "p99", "p999", "max")


def print_bench(result: BenchResult) -> None:
    """Prints the steps, the closed loop, the implant, the curves, where the figures come from, and the gates."""

    def microseconds(latency: Any) -> list[str]:
        return [f"{getattr(latency, key):.1f}" for key in LATENCY]

    rows = [
        [
            *(s.name, s.engine, s.precision, s.params, s.artifact_bytes, s.state_bytes),
            *microseconds(s.latency),
            s.latency.steps,
            s.fit.r2,
        ]
        for s in result.subjects
    ]
    rows.append(["empty step", *[""] * 5, *microseconds(result.clock), result.clock.steps, ""])
    columns = (
        "subject",
        "engine",
        "precision",
        "params",
        "bytes",
        "state",
        "p50 µs",
        "p95",
        "p99",
        "p99.9",
        "max",
        "steps",
        "R²",
    )
    print_table("One step, without pauses between steps", columns, rows)
    _print_paced(result)
    _print_system(result.extras.system)
    _print_intervals(result.extras.intervals)
    _print_curves(result.extras.robustness or ())
    device = result.device
    print_facts(
        {f"R² of {s.name}": s.fit.source for s in result.subjects}
        | {f"no {one.name}": one.reason for one in result.absent}
        | {"device": f"{device['cpu'] or device['architecture']}, {device['cores']} cores, {device['os']}"}
        | {"load": f"{format_value(device['load'])} over 1, 5, 15 min; a busy machine raises p99 and max"}
        | ({} if result.series is None else {"LFP of the recording": result.series})
        | ({} if result.coverage is None else {"R² of the recording": result.coverage.to_text()})
        | _energy_facts(result)
    )
    print_gates(result.gates)


def _energy_facts(result: BenchResult) -> dict[str, object]:
    """Returns a line for each subject whose energy was measured, and one line with the reasons for the others."""
    measured: dict[str, object] = {
        f"energy of {s.name}": f"{format_value(s.energy.mj_per_step)} mJ a step without pauses, "
        f"± {format_value(s.energy.interval)}; "
        f"{format_value(s.energy_paced.mw)} mW at 100 Hz, above idle ({s.energy.source})"
        for s in result.subjects
        if s.energy.mj_per_step is not None
    }
    reasons = sorted({s.energy.source for s in result.subjects if s.energy.mj_per_step is None})
    return measured | ({"no energy": "; ".join(reasons)} if reasons else {})


def _print_paced(result: BenchResult) -> None:
    paced = [(s.name, how, p, s.deadline_us) for s in result.subjects for how, p in _paced(s) if p is not None]
    if result.empty_paced is not None:
        paced.append(("empty", "warm", result.empty_paced, paced[0][3]))
    if result.frames is not None:
        deadline_us = paced[0][3] if paced else 1e4
        paced.append(("raw frames to output", "warm", result.frames.decoder, deadline_us))
        paced.append(("empty beside it", "warm", result.frames.empty, deadline_us))
    rows = [
        [
            name,
            how,
            p.step.p50,
            p.step.p99,
            p.response.p99,
            p.response.max,
            p.jitter_us,
            f"{p.misses(deadline)} of {len(p.ended)}",
        ]
        for name, how, p, deadline in paced
    ]
    if rows:
        columns = ("subject", "caches", "step p50 µs", "p99", "response p99 µs", "max", "jitter", "late")
        print_table("One step every 10 ms; response is the time from when the input was due", columns, rows)


def _paced(subject: Any) -> tuple[tuple[str, Any], ...]:
    return (("warm", subject.paced), ("emptied", subject.paced_cold))


def _print_system(system: ImplantBudget | None) -> None:
    if system is None:
        return
    keys = ("signal", "decoded", "mbit_per_s", "acquisition_mw", "processing_mw", "radio_mw", "compute_mw", "total_mw")
    print_table(
        "The whole implant in mW, from a model and not measured",
        keys,
        [[getattr(row, key) for key in keys] for row in system.rows],
    )
    print_facts({name: f"{format_value(a.value)} {a.unit}: {a.source}" for name, a in system.assumptions.items()})


def _print_intervals(intervals: Intervals | None) -> None:
    if intervals is None:
        return
    rows = []
    for row in intervals.rows:
        lost = "none" if not row.channels else f"{row.channels} channels, {row.lost}, {row.draws} draws"
        shares = [_format_share(one.share, one.standard_error) for one in row.coverage]
        rows.append([lost, *shares, ", ".join(map(format_value, row.deviation))])
    levels = [f"{one.level:.0%} interval" for one in intervals.rows[0].coverage]
    title = f"True values of the {intervals.source} inside the intervals of {intervals.subject}"
    print_table(title, ("lost", *levels, "deviation of each output"), rows)


def _format_share(share: float, standard_error: float | None) -> str:
    return f"{100 * share:.1f} %" if standard_error is None else f"{100 * share:.1f} ± {100 * standard_error:.1f} %"


def _print_curves(curves: Sequence[Curve]) -> None:
    for curve in curves:
        rows = [[name, *_list_cells(curve, name)] for name in curve.r2]
        columns = ("subject", *(f"{level:g}" for level in curve.levels))
        title = f"R² against {curve.kind} ({curve.unit}), mean of {curve.draws} draws, and how much of R² is kept"
        print_table(title, columns, rows)
    verdicts = [(curve, verdict) for curve in curves for verdict in curve.judge()]
    if verdicts:
        words = {True: "met", False: "MISSED", None: "–"}
        table = [(c.kind, f"{v.level:g} {c.unit}", v.kept_share, v.limit, words[v.ok]) for c, v in verdicts]
        title = f"What {verdicts[0][0].judged} should keep of its R²"
        print_table(title, ("damage", "level", "kept", "at least", ""), table)


def _list_cells(curve: Curve, subject: str) -> list[str]:
    """Returns R² at each level, with the share of the intact R² behind it where something is kept."""
    means = [format_value(mean) for mean, _, _ in curve.r2[subject]]
    kept = curve.kept_share(subject)
    return [
        means[0],
        *(m if k is None or k < 0 else f"{m} ({k:.0%})" for m, k in zip(means[1:], kept[1:], strict=True)),
    ]
