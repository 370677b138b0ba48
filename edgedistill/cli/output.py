"""Prints the results of commands: one JSON object for scripts, tables for people, progress on a terminal.

Only results go to stdout. Progress goes to stderr, and only if that is a terminal.
"""

from __future__ import annotations

import json
import logging
import math
import re
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

from edgedistill import ranks
from edgedistill.errors import EdgeDistillError, hang_lines
from edgedistill.limits import plain_line, plain_text
from edgedistill.user_cache import use_cache

Report = Callable[[str, int, int, float, float], None]  # stage, step, steps, loss, learning rate

json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object on stdout, for scripts. Its keys are in docs/json.md.",
)


def _use_cache(ctx: click.Context, _: click.Parameter, folder: Path | None) -> None:
    ctx.with_resource(use_cache(folder))


cache_option = click.option(
    "--cache",
    type=click.Path(path_type=Path),
    expose_value=False,
    callback=_use_cache,
    help="Where engines compiled on this machine are kept. Nobody else may be able to write there.  [default: "
    "edgedistill in $XDG_CACHE_HOME or ~/.cache]",
)


signature_option = click.option(
    "--require-signature",
    metavar="KEY.pub",
    type=click.Path(path_type=Path),
    help="Decode only if the owner of this public key signed the bundle.  [default: nobody need have signed it]",
)


def print_json(value: Mapping[str, object]) -> None:
    """Prints one JSON object on stdout."""
    click.echo(format_json(value))


def error_to_json(error: EdgeDistillError) -> dict[str, object]:
    """Returns what an error says as JSON states it."""
    got, expected = (None if value is None else str(value) for value in (error.got, error.expected))
    causes = list(error.causes)
    return {"what": error.what, "got": got, "expected": expected, "causes": causes, "next_step": error.next_step}


def format_json(value: Mapping[str, object]) -> str:
    """Returns one JSON object as text. NaN and infinity become null, because JSON does not have them."""
    text = json.dumps(_to_plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    return re.sub(r"[\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", _escape, text)


def _escape(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def echo(text: str, *, err: bool = False) -> None:
    """Prints a text for people, without control characters that a name in a file may hold."""
    click.echo(plain_text(text), err=err)


def _to_plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _to_plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_plain(part) for part in value]
    if hasattr(value, "item"):  # a numpy scalar
        return _to_plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table. A column whose cells are all numbers is aligned to the right."""
    texts = [[plain_line(format_value(cell)) for cell in row] for row in rows]
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for i, column in enumerate(columns):
        numeric = all(_is_number(row[i]) for row in texts)
        table.add_column(Text(plain_line(column)), justify="right" if numeric else "left", overflow="fold")
    for row in texts:
        table.add_row(*(Text(cell) for cell in row))  # a plain string would lose "[train]", which rich takes for markup
    _console().print(table)


def print_facts(facts: Mapping[str, object]) -> None:
    """Prints each name with its value on a line of its own."""
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        echo(f"{plain_line(name):<{width}}  {hang_lines(format_value(value), width + 2)}")


def print_notes(notes: Iterable[str]) -> None:
    """Prints each note on how a file was read on a line of its own on stderr."""
    for note in notes:
        echo(f"note: {hang_lines(note, 6)}", err=True)


def print_warnings(warnings: Iterable[str]) -> None:
    """Prints each warning on a line of its own on stderr."""
    for warning in warnings:
        echo(f"warning: {hang_lines(warning, 9)}", err=True)


def print_summary(summary: Mapping[str, object], as_json: bool) -> None:
    """Prints the summary of a training, as JSON or for people."""
    if as_json:
        print_json(summary)
    else:
        print_facts(summary)


def format_value(value: object) -> str:
    """Formats a value for people, with at most three digits after the point and a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and abs(value) >= 100_000:
        return f"{value:,}"
    if isinstance(value, float):
        return "–" if not math.isfinite(value) else f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(format_value, value))
    return str(value)


def _is_number(text: str) -> bool:
    return text == "–" or text.replace(",", "").replace(".", "").removeprefix("-").isdecimal()


def _console() -> Console:
    # rich takes 80 columns for granted without a terminal, and would fold lines that a file or a pager has room for.
    return Console(width=None if sys.stdout.isatty() else 140)


def print_gates(gates: Sequence[Any]) -> None:
    """Prints the gates of a target with their verdicts, or nothing if the target has no gates."""
    verdict = {True: "met", False: "MISSED", None: "not measured"}
    rows = [(g.name, g.value, g.limit, ": ".join(filter(None, (verdict[g.ok], g.reason)))) for g in gates]
    if rows:
        print_table("Gates", ("gate", "value", "limit", ""), rows)


class _EchoHandler(logging.Handler):
    """Prints what edgedistill logs on stderr, one line a message."""

    def emit(self, record: logging.LogRecord) -> None:
        echo(hang_lines(self.format(record), 2), err=True)


def show_log() -> None:
    """Prints from now on what edgedistill logs, such as how each session was read, on stderr."""
    logger = logging.getLogger("edgedistill")
    if not any(isinstance(handler, _EchoHandler) for handler in logger.handlers):
        logger.addHandler(_EchoHandler())
    logger.setLevel(logging.INFO if ranks.is_main() else logging.CRITICAL)
    logger.propagate = False  # a library that gives the root logger a handler would print every line twice


@contextmanager
def show_training() -> Iterator[Report | None]:
    """Yields a function that shows stage, step, loss, learning rate and time left on stderr.

    Yields None if stderr is not a terminal.
    """
    if not sys.stderr.isatty() or not ranks.is_main():
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
def show_work(what: str) -> Iterator[Callable[[str, int, int], None] | None]:
    """Shows a progress line on stderr. Yields a function that adds a part, a step and the number of steps.

    Yields None if stderr is not a terminal.
    """
    if not sys.stderr.isatty():
        yield None
        return
    with Console(stderr=True).status(what) as status:
        yield lambda part, step, steps: status.update(f"{what}: {part} {step}/{steps}")
