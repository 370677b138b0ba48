"""Draws the figure of `label_minutes.py`: R² against the minutes of labels, with one line for each decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from edgedistill.files import atomic_write_text
from edgedistill.report.charts import DASHES, WIDTH
from edgedistill.report.svg import Axis, Drawing, format_number

Curves = Mapping[str, Sequence[Mapping[str, Any]]]  # decoder -> points with `labels`, `minutes`, `mean` and `seeds`


def write_figure(curves: Curves, path: Path) -> None:
    """Writes the figure as SVG that is looked at by itself, with the colours of a report."""
    css = (resources.files("edgedistill.report") / "page.css").read_text(encoding="utf-8")
    style = f"<style>{css}svg {{ background: var(--card); }}</style>"
    atomic_write_text(path, draw_curves(curves).replace("<title>", f"{style}<title>", 1) + "\n", "the figure")


def draw_curves(curves: Curves) -> str:
    """Draws the mean of each decoder, with the extremes of the seeds as a band."""
    points = [point for curve in curves.values() for point in curve]
    minutes = [point["minutes"] for point in points]
    values = [value for point in points for value in point["seeds"]]
    row, left, right = 20.0, 60.0, WIDTH - 20
    top = 26.0 + row * -(-len(curves) // 2)
    bottom = top + 260.0
    x = Axis(min(minutes) / 1.15, max(minutes) * 1.15, left, right, log=True)
    y = Axis(min(0.0, max(min(values), -0.5)), max(*values, 0.1) * 1.05, bottom, top)
    words = "; ".join(
        f"{name}: {curve[0]['mean']:.2f} with {curve[0]['labels']}, {curve[-1]['mean']:.2f} with {curve[-1]['labels']}"
        for name, curve in curves.items()
    )
    drawing = Drawing(WIDTH, bottom + 46, "R² against minutes of labels", f"{words}.")
    drawing.x_axis(x, top, bottom, "minutes of labels in the decoded session (log axis)", format_number)
    drawing.y_axis(y, left, right, lambda value: f"{value:.1f}")
    drawing.text((left, top - 8), "R² on the test block", "axis")

    def place(point: Mapping[str, Any], value: float) -> tuple[float, float]:
        return x(point["minutes"]), y(min(max(value, y.low), y.high))

    for i, (name, curve) in enumerate(curves.items()):
        upper, lower = ([place(point, end(point["seeds"])) for point in curve] for end in (max, min))
        drawing.area([*upper, *reversed(lower)], f"f{i} band")
        drawing.line([place(point, point["mean"]) for point in curve], f"l{i}", DASHES[i % 3])
        for point in curve:
            hint = f"{name}, {point['labels']}: R² {point['mean']:.3f}"
            drawing.mark(place(point, point["mean"]), f"f{i} point", i, hint)
        at = (left + 8 + 300 * (i % 2), 10 + row * (i // 2))
        drawing.line([(at[0] - 8, at[1]), (at[0] + 18, at[1])], f"l{i}", DASHES[i % 3])
        drawing.mark((at[0] + 5, at[1]), f"f{i} point", i)
        drawing.text((at[0] + 26, at[1] + 4), name, "label")
    return str(drawing)
