"""Defines `edgedistill compile`, which makes a library from a bundle's INT8 decoder for a processor or a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from edgedistill.bundle import Bundle, open_bundle
from edgedistill.cli.app import GATE_MISSED
from edgedistill.cli.output import (
    cache_option,
    echo,
    json_option,
    print_facts,
    print_gates,
    print_json,
    print_table,
    show_work,
)
from edgedistill.compile.build_folder import CompiledEngine
from edgedistill.compile.engines import compile_bundle, compile_spike_student
from edgedistill.compile.tensorrt.forms import Outcome, read_forms
from edgedistill.runtime.c_engine import HOST
from edgedistill.target import GPU_ENGINES, Target, load_own_target, load_target

NOTHING: tuple[object, ...] = (None, "", [])


@click.command(
    "compile",
    epilog="""\b
Examples:
  edgedistill compile decoder.edge                       for this machine
  edgedistill compile decoder.edge --target aarch64      with a cross compiler
  edgedistill compile decoder.edge --target cortex-m7    for firmware: an archive
  edgedistill compile decoder.edge --target cuda         for the NVIDIA GPU of this machine
  edgedistill compile decoder.edge --target jetson       on a Jetson: keeps the fastest plan

The library is kept in your own cache (--cache), from which `run` and `bench` load it. A copy with its sources goes into
the bundle, in build/NAME, for a program or firmware of yours. Nothing is ever loaded from a bundle. For firmware, the
need of flash and RAM is told too. Nothing is compiled again if it is in the cache already. The exit code is 3 if the
library is too large for the target.""",
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--target",
    metavar="NAME",
    help="The device, as `edgedistill targets` lists it, or a .toml file of your own.  [default: the target of the "
    "bundle if that is a GPU, otherwise host]",
)
@click.option(
    "--chip", metavar="SM", help="Compile for this kind of GPU, such as sm_87, instead of the one of this machine."
)
@click.option("--force", is_flag=True, help="Compile again even if everything is there already.")
@cache_option
@json_option
def compile_command(bundle: Path, target: str | None, chip: str | None, force: bool, as_json: bool) -> None:
    """Compile a bundle's decoder to a library.

    The library has the model inside and is made in C or for a GPU. It takes raw frames and returns kinematics. In C it
    allocates no memory and needs no other library. Its results equal those of the INT8 definition to the last bit,
    while those of a TensorRT plan only come near it. Compile for a GPU where that GPU is: the result is checked there
    against the bundle's reference before it is kept.
    """
    opened = open_bundle(bundle)
    chosen = load_target(target) if target else _choose_target(opened)
    with show_work(f"compiling for {chosen.name}") as report:
        engine = compile_bundle(opened, chosen, force, chip, report)
        compile_spike_student(opened, chosen, force, chip)
    if as_json:
        forms = [asdict(form) for form in read_forms(engine.folder)] or None
        print_json(_collect_facts(engine, bundle) | {"forms": forms, "gates": [asdict(gate) for gate in engine.gates]})
    else:
        print_facts(
            {
                name: value
                for name, value in (_collect_facts(engine, bundle) | _put_in_words(engine)).items()
                if value not in NOTHING
            }
        )
        _print_forms(read_forms(engine.folder))
        print_gates(engine.gates)
        if not engine.compiled:
            echo("Nothing had to be compiled: all of it was in the cache already.")
    if any(gate.ok is False for gate in engine.gates):
        click.get_current_context().exit(GATE_MISSED)


def _print_forms(forms: Sequence[Outcome]) -> None:
    """Prints the outcome of each form of a plan, and nothing for other engines."""
    times = [(form.latency_us.get("p50"), form.latency_us.get("p99")) for form in forms]
    rows = [(f.form, f.state, *of, f.r2, f.r2_drop, f.why or "") for f, of in zip(forms, times, strict=True)]
    if rows:
        print_table("Plans", ("form", "", "p50 µs", "p99 µs", "R²", "R² lost", ""), rows)


def _choose_target(bundle: Bundle) -> Target:
    return load_own_target(bundle.manifest.target) if bundle.manifest.engine in GPU_ENGINES else load_target(HOST)


def _put_in_words(engine: CompiledEngine) -> dict[str, object]:
    """Turns what is a list or a table in JSON into text for people."""
    needs = engine.record.fingerprint
    device = ", ".join(f"{name} {value}" for name, value in needs.device.items() if value)
    notes = (
        "; ".join(engine.record.notes) if engine.record.engine != "tensorrt" else ""
    )  # the forms of a TensorRT plan are printed as a table
    return {"flags": " ".join(needs.flags), "device": device, "notes": notes}


def _collect_facts(engine: CompiledEngine, bundle: Path) -> dict[str, object]:
    record, needs = engine.record, engine.record.fingerprint
    return {
        "bundle": bundle,
        "target": record.target,
        "engine": record.engine,
        "folder": engine.folder,
        "library": engine.library,
        "model": f"ed_model_{record.model}",
        "architecture": needs.architecture,
        "ops": needs.ops,
        "requires": list(needs.requires),
        "compiler": needs.compiler,
        "flags": list(needs.flags),
        "device": needs.device or None,
        "notes": list(record.notes),
        **{f"{name}_bytes": record.sizes.get(name) for name in ("library", "kernel", "plan", "state", "flash", "ram")},
        "compiled": engine.compiled,
        "seconds": engine.seconds,
    }
