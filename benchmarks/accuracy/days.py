"""Measures what a decoder keeps of its R² over days of drift and dying electrodes, and what helps.

    python -m benchmarks.accuracy.days --preset nano --seed 0

Ten days of one array are simulated. A bundle is built on the first day. On every later day, the same last fifth of the
recording is decoded by that bundle as it is (`frozen`), by the bundle with statistics that follow the signal
(`following`), by a bundle that `edgedistill adapt` made from the first seven tenths of that day without labels
(`adapted`), and by a bundle that was built on that day alone, with its labels (`new build`). All run in INT8 on the
compiled engine, streamed from the first frame of the day. What was measured is kept under --work, so that an
interrupted run can go on. The result is written to benchmarks/results/cpu/days-PRESET.json.
"""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.harness import RESULTS, Result, describe_conditions, option_parser, say, write_result
from edgedistill.bundle import open_bundle
from edgedistill.data.recording import open_recording
from edgedistill.data.simulation.nwb import simulate_to_nwb
from edgedistill.data.simulation.sessions import SimulationConfig
from edgedistill.decoding import decode_lfp
from edgedistill.matching import match_recording
from edgedistill.measure.score import score_kinematics
from edgedistill.pipeline import BuildOptions, build
from edgedistill.pipeline.adaptation import AdaptOptions, adapt_bundle
from edgedistill.pipeline.another_day import StretchOptions
from edgedistill.runtime import Decoder, Flag

MODULE = "benchmarks.accuracy.days"
TRAINED, TESTED = 0.7, 0.8  # shares of a day: what adapting and building may use, and where scoring begins
KEPT = 0.9  # of the R² of a new build, which following is held to
METHODS = ("frozen", "following", "adapted", "new build")


def main() -> None:
    """Runs the benchmark and prints its table."""
    parser = option_parser(__doc__, RESULTS / "cpu")
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--days", type=int, default=10)
    parser.add_argument("--days-apart", type=int, default=7)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--steps", type=int, help="optimizer steps of each stage of a build")
    parser.add_argument("--follow", type=float, default=120, help="time constant of `following`, in seconds")
    parser.add_argument("--work", type=Path, default=Path("days-work"), help="folder of sessions and bundles")
    options = parser.parse_args()
    config = SimulationConfig(
        sessions=options.days,
        minutes=options.minutes,
        seed=options.seed,
        channels=options.channels,
        days_apart=options.days_apart,
    )
    files = sorted((options.work / "sessions").glob("*.nwb"))
    if len(files) < options.days:
        files = list(simulate_to_nwb(config, options.work / "sessions"))
    rows = [measure_once(options, files, day) for day in range(1, options.days)]
    result = summarize(rows, options)
    write_result(options.out, f"days-{options.preset}", result)
    show(result)


def measure_once(options: Namespace, files: list[Path], day: int) -> Result:
    """Returns what `measure_day` finds, which is measured unless it was before."""
    path = options.work / f"day-{day}.json"
    if not path.exists():
        say(f"day {day * options.days_apart}")
        write_result(options.work, f"day-{day}", measure_day(options, files, day))
    return dict(json.loads(path.read_text()))


def measure_day(options: Namespace, files: list[Path], day: int) -> Result:
    """Returns the R² of each method on one day, and the channels that were lost on it."""
    work, file = options.work, files[day]
    first = built(options, files[0], work / "day0.edge")
    to_s = TRAINED * options.minutes * 60
    following = adapted(first, files[0], work / "day0-following.edge", to_s, options.follow)
    bundles = {
        "frozen": first,
        "following": following,
        "adapted": adapted(first, file, work / f"day{day}-adapted.edge", to_s, None),
        "new build": built(options, file, work / f"day{day}.edge"),
    }
    found = {name: score_end(bundle, file) for name, bundle in bundles.items()}
    return {
        "day": day * options.days_apart,
        "lost_channels": found["frozen"][1],
        "r2": {name: r2 for name, (r2, _) in found.items()},
    }


def built(options: Namespace, file: Path, out: Path) -> Path:
    """Returns a bundle that was built on one day, which is built unless it is there."""
    if not out.exists():
        build(BuildOptions("host", (file,), out, options.preset, steps=options.steps, seed=options.seed))
    return out


def adapted(bundle: Path, file: Path, out: Path, to_s: float, follow_s: float | None) -> Path:
    """Returns the bundle as it was adapted to the first `to_s` seconds of a day."""
    if not out.exists():
        adapt_bundle(AdaptOptions(bundle, out, StretchOptions(file, to_s=to_s), follow_s))
    return out


def score_end(path: Path, file: Path) -> tuple[float | None, int]:
    """Returns R² over the last part of a day, streamed from its first frame, and the channels that were bad at its end.

    Bins of the warm-up, gaps and invalid outputs do not count.
    """
    bundle = open_bundle(path)
    decoder = Decoder(bundle)
    with open_recording(file) as recording:
        matched = match_recording(bundle, recording)
        outputs = list(decode_lfp(decoder, matched))
        ends_s, _ = matched.find_bin_ends(np.array([output.end_frame for output in outputs], np.int64))
        assert recording.behavior is not None
        truth = recording.behavior.sample_at(ends_s)
    refused = Flag.WARMUP | Flag.GAP | Flag.INVALID
    scored = np.array([not output.flags & refused for output in outputs])
    scored[: round(TESTED * len(scored))] = False
    guess = np.array([output.kinematics for output in outputs], np.float32)
    fit = score_kinematics(guess[scored], truth[scored], f"{file}, last part")
    return fit.r2, outputs[-1].bad_channels


def summarize(rows: list[Result], options: Namespace) -> dict[str, Any]:
    """Returns the result: all days, the mean over days, and what each method keeps of a new build."""
    mean = {name: float(np.mean([row["r2"][name] for row in rows])) for name in METHODS}
    kept = {name: mean[name] / mean["new build"] for name in METHODS}
    gate = {"name": "following keeps", "value": kept["following"], "limit": KEPT, "ok": kept["following"] >= KEPT}
    settings = {name: getattr(options, name) for name in ("preset", "seed", "days", "minutes", "channels", "steps")}
    settings |= {"days_apart": options.days_apart, "follow_s": options.follow}
    return {**describe_conditions(MODULE), **settings, "rows": rows, "mean_r2": mean, "kept": kept, "gates": [gate]}


def show(result: dict[str, Any]) -> None:
    """Prints the table of days, and the gate."""
    table = Table("day", "lost channels", *METHODS, title="R² on the last fifth of each day")
    for row in result["rows"]:
        table.add_row(f"{row['day']}", f"{row['lost_channels']}", *(f"{row['r2'][name]:.3f}" for name in METHODS))
    table.add_row("mean", "", *(f"{result['mean_r2'][name]:.3f}" for name in METHODS))
    table.add_row("kept", "", *(f"{result['kept'][name]:.0%}" for name in METHODS))
    console = Console()
    console.print(table)
    for gate in result["gates"]:
        console.print(
            f"{'met   ' if gate['ok'] else 'MISSED'} {gate['name']}: {gate['value']:.3f}, limit {gate['limit']:g}"
        )


if __name__ == "__main__":
    main()
