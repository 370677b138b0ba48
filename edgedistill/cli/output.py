"""What commands print: one JSON object for scripts, tables for people, progress on a terminal.

Results go to stdout and nothing else does. Progress goes to stderr, and only when that is a terminal.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

Report = Callable[[str, int, int, float, float], None]  # stage, step, steps, loss, learning rate

json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object on stdout, for scripts; see the README."
)


def print_json(value: Mapping[str, object]) -> None:
    """One JSON object on stdout."""
    click.echo(json_text(value))


def json_text(value: Mapping[str, object]) -> str:
    """One JSON object; what is not a number (NaN, infinity) becomes null."""
    return json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if hasattr(value, "item"):  # a numpy scalar
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table; columns whose cells are all numbers are set to the right."""
    texts = [[number(cell) for cell in row] for row in rows]
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for i, column in enumerate(columns):
        numeric = all(_is_number(row[i]) for row in texts)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in texts:
        table.add_row(*(Text(cell) for cell in row))  # Text: "[train]" is not markup
    _console().print(table)


def print_facts(facts: Mapping[str, object]) -> None:
    """Name and value a line."""
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        click.echo(f"{name:<{width}}  {number(value)}")


def number(value: object) -> str:
    """A value as a person reads it: three digits after the point where they matter, a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and abs(value) >= 100_000:
        return f"{value:,}"
    if isinstance(value, float):
        return "–" if not math.isfinite(value) else f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(number, value))
    return str(value)


def _is_number(text: str) -> bool:
    return text == "–" or text.replace(",", "").replace(".", "").removeprefix("-").isdecimal()


def _console() -> Console:
    # without a terminal rich assumes 80 columns and folds what a file or a pager would take whole
    return Console(width=None if sys.stdout.isatty() else 140)


def print_gates(gates: Sequence[Any]) -> None:
    """Gates of a target with their verdict; nothing where there are none."""
    verdict = {True: "met", False: "MISSED", None: "not measured"}
    rows = [(g.name, g.value, g.limit, ": ".join(filter(None, (verdict[g.ok], g.reason)))) for g in gates]
    if rows:
        print_table("Gates", ("gate", "value", "limit", ""), rows)


@contextmanager
def training_progress() -> Iterator[Report | None]:
    """Stage, step, loss, rates and time left on stderr; None when stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        stages: dict[str, TaskID] = {}

        def report(stage: str, step: int, steps: int, loss: float, rate: float) -> None:
            if stage not in stages:
                stages[stage] = progress.add_task(stage, total=steps, figures="")
            task = progress.tasks[progress.task_ids.index(stages[stage])]
            speed = f"{task.speed:.1f}/s" if task.speed else ""
            trained = f"loss {loss:.4g}  lr {rate:.1e}  " if math.isfinite(loss) else ""
            progress.update(stages[stage], completed=step, total=steps, figures=trained + speed)

        yield report


@contextmanager
def working(what: str) -> Iterator[Callable[[str, int, int], None] | None]:
    """A line that moves on stderr while something goes on; what it yields tells a part, its step and its steps there.
    None where stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    with Console(stderr=True).status(what) as status:
        yield lambda part, step, steps: status.update(f"{what}: {part} {step}/{steps}")
