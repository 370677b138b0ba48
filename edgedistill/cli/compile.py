"""`compile`: a bundle's INT8 decoder in C, for this machine or another."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from edgedistill.bundle import open_bundle
from edgedistill.cli.app import GATE_MISSED
from edgedistill.cli.output import json_option, print_facts, print_gates, print_json, working
from edgedistill.compile.c_library import CompiledEngine, compile_bundle
from edgedistill.target import load_target


@click.command(
    "compile",
    epilog="""\b
Examples:
  edgedistill compile decoder.edge                       for this machine
  edgedistill compile decoder.edge --target aarch64      with a cross compiler
  edgedistill compile decoder.edge --target cortex-m7    for firmware: an archive, and what it takes of flash and RAM

What is made lies in the bundle, in build/NAME: the library, and its sources as a firmware project can take them.
Nothing is compiled again that is there already. The exit code is 3 when it is too large for the target.""",
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--target",
    metavar="NAME",
    default="host",
    show_default=True,
    help="The device, see `edgedistill targets`, or a .toml file of your own.",
)
@click.option("--force", is_flag=True, help="Compile even if everything is there already.")
@json_option
def compile_command(bundle: Path, target: str, force: bool, as_json: bool) -> None:
    """Compile a bundle's decoder to a C library with the model inside.

    It takes raw frames and returns kinematics, allocates nothing and needs nothing; its results are those of the
    INT8 definition to the last bit.
    """
    chosen = load_target(target)
    with working(f"compiling for {chosen.name}"):
        made = compile_bundle(open_bundle(bundle), chosen, force)
    if as_json:
        print_json(_facts(made, bundle) | {"gates": [asdict(gate) for gate in made.gates]})
    else:
        facts = _facts(made, bundle)
        flags = {"flags": " ".join(made.record.fingerprint.flags)}
        print_facts({name: value for name, value in (facts | flags).items() if value is not None})
        print_gates(made.gates)
        if not made.compiled:
            click.echo("Nothing had to be compiled: all of it was there already.")
    if any(gate.ok is False for gate in made.gates):
        click.get_current_context().exit(GATE_MISSED)


def _facts(made: CompiledEngine, bundle: Path) -> dict[str, object]:
    record, needs = made.record, made.record.fingerprint
    return {
        "bundle": bundle,
        "target": record.target,
        "folder": made.folder,
        "library": made.library,
        "model": f"ed_model_{record.model}",
        "architecture": needs.architecture,
        "ops": needs.ops,
        "requires": list(needs.requires),
        "compiler": needs.compiler,
        "flags": list(needs.flags),
        **{f"{name}_bytes": record.sizes.get(name) for name in ("library", "state", "flash", "ram")},
        "compiled": made.compiled,
        "seconds": made.seconds,
    }
