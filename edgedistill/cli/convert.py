"""Defines `edgedistill convert`, which turns published data sets in their own formats into NWB."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgedistill.cli.app import Commands
from edgedistill.cli.output import echo, json_option, print_facts, print_json, show_work

if TYPE_CHECKING:
    from edgedistill.convert import ConvertedFile

start_option = click.option(
    "--session-start",
    metavar="TIME",
    help="When the session started, in ISO 8601, where the published day is missing or too coarse.",
)


@click.group(
    cls=Commands,
    epilog="""\b
Examples:
  edgedistill convert makin indy_20160407_02.mat indy_20160407_02.nwb --out sessions/indy_20160407_02.nwb
  edgedistill convert flint Flint_2012_e2.mat --out sessions --json
  edgedistill inspect sessions

Recordings in other formats (Blackrock, Open Ephys, Intan, SpikeGLX) are converted with neuroconv: docs/sessions.md has
the commands.""",
)
def convert() -> None:
    """Convert a published data set to NWB.

    Data are kept as they are, with their units and true rate. What was found on the way (gaps, a rate that is not the
    nominal one) is printed. A file appears whole or not at all.
    """


@convert.command(
    epilog="""\b
Example:
  edgedistill convert makin indy_20160407_02.mat indy_20160407_02.nwb --out sessions/indy_20160407_02.nwb

An hour of broadband has 17 GB. It is read and written block by block, in constant memory.""",
)
@click.argument("mat", metavar="FILE.mat", type=click.Path(path_type=Path))
@click.argument("broadband", metavar="BROADBAND.nwb", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The file to write: NAME.nwb.")
@start_option
@json_option
def makin(mat: Path, broadband: Path, out: Path, session_start: str | None, as_json: bool) -> None:
    """Convert a session of O'Doherty, Makin and Sabes.

    FILE.mat holds movement and spikes (doi:10.5281/zenodo.3854034), BROADBAND.nwb the voltages, in NWB 1.0.
    """
    from edgedistill.convert import convert_makin

    with show_work("converting") as progress:
        made = convert_makin(mat, broadband, out, session_start=session_start, progress=progress)
    _print("makin", [made], as_json)


@convert.command(
    epilog="""\b
Examples:
  edgedistill convert flint Flint_2012_e1.mat --out sessions/flint_e1.nwb
  edgedistill convert flint Flint_2012_e2.mat --out sessions

The data set does not state the units of hand and LFP. They are told from their size, which leaves one choice.""",
)
@click.argument("mat", metavar="FILE.mat", type=click.Path(path_type=Path))
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="The file to write, NAME.nwb, or a folder for one file a recording, where FILE.mat holds several.",
)
@click.option("--hand-unit", type=click.Choice(("m", "cm", "mm")), help="The unit of HandPos, if not told by its size.")
@click.option("--lfp-unit", type=click.Choice(("V", "mV", "uV")), help="The unit of the LFP, if not told by its size.")
@start_option
@json_option
def flint(
    mat: Path, out: Path, hand_unit: str | None, lfp_unit: str | None, session_start: str | None, as_json: bool
) -> None:
    """Convert a file of Flint and others, 2012.

    FILE.mat (crcns.org, DREAM, Flint_2012) holds trials with spikes, LFP and hand. Each element of its Subject is one
    recording of the same monkey.
    """
    from edgedistill.convert import convert_flint

    with show_work("converting") as progress:
        made = convert_flint(
            mat, out, hand_unit=hand_unit, lfp_unit=lfp_unit, session_start=session_start, progress=progress
        )
    _print("flint", made, as_json)


def _print(data_set: str, made: Iterable[ConvertedFile], as_json: bool) -> None:
    if as_json:
        print_json({"data_set": data_set, "files": [file.to_json() for file in made]})
        return
    for file in made:
        lfp = file.lfp
        gaps = f"{lfp.gaps} of {lfp.gap_seconds:.3f} s together" if lfp.gaps else "none"
        print_facts(
            {
                "written": f"{file.path}, {file.path.stat().st_size / 1e6:.1f} MB",
                "session": f"{file.session_id}, {file.session_start}",
                "LFP": f"{lfp.channels} channels, {lfp.rate_hz:.10g} Hz, {lfp.seconds:.1f} s, {', '.join(lfp.series)}",
                "gaps": gaps,
                "units": f"{file.units}, {file.spikes} spikes",
                "behavior": ", ".join(f"{part['series']} ({part['unit']})" for part in file.behavior),
            }
        )
        for note in file.notes:
            echo(f"note: {note}")
