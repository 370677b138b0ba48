"""`run` and `bench`: decode a recording or a stream, and measure what a step costs and what it is worth."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

import click

from edgedistill.bundle import open_bundle
from edgedistill.cli.app import GATE_MISSED
from edgedistill.cli.output import (
    json_option,
    number,
    print_facts,
    print_gates,
    print_json,
    print_table,
    working,
)
from edgedistill.runtime import ENGINES
from edgedistill.runtime.compiled import COMPILED

if TYPE_CHECKING:
    from edgedistill.runs import ByteStream, Predictions
    from edgedistill.runtime import Decoder, Output
    from edgedistill.subjects import BenchResult

STDIN = "-"


@click.command(
    epilog="""\b
Examples:
  edgedistill run decoder.edge today.nwb --out predictions.csv
  edgedistill run decoder.edge today.nwb --out predictions.nwb
  amplifier | edgedistill run decoder.edge - > predictions.csv

A stream is raw little-endian float32 in microvolts, channels interleaved, in the order and at the rate that
`edgedistill inspect` tells for the bundle. A line comes out as soon as its 10 ms are complete:
bin, end_frame, time_s, flags, bad_channels, then the outputs.

\b
flags is a sum: 1 still warming up, 2 a channel was masked, 4 frames were lost,
8 invalid: do not act on it. NaN samples are no error; their channel is masked.""",
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("recording", metavar="FILE.nwb|-")
@click.option("--out", type=click.Path(path_type=Path), help="Where to: .csv or .nwb.  [default: CSV on stdout]")
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    help="What computes: a graph on onnxruntime, in float32 or INT8, what `compile` made in C or for a GPU, or the "
    "INT8 definition in numpy (slow).  [default: what the bundle was built for]",
)
@json_option
def run(bundle: Path, recording: str, out: Path | None, engine: str | None, as_json: bool) -> None:
    """Decode a recording, or frames as they arrive on stdin."""
    from edgedistill.runs import (
        Predictions,
        check_destination,
        run_file,
        write_predictions,
    )
    from edgedistill.runtime import Decoder

    if out is not None:
        check_destination(out)
    decoder = Decoder.open(bundle, engine)
    began = monotonic()
    if recording == STDIN:
        if out is None and not as_json:
            _stream_lines(decoder)
            return
        predictions = Predictions(decoder.info, tuple(_until_stopped(decoder)))
    else:
        from edgedistill.data.recording import open_recording

        with open_recording(recording) as opened, working(f"decoding {recording}"):
            predictions = run_file(decoder, opened)
    seconds = monotonic() - began
    if out is not None:
        write_predictions(predictions, out)
    _show_run(predictions, bundle, out, seconds, as_json)


def _stream_lines(decoder: Decoder) -> None:
    """CSV on stdout, flushed with every push: someone downstream acts on it."""
    from edgedistill.runs import csv_header, csv_line, outputs_of_stream

    click.echo(csv_header(decoder.info))
    for outputs in outputs_of_stream(decoder, _stdin()):
        click.echo("\n".join(map(csv_line, outputs)))  # echo flushes


def _until_stopped(decoder: Decoder) -> Iterator[Output]:
    """Outputs until the stream ends; Ctrl-C is one way to end it, and what was decoded is kept."""
    from edgedistill.runs import outputs_of_stream

    with suppress(KeyboardInterrupt):
        for outputs in outputs_of_stream(decoder, _stdin()):
            yield from outputs


def _stdin() -> ByteStream:
    return cast("ByteStream", sys.stdin.buffer)


def _show_run(predictions: Predictions, bundle: Path, out: Path | None, seconds: float, as_json: bool) -> None:
    from edgedistill.runs import BINS_PER_S, csv_header, csv_line

    bins, info = len(predictions.outputs), predictions.info
    faster = bins / BINS_PER_S / seconds if seconds > 0 else None
    if as_json:
        outputs = zip(info.output_names, info.output_units, strict=True)
        facts: dict[str, object] = {
            "bundle": str(bundle),
            "recording": predictions.source,
            "out": None if out is None else str(out),
            "bins": bins,
            "outputs": [{"name": name, "unit": unit} for name, unit in outputs],
            "flags": predictions.counts(),
            "seconds": seconds,
            "times_real_time": faster,
        }
        print_json(facts if out is not None else facts | {"predictions": _columns(predictions)})
    elif out is not None:
        flagged = ", ".join(f"{count} {name}" for name, count in predictions.counts().items())
        speed = f", {faster:.0f} times real time" if faster else ""
        print_facts({"written": out, "bins": f"{bins} of 10 ms{speed}", "flagged": flagged})
    else:
        click.echo(csv_header(info))
        for output in predictions.outputs:
            sys.stdout.write(csv_line(output, predictions.start_s) + "\n")


def _columns(predictions: Predictions) -> dict[str, object]:
    from edgedistill.runs import time_s

    return {
        "bin": [output.bin for output in predictions.outputs],
        "end_frame": [output.end_frame for output in predictions.outputs],
        "time_s": [time_s(output, predictions.start_s) for output in predictions.outputs],
        "flags": predictions.flags.tolist(),
        "bad_channels": predictions.bad_channels.tolist(),
        "kinematics": predictions.kinematics.tolist(),
    }


@click.command(
    epilog="""\b
