"""Defines `edgedistill run`, which decodes a recording or a stream."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import click

from edgedistill.cli.output import (
    cache_option,
    echo,
    error_to_json,
    json_option,
    print_facts,
    print_json,
    print_notes,
    print_warnings,
    show_work,
    signature_option,
)
from edgedistill.cli.training_options import SERIES_HELP
from edgedistill.files import require_no_input
from edgedistill.runtime import ENGINES

if TYPE_CHECKING:
    from edgedistill.decoding import Predictions, Tally
    from edgedistill.runtime import Decoder, Output

STDIN = "-"


@click.command(
    epilog="""\b
Examples:
  edgedistill run decoder.edge today.nwb --out predictions.csv
  edgedistill run decoder.edge today.nwb --out predictions.nwb
  amplifier | edgedistill run decoder.edge - > predictions.csv

A stream is raw little-endian float32 in microvolts with interleaved channels, in the order and at the rate that
`edgedistill inspect` shows for the bundle. A line is printed as soon as its 10 ms are complete, and --out grows with
it. Ctrl-C and SIGTERM end a stream, and all whole frames are kept. A line holds bin,
end_frame, time_s, flags, bad_channels, the outputs, and the standard deviation (sd) of each. Nine in ten true values
lie within 1.645 of it.

\b
flags is the sum of
  1  the decoder is still warming up
  2  a channel was masked
  4  frames were lost
  8  the output is invalid: do not act on it
  16  most channels have left 0.25 to 4 times the expected amplitude for 10 s
NaN samples are no error. Their channel is masked.

