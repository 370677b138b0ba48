"""Defines `edgedistill doctor`, which lists what this machine has and lacks, and how to install it."""

from __future__ import annotations

from pathlib import Path

import click

from edgedistill.cli.output import echo, json_option, print_json, print_table
from edgedistill.doctor import Check, examine, is_healthy


@click.command(
    epilog="""\b
Examples:
  edgedistill doctor
  edgedistill doctor --folder /data/decoders

Nothing is installed or changed. A device that only decodes needs neither torch nor pynwb. The exit code is 0 even if
something is missing; with --json, "healthy" tells whether it is.""",
)
@json_option
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=".",
    help="The folder to which results would be written, whose free space is shown.  [default: this folder]",
)
def doctor(as_json: bool, folder: Path) -> None:
    """Tell what this machine lacks, and how to install it.

    The table lists what was looked for, what was found, and which commands need it.
    """
    checks = examine(folder)
    if as_json:
        print_json({"healthy": is_healthy(checks), "checks": [check.to_json() for check in checks]})
        return
    rows = [(_mark_of(check), check.name, check.found, check.needed_for) for check in checks]
    print_table("This machine", ("", "what", "found", "needed for"), rows)
    for check in checks:
        if check.fix:
            echo(f"{check.name}: {check.fix}")
    missing = [check.name for check in checks if check.required and not check.ok]
    verdict = "This machine has all that is required. What was not found is only needed for what stands beside it."
    if missing:
        verdict = f"Missing: {', '.join(missing)}."
    echo(verdict)


def _mark_of(check: Check) -> str:
    return "ok" if check.ok else "MISSING" if check.required else "–"
