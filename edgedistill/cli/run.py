"""Defines `edgedistill run`, which decodes a recording or a stream."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, cast

import click

from edgedistill.cli.output import (
    cache_option,
    json_option,
    print_facts,
    print_json,
    print_notes,
    print_warnings,
    show_work,
)
from edgedistill.cli.training_options import SERIES_HELP
from edgedistill.runtime import ENGINES

if TYPE_CHECKING:
    from edgedistill.decoding import ByteStream, Predictions
    from edgedistill.runtime import Decoder, Output

STDIN = "-"


@click.command(
    epilog="""\b
Examples:
  edgedistill run decoder.edge today.nwb --out predictions.csv
  edgedistill run decoder.edge today.nwb --out predictions.nwb
  amplifier | edgedistill run decoder.edge - > predictions.csv

A stream is raw little-endian float32 in microvolts with interleaved channels, in the order and at the rate that
`edgedistill inspect` shows for the bundle. A line is printed as soon as its 10 ms are complete. It holds bin,
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
@cache_option
@json_option
def run(bundle: Path, recording: str, out: Path | None, engine: str | None, lfp: str | None, as_json: bool) -> None:
    """Decode a recording, or frames as they arrive on stdin.

    Write - in place of FILE.nwb to read frames from stdin.
    """
    from edgedistill.decoding import Predictions, check_destination, write_predictions
    from edgedistill.runtime import Decoder

    if recording == STDIN and lfp is not None:
        raise click.UsageError("--lfp names a series of a file, and a stream has none")
    if out is not None:
        check_destination(out)
    decoder = Decoder.open(bundle, engine)
    began = monotonic()
    if recording == STDIN:
        if out is None and not as_json:
            _print_stream(decoder)
            return
        predictions = Predictions(decoder.info, tuple(_decode_until_stopped(decoder)))
    else:
        predictions = _decode_recording(decoder, recording, lfp)
    seconds = monotonic() - began
    if out is not None:
        write_predictions(predictions, out)
    _show_run(predictions, bundle, out, seconds, as_json)


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


def _print_stream(decoder: Decoder) -> None:
    """Prints CSV on stdout and flushes it after every push, because a program downstream acts on it."""
    from edgedistill.decoding import decode_stream, format_csv_header, format_csv_line

    click.echo(format_csv_header(decoder.info))
    for outputs in decode_stream(decoder, _open_stdin()):
        click.echo("\n".join(map(format_csv_line, outputs)))  # echo flushes


def _decode_until_stopped(decoder: Decoder) -> Iterator[Output]:
    """Yields outputs until the stream ends. Ctrl-C ends the stream as well, and what was decoded is kept."""
    from edgedistill.decoding import decode_stream

    with suppress(KeyboardInterrupt):
        for outputs in decode_stream(decoder, _open_stdin()):
            yield from outputs


def _open_stdin() -> ByteStream:
    return cast("ByteStream", sys.stdin.buffer)


def _show_run(predictions: Predictions, bundle: Path, out: Path | None, seconds: float, as_json: bool) -> None:
    from edgedistill.decoding import BINS_PER_S, format_csv_header, format_csv_line

    bins, info = len(predictions.outputs), predictions.info
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
            "flags": predictions.counts(),
            "seconds": seconds,
            "times_real_time": faster,
            "notes": list(predictions.notes),
            "warnings": list(predictions.warnings),
        }
        print_json(facts if out is not None else facts | {"predictions": _columns_from(predictions)})
    elif out is not None:
        flagged = ", ".join(f"{count} {name}" for name, count in predictions.counts().items())
        speed = f", {faster:.0f} times real time" if faster else ""
        most = int(predictions.bad_channels.max(initial=0))
        masked = f"at most {most} of {len(info.channel_ids)} channels at once, filled in from the others"
        facts = {"written": out} | ({"series": predictions.series} if predictions.series else {})
        facts |= {"bins": f"{bins} of 10 ms{speed}", "flagged": flagged}
        print_facts(facts | ({"masked": masked} if most else {}))
    else:
        if predictions.series:
            click.echo(f"series: {predictions.series}", err=True)
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
