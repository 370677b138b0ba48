"""Draws the SVG elements that the charts of the report are made of: axes, lines, areas and points.

Colours are CSS variables of the page, so that one drawing serves its light and its dark scheme. Every drawing carries a
title and a description for those who cannot see it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

Point = tuple[float, float]
SERIES = 8  # colours --s0 … --s7 of the page


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic axis, which turns values into pixels."""

    low: float
    high: float
    start: float  # px of `low`
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Returns the place of a value in px."""
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / ((high - low) or 1.0) * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """Returns the round values on the axis."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            found = [10.0**decade for decade in decades]
            if len(found) < 4:
                found = [factor * 10.0**decade for decade in decades for factor in (1, 2, 5)]
            return [tick for tick in found if self.low <= tick * 1.0000001 and tick <= self.high * 1.0000001]
        step = choose_tick_step(self.high - self.low)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def choose_tick_step(span: float, most: int = 6) -> float:
    """Returns the 1, 2 or 5 times a power of ten that cuts `span` into at most `most` parts."""
    if not span > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(span / most))
    return next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= most + 1e-9)


@dataclass
class Drawing:
    """One SVG picture. `label` and `description` are read to those who do not see it."""

    width: float
    height: float
    label: str
    description: str
    parts: list[str] = field(default_factory=list)

    def line(self, points: Sequence[Point], css: str, dash: str = "") -> None:
        """Draws a polyline of class `css`."""
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(f'<polyline class="{css}" points="{_join_points(points)}"{dashes}/>')

    def area(self, points: Sequence[Point], css: str) -> None:
        """Draws a filled polygon."""
        self.parts.append(f'<polygon class="{css}" points="{_join_points(points)}"/>')

    def mark(self, at: Point, css: str, shape: int = 0, hint: str = "") -> None:
        """Draws a point. Shapes differ, so that colour is not needed to tell them apart."""
        x, y = at
        title = f"<title>{escape(hint)}</title>" if hint else ""
        if shape % 3 == 0:
            self.parts.append(f'<circle class="{css}" cx="{x:.1f}" cy="{y:.1f}" r="5">{title}</circle>')
        elif shape % 3 == 1:
            self.parts.append(
                f'<rect class="{css}" x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9">{title}</rect>'
            )
        else:
            corners = _join_points([(x, y - 6), (x + 6, y + 5), (x - 6, y + 5)])
            self.parts.append(f'<polygon class="{css}" points="{corners}">{title}</polygon>')

    def text(self, at: Point, text: str, css: str = "label", anchor: str = "start") -> None:
        """Writes text with its baseline at a point."""
        self.parts.append(
            f'<text class="{css}" x="{at[0]:.1f}" y="{at[1]:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
        )

    def x_axis(self, axis: Axis, top: float, bottom: float, title: str, name: Callable[[float], str]) -> None:
        """Draws grid, ticks and title along the bottom. `name` writes a tick."""
        for tick in axis.ticks():
            self.line([(axis(tick), top), (axis(tick), bottom)], "grid")
            self.text((axis(tick), bottom + 16), name(tick), "tick", "middle")
        self.text(((axis.start + axis.stop) / 2, bottom + 36), title, "axis", "middle")

    def y_axis(self, axis: Axis, left: float, right: float, name: Callable[[float], str]) -> None:
        """Draws grid and ticks along the left. `name` writes a tick."""
        for tick in axis.ticks():
            self.line([(left, axis(tick)), (right, axis(tick))], "grid")
            self.text((left - 6, axis(tick) + 4), name(tick), "tick", "end")

    def __str__(self) -> str:
        return (
            f'<svg role="img" viewBox="0 0 {self.width:g} {self.height:g}" xmlns="http://www.w3.org/2000/svg">'
            f"<title>{escape(self.label)}</title><desc>{escape(self.description)}</desc>{''.join(self.parts)}</svg>"
        )


def format_number(value: float) -> str:
    """Returns a figure in as few digits as it needs."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _join_points(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
