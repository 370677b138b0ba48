"""Defines `edgedistill bench`, which measures a decoder's speed on this machine and how well it decodes."""

from __future__ import annotations

import shlex
import sys
from datetime import date
from pathlib import Path

import click
from click.core import ParameterSource

from edgedistill.bundle import open_bundle
from edgedistill.cli.app import GATE_MISSED
from edgedistill.cli.bench_tables import print_bench
from edgedistill.cli.output import (
    cache_option,
    format_json,
    json_option,
    print_json,
    print_notes,
    print_warnings,
    show_work,
)
from edgedistill.cli.training_options import SERIES_HELP
from edgedistill.files import atomic_write_text, require_no_input
from edgedistill.runtime.compiled_engines import COMPILED


def _parse_assumptions(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> dict[str, float]:
    found = {}
    for text in texts:
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
  edgedistill bench decoder.edge --closed-loop 600       runs for ten minutes at 100 Hz
  edgedistill bench decoder.edge --engine cuda --quick   the students alone, in seconds

Every step is timed alone, on one thread. The subjects take turns, so that all of them meet the same machine. Then each
is woken every 10 ms, once with warm caches and once with emptied ones. The subject "empty" does nothing, so its
figures show what the machine itself adds to the others. A step is the model alone, without the front end's work on raw
frames. R² is measured by streaming. What this machine cannot measure is left empty with the reason, and is never
estimated. If a gate of the target is missed, the exit code is 3.""",
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--data",
    metavar="FILE.nwb",
    type=click.Path(path_type=Path),
    help="Measure R² on this recording of the same array.  [default: the holdout inside the bundle]",
)
@click.option("--lfp", metavar="NAME", help=f"{SERIES_HELP['lfp']} Goes with --data.")
@click.option("--behavior", metavar="NAME", help=f"{SERIES_HELP['behavior']} Goes with --data.")
@click.option(
    "--against",
    metavar="NAME",
    multiple=True,
    help="Measure only this subject beside the LFP student. May be given several times.  [default: all]",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=2000,
    show_default=True,
    help="How many steps of each subject are timed.",
)
@click.option(
    "--engine",
    type=click.Choice(("onnxruntime-int8", *COMPILED)),
    help="The engine that runs the subject lfp-student-int8.  [default: the engine that the bundle was built for, "
    "if it is compiled here]",
)
@click.option(
    "--closed-loop",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    help="How many seconds each subject runs at 100 Hz, once with warm and once with emptied caches. 0 leaves this "
    "part out.",
)
@click.option(
    "--energy",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    help="How many seconds each subject runs in each repeat of its energy, where there is a sensor. There are three "
    "repeats without pauses and three at 100 Hz, each between two stretches of idling. 0 leaves this part out.",
)
@click.option(
    "--quick",
    is_flag=True,
    help="Measure only the students, with a closed loop of 1 s, one repeat of the energy as short as the sensor "
    "allows, and without intervals. Options that are given are kept.",
)
@click.option(
    "--robustness", is_flag=True, help="Also measure R² with channels or a bank lost, added noise and days of drift."
)
@click.option(
    "--system", is_flag=True, help="Also compute the power of a whole implant from a model, and print every assumption."
)
@click.option(
    "--assume",
    metavar="NAME=VALUE",
    multiple=True,
    callback=_parse_assumptions,
    help="Replace an assumption of --system, such as radio_pj_per_bit=100. May be given several times.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Also write the result to this file as JSON, for `edgedistill report`.",
)
@cache_option
@json_option
def bench(
    bundle: Path,
    data: Path | None,
    lfp: str | None,
    behavior: str | None,
    against: tuple[str, ...],
    steps: int,
    engine: str | None,
    closed_loop: float,
    energy: float,
    quick: bool,
    robustness: bool,
    system: bool,
    assume: dict[str, float],
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure what a step costs here and how well a bundle decodes.

    The LFP student is compared with a student of the same size that reads spikes, with the spike teacher (which is run
    again over its whole window for every bin), and with other runtimes.
    """
    if data is None and (lfp or behavior):
        raise click.UsageError("--lfp and --behavior name series of --data FILE.nwb, and there is none")
    from edgedistill import bench as measurement

    if out is not None:
        require_no_input(out, [bundle] if data is None else [bundle, data])
    opened = open_bundle(bundle)
    given = click.get_current_context().get_parameter_source
    short = {name for name in ("closed_loop", "energy") if quick and given(name) is ParameterSource.DEFAULT}
    options = measurement.BenchOptions(
        subjects=measurement.STUDENTS if quick and not against else measurement.select_subjects(against),
        engine=engine,
        steps=steps,
        closed_loop_s=1.0 if "closed_loop" in short else closed_loop,
        energy_s=0.1 if "energy" in short else energy,  # a sensor that needs longer takes longer
        energy_repeats=1 if quick else 3,
        intervals=not quick,
        robustness=robustness,
        system=system or bool(assume),
        assume=assume,
    )
    if data is None:
        with show_work("measuring"):
            result = measurement.bench(opened, options)
    else:
        from edgedistill.data.recording import SeriesNames, open_recording
        from edgedistill.matching import match_recording

        with open_recording(data, SeriesNames(lfp=lfp, behavior=behavior)) as recording:
            with show_work(f"comparing {data} with the bundle"):
                matched = match_recording(opened, recording)
            print_notes(matched.lfp.notes)
            print_warnings(matched.warnings)
            with show_work("measuring"):
                result = measurement.bench(opened, options, matched)
            print_warnings(result.warnings[len(matched.warnings) :])
    found = result.to_json() | {
        "command": shlex.join(["edgedistill", *sys.argv[1:]]),
        "created": date.today().isoformat(),
    }
    if out is not None:
        atomic_write_text(out, format_json(found) + "\n", "the result")
    if as_json:
        print_json(found)
    else:
        print_bench(result)
    if any(gate.ok is False for gate in result.gates):
        raise click.exceptions.Exit(GATE_MISSED)
