"""Defines `edgedistill distill`, which trains the LFP student to follow a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgedistill.cli.output import print_summary, show_training
from edgedistill.cli.training_options import (
    PATH,
    add_alignment_options,
    add_training_options,
    bands_option,
    label_minutes_option,
    trials_option,
)
from edgedistill.config import load_preset


@click.command(
    epilog="""\b
Examples:
  edgedistill distill sessions --teacher teacher --out student --preset nano
  edgedistill distill sessions --teacher teacher --out student --supervised

DATA is any number of NWB files, folders, patterns in quotes, or .txt files of paths, which the teacher was trained on.
If the command is stopped, run it again: it continues from its last checkpoint.""",
)
@click.argument("data", nargs=-1, required=True, type=PATH)
@click.option("--teacher", type=PATH, required=True, help="The folder that `edgedistill pretrain` wrote.")
@click.option("--out", type=PATH, required=True, help="The folder to write the student to.")
@click.option(
    "--supervised", is_flag=True, help="Also learn the behavior in this training. Without it, no labels are needed."
)
@label_minutes_option
@trials_option
@add_alignment_options
@bands_option
@add_training_options
def distill(data: tuple[Path, ...], teacher: Path, out: Path, preset: str, as_json: bool, **settings: Any) -> None:
    """Train the causal LFP student to follow the teacher."""
    load_preset(preset)  # before torch is imported, so that a misspelt name is answered at once
    from edgedistill import pipeline

    with show_training() as progress:
        options = pipeline.DistillOptions(data=data, teacher=teacher, out=out, preset=preset, **settings)
        summary = pipeline.distill(options, progress)
    print_summary(summary.to_json(), as_json)
