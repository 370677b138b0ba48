"""`targets` and `doctor`: what can be built for, and what this machine lacks."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from edgedistill.cli.output import json_option, print_facts, print_json, print_table
from edgedistill.doctor import Check, examine, healthy
from edgedistill.target import Target, all_targets, load_target


@click.command(
    epilog="""\b
Example:
  edgedistill targets
  edgedistill targets jetson-thor       all that its profile says
  edgedistill build --target host --data sessions --out decoder.edge

A target is one TOML file; `--target my-board.toml` takes one of your own.""",
)
@click.argument("name", required=False)
@json_option
def targets(name: str | None, as_json: bool) -> None:
    """What a decoder can be built for; with NAME, all that the profile of one target says.

    Planned targets are listed to show what is coming; this version does not build for them.
    """
    if name is not None:
        target = load_target(name)
        print_json(_target_json(target)) if as_json else print_facts(_explained(target))
        return
    known = all_targets()
    if as_json:
        print_json({"targets": [_target_json(target) for target in known]})
        return
    columns = ("target", "status", "engine", "deadline ms", "chips", "description")
    rows = [
        (t.name, t.status, t.engine, f"{t.deadline_ms:g}", ", ".join(t.chips) or "any", t.description) for t in known
    ]
    print_table("Targets", columns, rows)


ENGINES_IN_WORDS = {
    "c": "INT8 in C, one thread; compiled with the compiler named below",
    "cuda": "INT8, the whole step in one launch on an NVIDIA GPU; compiled where the GPU is",
    "tensorrt": "a TensorRT plan, the fastest of three forms that computes what it should; built on the device",
    "onnxruntime": "the float32 graph",
}


def _explained(target: Target) -> dict[str, object]:
    """A profile in words, without what it leaves open."""
    power, compiler = target.power, target.compiler
    facts = {
        "target": f"{target.name}, {target.status}: {target.description}",
        "engine": f"{target.engine}: {ENGINES_IN_WORDS[target.engine]}",
        "chips": ", ".join(target.chips) or "that of this machine",
        "deadline": f"{target.deadline_ms:g} ms for a step",
        "compiler": compiler and f"{compiler.command}   (sudo apt install {compiler.debian_package})",
        "jetpack": target.jetpack and f"{target.jetpack}; newer ones are tried, and noted",
        "tensorrt": target.tensorrt and f"{target.tensorrt}; newer ones are tried, and noted",
        "workspace": target.workspace_mb and f"{target.workspace_mb} MB at most for TensorRT's builder",
        "power": power and f"{' + '.join(power.total)}, of the rails {', '.join(power.rails)}",
        "power modes": power and f"{', '.join(power.modes)}, as shipped; the board's own: sudo nvpmodel -q",
        "gates": ", ".join(_gate(name, limit) for name, limit in target.gates.items()),
        "build": f"edgedistill build --target {target.name} --data sessions --out decoder.edge",
    }
    return {name: fact for name, fact in facts.items() if fact}


def _gate(name: str, limit: float) -> str:
    return f"{name[:-4]} {'at most' if name.endswith('_max') else 'at least'} {limit:g}"


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
