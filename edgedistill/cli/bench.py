"""`bench` and `report`: measure what a step costs and what it is worth, and show it."""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import click

from edgedistill.bundle import open_bundle
from edgedistill.cli.app import GATE_MISSED
from edgedistill.cli.bench_tables import print_bench
from edgedistill.cli.output import json_option, json_text, print_facts, print_json, working
from edgedistill.errors import ConfigError, OutputError
from edgedistill.runtime.compiled_engines import COMPILED


def _assumptions(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> dict[str, float]:
    found = {}
    for text in given:
        name, value = text.partition("=")[::2]
        try:
            found[name] = float(value)
        except ValueError as error:
            raise click.BadParameter(f"'{text}' is not NAME=VALUE") from error
    return found


@click.command(
    epilog="""\b
Examples:
  edgedistill bench decoder.edge
  edgedistill bench decoder.edge --out bench.json && edgedistill report bench.json --out bench.html
  edgedistill bench decoder.edge --against spike-student-int8 --against torch-eager
  edgedistill bench decoder.edge --data another-day.nwb --steps 20000
  edgedistill bench decoder.edge --closed-loop 600       ten minutes at 100 Hz

Every step is timed alone, on one thread, and the subjects take turns, so that all of them meet the same
machine; then each is woken every 10 ms, with warm caches and with emptied ones. "empty" does nothing: what of
each figure is the machine's own. A step is the model alone, without the front end's work on raw frames. R² is
measured by streaming. What this machine cannot measure is left empty, with the reason, never estimated.""",
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--data",
    metavar="FILE.nwb",
    type=click.Path(path_type=Path),
    help="Measure R² on this recording of the same array.  [default: the bundle's own holdout]",
)
@click.option("--behavior", metavar="NAME", help="The behavior series of --data, where there are several.")
@click.option("--against", metavar="NAME", multiple=True, help="Only these beside the LFP student.  [default: all]")
@click.option(
    "--steps", type=click.IntRange(min=1), default=2000, show_default=True, help="Steps to time, each subject."
)
@click.option(
    "--engine",
    type=click.Choice(("onnxruntime-int8", *COMPILED)),
    help="What runs lfp-student-int8.  [default: what the bundle was built for, if that is compiled here]",
)
@click.option(
    "--closed-loop",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    help="How long to run at 100 Hz, twice: warm and with emptied caches.",
)
@click.option("--robustness", is_flag=True, help="Also R² against lost channels, added noise and days of drift.")
@click.option("--system", is_flag=True, help="Also a model of the whole implant's power, every assumption printed.")
@click.option(
    "--assume", metavar="NAME=VALUE", multiple=True, callback=_assumptions, help="Replace an assumption of --system."
)
@click.option("--out", type=click.Path(path_type=Path), help="Also write the JSON to this file.")
@json_option
def bench(
    bundle: Path,
    data: Path | None,
    behavior: str | None,
    against: tuple[str, ...],
    steps: int,
    engine: str | None,
    closed_loop: float,
    robustness: bool,
    system: bool,
    assume: dict[str, float],
    out: Path | None,
    as_json: bool,
) -> None:
    """What a step costs on this machine, and how well the bundle decodes.

    The student is compared with a student of the same size that reads spikes, with the spike teacher run again over
    its window for every bin, and with other runtimes.
    """
    from edgedistill import bench as measurement

    opened = open_bundle(bundle)
    options = measurement.BenchOptions(
        subjects=measurement.chosen(against),
        engine=engine,
        steps=steps,
        closed_loop_s=closed_loop,
        robustness=robustness,
        system=system or bool(assume),
        assume=assume,
    )
    with working("measuring"):
        if data is None:
            result = measurement.bench(opened, options)
        else:
            from edgedistill.data.recording import open_recording

            with open_recording(data, behavior=behavior) as recording:
                result = measurement.bench(opened, options, recording)
    found = result.to_json() | {
        "command": shlex.join(["edgedistill", *sys.argv[1:]]),
        "created": date.today().isoformat(),
    }
    if out is not None:
        _write(out, json_text(found) + "\n")
    if as_json:
        print_json(found)
    else:
        print_bench(result)
    if any(gate.ok is False for gate in result.gates):
        raise click.exceptions.Exit(GATE_MISSED)


@click.command(
    epilog="""\b
Examples:
  edgedistill bench decoder.edge --robustness --system --out bench.json
  edgedistill report bench.json --out bench.html

The page needs no network and holds no scripts: it can be mailed, printed and read on a phone.""",
)
@click.argument("results", metavar="RESULT…", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The page to write, .html.")
@json_option
def report(results: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Pictures and tables of bench results, one self-contained page.

    RESULT is what `bench --out` or `bench --json` wrote; several are shown one below the other.
    """
    from edgedistill.report import page_from_results

    page = page_from_results([_read(path) for path in results], [path.name for path in results])
    _write(out, page)
    if as_json:
        print_json({"out": out, "results": list(map(str, results)), "bytes": len(page.encode())})
    else:
        print_facts({"written": out})


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file", next_step=f"edgedistill bench BUNDLE --out {path}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not a result of `edgedistill bench`", got=error) from error
    return found


def _write(path: Path, text: str) -> None:
    """The file appears whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written", got=error.strerror or error) from error
    finally:
        with suppress(OSError):
            partial.unlink()
