"""`pretrain`, `distill` and `build`: from sessions to a teacher, a student, a bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgedistill.cli.app import GATE_MISSED
from edgedistill.cli.output import (
    json_option,
    print_facts,
    print_gates,
    print_json,
    print_table,
    training_progress,
)
from edgedistill.config import load_preset, preset_names
from edgedistill.quantization.calibration.recipe import DEFAULT_RECIPE, list_recipes, load_recipe
from edgedistill.target import load_target, require_buildable

if TYPE_CHECKING:
    from edgedistill.pipeline import BuildResult

Command = TypeVar("Command", bound=Callable[..., Any])

EXISTING = click.Path(path_type=Path)
preset_option = click.option(
    "--preset",
    metavar="NAME",
    default="edge",
    show_default=True,
    help=f"Size and training of the models: {', '.join(preset_names())}, or a .toml file of your own.",
)


def shared_options(command: Command) -> Command:
    """How sessions are read and models are trained, the same for all three."""
    for option in (
        json_option,
        click.option(
            "--line-hz", type=float, default=60.0, show_default=True, help="Mains frequency to notch out; 0 for none."
        ),
        click.option("--behavior", metavar="NAME", help="The behavior series to decode, where there are several."),
        click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same result."),
        click.option("--steps", type=click.IntRange(min=1), help="At most so many optimizer steps a stage."),
        preset_option,
    ):
        command = option(command)
    return command


@click.command(
    epilog="""\b
Example:
  edgedistill pretrain sessions --out teacher --preset nano

DATA is folders or NWB files. Stopped at any moment, the same command goes on from its last checkpoint.""",
)
@click.argument("data", nargs=-1, required=True, type=EXISTING)
@click.option("--out", type=EXISTING, required=True, help="Folder for the teacher.")
@shared_options
def pretrain(data: tuple[Path, ...], out: Path, preset: str, as_json: bool, **settings: Any) -> None:
    """Train the spike teacher on many sessions, without labels.

    A transformer learns to fill in units that were hidden from it. Sessions need sorted units; behavior,
    where there is any, is only used to tell how much the latents know of it.
    """
    load_preset(preset)
    from edgedistill import pipeline

    with training_progress() as progress:
        summary = pipeline.pretrain(data, out, preset=preset, progress=progress, **settings)
    _show_summary(summary, as_json)


@click.command(
    epilog="""\b
Examples:
  edgedistill distill sessions --teacher teacher --out student --preset nano
  edgedistill distill sessions --teacher teacher --out student --supervised

DATA is folders or NWB files, those the teacher has seen. Stopped at any moment, the same command goes on
from its last checkpoint.""",
)
@click.argument("data", nargs=-1, required=True, type=EXISTING)
@click.option("--teacher", type=EXISTING, required=True, help="What `edgedistill pretrain` wrote.")
@click.option("--out", type=EXISTING, required=True, help="Folder for the student.")
@click.option("--supervised", is_flag=True, help="Also learn the behavior; the default needs no labels.")
@click.option(
    "--alignment",
    type=click.Choice(["cosine", "mse"]),
    default="cosine",
    show_default=True,
    help="How the student's latents are compared with the teacher's.",
)
@shared_options
def distill(
    data: tuple[Path, ...],
    teacher: Path,
    out: Path,
    preset: str,
    as_json: bool,
    **settings: Any,
) -> None:
    """Train the causal LFP student to follow the teacher's latents."""
    load_preset(preset)
    from edgedistill import pipeline

    with training_progress() as progress:
        summary = pipeline.distill(data, teacher, out, preset=preset, progress=progress, **settings)
    _show_summary(summary, as_json)


