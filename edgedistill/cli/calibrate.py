"""Defines `edgedistill calibrate`, which finds the ranges of a student's INT8 activations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgedistill.cli.output import format_value, json_option, print_facts, print_json, print_table, show_training
from edgedistill.cli.training_options import (
    PATH,
    add_reading_options,
    add_series_options,
    line_hz_option,
    recipe_option,
    seed_option,
)
from edgedistill.errors import ConfigError
from edgedistill.quantization.calibration.recipe import load_recipe, require_teacher

if TYPE_CHECKING:
    from edgedistill.pipeline.calibration import CalibrationResult

FIGURES = (".png", ".pdf", ".svg")


@click.command(
    epilog="""\b
Examples:
  edgedistill calibrate student sessions --out ranges.json
  edgedistill calibrate student sessions --recipe percentile --sensitivity --out ranges.json
  edgedistill calibrate student sessions --recipe qat --teacher teacher --out ranges.json

RUN is the folder that `edgedistill distill` wrote. DATA is any number of NWB files, folders, patterns in quotes, or
.txt files of paths, which hold the sessions that the student was trained on or other days of its arrays. The ranges
come from windows of the training blocks. For a session that is new to the student, labels play no part in the choice of
windows. Fine-tuning and --sensitivity also look at the validation blocks. Nothing looks at the test blocks. A recipe
that fine-tunes also writes the student that comes out of it, beside the ranges and with the ending .student.""",
)
@click.argument("run", type=PATH)
@click.argument("data", nargs=-1, required=True, type=PATH)
@recipe_option
@click.option("--out", metavar="FILE", type=PATH, required=True, help="The file to write the ranges to: NAME.json.")
@click.option(
    "--teacher", type=PATH, help="The folder that `edgedistill pretrain` wrote, for a recipe that fine-tunes."
)
@seed_option
@add_series_options
@line_hz_option
@add_reading_options
@click.option("--sensitivity", is_flag=True, help="Also rank the parts of a step by the R² that INT8 costs in each.")
@click.option(
    "--figure",
    metavar="FILE",
    type=PATH,
    help="The file for the bar chart of --sensitivity.  [default: --out with the ending .png]",
)
@json_option
def calibrate(recipe: str, teacher: Path | None, figure: Path | None, as_json: bool, **settings: Any) -> None:
    """Find the ranges of a student's INT8 activations.

    The range of an activation is the largest magnitude that its eight bits will represent. The table shows, for every
    activation, the share of values beyond its range and the quantization noise of the others.
    """
    # Mistakes in options are answered before torch is imported and sessions are read.
    require_teacher(load_recipe(recipe), teacher)
    require_json(settings["out"])
    require_figure(figure, settings["sensitivity"])
    from edgedistill.pipeline.calibration import CalibrationOptions, calibrate_run

    options = CalibrationOptions(recipe=recipe, teacher=teacher, figure=figure, **settings)
    with show_training() as progress:
        result = calibrate_run(options, progress)
    if as_json:
        print_json(result.to_json())
    else:
        _print_ranges(result)


def require_json(out: Path) -> None:
    """Raises ConfigError unless `out` ends in .json, so that no session, chart or folder is overwritten by mistake."""
    if out.suffix != ".json" or out.is_dir():
        found = "a folder" if out.is_dir() else None
        raise ConfigError(
            f"{out}: this is not a name for a file of ranges", got=found, expected="a file that ends in .json"
        )


def require_figure(figure: Path | None, sensitivity: bool) -> None:
    """Raises ConfigError for --figure without --sensitivity, or for a file format that cannot be drawn."""
    if figure is not None and not sensitivity:
        raise ConfigError(
            "--figure draws the ranking of --sensitivity", got="no --sensitivity", next_step="add --sensitivity"
        )
    if figure is not None and figure.suffix not in FIGURES:
        raise ConfigError(
            f"{figure}: this kind of picture cannot be drawn", expected=f"a name that ends in {', '.join(FIGURES)}"
        )


def _print_ranges(result: CalibrationResult) -> None:
    ranges = result.ranges
    columns = ("layer", "range", "clipped %", "signal to quantization noise, dB")
    rows = [(r["name"], r["range"], f"{100 * r['clipped']:.4f}", f"{r['noise_db']:.1f}") for r in ranges.table]
    print_table("Ranges", columns, rows)
    if ranges.left_out:
        out = [(one["session"], one["first_bin"], format_value(one["value"]), one["reason"]) for one in ranges.left_out]
        print_table("Windows left out", ("session", "first bin", "largest |bin|", "reason"), out)
    if result.sensitivity is not None:
        print_table(
            "Each part alone in INT8, on the validation block",
            ("part", "R² lost"),
            [(p, f"{r:.5f}") for p, r in result.sensitivity],
        )
    used, asked = len(ranges.windows), ranges.recipe.windows
    fewer = "" if used == asked else f" of {asked} asked for, because the training blocks hold no more that can be used"
    print_facts(
        {"recipe": f"{ranges.recipe.name}: {ranges.recipe.description}"}
        | {"windows": f"{used}{fewer}, {ranges.recipe.window_bins} bins each, from {', '.join(ranges.sessions)}"}
        | ({"left out": f"{len(ranges.left_out)} windows"} if ranges.left_out else {})
        | {"written": result.out}
        | ({"student": result.student} if result.student is not None else {})
        | ({"figure": result.figure} if result.figure is not None else {})
    )
