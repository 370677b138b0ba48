"""`simulate` and `inspect`: sessions to try with, and what a session or a bundle holds."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgedistill.bundle import MANIFEST, Bundle, open_bundle
from edgedistill.cli.output import (
    json_option,
    number,
    print_facts,
    print_json,
    print_table,
    training_progress,
)

if TYPE_CHECKING:
    from edgedistill.data.inspect import Inspection


@click.command(
    epilog="""\b
Examples:
  edgedistill simulate --out sessions
  edgedistill simulate --out small --sessions 3 --minutes 4 --seed 7

Same seed, same files. An existing file of the same name is replaced.""",
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for the files.")
@click.option("--sessions", type=int, default=5, show_default=True, help="Days to record, one file each.")
@click.option("--minutes", type=float, default=10.0, show_default=True, help="Length of a session.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Another monkey.")
@click.option("--channels", type=int, default=32, show_default=True, help="LFP channels of the array.")
@click.option("--units", type=int, default=64, show_default=True, help="Units that a session records.")
@click.option("--rate", type=int, default=1000, show_default=True, help="LFP sampling rate in Hz.")
@json_option
def simulate(
    out: Path, sessions: int, minutes: float, seed: int, channels: int, units: int, rate: int, as_json: bool
) -> None:
    """Write realistic NWB sessions: spikes, LFP, cursor, electrodes.

    All sessions share one array and one population; from day to day other units are recorded and their tuning
    drifts. The LFP holds shared 1/f background, beta that falls with movement, line noise, dead and noisy
    channels, and artefacts.
    """
    from edgedistill.data.simulated_nwb import simulate_to_nwb
    from edgedistill.data.simulation import SimulationConfig

    config = SimulationConfig(
        sessions=sessions, minutes=minutes, seed=seed, channels=channels, units=units, rate_hz=rate
    )
    files: list[Path] = []
    with training_progress() as report:
        for path in simulate_to_nwb(config, out):
            files.append(path)
            if report is not None:
                report("sessions", len(files), sessions, float("nan"), float("nan"))
    if as_json:
        written = [{"path": str(path), "bytes": path.stat().st_size} for path in files]
        print_json({"out": str(out), "seed": seed, "sessions": sessions, "minutes": minutes, "files": written})
        return
    for path in files:
        click.echo(f"{path}  {path.stat().st_size / 1e6:.1f} MB")


@click.command(
    epilog="""\b
Examples:
  edgedistill inspect sessions/sim00_day01.nwb
  edgedistill inspect sessions          every session of a folder
  edgedistill inspect decoder.edge      every byte of it is checked as well""",
)
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--behavior", metavar="NAME", help="The behavior series to look at, where there are several.")
@json_option
def inspect(path: Path, behavior: str | None, as_json: bool) -> None:
    """What a session (NWB) or a bundle holds, and what a session lacks for which command."""
    if _is_bundle(path):
        _inspect_bundle(open_bundle(path), as_json)
        return
    from edgedistill.data.inspect import describe
    from edgedistill.data.session_files import find_session_files

    found = [describe(file, behavior=behavior) for file in find_session_files([path])]
    if not as_json:
        click.echo("\n\n".join(inspection.to_text() for inspection in found))
    elif path.is_dir():
        print_json({"kind": "folder", "path": str(path), "sessions": [_session_json(one) for one in found]})
    else:
        print_json(_session_json(found[0]))


def _session_json(inspection: Inspection) -> dict[str, object]:
    return {"kind": "session", **inspection.to_json()}


def _is_bundle(path: Path) -> bool:
    return path.suffix in (".edge", ".zip") or (path / MANIFEST).is_file()


def _inspect_bundle(bundle: Bundle, as_json: bool) -> None:
    facts = bundle_facts(bundle)
    if as_json:
        print_json(facts)
        return
    outputs, rate, session = facts["outputs"], facts["rate_hz"], facts["session"] or {}
    listed = ", ".join(f"{output['name']} ({output['unit']})" for output in outputs)
    head = {key: facts[key] for key in ("path", "name", "created_by", "sha256", "target", "preset")}
    print_facts(
        {key: value for key, value in head.items() if value is not None}
        | {"session": ", ".join(f"{key} {value}" for key, value in session.items() if value)}
        | {
            "input": f"{len(facts['channel_ids'])} channels at {rate:.10g} Hz, in microvolts",
            "outputs": listed,
        }
        | {"delay": f"{number(facts['group_delay_ms'])} ms through the front end"}
        | {"files": f"{len(facts['files'])}, all as they were written"}
    )
    model = facts["model"]
    print_table("Model", tuple(model), [tuple(model.values())])
    metrics: dict[str, Any] = facts["metrics"] or {}
    if metrics:
        print_table("Metrics of the build", ("metric", "value"), list(metrics.items()))


def bundle_facts(bundle: Bundle) -> dict[str, Any]:
    """The manifest as `inspect --json` shows it: everything but the channels' statistics."""
    manifest = bundle.manifest
    keys = ("name", "format", "created_by", "target", "preset", "recipe", "session", "group_delay_ms")
    front_end = manifest.get("frontend") or {}
    return {
        "kind": "bundle",
        "path": str(bundle.path),
        "sha256": bundle.sha256,
        **{key: manifest.get(key) for key in keys},
        "model": manifest.get("model") or {},
        "rate": front_end.get("rate"),
        "rate_hz": float(Fraction(str(front_end.get("rate", 0)))),
        "frontend": front_end,
        "channel_ids": manifest.get("channel_ids") or [],
        "outputs": manifest.get("outputs") or [],
        "metrics": manifest.get("metrics"),
        "gates": manifest.get("gates"),
        "provenance": manifest.get("provenance"),
        "files": list(bundle.names),
    }
