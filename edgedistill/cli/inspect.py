"""Defines `edgedistill inspect`, which shows what a session or a bundle contains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgedistill.bundle import FORMAT, MANIFEST, Bundle, GraphVerdict, open_bundle
from edgedistill.bundle.contents import read_decoder_spec
from edgedistill.bundle.manifest import Confidence
from edgedistill.cli.app import FAILED
from edgedistill.cli.output import echo, error_to_json, format_value, json_option, print_facts, print_json, print_table
from edgedistill.cli.training_options import add_series_options
from edgedistill.errors import RecordingError

if TYPE_CHECKING:
    from edgedistill.data.candidates import SeriesNames
    from edgedistill.data.inspect import Inspection

_OLD_FORMAT = "of an older version: it can no longer be decoded, and has to be built again from its recordings"


@click.command(
    epilog="""\b
Examples:
  edgedistill inspect sessions/sim00_day01.nwb
  edgedistill inspect sessions          shows every session of the folder
  edgedistill inspect decoder.edge      also checks every byte of the bundle""",
)
@click.argument("path", type=click.Path(path_type=Path))
@add_series_options
@json_option
def inspect(path: Path, names: SeriesNames, as_json: bool) -> None:
    """Show what a session (NWB) or a bundle holds.

    PATH is an NWB file, a folder of them, a pattern in quotes, a .txt file of paths, or a bundle. For a session, the
    command also tells which commands cannot use it, and what they miss.
    """
    if _is_bundle(path):
        if names.lfp or names.units or names.behavior:
            raise click.UsageError("--lfp, --units and --behavior name series of a session, and a bundle has none")
        _show_bundle(open_bundle(path), as_json)
        return
    from edgedistill.data.inspect import describe
    from edgedistill.data.opening.catalogue import expand_paths
    from edgedistill.data.opening.session_files import find_session_files, is_zarr

    if expand_paths([path]) == [path] and (not path.is_dir() or is_zarr(path)):
        found = describe(path, names)
        if as_json:
            print_json(_session_to_json(path, found))
        else:
            echo(found.to_text())
        return
    files = find_session_files([path])
    sessions = [_describe_or_explain(file, names) for file in files]
    if as_json:
        listed = [_session_to_json(file, one) for file, one in zip(files, sessions, strict=True)]
        print_json({"kind": "folder", "path": str(path), "sessions": listed})
    else:
        shown = [f"error: {one}" if isinstance(one, RecordingError) else one.to_text() for one in sessions]
        echo("\n\n".join(shown))
    if any(isinstance(one, RecordingError) for one in sessions):
        raise click.exceptions.Exit(FAILED)


def _describe_or_explain(file: Path, names: SeriesNames) -> Inspection | RecordingError:
    """Returns the report on a file, or the error where it cannot be read. The other files of a folder come after it."""
    from edgedistill.data.inspect import describe

    try:
        return describe(file, names)
    except RecordingError as error:
        return error


def _session_to_json(file: Path, found: Inspection | RecordingError) -> dict[str, object]:
    if isinstance(found, RecordingError):
        return {"kind": "unreadable", "path": str(file), **error_to_json(found)}
    return {"kind": "session", **found.to_json()}


def _is_bundle(path: Path) -> bool:
    return path.suffix in (".edge", ".zip") or (path / MANIFEST).is_file()


def _show_bundle(bundle: Bundle, as_json: bool) -> None:
    facts = _read_facts(bundle)
    if as_json:
        print_json(facts)
        return
    outputs, rate, session = facts["outputs"], facts["rate_hz"], facts["session"] or {}
    listed = ", ".join(f"{output['name']} ({output['unit']})" for output in outputs)
    found, smoothing = bundle.manifest.confidence, bundle.manifest.smoothing
    head = {key: facts[key] for key in ("path", "name", "created_by", "sha256", "target", "engine", "preset")}
    print_facts(
        {key: value for key, value in head.items() if value is not None}
        | {"session": ", ".join(f"{key} {value}" for key, value in session.items() if value)}
        | {
            "input": f"{len(facts['channel_ids'])} channels at {rate:.10g} Hz, in microvolts",
            "features": describe_features(facts["frontend"]),
            "outputs": listed,
        }
        | ({} if found is None else {"deviations": describe_confidence(found)})
        | ({} if smoothing is None else {"smoothing": smoothing.describe()})
        | {"delay": describe_delay(facts["group_delay_ms"], facts["smoothing_delay_ms"])}
        | {"files": f"{len(facts['files'])}, all unchanged since they were written"}
        | ({"problem": _OLD_FORMAT} if facts["format"] < FORMAT else {})
    )
    model = facts["model"]
    print_table("Model", tuple(model), [tuple(model.values())])
    metrics: dict[str, Any] = facts["metrics"] or {}
    if metrics:
        print_table("Metrics of the build", ("metric", "value"), list(metrics.items()))
    _print_graphs(bundle.manifest.graphs)


def describe_delay(front_end_ms: float | None, smoothing_ms: float | None) -> str:
    """Returns the delays of the front end and of the filter of the outputs."""
    own = f"{format_value(front_end_ms)} ms through the front end"
    return f"{own}, {format_value(smoothing_ms)} ms through the filter of the outputs" if smoothing_ms else own


def describe_features(front_end: Mapping[str, Any]) -> str:
    """Returns what the student sees of each channel."""
    slow = f"slow LFP below {front_end['lowpass_hz']:g} Hz"
    bands = ", ".join(f"{low:.4g}-{high:.4g}" for low, high in front_end["bands"])
    return f"{slow}, and log power in {bands} Hz" if bands else slow


def describe_confidence(found: Confidence) -> str:
    """Returns what the deviations of the outputs were calibrated on, and how sure they are."""
    if found.note:
        return f"not calibrated: {found.note}"
    sure = "" if found.standard_error is None else f"; 90 % intervals cover 90 ± {100 * found.standard_error:.1f} %"
    return f"calibrated on {found.labelled_bins / 100:g} s that no training saw{sure}"


def _print_graphs(graphs: Mapping[str, GraphVerdict]) -> None:
    """Prints what the build measured of each step graph and whether it may be used.

    Prints nothing for older bundles.
    """
    columns = ("graph", "usable", "integers off %", "by", "outputs off, deviations", "R² difference", "")
    rows = [
        (
            name,
            graph.usable,
            None if graph.integers_off_share is None else f"{100 * graph.integers_off_share:.3f}",
            graph.largest_integer_difference,
            None if graph.largest_output_deviation is None else f"{graph.largest_output_deviation:.1e}",
            None if graph.r2_difference is None else f"{graph.r2_difference:+.5f}",
            graph.reason or "",
        )
        for name, graph in graphs.items()
    ]
    if rows:
        print_table("Graphs", columns, rows)


def _read_facts(bundle: Bundle) -> dict[str, Any]:
    """Returns the manifest as `inspect --json` prints it, which leaves out the statistics of the channels."""
    found, spec = bundle.manifest, read_decoder_spec(bundle)
    front_end = spec.front_end.to_json()
    outputs = zip(spec.output_names, spec.output_units, strict=True)
    return {
        "kind": "bundle",
        "path": str(bundle.path),
        "sha256": bundle.sha256,
        "name": found.name,
        "format": found.format,
        "created_by": found.created_by,
        "target": found.target,
        "preset": found.preset,
        "recipe": found.recipe,
        "session": found.session and asdict(found.session),
        "group_delay_ms": found.group_delay_ms,
        "smoothing_delay_ms": found.smoothing_delay_ms,
        "model": spec.shape.to_json(),
        "rate": front_end["rate"],
        "rate_hz": float(spec.front_end.rate),
        "frontend": front_end,
        "channel_ids": list(spec.channel_ids),
        "channels": found.channels and [asdict(channel) for channel in found.channels],
        "outputs": [{"name": name, "unit": unit} for name, unit in outputs],
        "confidence": found.confidence and asdict(found.confidence),
        "smoothing": found.smoothing and found.smoothing.to_json(),
        "metrics": found.metrics,
        "gates": None if found.gates is None else [asdict(gate) for gate in found.gates],
        "engine": found.engine,
        "graphs": {name: verdict.to_json() for name, verdict in found.graphs.items()},
        "provenance": found.provenance and found.provenance.to_json(),
        "files": list(bundle.names),
    }
