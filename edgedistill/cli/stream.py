"""Defines `edgedistill stream`, which decodes a live source into sinks."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from threading import Event
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
    print_warnings,
    signature_option,
)
from edgedistill.cli.stopping import StopSignals
from edgedistill.cli.training_options import SERIES_HELP
from edgedistill.runtime import ENGINES

if TYPE_CHECKING:
    from edgedistill.errors import OutputError
    from edgedistill.live.records import StreamCounters, StreamDescription


@click.command(
    epilog="""\b
Examples:
  edgedistill stream decoder.edge --from lsl:amplifier --to lsl:decoded --to nwb:today.nwb
  edgedistill stream decoder.edge --from tcp:127.0.0.1:9000 --to csv:-
  edgedistill stream decoder.edge --from replay:day.nwb --speed 20 --to page:8765

\b
A SOURCE is
  lsl:NAME          an outlet of Lab Streaming Layer
  tcp:HOST:PORT     a server that sends one line of JSON and then frames
  -                 the same on stdin
  replay:FILE.nwb   a recording, at its true pace
A SINK is
  lsl:NAME          an outlet of Lab Streaming Layer
  nwb:FILE.nwb      raw frames and everything decoded; whole whenever it is killed
  csv:FILE.csv      lines as `edgedistill run` prints them; csv:- for stdout
  page:PORT         a page for the browser on this machine