Examples:
  edgedistill bench decoder.edge
  edgedistill bench decoder.edge --data another-day.nwb --steps 20000

Every step is timed alone, on one thread, and the subjects take turns, so that all of them meet the same
machine. "empty step" is a step that does nothing: what of each figure is the machine's own noise. A step is
the model alone: the front end's work on the raw frames is not in it. R² is measured by streaming. What this
machine cannot measure is left empty, never estimated.""",
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--data",
    metavar="FILE.nwb",
    type=click.Path(path_type=Path),
    help="Measure R² on this recording of the same array.  [default: the bundle's own holdout]",
)
@click.option("--behavior", metavar="NAME", help="The behaviour series of --data, where there are several.")
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=2000,
    show_default=True,
    help="Steps to time, each subject.",
)
@click.option(
    "--engine",
    type=click.Choice(("onnxruntime-int8", *COMPILED)),
    help="What runs lfp-student-int8.  [default: what the bundle was built for, if that is compiled here]",
)
@json_option
def bench(bundle: Path, data: Path | None, behavior: str | None, steps: int, engine: str | None, as_json: bool) -> None:
    """What a step costs on this machine, and how well the bundle decodes.

    The student is compared with a student of the same size that reads spikes.
    """
    from edgedistill import subjects

    opened = open_bundle(bundle)
    with working("measuring"):
        if data is None:
            result = subjects.bench(opened, steps, engine=engine)
        else:
            from edgedistill.data.recording import open_recording

            with open_recording(data, behavior=behavior) as recording:
                result = subjects.bench(opened, steps, recording, engine)
    if as_json:
        print_json(result.to_json())
    else:
        _print_bench(result)
    if any(gate.ok is False for gate in result.gates):
        raise click.exceptions.Exit(GATE_MISSED)


def _print_bench(result: BenchResult) -> None:
    def microseconds(latency: Any) -> list[str]:
        return [f"{getattr(latency, key):.1f}" for key in ("p50", "p95", "p99", "p999", "max")]

    rows = [
        [
            *(s.name, s.engine, s.precision, s.params, s.artifact_bytes, s.state_bytes),
            *(*microseconds(s.latency), s.deadline_misses, s.fit.r2),
        ]
        for s in result.subjects
    ]
    rows.append(["empty step", *[""] * 5, *microseconds(result.clock), "", ""])
    columns = (
        "subject",
        "engine",
        "precision",
        "params",
        "bytes",
        "state",
        "p50 µs",
        "p95",
        "p99",
        "p99.9",
        "max",
    )
    first = result.subjects[0]
    print_table(f"{first.latency.steps} steps each", (*columns, "late", "R²"), rows)
    device = result.device
    print_facts(
        {f"R² of {s.name}": s.fit.source for s in result.subjects}
        | {"late": f"steps longer than {first.deadline_us / 1e3:g} ms"}
        | {"device": f"{device['cpu'] or device['architecture']}, {device['cores']} cores, {device['os']}"}
        | {"load": f"{number(device['load'])} over 1, 5, 15 min; a busy machine shows in p99 and max"}
        | {"energy": first.to_json()["energy_source"]}
    )
    print_gates(result.gates)