@click.command(
    epilog="""\b
Examples:
  edgedistill build --target host --data sessions --out decoder.edge
  edgedistill build --target host --preset nano --data monday.nwb tuesday.nwb --out decoder.edge
  edgedistill build --target host --data sessions --session sim00-day03 --baselines --out day3.edge
  edgedistill build --target jetson --data sessions --zip --out decoder.edge

Stages whose inputs have not changed are not run again: they are kept in a folder beside the bundle (--work).
The exit code is 3 when a gate of the target was missed; the bundle is written all the same.""",
)
@click.option("--target", metavar="NAME", required=True, help="The device; see `edgedistill targets`.")
@click.option(
    "--data",
    "data",
    multiple=True,
    required=True,
    type=EXISTING,
    metavar="DATA...",
    help="Folders or NWB files.",
)
@click.argument("more", nargs=-1, type=EXISTING, metavar="")
@click.option("--out", type=EXISTING, required=True, help="The bundle: NAME.edge, or NAME.zip.")
@click.option("--zip", "ship", is_flag=True, help="Also write OUT.zip: the folder as one file, to carry to a device.")
@click.option("--session", metavar="ID", help="The session whose array it decodes.  [default: the latest]")
@click.option("--baselines", is_flag=True, help="Also train what the student is compared with (slow).")
@click.option("--teacher", type=EXISTING, help="A teacher of `edgedistill pretrain`, instead of a new one.")
@click.option("--student", type=EXISTING, help="A student of `edgedistill distill`, instead of a new one.")
@click.option(
    "--adapt",
    type=click.Choice(["none", "stats", "tokenizer"]),
    default="stats",
    show_default=True,
    help="For a session the student was not trained on: fresh z-scores, or a fresh tokenizer.",
)
@click.option("--probe", is_flag=True, help="With --student: fit a new read-out on the labels of this session.")
@click.option(
    "--recipe",
    metavar="NAME",
    default=DEFAULT_RECIPE,
    show_default=True,
    help=f"How the student becomes INT8: {', '.join(list_recipes())}, or a .toml file of your own.",
)
@click.option(
    "--ranges",
    type=EXISTING,
    help="What `edgedistill calibrate` wrote for the student of --student; its recipe goes before --recipe.",
)
@click.option("--work", type=EXISTING, help="Where stages are kept.  [default: OUT with the ending .work]")
@shared_options
def build(
    target: str,
    data: tuple[Path, ...],
    more: tuple[Path, ...],
    out: Path,
    as_json: bool,
    **settings: Any,
) -> None:
    """Take NWB sessions all the way to a decoder for one device.

    Trains teacher, spike student and LFP student, fits linear baselines, quantizes the students to INT8, measures
    every R² by streaming over data no stage has seen, and writes a bundle.
    """
    if settings["ship"] and out.suffix == ".zip":
        raise click.UsageError(f"--zip makes a zip of a folder, and {out} is a zip: --out NAME.edge")
    load_preset(settings["preset"])
    load_recipe(settings["recipe"])  # mistakes are told before torch is imported and sessions are read
    require_buildable(load_target(target))
    from edgedistill import pipeline

    options = pipeline.BuildOptions(target=target, data=(*data, *more), out=out, **settings)
    with training_progress() as progress:
        result = pipeline.build(options, progress)
    if as_json:
        print_json(result.to_json())
    else:
        _print_build(result)
    if any(gate.ok is False for gate in result.gates):
        raise click.exceptions.Exit(GATE_MISSED)


def _print_build(result: BuildResult) -> None:
    rows = [(row.name, row.r2, row.causal, row.note) for row in result.table]
    print_table("Held-out R²", ("model", "R²", "causal", ""), rows)
    stages = [(stage.name, f"{stage.seconds:.1f}", "kept" if stage.cached else "") for stage in result.stages]
    print_table("Stages", ("stage", "seconds", ""), stages)
    print_gates(result.gates)
    click.echo(f"{result.bundle}  for {result.target}")
    if result.shipped:
        click.echo(f"{result.shipped}  the same as one file")
    if result.lacking:
        click.echo(f"not compiled here: {result.lacking.what}; its sources are prepared in the bundle, in build/")
    click.echo(f"next: {result.next_step}")


def _show_summary(summary: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(summary)
    else:
        print_facts(summary)
