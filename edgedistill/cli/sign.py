"""Defines `edgedistill sign`, which signs a bundle that is there already."""

from __future__ import annotations

from pathlib import Path

import click

from edgedistill.bundle import SIGNATURE, load_signing_key, open_bundle, sign_bundle
from edgedistill.cli.output import json_option, print_summary

PATH = click.Path(path_type=Path)


@click.command(
    epilog="""\b
Examples:
  ssh-keygen -t ed25519 -N '' -f lab          makes the pair lab and lab.pub
  edgedistill sign decoder.edge --key lab

Every file that the manifest lists is checked first. What is built or adapted again needs a new signature.""",
)
@click.argument("bundle", type=PATH)
@click.option("--key", type=PATH, metavar="KEY", required=True, help="The private key, in the form of OpenSSH or PEM.")
@json_option
def sign(bundle: Path, key: Path, as_json: bool) -> None:
    """Sign a bundle, so that others can check who made it.

    The signature becomes the file manifest.sig in the bundle, a folder or a zip.
    """
    private = load_signing_key(key)
    opened = open_bundle(bundle)
    signed_by = sign_bundle(opened, private)
    facts = {"bundle": str(bundle), "sha256": opened.sha256, "signed_by": signed_by}
    print_summary(facts | ({"signature": SIGNATURE} if as_json else {}), as_json)
