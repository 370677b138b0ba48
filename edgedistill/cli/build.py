"""Defines `edgedistill build`, which makes a bundle from sessions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgedistill.bundle import reasons_left_out
from edgedistill.cli.app import GATE_MISSED
from edgedistill.cli.output import cache_option, echo, print_gates, print_json, print_notes, print_table, show_training
from edgedistill.cli.training_options import (
    FOLLOW_HELP,
    PATH,
    add_alignment_options,
    add_training_options,
    bands_option,
    label_minutes_option,
    recipe_option,
    trials_option,
)
from edgedistill.config import load_preset
from edgedistill.quantization.calibration.recipe import load_recipe
from edgedistill.target import load_target, require_buildable

if TYPE_CHECKING:
    from edgedistill.pipeline import BuildResult


@click.command(
    epilog="""\b
Examples:
  edgedistill build --target host --data sessions --out decoder.edge
  edgedistill build --target host --preset nano --data monday.nwb tuesday.nwb --out decoder.edge
  edgedistill build --target host --data sessions --session sim00-day03 --baselines --out day3.edge
  edgedistill build --target jetson --data sessions --zip --out decoder.edge

DATA is any number of NWB files, folders, patterns in quotes, or .txt files of paths. The results of every stage are
kept in a folder beside the bundle (--work), and a stage whose inputs have not changed is not run again. If a gate of
the target is missed, the bundle is written all the same and the exit code is 3. A graph whose output differs too much
from the student's is marked unusable, and stderr says why.""",
)
@click.option(
    "--target", metavar="NAME", required=True, help="The device to build for. `edgedistill targets` lists them."
)
@click.option(
    "--data",
    "data",
    multiple=True,
    required=True,
    type=PATH,
    metavar="DATA...",
    help="The sessions to train on, as folders or NWB files.",
)
@click.argument("more", nargs=-1, type=PATH, metavar="")
@click.option("--out", type=PATH, required=True, help="The bundle to write: NAME.edge or NAME.zip.")
@click.option(
    "--zip", "ship", is_flag=True, help="Also write OUT.zip, the same folder as one file to copy to a device."
)
@click.option(
    "--sign", type=PATH, metavar="KEY", help="Sign the bundle with this private key, for `edgedistill verify`."
)
@click.option("--session", metavar="ID", help="The session whose array is decoded.  [default: the latest]")
@click.option(
    "--baselines", is_flag=True, help="Also train the models that the student is compared with, which takes long."
)
@click.option("--teacher", type=PATH, help="Use this teacher of `edgedistill pretrain` instead of training one.")
@click.option("--student", type=PATH, help="Use this student of `edgedistill distill` instead of training one.")
@click.option(
    "--spikes",
    is_flag=True,
    help="With --student: also train a teacher and a spike student on these sessions, to compare with. --baselines "
    "implies it.",
)
@click.option(
    "--adapt",
    type=click.Choice(["none", "stats", "tokenizer"]),
    default="stats",
    show_default=True,
    help="What is adapted to a session that the student of --student was not trained on: nothing, the statistics that "
    "its channels are z-scored with, or the tokenizer.",
)
@click.option("--probe", is_flag=True, help="Fit a new read-out on the labels of this session. Needs --student.")
@bands_option
@recipe_option
@click.option(
    "--follow",
    "follow_s",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help=FOLLOW_HELP,
)
@label_minutes_option
@trials_option
@click.option(
    "--smooth",
    type=click.Choice(["none", "kalman"]),
    default="kalman",
    show_default=True,
    help="How the outputs are smoothed: not at all, or by a Kalman filter if that decodes the validation block better.",
)
@click.option(
    "--ranges",
    type=PATH,
    help="Use these ranges, which `edgedistill calibrate` wrote for the student of --student. Their recipe takes the "
    "place of --recipe.",
)
@click.option(
    "--work", type=PATH, help="The folder that keeps the results of the stages.  [default: OUT with the ending .work]"
)
@cache_option
@add_alignment_options
@add_training_options
def build(
    target: str,
    data: tuple[Path, ...],
    more: tuple[Path, ...],
    out: Path,
    as_json: bool,
    **settings: Any,
) -> None:
    """Take NWB sessions all the way to a decoder for one device.

    This trains a teacher, a spike student and an LFP student, fits linear baselines, quantizes the students to INT8,
    measures every R² by streaming over data that no stage has seen, and writes a bundle. With --student nothing is
    trained unless --spikes or --baselines ask for it.
    """
    if settings["ship"] and out.suffix == ".zip":
        raise click.UsageError(f"--zip makes a zip of a folder, but {out} is a zip already: write --out NAME.edge")
    # Mistakes in these names are answered before torch is imported and sessions are read.
    load_preset(settings["preset"])
    load_recipe(settings["recipe"])
    require_buildable(load_target(target))
    from edgedistill import pipeline

    options = pipeline.BuildOptions(target=target, data=(*data, *more), out=out, **settings)
    with show_training() as progress:
        result = pipeline.build(options, progress)
    for name, reason in reasons_left_out(result.graphs).items():
        echo(f"left out: {name}: {reason}", err=True)
    if result.confidence is not None and result.confidence.note:
        print_notes([result.confidence.note])
    if as_json:
        print_json(result.to_json())
    else:
        _print_build(result)
    if any(gate.ok is False for gate in result.gates):
        raise click.exceptions.Exit(GATE_MISSED)


def _print_build(result: BuildResult) -> None:
    rows = [(row.name, row.r2, row.causal, row.note) for row in result.table]
    print_table("Held-out R²", ("model", "R²", "causal", ""), rows)
    if result.smoothing is not None:
        echo(f"outputs smoothed: {result.smoothing.describe()}")
    stages = [(stage.name, f"{stage.seconds:.1f}", "kept" if stage.cached else "") for stage in result.stages]
    print_table("Stages", ("stage", "seconds", ""), stages)
    print_gates(result.gates)
    echo(f"{result.bundle}  for {result.target}")
    if result.shipped:
        echo(f"{result.shipped}  the same bundle as one file")
    if result.signed_by:
        echo(f"signed by {result.signed_by}")
    if result.lacking:
        echo(
            f"not compiled here: {result.lacking.what}. Its sources lie in the bundle, in build/, ready for the device."
        )
    echo(f"next: {result.next_step}")