A recording is compared with the bundle before it is decoded: channels, rate, amplitude and day. What differs is printed
as a warning, and refused where no decoding can make up for it.""",
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("recording", metavar="FILE.nwb|-")
@click.option(
    "--out", type=click.Path(path_type=Path), help="The file to write: NAME.csv or NAME.nwb.  [default: CSV on stdout]"
)
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    help="What computes the steps: a graph on onnxruntime (in float32 or INT8), a library in C, which is "
    "compiled at its first use, what `edgedistill compile` made for a GPU, or the INT8 definition in numpy, which is "
    "slow.  [default: the engine that the bundle was built for]",
)
@click.option(
    "--lfp",
    metavar="NAME",
    help=f"{SERIES_HELP['lfp']}  [default: the one that the bundle was built from, if the recording has it]",
)
@signature_option
@cache_option
@json_option
def run(
    bundle: Path,
    recording: str,
    out: Path | None,
    engine: str | None,
    lfp: str | None,
    require_signature: Path | None,
    as_json: bool,
) -> None:
    """Decode a recording, or frames as they arrive on stdin.

    Write - in place of FILE.nwb to read frames from stdin.
    """
    from edgedistill.decoding import Tally, check_destination, write_predictions
    from edgedistill.runtime import Decoder

    if recording == STDIN and lfp is not None:
        raise click.UsageError("--lfp names a series of a file, and a stream has none")
    if out is not None:
        check_destination(out)
        require_no_input(out, (bundle, recording))
    decoder = Decoder.open(bundle, engine, require_signature=require_signature)
    began = monotonic()
    if recording == STDIN:
        _decode_stdin(decoder, bundle, out, as_json)
        return
    predictions = _decode_recording(decoder, recording, lfp)
    seconds = monotonic() - began
    if out is not None:
        write_predictions(predictions, out)
    _show_run(predictions, Tally().add(predictions.outputs), bundle, out, seconds, as_json)


def _decode_stdin(decoder: Decoder, bundle: Path, out: Path | None, as_json: bool) -> None:
    """Decodes a stream. A frame that it ends in is told after all else was written, and is a failure."""
    from edgedistill.cli.run_stream import StreamRun
    from edgedistill.decoding import Predictions

    stream, began = StreamRun(decoder), monotonic()
    outputs: tuple[Output, ...] = ()
    if out is not None:
        stream.to_file(out)
    elif as_json:
        outputs = stream.to_memory()
    else:
        stream.to_stdout()
    failure = stream.find_failure(out)
    ended: dict[str, object] = {"stopped_by": stream.stopped_by, "torn_bytes": stream.torn_bytes}
    if as_json and failure is not None:
        ended |= {"error": {"type": type(failure).__name__, **error_to_json(failure), "exit_code": 1}}
    if out is not None or as_json:
        predictions = Predictions(decoder.info, outputs)
        _show_run(predictions, stream.tally, bundle, out, monotonic() - began, as_json, ended)
    if (stop := stream.describe_stop()) is not None:
        echo(stop, err=True)
    if failure is not None and as_json:
        echo(f"error: {failure}", err=True)
        click.get_current_context().exit(1)
    if failure is not None:
        raise failure


def _decode_recording(decoder: Decoder, path: str, lfp: str | None) -> Predictions:
    """Decodes a file. Warnings are printed as soon as they are known, which is before the work for most of them."""
    from edgedistill.data.recording import SeriesNames, open_recording
    from edgedistill.decoding import decode_matched, describe_shift
    from edgedistill.matching import match_recording

    with open_recording(path, SeriesNames(lfp=lfp)) as opened:
        with show_work(f"comparing {path} with the bundle"):
            matched = match_recording(decoder.bundle, opened)
        print_notes(matched.lfp.notes)
        print_warnings(matched.warnings)
        with show_work(f"decoding {path}"):
            predictions = decode_matched(decoder, matched)
    if (late := describe_shift(predictions.outputs)) is None:
        return predictions
    print_warnings([late])
    return replace(predictions, warnings=(*predictions.warnings, late))


def _show_run(
    predictions: Predictions,
    tally: Tally,
    bundle: Path,
    out: Path | None,
    seconds: float,
    as_json: bool,
    ended: Mapping[str, object] | None = None,
) -> None:
    from edgedistill.decoding import BINS_PER_S, format_csv_header, format_csv_line

    bins, info = tally.bins, predictions.info
    faster = bins / BINS_PER_S / seconds if seconds > 0 else None
    if as_json:
        outputs = zip(info.output_names, info.output_units, strict=True)
        facts: dict[str, object] = {
            "bundle": str(bundle),
            "recording": predictions.source,
            "series": predictions.series,
            "out": None if out is None else str(out),
            "bins": bins,
            "outputs": [{"name": name, "unit": unit} for name, unit in outputs],
            "flags": tally.counts(),
            "seconds": seconds,
            "times_real_time": faster,
            "notes": list(predictions.notes),
            "warnings": list(predictions.warnings),
            **(ended or {"stopped_by": None, "torn_bytes": 0}),
        }
        print_json(facts if out is not None else facts | {"predictions": _columns_from(predictions)})
    elif out is not None:
        flagged = ", ".join(f"{count} {name}" for name, count in tally.counts().items())
        speed = f", {faster:.0f} times real time" if faster else ""
        most = tally.most_bad
        masked = f"at most {most} of {len(info.channel_ids)} channels at once, filled in from the others"
        facts = {"written": out} | ({"series": predictions.series} if predictions.series else {})
        facts |= {"bins": f"{bins} of 10 ms{speed}", "flagged": flagged}
        print_facts(facts | ({"masked": masked} if most else {}))
    else:
        if predictions.series:
            echo(f"series: {predictions.series}", err=True)
        click.echo(format_csv_header(info))
        for output, end_s in zip(predictions.outputs, predictions.times_s, strict=True):
            sys.stdout.write(format_csv_line(output, end_s) + "\n")


def _columns_from(predictions: Predictions) -> dict[str, object]:
    return {
        "bin": [output.bin for output in predictions.outputs],
        "end_frame": [output.end_frame for output in predictions.outputs],
        "time_s": predictions.times_s.tolist(),
        "flags": predictions.flags.tolist(),
        "bad_channels": predictions.bad_channels.tolist(),
        "kinematics": predictions.kinematics.tolist(),
        "deviations": predictions.deviations.tolist(),
    }
