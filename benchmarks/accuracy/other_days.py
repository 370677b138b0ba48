"""Measures what a decoder keeps on later days, as it is, with statistics that follow, adapted, and built anew.

    python -m benchmarks.accuracy.other_days SESSIONS --trained 3 --preset nano

SESSIONS is a folder with recordings of one array. A student is distilled on the first of them with their labels, and a
bundle decodes the last of these. Every other recording is a later day. Each row decodes the whole day from raw frames
and is scored on its last fifth, which no row has learned from except `adapted, whole day`. `built anew` is a bundle
that was trained on that day alone, with its labels. Students and bundles are kept under --work, so that an interrupted
run can go on. The result is benchmarks/results/cpu/other-days-PRESET.json.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from time import monotonic

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.harness import RESULTS, Result, describe_conditions, option_parser, say, write_result
from edgedistill.bundle import open_bundle
from edgedistill.bundle.contents import read_decoder_spec
from edgedistill.data.bins import split_bins
from edgedistill.data.opening.session_files import find_session_files
from edgedistill.data.recording import open_recording
from edgedistill.decoding import decode_lfp
from edgedistill.frontend import settling_bins
from edgedistill.matching import MatchedRecording, match_recording
from edgedistill.measure.score import score_kinematics
from edgedistill.pipeline import BuildOptions, DistillOptions, PretrainOptions, build, distill, pretrain
from edgedistill.pipeline.adaptation import AdaptOptions, adapt_bundle
from edgedistill.pipeline.another_day import StretchOptions
from edgedistill.runtime import Decoder

MODULE = "benchmarks.accuracy.other_days"
FOLLOWED_S = (60.0, 600.0)
MINUTES = (2, 5)  # of the day that an adaptation may see: without labels, and with labels

Make = Callable[[Path, Path], None]  # the day and the path of the bundle to write


def train_student(options: Namespace, files: list[Path]) -> Path:
    """Returns the folder of a student that was distilled on these recordings and their labels."""
    teacher, student = options.work / "teacher", options.work / "student"
    settings = {"preset": options.preset, "steps": options.steps}
    if not teacher.exists():
        pretrain(PretrainOptions(tuple(files), teacher, **settings))
    if not student.exists():
        distill(DistillOptions(tuple(files), teacher, student, supervised=True, **settings))
    return student


def list_rows(options: Namespace, student: Path | None, bundle: Path) -> dict[str, Make]:
    """Returns, by row, what makes the bundle that decodes a day. Without a student there are no rows built from it."""
    until, labelled = (60.0 * minutes for minutes in MINUTES)

    def adapted(follow_s: float | None = None, **stretch: float | bool) -> Make:
        return lambda day, out: void(adapt_bundle(AdaptOptions(bundle, out, StretchOptions(day, **stretch), follow_s)))  # type: ignore[arg-type]

    def built(probe: bool = False) -> Make:
        settings = {"preset": options.preset, "student": student, "probe": probe, "work": options.work / "stages"}
        return lambda day, out: void(build(BuildOptions("host", (day,), out, **settings)))  # type: ignore[arg-type]

    rows: dict[str, Make] = {"as it is": lambda _, out: out.symlink_to(bundle.resolve())}
    for seconds in FOLLOWED_S:
        rows[f"as it is, --follow {seconds:g}"] = lambda _, out, s=seconds: follow(options, bundle, out, s)  # type: ignore[misc]
    rows[f"adapted, first {MINUTES[0]} min"] = adapted(to_s=until)
    rows[f"adapted, first {MINUTES[0]} min, --follow {FOLLOWED_S[-1]:g}"] = adapted(FOLLOWED_S[-1], to_s=until)
    rows["adapted, whole day"] = adapted()
    rows[f"adapted, first {MINUTES[1]} min, --labels"] = adapted(to_s=labelled, labels=True)
    rows["built anew"] = lambda day, out: void(
        build(BuildOptions("host", (day,), out, options.preset, steps=options.steps))
    )
    if student is not None:
        rows |= {"build --student": built(), "build --student --probe": built(probe=True)}
    return {row: make for row, make in rows.items() if not options.row or row in options.row}


def void(_: object) -> None:
    """Drops the result of a command."""


def follow(options: Namespace, bundle: Path, out: Path, seconds: float) -> None:
    """Writes the bundle with statistics that follow. They begin with those of its own day."""
    own = options.files[options.trained - 1]
    spec = read_decoder_spec(open_bundle(bundle))
    gap = settling_bins(spec.front_end) + spec.shape.receptive_field + (spec.shape.taps - 1) * spec.shape.dilation
    with open_recording(own) as recording:
        assert recording.lfp is not None
        train = split_bins(spec.front_end.bin_of(recording.lfp.frames), gap).train
    adapt_bundle(AdaptOptions(bundle, out, StretchOptions(own, to_s=train.stop / 100), seconds))


def score_last_fifth(bundle: Path, day: Path) -> float | None:
    """Returns the R² on the last fifth of a day, decoded from its first raw frame."""
    opened = open_bundle(bundle)
    with open_recording(day) as recording:
        matched = match_recording(opened, recording)
        guess = np.array([output.kinematics for output in decode_lfp(Decoder(opened), matched)])
        truth = true_kinematics(matched)
    first = 4 * len(guess) // 5
    return score_kinematics(guess[first:], truth[first : len(guess)], str(day)).r2


def true_kinematics(matched: MatchedRecording) -> np.ndarray:
    """Returns the kinematics (T, K) of a recording at the ends of its bins."""
    behavior, lfp = matched.recording.behavior, matched.lfp
    assert behavior is not None
    frames = np.arange(1, lfp.frames * 100 // lfp.rate + 1) * lfp.rate / 100
    return behavior.sample_at(matched.find_bin_ends(np.ceil(frames.astype(np.float64)).astype(np.int64) - 1)[0])


def measure_day(options: Namespace, rows: dict[str, Make], day: Path) -> dict[str, Result]:
    """Returns R² and seconds of each row on one day."""
    found = {}
    for row, make in rows.items():
        out = options.work / f"{day.stem}-{''.join(c if c.isalnum() else '-' for c in row)}.edge"
        began, made = monotonic(), not out.exists()
        if made:
            make(day, out)
        seconds = monotonic() - began if made else None
        found[row] = {"r2": score_last_fifth(out, day), "seconds": seconds}
        say(f"{day.stem}, {row}: {found[row]}")
    return found


def summarize(days: dict[str, dict[str, Result]]) -> dict[str, Result]:
    """Returns, by row, the mean R² over the days."""
    rows = next(iter(days.values()))
    return {row: {"mean_r2": float(np.mean([day[row]["r2"] for day in days.values()]))} for row in rows}


def show(result: Result) -> None:
    days = list(result["days"])
    table = Table("row", "mean R²", *days, title=f"R² on the last fifth of later days, {result['preset']}")
    for row, found in result["rows"].items():
        table.add_row(row, f"{found['mean_r2']:.3f}", *(f"{result['days'][day][row]['r2']:.3f}" for day in days))
    Console().print(table)


def parse_options() -> ArgumentParser:
    parser = option_parser(__doc__, RESULTS / "cpu")
    parser.add_argument("data", type=Path, help="folder with recordings of one array")
    parser.add_argument("--trained", type=int, default=3, help="how many of the first recordings the student learns")
    parser.add_argument("--bundle", type=Path, help="built from these recordings, in place of a new student's")
    parser.add_argument("--row", action="append", help="measure this row; may be given several times")
    parser.add_argument("--every", type=int, default=1, help="measure one in so many later days")
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--steps", type=int, help="limits each training")
    parser.add_argument("--work", type=Path, default=Path("build/other-days"))
    return parser


def main() -> None:
    options = parse_options().parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    options.files = sorted(find_session_files([options.data]))
    student = None if options.bundle else train_student(options, options.files[: options.trained])
    bundle = options.bundle or options.work / "bundle.edge"
    if not bundle.exists():
        settings = {"preset": options.preset, "student": student, "work": options.work / "stages"}
        build(BuildOptions("host", (options.files[options.trained - 1],), bundle, **settings))
    rows = list_rows(options, student, bundle)
    days = {day.stem: measure_day(options, rows, day) for day in options.files[options.trained :: options.every]}
    name = f"other-days-{Path(options.preset).stem}"
    result = {**describe_conditions(MODULE), "preset": Path(options.preset).stem, "rows": summarize(days), "days": days}
    write_result(options.out, name, result)
    show(result)


if __name__ == "__main__":
    main()
