"""`targets` and `doctor`: what can be built for, and what this machine lacks."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from edgedistill.cli.output import json_option, print_json, print_table
from edgedistill.doctor import Check, examine, healthy
from edgedistill.target import Target, all_targets


@click.command(
    epilog="""\b
Example:
  edgedistill targets
  edgedistill build --target host --data sessions --out decoder.edge

A target is one TOML file; `--target my-board.toml` takes one of your own.""",
)
@json_option
def targets(as_json: bool) -> None:
    """What a decoder can be built for: engine, time for a step, and gates.

    Planned targets are listed to show what is coming; this version does not build for them.
    """
    known = all_targets()
    if as_json:
        print_json({"targets": [_target_json(target) for target in known]})
        return
    columns = ("target", "status", "engine", "deadline ms", "chips", "description")
    rows = [
        (t.name, t.status, t.engine, f"{t.deadline_ms:g}", ", ".join(t.chips) or "any", t.description) for t in known
    ]
    print_table("Targets", columns, rows)


def _target_json(target: Target) -> dict[str, object]:
    return asdict(target) | {"available": target.available}


@click.command(
    epilog="""\b
Example:
  edgedistill doctor

Nothing is installed or changed. A device that only decodes needs neither torch nor pynwb.""",
)
@json_option
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=".",
    help="Where results would go: its free space is told.  [default: here]",
)
def doctor(as_json: bool, folder: Path) -> None:
    """What this machine has and lacks, who needs it, and the command that fixes it."""
    checks = examine(folder)
    if as_json:
        print_json({"healthy": healthy(checks), "checks": [check.to_json() for check in checks]})
        return
    rows = [(_mark(check), check.name, check.found, check.needed_for) for check in checks]
    print_table("This machine", ("", "what", "found", "needed for"), rows)
    for check in checks:
        if check.fix:
            click.echo(f"{check.name}: {check.fix}")
    missing = [check.name for check in checks if check.required and not check.ok]
    verdict = f"Missing: {', '.join(missing)}." if missing else "Everything that this version needs is here."
    click.echo(verdict)


def _mark(check: Check) -> str:
    return "ok" if check.ok else "MISSING" if check.required else "–"
