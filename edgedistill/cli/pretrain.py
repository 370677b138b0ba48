"""Defines `edgedistill pretrain`, which trains the spike teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgedistill.cli.output import print_summary, show_training
from edgedistill.cli.training_options import PATH, add_training_options
from edgedistill.config import load_preset


@click.command(
    epilog="""\b
Example:
  edgedistill pretrain sessions --out teacher --preset nano

DATA is any number of NWB files, folders, patterns in quotes, or .txt files of paths. If the command is stopped, run it
again: it continues from its last checkpoint.""",
)
@click.argument("data", nargs=-1, required=True, type=PATH)
@click.option("--out", type=PATH, required=True, help="The folder to write the teacher to.")
@add_training_options
def pretrain(data: tuple[Path, ...], out: Path, preset: str, as_json: bool, **settings: Any) -> None:
    """Train the spike teacher on many sessions, without labels.

    The teacher is a transformer that learns to fill in units that were hidden from it. The sessions need sorted units.
    Behavior is only used to tell how much of it can be read from what the teacher computes, and may be missing.
    """
    load_preset(preset)  # before torch is imported, so that a misspelt name is answered at once
    from edgedistill import pipeline

    with show_training() as progress:
        options = pipeline.PretrainOptions(data=data, out=out, preset=preset, **settings)
        summary = pipeline.pretrain(options, progress)
    print_summary(summary.to_json(), as_json)
