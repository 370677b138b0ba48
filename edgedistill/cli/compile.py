"""`compile`: a bundle's INT8 decoder as a library, for this machine or another, for its processor or its GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from edgedistill.bundle import Bundle, open_bundle
from edgedistill.cli.app import GATE_MISSED
from edgedistill.cli.output import json_option, print_facts, print_gates, print_json, print_table, working
from edgedistill.compile.build_folder import CompiledEngine
from edgedistill.compile.engines import compile_bundle, compile_spike_student
from edgedistill.compile.tensorrt.forms import Outcome, read_forms
from edgedistill.runtime.c_engine import HOST
from edgedistill.target import GPU_ENGINES, load_target

NOTHING: tuple[object, ...] = (None, "", [])


@click.command(
    "compile",
    epilog="""\b
Examples:
  edgedistill compile decoder.edge                       for this machine
  edgedistill compile decoder.edge --target aarch64      with a cross compiler
  edgedistill compile decoder.edge --target cortex-m7    for firmware: an archive, and what it takes of flash and RAM
  edgedistill compile decoder.edge --target cuda         for the NVIDIA GPU of this machine
  edgedistill compile decoder.edge --target jetson       on a Jetson: plugin, plans, self-check, the fastest form

What is made lies in the bundle, in build/NAME: the library, and its sources as a firmware project can take them.
Nothing is compiled again that is there already. The exit code is 3 when it is too large for the target.""",
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--target",
    metavar="NAME",
    help="The device, see `edgedistill targets`, or a .toml file of your own.  [default: that of the bundle where it "
    "is a GPU, else host]",
)
@click.option("--chip", metavar="SM", help="Compile for a GPU that is not in this machine, such as sm_87.")
@click.option("--force", is_flag=True, help="Compile even if everything is there already.")
@json_option
def compile_command(bundle: Path, target: str | None, chip: str | None, force: bool, as_json: bool) -> None:
    """Compile a bundle's decoder to a library with the model inside, in C or for a GPU.

    It takes raw frames and returns kinematics; in C it allocates nothing and needs nothing. Its results are those of
    the INT8 definition to the last bit (of a TensorRT plan: near it). For a GPU, run it where the GPU is: there
    the result is checked against the bundle's reference before it is kept.
    """
    opened = open_bundle(bundle)
    chosen = load_target(target or _usual_target(opened))
    with working(f"compiling for {chosen.name}") as report:
        made = compile_bundle(opened, chosen, force, chip, report)
        compile_spike_student(opened, chosen, force, chip)
    if as_json:
        forms = [asdict(form) for form in read_forms(made.folder)] or None
        print_json(_facts(made, bundle) | {"forms": forms, "gates": [asdict(gate) for gate in made.gates]})
    else:
        print_facts(
            {name: value for name, value in (_facts(made, bundle) | _in_words(made)).items() if value not in NOTHING}
        )
        _print_forms(read_forms(made.folder))
        print_gates(made.gates)
        if not made.compiled:
            click.echo("Nothing had to be compiled: all of it was there already.")
    if any(gate.ok is False for gate in made.gates):
        click.get_current_context().exit(GATE_MISSED)


def _print_forms(forms: Sequence[Outcome]) -> None:
    """What came of each form of a plan; nothing for other engines."""
    times = [(form.latency_us.get("p50"), form.latency_us.get("p99")) for form in forms]
    rows = [(f.form, f.state, *of, f.r2, f.r2_drop, f.why or "") for f, of in zip(forms, times, strict=True)]
    if rows:
        print_table("Plans", ("form", "", "p50 µs", "p99 µs", "R²", "R² lost", ""), rows)


def _usual_target(bundle: Bundle) -> str:
    return str(bundle.manifest.target) if bundle.manifest.engine in GPU_ENGINES else HOST


def _in_words(made: CompiledEngine) -> dict[str, object]:
    """For people: what is a list or a table in JSON."""
    needs = made.record.fingerprint
    device = ", ".join(f"{name} {value}" for name, value in needs.device.items() if value)
    notes = "; ".join(made.record.notes) if made.record.engine != "tensorrt" else ""  # they are a table
    return {"flags": " ".join(needs.flags), "device": device, "notes": notes}


def _facts(made: CompiledEngine, bundle: Path) -> dict[str, object]:
    record, needs = made.record, made.record.fingerprint
    return {
        "bundle": bundle,
        "target": record.target,
        "engine": record.engine,
        "folder": made.folder,
        "library": made.library,
        "model": f"ed_model_{record.model}",
        "architecture": needs.architecture,
        "ops": needs.ops,
        "requires": list(needs.requires),
        "compiler": needs.compiler,
        "flags": list(needs.flags),
        "device": needs.device or None,
        "notes": list(record.notes),
        **{f"{name}_bytes": record.sizes.get(name) for name in ("library", "kernel", "plan", "state", "flash", "ram")},
        "compiled": made.compiled,
        "seconds": made.seconds,
    }
