"""Defines `edgedistill report`, which draws the results of benches on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgedistill.cli.output import json_option, print_facts, print_json
from edgedistill.errors import ConfigError
from edgedistill.files import atomic_write_text, require_no_input
from edgedistill.limits import MOST_RESULT_BYTES, read_json


@click.command(
    epilog="""\b
Examples:
  edgedistill bench decoder.edge --robustness --system --out bench.json
  edgedistill report bench.json --out bench.html

The page needs no network and holds no scripts, so it can be mailed, printed and read on a phone.""",
)
@click.argument("results", metavar="RESULT…", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The page to write: NAME.html.")
@json_option
def report(results: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Draw bench results on one self-contained page.

    The page shows pictures and tables. RESULT is a file that `bench --out` or `bench --json` wrote. Several results are
    shown one below the other.
    """
    from edgedistill.report import page_from_results

    require_no_input(out, results)
    page = page_from_results([_read_result(path) for path in results], [path.name for path in results])
    atomic_write_text(out, page, "the page")
    if as_json:
        print_json({"out": out, "results": list(map(str, results)), "bytes": len(page.encode(errors="replace"))})
    else:
        print_facts({"written": out})


def _read_result(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = read_json(path, MOST_RESULT_BYTES)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file", next_step=f"edgedistill bench BUNDLE --out {path}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not a result of `edgedistill bench`", got=error) from error
    return found
