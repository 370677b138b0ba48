"""Defines `edgedistill embed`, which writes the latents of sessions."""

from __future__ import annotations

from pathlib import Path

import click

from edgedistill.cli.output import json_option, print_summary
from edgedistill.cli.training_options import PATH, add_series_options, line_hz_option
from edgedistill.data.candidates import SeriesNames


@click.command(
    epilog="""\b
Examples:
  edgedistill embed student sessions --out latents.npz
  edgedistill embed teacher monday.nwb --out monday.npz

For each session the file holds ID/latents (bins, d), ID/time_s (bins,) and ID/valid (bins,).""",
)
@click.argument("run", metavar="RUN", type=PATH)
@click.argument("data", nargs=-1, required=True, type=PATH)
@click.option("--out", type=PATH, required=True, help="The .npz file to write.")
@add_series_options
@line_hz_option
@json_option
def embed(run: Path, data: tuple[Path, ...], out: Path, names: SeriesNames, line_hz: float, as_json: bool) -> None:
    """Write the latents of sessions to one .npz file.

    RUN is the folder of a teacher or a student, as `pretrain` or `distill` wrote it. A student's latents are those that
    a stream would give. Those of a teacher are the outputs of
    its predictor, and see the past and the future.
    """
    from edgedistill.pipeline.embedding import EmbedOptions
    from edgedistill.pipeline.embedding import embed as write_latents

    print_summary(write_latents(EmbedOptions(run, data, out, names, line_hz)).to_json(), as_json)
