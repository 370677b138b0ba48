"""Defines `edgedistill runs`, which lists trainings and what they have reached."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from edgedistill.cli.output import json_option, print_json, print_table
from edgedistill.cli.training_options import PATH
from edgedistill.errors import EdgeDistillError

COLUMNS = (
    "run",
    "state",
    "step",
    "of",
    "loss",
    "lowest validation loss",
    "validation R²",
    "windows/s",
    "last line (UTC)",
)


@click.command(
    epilog="""\b
Examples:
  edgedistill runs decoder.edge.work
  edgedistill runs . --json

Each training writes its log, training.jsonl, into the folder of its stage. The log grows while it trains.""",
)
@click.argument("folder", metavar="DIR", type=PATH)
@json_option
def runs(folder: Path, as_json: bool) -> None:
    """List the trainings below a folder, and what each has reached."""
    from edgedistill.training.run_log import LOG, list_runs

    if not folder.is_dir():
        raise EdgeDistillError(f"{folder} is not a folder", expected="a folder with trainings, such as OUT.work")
    found = list_runs(folder)
    if not found:
        raise EdgeDistillError(
            f"no training below {folder}",
            expected=f"a file {LOG}, which a training writes into its folder",
            next_step="name the folder that ends in .work, or the one given with --work",
        )
    if as_json:
        print_json({"runs": [asdict(one) for one in found]})
        return
    rows = [
        (
            one.run,
            "finished" if one.finished else "unfinished",
            one.step,
            one.steps,
            one.loss,
            one.validation_loss,
            one.validation_r2,
            one.windows_per_s,
            one.written and one.written.removesuffix("+00:00"),
        )
        for one in found
    ]
    print_table("Trainings", COLUMNS, rows)
