"""Defines `edgedistill verify`, which checks who signed a bundle, and that nothing of it was changed since."""

from __future__ import annotations

from pathlib import Path

import click

from edgedistill.bundle import open_bundle, require_signature
from edgedistill.cli.output import json_option, print_facts, print_json

PATH = click.Path(path_type=Path)
MOST_SHOWN = 3  # names of uncovered files; --json has all


@click.command(
    epilog="""\b
Examples:
  edgedistill verify decoder.edge --key lab.pub

The exit code is 0 only if the owner of the key signed this manifest and every file has the hash that stands there. This
tells who signed the bundle. It does not tell that the decoder is good.""",
)
@click.argument("bundle", type=PATH)
@click.option(
    "--key", type=PATH, metavar="KEY.pub", required=True, help="The public key, in the form of OpenSSH or PEM."
)
@json_option
def verify(bundle: Path, key: Path, as_json: bool) -> None:
    """Check who signed a bundle, and that it is unchanged."""
    opened = open_bundle(bundle)
    signed_by, uncovered = require_signature(opened, key), opened.list_uncovered()
    facts = {"bundle": str(bundle), "sha256": opened.sha256, "signed_by": signed_by}
    if as_json:
        print_json({**facts, "files": len(opened.names), "not_covered": list(uncovered)})
        return
    shown = ", ".join((*uncovered[:MOST_SHOWN], *(["..."] if len(uncovered) > MOST_SHOWN else [])))
    print_facts(
        {
            **facts,
            "covered": f"the manifest and {len(opened.names)} files, all as they were signed",
            "not covered": f"{len(uncovered)} files, which edgedistill never reads: {shown}"
            if uncovered
            else "nothing",
        }
    )
