"""Defines `edgedistill adapt`, which makes a bundle for another day of the same array without training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgedistill.cli.app import GATE_MISSED
from edgedistill.cli.output import (
    cache_option,
    echo,
    format_value,
    json_option,
    print_facts,
    print_gates,
    print_json,
    print_notes,
    print_warnings,
    show_work,
)
from edgedistill.cli.training_options import FOLLOW_HELP, PATH, SERIES_HELP

if TYPE_CHECKING:
    from edgedistill.pipeline.adaptation import AdaptResult


@click.command(
    epilog="""\b
Examples:
  edgedistill adapt decoder.edge friday.nwb --out friday.edge
  edgedistill adapt decoder.edge friday.nwb --to 120 --out friday.edge     learns from the first two minutes
  edgedistill adapt decoder.edge friday.nwb --labels --out friday.edge     fits a new read-out as well
  edgedistill adapt decoder.edge friday.nwb --follow 600 --out friday.edge

FILE.nwb is a recording of the array that the bundle decodes. By default all of it is used, and no label. A bundle that
was adapted to a whole recording has seen the future of every moment of that recording. To know what it is worth, adapt
to the first minutes with --to: R² is then measured on what follows. If a gate of the target is missed, the bundle is
written all the same and the exit code is 3.""",
)
@click.argument("bundle", type=PATH)
@click.argument("recording", type=PATH, metavar="FILE.nwb")
@click.option("--out", type=PATH, required=True, help="The bundle to write, a folder NAME.edge.")
@click.option(
    "--labels",
    is_flag=True,
    help="Also fit a new read-out to the behavior of the recording, and the standard deviations of its outputs.",
)
@click.option(
    "--from",
    "from_s",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Where the stretch begins that is used, in seconds after the first frame.",
)
@click.option(
    "--to",
    "to_s",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    help="Where it ends.  [default: the end of the recording]",
)
@click.option(
    "--follow",
    "follow_s",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    help=f"{FOLLOW_HELP}  [default: as in the bundle]",
)
@click.option(
    "--target", metavar="NAME", help="The device to compile for.  [default: the one that the bundle was built for]"
)
@click.option(
    "--lfp",
    metavar="NAME",
    help=f"{SERIES_HELP['lfp']}  [default: the one that the bundle was built from, if the recording has it]",
)
@click.option("--behavior", metavar="NAME", help=f"{SERIES_HELP['behavior']}  [default: as for --lfp]")
@cache_option
@json_option
def adapt(
    bundle: Path,
    recording: Path,
    out: Path,
    labels: bool,
    from_s: float,
    to_s: float | None,
    follow_s: float | None,
    target: str | None,
    lfp: str | None,
    behavior: str | None,
    as_json: bool,
) -> None:
    """Make a bundle for another day of an array, in seconds.

    No label is needed, and nothing is trained. The student stays as it is. Mean and deviation of every channel, and how
    the channels go together, are those of the day. A channel that is dead on that day stays as the bundle has it, and
    is filled in from the others.
    """
    if to_s is not None and to_s <= from_s:
        raise click.UsageError(f"the stretch ends before it begins: --from {from_s:g} --to {to_s:g}")
    from edgedistill.data.candidates import SeriesNames
    from edgedistill.pipeline.adaptation import AdaptOptions, adapt_bundle
    from edgedistill.pipeline.another_day import StretchOptions

    stretch = StretchOptions(recording, SeriesNames(lfp=lfp, behavior=behavior), labels, from_s, to_s)
    with show_work(f"adapting {bundle} to {recording}"):
        result = adapt_bundle(AdaptOptions(bundle, out, stretch, follow_s, target))
    print_notes(result.notes)
    print_warnings(result.warnings)
    if as_json:
        print_json(result.to_json())
    else:
        _print_result(result)
    if any(gate.ok is False for gate in result.gates):
        raise click.exceptions.Exit(GATE_MISSED)


def _print_result(result: AdaptResult) -> None:
    begin_s, end_s = result.used_s
    facts: dict[str, object] = {
        "session": result.session,
        "used": f"{begin_s:g} to {end_s:g} s after the first frame",
        "R² before": result.before_r2,
        "R²": f"{format_value(result.metrics['deployed_r2'])}, in INT8 {format_value(result.metrics['int8_r2'])}",
    }
    if result.unscored is not None:
        del facts["R² before"]
        facts["R²"] = f"not measured: {result.unscored}"
    print_facts(facts)
    print_gates(result.gates)
    echo(f"{result.bundle}  for {result.target}, in {result.seconds:.1f} s")
    if result.lacking:
        echo(
            f"not compiled here: {result.lacking.what}. Its sources lie in the bundle, in build/, ready for the device."
        )
    echo(f"next: {result.next_step}")
