"""Defines `edgedistill targets`, which lists the devices that a decoder can be built for."""

from __future__ import annotations

from dataclasses import asdict

import click

from edgedistill.cli.output import json_option, print_facts, print_json, print_table
from edgedistill.target import Target, all_targets, load_target


@click.command(
    epilog="""\b
Examples:
  edgedistill targets
  edgedistill targets jetson-thor       shows all that the profile of this target says
  edgedistill build --target host --data sessions --out decoder.edge

A target is one TOML file. With `--target my-board.toml`, a file of your own is used.""",
)
@click.argument("name", required=False)
@json_option
def targets(name: str | None, as_json: bool) -> None:
    """List the devices that a decoder can be built for.

    With NAME, the command explains all that the profile of this target says. Targets whose status is "planned" show
    what is coming; this version does not build for them.
    """
    if name is not None:
        target = load_target(name)
        print_json(_to_json(target)) if as_json else print_facts(_explain(target))
        return
    known = all_targets()
    if as_json:
        print_json({"targets": [_to_json(target) for target in known]})
        return
    columns = ("target", "status", "engine", "deadline ms", "chips", "description")
    rows = [
        (t.name, t.status, t.engine, f"{t.deadline_ms:g}", ", ".join(t.chips) or "any", t.description) for t in known
    ]
    print_table("Targets", columns, rows)


ENGINES_IN_WORDS = {
    "c": "INT8 in C on one thread, compiled with the compiler named below",
    "cuda": "INT8, with the whole step in one launch on an NVIDIA GPU, compiled where the GPU is",
    "tensorrt": "a TensorRT plan built on the device: the fastest of three forms whose results are near enough",
    "onnxruntime": "the float32 graph",
}


def _explain(target: Target) -> dict[str, object]:
    """Returns a profile in words, without the keys that it does not set."""
    power, compiler = target.power, target.compiler
    facts = {
        "target": f"{target.name}, {target.status}: {target.description}",
        "engine": f"{target.engine}: {ENGINES_IN_WORDS[target.engine]}",
        "chips": ", ".join(target.chips) or "that of this machine",
        "deadline": f"{target.deadline_ms:g} ms for a step",
        "compiler": compiler and f"{compiler.command}   (sudo apt install {compiler.debian_package})",
        "jetpack": target.jetpack and f"{target.jetpack}; a newer one is tried, and noted",
        "tensorrt": target.tensorrt and f"{target.tensorrt}; a newer one is tried, and noted",
        "workspace": target.workspace_mb and f"at most {target.workspace_mb} MB for TensorRT's builder",
        "power": power and f"{' + '.join(power.total)}, out of the rails {', '.join(power.rails)}",
        "power modes": power
        and f"{', '.join(power.modes)}, as the board is shipped; `sudo nvpmodel -q` lists its present ones",
        "gates": ", ".join(_explain_gate(name, limit) for name, limit in target.gates.items()),
        "build": f"edgedistill build --target {target.name} --data sessions --out decoder.edge",
    }
    return {name: fact for name, fact in facts.items() if fact}


def _explain_gate(name: str, limit: float) -> str:
    return f"{name[:-4]} {'at most' if name.endswith('_max') else 'at least'} {limit:g}"


def _to_json(target: Target) -> dict[str, object]:
    return asdict(target) | {"available": target.available}
