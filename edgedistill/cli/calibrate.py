"""`calibrate`: from a trained student to the ranges of its INT8 activations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgedistill.cli.output import json_option, number, print_facts, print_json, print_table, training_progress
from edgedistill.errors import ConfigError
from edgedistill.quantization.calibration.recipe import DEFAULT_RECIPE, list_recipes, load_recipe, require_teacher

if TYPE_CHECKING:
    from edgedistill.pipeline.calibration import CalibrationResult

PATH = click.Path(path_type=Path)
FIGURES = (".png", ".pdf", ".svg")


@click.command(
    epilog="""\b
Examples:
  edgedistill calibrate student sessions --out ranges.json
  edgedistill calibrate student sessions --recipe percentile --sensitivity --out ranges.json
  edgedistill calibrate student sessions --recipe qat --teacher teacher --out ranges.json

RUN is what `edgedistill distill` wrote, DATA is folders or NWB files: its own sessions, or other days of an array
it knows. Ranges come from windows of their training blocks; of a session that is new to the student no label has a
say in which. Fine-tuning and --sensitivity look at the validation blocks too, nothing at the test blocks. A recipe
that fine-tunes also writes the student it ends with, beside the ranges: FILE with the ending .student.""",
)
@click.argument("run", type=PATH)
@click.argument("data", nargs=-1, required=True, type=PATH)
@click.option(
    "--recipe",
    metavar="NAME",
    default=DEFAULT_RECIPE,
    show_default=True,
    help=f"How ranges are found: {', '.join(list_recipes())}, or a .toml file of your own.",
)
@click.option("--out", metavar="FILE", type=PATH, required=True, help="The ranges: NAME.json.")
@click.option("--teacher", type=PATH, help="What `edgedistill pretrain` wrote, for a recipe that fine-tunes.")
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same windows.")
@click.option("--behavior", metavar="NAME", help="The behavior series, where there are several.")
@click.option("--line-hz", type=float, default=60.0, show_default=True, help="Mains frequency to notch out; 0: none.")
@click.option("--sensitivity", is_flag=True, help="Also rank the parts of a step by the R² that INT8 costs in each.")
@click.option(
    "--figure", metavar="FILE", type=PATH, help="The ranking as a bar chart.  [default: --out with the ending .png]"
)
@json_option
def calibrate(recipe: str, teacher: Path | None, figure: Path | None, as_json: bool, **settings: Any) -> None:
    """Find the ranges of a student's INT8 activations.

    Each is the largest magnitude that eight bits will represent. The table tells, for every activation, the share
    of values beyond it and the noise that is left inside.
    """
    require_teacher(load_recipe(recipe), teacher)  # mistakes are told before torch is imported and sessions are read
    require_json(settings["out"])
    require_figure(figure, settings["sensitivity"])
    from edgedistill.pipeline.calibration import CalibrationOptions, calibrate_run

    options = CalibrationOptions(recipe=recipe, teacher=teacher, figure=figure, **settings)
    with training_progress() as progress:
        result = calibrate_run(options, progress)
    if as_json:
        print_json(result.to_json())
    else:
        _print_ranges(result)


def require_json(out: Path) -> None:
    """ConfigError for a name that could be that of a session, a chart or a folder."""
    if out.suffix != ".json" or out.is_dir():
        found = "a folder" if out.is_dir() else None
        raise ConfigError(f"{out}: not a name for ranges", got=found, expected="a file that ends in .json")


def require_figure(figure: Path | None, sensitivity: bool) -> None:
    """ConfigError for a chart of nothing, or of a kind that cannot be drawn."""
    if figure is not None and not sensitivity:
        raise ConfigError("--figure draws the ranking of --sensitivity", got="no --sensitivity", next_step="add it")
    if figure is not None and figure.suffix not in FIGURES:
        raise ConfigError(f"{figure}: not a kind of picture", expected=f"an ending of {', '.join(FIGURES)}")


def _print_ranges(result: CalibrationResult) -> None:
    ranges = result.ranges
    columns = ("layer", "range", "clipped %", "signal to quantization noise, dB")
    rows = [(r["name"], r["range"], f"{100 * r['clipped']:.4f}", f"{r['noise_db']:.1f}") for r in ranges.table]
    print_table("Ranges", columns, rows)
    if ranges.left_out:
        out = [(one["session"], one["first_bin"], number(one["value"]), one["reason"]) for one in ranges.left_out]
        print_table("Windows left out", ("session", "first bin", "largest |bin|", "reason"), out)
    if result.sensitivity is not None:
        print_table(
            "Each part alone in INT8, on the validation block",
            ("part", "R² lost"),
            [(p, f"{r:.5f}") for p, r in result.sensitivity],
        )
    used, asked = len(ranges.windows), ranges.recipe.windows
    fewer = "" if used == asked else f" of {asked} asked for: the training blocks hold no more that can be used"
    print_facts(
        {"recipe": f"{ranges.recipe.name}: {ranges.recipe.description}"}
        | {"windows": f"{used}{fewer}, {ranges.recipe.window_bins} bins each, from {', '.join(ranges.sessions)}"}
        | ({"left out": f"{len(ranges.left_out)} windows"} if ranges.left_out else {})
        | {"written": result.out}
        | ({"student": result.student} if result.student is not None else {})
        | ({"figure": result.figure} if result.figure is not None else {})
    )
