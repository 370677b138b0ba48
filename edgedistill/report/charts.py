"""Draws the four pictures of the report, each from a part of a bench result.

They show latency, R² against cost, decoded traces, and robustness. Parts of the result's JSON go in, SVG comes out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgedistill.measure.intervals import QUANTILES
from edgedistill.report.svg import SERIES, Axis, Drawing, Point, format_number

Row = Mapping[str, Any]
WIDTH = 760.0
SHOWN = 0.9  # level of the intervals in a trace
DASHES = ("", "5 3", "2 3")  # of the lines of a robustness curve


def draw_latency(subjects: Sequence[Row], deadline_us: float | None) -> str:
    """Draws the distribution of each subject on one log axis, with p50, p99, the maximum and the deadline."""
    shown = [s for s in subjects if s.get("latency_us")]
    height, top, left = 46.0, 14.0, 178.0
    bottom = top + height * len(shown)
    values = [v for s in shown for v in s["latency_us"].values() if v and v > 0]
    high = max([*values, deadline_us or 0.0]) * 1.6
    x = Axis(min(values) / 1.6, high, left, WIDTH - 14, log=True)
    words = "; ".join(f"{s['name']}: half below {format_number(s['latency_us']['p50'])}" for s in shown)
    drawing = Drawing(WIDTH, bottom + 46, "Time of a step by subject", f"Microseconds on a log axis. {words}.")
    drawing.x_axis(x, top, bottom, "time of a step, µs (log axis)", format_number)
    for i, subject in enumerate(shown):
        base, latency = top + height * (i + 1) - 8, subject["latency_us"]
        drawing.text((left - 8, base - 8), subject["name"], "label", "end")
        drawing.text((left - 8, base + 5), f"p50 {format_number(latency['p50'])}", "tick", "end")
        css = f"f{i % SERIES}"
        drawing.area(_outline_histogram(subject.get("histogram"), latency, x, base, height - 14), css)
        for key, extent in (("p50", 14), ("p99", 9), ("max", 5)):
            at = x(max(latency[key], x.low))
            drawing.line([(at, base + 3), (at, base + 3 - extent)], "mark")
    if deadline_us:
        drawing.line([(x(deadline_us), top - 6), (x(deadline_us), bottom)], "deadline", "6 4")
        drawing.text((x(deadline_us) - 5, top + 6), "deadline", "deadline-word", "end")
    return str(drawing)


def _outline_histogram(histogram: Row | None, latency: Row, x: Axis, base: float, height: float) -> list[Point]:
    """Returns the outline of a histogram of log-spaced bins, or a box from p50 to p99 where there is none."""
    if not histogram or not any(histogram["counts"]):
        low, high = x(latency["p50"]), x(latency["p99"])
        return [(low, base), (low, base - 6), (high, base - 6), (high, base)]
    edges, counts = histogram["edges_us"], histogram["counts"]
    most = max(counts)
    outline = [(x(max(edges[0], x.low)), base)]
    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
        level = base - height * (count / most) ** 0.5 if count else base  # rare slow steps must stay visible
        outline += [(x(max(low, x.low)), level), (x(max(high, x.low)), level)]
    return [*outline, (outline[-1][0], base)]


def draw_cost(subjects: Sequence[Row]) -> str:
    """Draws R² against the energy of a step, or against its time unless one sensor saw all subjects.

    Subjects without an R² are left out. Returns "" where none is left.
    """
    scored = [s for s in subjects if s.get("r2") is not None]
    one_sensor = len({s.get("energy_source") for s in scored}) == 1
    energy = one_sensor and all((s.get("energy_mj_per_step") or 0) > 0 for s in scored)
    known = [(i, s) for i, s in enumerate(subjects) if s.get("r2") is not None and _read_cost(s, energy) > 0]
    rows = [(i, s, _read_cost(s, energy)) for i, s in known]
    if not rows:
        return ""
    bottom, top, left = 300.0, 16.0, 60.0
    costs, scores = [cost for _, _, cost in rows], [s["r2"] for _, s, _ in rows]
    x = Axis(min(costs) / 2, max(costs) * 2, left, WIDTH - 20, log=True)
    low = min(0.0, *scores) if min(scores) < 0.2 else min(scores) - 0.05
    y = Axis(low, max(scores) + 0.05, bottom, top)
    what = "energy of a step, mJ" if energy else "median time of a step, µs: no power sensor saw all subjects"
    words = "; ".join(f"{s['name']}: R² {s['r2']:.3f} at {format_number(cost)}" for _, s, cost in rows)
    drawing = Drawing(WIDTH, bottom + 46, "R² against what a step costs", f"{what}. {words}.")
    drawing.x_axis(x, top, bottom, f"{what} (log axis)", format_number)
    drawing.y_axis(y, left, WIDTH - 20, lambda value: f"{value:.2f}")
    drawing.text((left, top - 4), "R²", "axis")
    taken: list[Point] = []
    for i, subject, cost in sorted(rows, key=lambda row: row[2]):
        at = (x(cost), y(subject["r2"]))
        drawing.mark(at, f"f{i % SERIES} point", i, f"{subject['name']}: R² {subject['r2']:.3f}, {format_number(cost)}")
        place = _find_place(at, taken)
        taken.append(place)
        right = place[0] > WIDTH - 200
        drawing.text(
            (place[0] - 18 if right else place[0], place[1]), subject["name"], "label", "end" if right else "start"
        )
    return str(drawing)


def _read_cost(subject: Row, energy: bool) -> float:
    """Returns the mJ of a step, or the median µs of it, or 0 where that is unknown."""
    if energy:
        return float(subject.get("energy_mj_per_step") or 0)
    return float((subject.get("latency_us") or {}).get("p50") or 0)


def _find_place(at: Point, taken: Sequence[Point]) -> Point:
    """Returns a place for a label beside a point that no other label covers."""
    place = (at[0] + 9, at[1] + 4)
    while any(abs(place[0] - x) < 170 and abs(place[1] - y) < 14 for x, y in taken):
        place = (place[0], place[1] + 14)
    return place


def draw_trace(trace: Row, output: int) -> str:
    """Draws one output as it was decoded over what it truly was, with a band of its 90 % intervals."""
    seconds, name, unit = trace["seconds"], trace["names"][output], trace["units"][output]
    lines = {"true": trace["truth"], **trace["decoded"]}
    columns = {key: [row[output] for row in rows] for key, rows in lines.items()}
    bands = {key: _find_intervals(trace, key, output) for key in trace.get("deviation") or {}}
    ends = [end for band in bands.values() for _, low, high in band for end in (low, high)]
    values = [v for column in columns.values() for v in column if v is not None] + ends
    top, bottom, left = 30.0, 190.0, 60.0
    x, y = Axis(seconds[0], seconds[-1], left, WIDTH - 14), Axis(min(values), max(values), bottom, top)
    words = f"{name} in {unit} over {seconds[-1] - seconds[0]:.0f} s."
    drawing = Drawing(WIDTH, bottom + 46, f"{name}, decoded and true", words)
    drawing.x_axis(x, top, bottom, "seconds", format_number)
    drawing.y_axis(y, left, WIDTH - 14, format_number)
    drawing.text((left, 14), f"{name}, {unit}", "axis")
    for key, band in bands.items():
        upper, lower = [(x(s), y(high)) for s, _, high in band], [(x(s), y(low)) for s, low, _ in band]
        drawing.area([*upper, *reversed(lower)], f"f{list(trace['decoded']).index(key)} band")
    for i, (key, column) in enumerate(columns.items()):
        css = "true" if key == "true" else f"l{i - 1}"
        points = [(x(s), y(v)) for s, v in zip(seconds, column, strict=True) if v is not None]
        drawing.line(points, css, "" if i < 2 else ("5 3", "2 3")[i % 2])
        at = left + 190 + 150 * i
        drawing.line([(at, 10), (at + 22, 10)], css, "" if i < 2 else ("5 3", "2 3")[i % 2])
        drawing.text((at + 28, 14), key, "label")
    return str(drawing)


def _find_intervals(trace: Row, subject: str, output: int) -> list[tuple[float, float, float]]:
    """Returns the seconds, the lower and the upper end of each 90 % interval of what a subject decoded."""
    rows = zip(trace["seconds"], trace["decoded"][subject], trace["deviation"][subject], strict=True)
    known = [(s, guess[output], size[output]) for s, guess, size in rows if None not in (guess[output], size[output])]
    return [(s, guess - QUANTILES[SHOWN] * size, guess + QUANTILES[SHOWN] * size) for s, guess, size in known]


def draw_robustness(curve: Row) -> str:
    """Draws R² against one kind of harm, with the extremes of the draws as bands."""
    levels, rows = curve["levels"], curve["r2"]
    left, width, row = 46.0, 370.0, 20.0
    top = 22.0 + row * -(-len(rows) // 2)
    bottom = top + 168.0
    values = [r[key] for series in rows.values() for r in series for key in ("min", "max")]
    x = Axis(0, max(len(levels) - 1, 1), left, width - 12)  # evenly spaced, because days grow faster than they hurt
    y = Axis(min(0.0, max(min(values), -0.5)), max(max(values), 0.1), bottom, top)
    words = "; ".join(f"{name} falls from {s[0]['mean']:.2f} to {s[-1]['mean']:.2f}" for name, s in rows.items())
    drawing = Drawing(width, bottom + 46, f"R² against {curve['kind']}", words + ".")
    drawing.y_axis(y, left, width - 12, lambda value: f"{value:.1f}")
    for place, level in enumerate(levels):
        drawing.text((x(place), bottom + 16), format_number(level), "tick", "middle")
    drawing.text(((left + width) / 2, bottom + 36), f"{curve['kind']}: {curve['unit']}", "axis", "middle")
    for i, (name, series) in enumerate(rows.items()):
        _draw_series(drawing, series, (x, y), i)
        at = (left + 8 + 160 * (i % 2), 14 + row * (i // 2))
        drawing.mark(at, f"f{i} point", i)
        drawing.text((at[0] + 10, at[1] + 4), name, "label")
    return str(drawing)


def _draw_series(drawing: Drawing, series: Sequence[Row], axes: tuple[Axis, Axis], i: int) -> None:
    """Draws the means of one subject with a band, and an arrow with the figure for each mean below the chart."""
    x, y = axes

    def clip(value: float) -> float:
        return y(min(max(value, y.low), y.high))

    upper, lower = ([(x(p), clip(r[key])) for p, r in enumerate(series)] for key in ("max", "min"))
    drawing.area([*upper, *reversed(lower)], f"f{i} band")
    drawing.line([(x(p), y(r["mean"])) for p, r in enumerate(series) if r["mean"] >= y.low], f"l{i}", DASHES[i % 3])
    for p, r in enumerate(series):
        if r["mean"] >= y.low:
            drawing.mark((x(p), y(r["mean"])), f"f{i} point", i)
        else:
            drawing.area([(x(p) - 5, y.start - 9), (x(p) + 5, y.start - 9), (x(p), y.start - 1)], f"f{i} point")
            drawing.text((x(p), y.start - 12), f"{r['mean']:.1f}", "tick", "middle")
