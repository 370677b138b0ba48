"""Tells what few labels gave: the rows of one build, and the curve of R² against minutes of labels over several.

Results of `bench`, or points that were put together elsewhere, go in. Rows of a table and SVG come out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgedistill.report.charts import DASHES, WIDTH
from edgedistill.report.summary import LINEAR, read_label_minutes
from edgedistill.report.svg import Axis, Drawing, format_number

Curves = Mapping[str, Sequence[Mapping[str, Any]]]  # decoder -> points with `labels`, `minutes`, `mean` and `seeds`

TAUGHT = {  # metric of the build -> the decoder
    "int8_r2": "LFP student in INT8",
    "supervised_lfp_r2": "student on behavior alone",
    "distilled_r2": "student distilled without labels",
}
BEST_LINEAR = "best linear decoder of the same LFP"
APART = 4.0  # pixels from one decoder to the next


def list_label_rows(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Returns, by decoder, R² of those in a build that a few labels serve differently. Others are left out.

    The best linear decoder is the one with the highest R² on the test block itself, which favors it.
    """
    rows = {words: metrics[name] for name, words in TAUGHT.items() if metrics.get(name) is not None}
    linear = [metrics[name] for name in LINEAR if metrics.get(name) is not None]
    return rows | ({BEST_LINEAR: max(linear)} if linear else {})


def curves_from_results(results: Sequence[Mapping[str, Any]]) -> dict[str, Curves]:
    """Returns, by session, the curves of bundles that learned from different minutes of labels of that session.

    Sessions with one amount of labels have no curve. Several bundles with the same amount are one point.
    """
    found: dict[str, dict[float, list[dict[str, float]]]] = {}
    for bundle in (result.get("bundle") or {} for result in results):
        minutes, session = read_label_minutes(bundle), (bundle.get("session") or {}).get("id")
        if minutes is not None and session is not None:
            rows = list_label_rows(bundle.get("metrics") or {})
            found.setdefault(session, {}).setdefault(minutes, []).append(rows)
    return {session: _join_points(amounts) for session, amounts in found.items() if len(amounts) > 1}


def _join_points(amounts: Mapping[float, Sequence[Mapping[str, float]]]) -> dict[str, list[dict[str, Any]]]:
    """Returns the points of each decoder, from the rows of each build by minutes of labels."""
    curves: dict[str, list[dict[str, Any]]] = {}
    for minutes, builds in sorted(amounts.items()):
        for decoder in {name: None for rows in builds for name in rows}:
            r2 = [rows[decoder] for rows in builds if decoder in rows]
            curves.setdefault(decoder, []).append(_make_point(minutes, r2))
    return curves


def _make_point(minutes: float, r2: Sequence[float]) -> dict[str, Any]:
    return {"labels": f"{minutes:g} min of labels", "minutes": minutes, "mean": sum(r2) / len(r2), "seeds": list(r2)}


def draw_label_curves(curves: Curves) -> str:
    """Draws the mean of each decoder against minutes of labels, with a thin line from the lowest to the highest seed.

    Decoders are drawn side by side by a few pixels, so that these lines do not hide one another.
    """
    points = [point for curve in curves.values() for point in curve]
    minutes = [point["minutes"] for point in points]
    values = [value for point in points for value in point["seeds"]]
    row, left, right = 20.0, 60.0, WIDTH - 20
    top = 26.0 + row * -(-len(curves) // 2)
    bottom = top + 260.0
    x = Axis(min(minutes) / 1.15, max(minutes) * 1.15, left, right, log=True)
    low = max(min(values), -0.5)
    y = Axis(low - 0.05, max(*values, low + 0.1) + 0.02, bottom, top)
    words = "; ".join(
        f"{name}: {curve[0]['mean']:.2f} with {curve[0]['labels']}, {curve[-1]['mean']:.2f} with {curve[-1]['labels']}"
        for name, curve in curves.items()
    )
    drawing = Drawing(WIDTH, bottom + 46, "R² against minutes of labels", f"{words}.")
    drawing.x_axis(x, top, bottom, "minutes of labels in the decoded session (log axis)", format_number)
    drawing.y_axis(y, left, right, lambda value: f"{value:.1f}")
    drawing.text((left, top - 8), "R² on the test block", "axis")

    def place(point: Mapping[str, Any], value: float, i: int) -> tuple[float, float]:
        return x(point["minutes"]) + APART * (i - (len(curves) - 1) / 2), y(min(max(value, y.low), y.high))

    for i, (name, curve) in enumerate(curves.items()):
        drawing.line([place(point, point["mean"], i) for point in curve], f"l{i}", DASHES[i % 3])
        for point in curve:
            drawing.line([place(point, end(point["seeds"]), i) for end in (min, max)], f"l{i} range")
            hint = f"{name}, {point['labels']}: R² {point['mean']:.3f}"
            drawing.mark(place(point, point["mean"], i), f"f{i} point", i, hint)
        at = (left + 8 + 300 * (i % 2), 10 + row * (i // 2))
        drawing.line([(at[0] - 8, at[1]), (at[0] + 18, at[1])], f"l{i}", DASHES[i % 3])
        drawing.mark((at[0] + 5, at[1]), f"f{i} point", i)
        drawing.text((at[0] + 26, at[1] + 4), name, "label")
    return str(drawing)