The source is compared with the bundle before its first frame. Lost frames are a gap. A source that vanishes is waited
for, and its outputs are flagged. Ctrl-C and SIGTERM end a stream. docs/closed-loop.md describes the rest."""
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--from", "source", metavar="SOURCE", required=True, help="Where frames come from.")
@click.option("--to", "sinks", metavar="SINK", multiple=True, required=True, help="Where outputs go. May be repeated.")
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    help="What computes the steps, as in `edgedistill run`.  [default: the engine that the bundle was built for]",
)
@click.option("--speed", type=click.FloatRange(0, min_open=True), help="Replay this many times faster.  [default: 1]")
@click.option("--lfp", metavar="NAME", help=f"{SERIES_HELP['lfp']} It belongs to a replay.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="End after so many seconds of signal.")
@click.option(
    "--deadline",
    "deadline_ms",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    show_default=True,
    help="Outputs that come later than so many ms after the last frame of their bin count as late.",
)
@click.option(
    "--patience",
    "patience_ms",
    type=click.FloatRange(20),
    default=250.0,
    show_default=True,
    help="How many ms nothing may come before frames count as lost.",
)
@click.option(
    "--reorder",
    "reorder_ms",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    help="How many ms a missing frame is waited for, where frames are counted and may overtake each other.",
)
@click.option("--core", type=click.IntRange(0), help="The processor core to decode on.  [default: the last one]")
@click.option("--no-real-time", is_flag=True, help="Ask for neither priority, nor a core, nor locked memory.")
@signature_option
@cache_option
@json_option
def stream(
    bundle: Path,
    source: str,
    sinks: tuple[str, ...],
    engine: str | None,
    speed: float | None,
    lfp: str | None,
    seconds: float | None,
    deadline_ms: float,
    patience_ms: float,
    reorder_ms: float,
    core: int | None,
    no_real_time: bool,
    require_signature: Path | None,
    as_json: bool,
) -> None:
    """Decode a live source, and pass on what is decoded as it comes."""
    from edgedistill.live.loop import LiveSettings, LiveStream
    from edgedistill.live.sinks.choice import make_sink
    from edgedistill.live.sources.choice import make_source
    from edgedistill.runtime import Decoder

    _require_different(source, sinks)
    if as_json and "csv:-" in sinks:
        raise click.UsageError("csv:- and --json both want stdout")
    made = {words: make_sink(words) for words in sinks}
    with Decoder.open(bundle, engine, require_signature=require_signature) as decoder:
        settings, faster = LiveSettings(), max(1.0, speed or 1.0)
        settings = replace(
            settings,
            backlog_s=settings.backlog_s * faster,  # as long as without --speed for who waits
            sink_backlog_s=settings.sink_backlog_s * faster,
            record_backlog_s=settings.record_backlog_s * faster,
            source=source,
            deadline_s=deadline_ms / 1000,
            hold_s=reorder_ms / 1000,
            patience_s=patience_ms / 1000,
            real_time=not no_real_time,
            core=core,
            seconds=seconds,
        )
        live = LiveStream(decoder, make_source(source, decoder.bundle, lfp=lfp, speed=speed), made, settings)
        stop, began = Event(), monotonic()
        signals = StopSignals(stop.set)
        echo(f"waiting for {source}", err=True)
        with signals.listening():
            counters = live.run(stop, _show_start)
    _show_end(counters, live.description, signals.stopped_by, bundle, monotonic() - began, as_json)


def _require_different(source: str, sinks: tuple[str, ...]) -> None:
    """Raises UsageError where a stream would write to one place twice, or to what it reads."""
    places = [_find_place(words) for words in sinks]
    if len(set(places)) != len(places):
        raise click.UsageError("each --to must be another one")
    kind, _, name = _find_place(source).partition(":")
    if kind == "replay" and f"file:{name}" in places:
        raise click.UsageError("the recording that is replayed cannot be written to")
    if kind == "lsl" and f"lsl:{name}" in places:
        raise click.UsageError(f"--from and --to are both lsl:{name}, so the stream would read what it sends")


def _find_place(words: str) -> str:
    """Returns a source or sink in the form that is the same for the same place, files by their whole path."""
    kind, _, name = words.partition(":")
    if kind in ("nwb", "csv", "replay") and name not in ("", "-"):
        return f"{'replay' if kind == 'replay' else 'file'}:{Path(name).resolve()}"
    return words


def _show_start(description: StreamDescription) -> None:
    print_warnings(description.warnings)
    in_force = ", ".join(words for _, _, words in description.real_time.rows())
    echo(
        f"decoding {len(description.channel_ids)} channels at {float(description.rate):.10g} Hz from "
        f"{description.source}; {in_force}",
        err=True,
    )


def _show_end(
    counters: StreamCounters,
    description: StreamDescription | None,
    stopped_by: str | None,
    bundle: Path,
    seconds: float,
    as_json: bool,
) -> None:
    """Prints the counters. A sink that failed is a failure, told after all else."""
    failures = {name: sink.failure for name, sink in counters.sinks.items() if sink.failure is not None}
    error = _failure_of(failures) if failures else None
    ended = f"stopped by {stopped_by}" if stopped_by else counters.reason
    if as_json:
        real_time = None if description is None else asdict(description.real_time)
        facts: dict[str, object] = {
            "bundle": str(bundle),
            "source": None if description is None else description.source,
            "outputs": []
            if description is None
            else [
                {"name": name, "unit": unit}
                for name, unit in zip(description.output_names, description.output_units, strict=True)
            ],
            "warnings": [] if description is None else list(description.warnings),
            "real_time": real_time,
            "counters": {name: value for name, value in asdict(counters).items() if name != "sinks"},
            "sinks": [{"name": name, **asdict(sink)} for name, sink in counters.sinks.items()],
            "stopped_by": stopped_by,
            "seconds": seconds,
        }
        if error is not None:
            facts["error"] = {"type": type(error).__name__, **error_to_json(error), "exit_code": 1}
        print_json(facts)
    elif "csv:-" in counters.sinks:  # stdout belongs to the lines
        for name, value in (_list_facts(counters) | {"ended": ended}).items():
            echo(f"{name}: {value}", err=True)
    else:
        print_facts(_list_facts(counters) | {"ended": ended})
    if error is not None:
        if not as_json:
            raise error
        echo(f"error: {error}", err=True)
        click.get_current_context().exit(1)


def _list_facts(counters: StreamCounters) -> dict[str, object]:
    c = counters
    odd = {
        "late": c.late_frames,
        "duplicated": c.duplicated_frames,
        "dropped": c.dropped_frames,
        "reordered": c.reordered_frames,
    }
    facts: dict[str, object] = {
        "decoded": f"{c.bins} bins, {c.late_bins} of them after the deadline",
        "frames": f"{c.frames} decoded, {c.lost_frames} lost in {c.gaps} gaps"
        + "".join(f", {count} {name}" for name, count in odd.items() if count),
    }
    if c.reconnects or c.clock_jumps:
        facts["source"] = f"came back {c.reconnects} times, its clock was set anew {c.clock_jumps} times"
    if c.drift_ppm is not None:
        facts["clock"] = f"{c.drift_ppm:+.1f} ppm from its nominal rate, jitter {c.jitter_ms or 0:.3g} ms"
    for name, sink in c.sinks.items():
        dropped = f", {sink.dropped_blocks} blocks with {sink.dropped_bins} bins left out" * bool(sink.dropped_blocks)
        facts[f"to {name}"] = f"{sink.blocks} blocks{dropped}" + (f", failed: {sink.failure}" if sink.failure else "")
    return facts


def _failure_of(failures: dict[str, str]) -> OutputError:
    from edgedistill.errors import OutputError

    return OutputError(
        "not all that was decoded reached every sink",
        got="; ".join(f"{name}: {why}" for name, why in failures.items()),
        expected="sinks that take every block",
        next_step="what the others took is whole; correct the cause, and start the stream again",
    )
