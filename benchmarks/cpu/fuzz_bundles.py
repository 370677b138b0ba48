"""Fuzzes bundles: changes a bundle in its manifest, its files or its archive, signs it again, and uses it.

A stranger can sign a bundle that says anything. Every change is drawn from a seed. `inspect`, `run` on each engine of
the runtime, `run` to an NWB file, `bench` with `report`, and the holdout are then tried in one process. Each must end
with a result or a message. What is counted as found: a traceback, more than 20 s of the processor or 5 minutes, more
than 1 GB of memory, and any change outside the bundle. The result is written to `fuzz_bundles.json`, and the exit code
is 1 if anything was found.

    python -m benchmarks.cpu.fuzz_bundles BUNDLE [--seconds 3600 | --cases N] [--seed 0] [--only CASE]
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
from click.testing import CliRunner

from benchmarks.cpu.bundle_changes import CHANGES, Case
from benchmarks.harness import RESULTS, describe_conditions, option_parser, write_result
from edgedistill.bundle import open_bundle
from edgedistill.bundle.contents import read_holdout, read_range_table, read_reference, read_ridge
from edgedistill.cli import main as command_line
from edgedistill.errors import EdgeDistillError
from edgedistill.runtime import Decoder

ENGINES = ("oracle", "onnxruntime", "onnxruntime-int8")
TURNS = 6
QUICK = ("--steps", "5", "--closed-loop", "0", "--against", "spike-student-int8", "--engine", "onnxruntime-int8")
MOST_SECONDS, MOST_GROWTH = 20, 10**9


class TooSlow(BaseException):
    """A case took too long. It is no Exception, so that nobody catches it."""


def main() -> None:
    parser = option_parser(__doc__, RESULTS / "cpu")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--cases", type=int, help="so many, however long they take")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one case, with what it found")
    options = parser.parse_args()
    for each in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(each, _stop)
    original, began, number = options.bundle.resolve(), time.monotonic(), 0
    found: list[dict[str, object]] = []
    kinds: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for turn in range(TURNS):
            use(original, turn)  # whose memory is that of every case
        least = peak_bytes()
        while options.only is not None or (
            number < options.cases if options.cases is not None else time.monotonic() - began < options.seconds
        ):
            number = number if options.only is None else options.only
            place = Path(folder, "sandbox")
            place.mkdir()
            case = Case(original, place, np.random.default_rng([options.seed, number]))
            fault = try_case(case, least)
            kinds[case.kind] += 1
            if fault is not None:
                found.append({"case": number, "kind": case.kind, "what": case.told, "fault": fault})
            shutil.rmtree(place)
            number += 1
            if options.only is not None or len(found) >= 20:
                break
    result = {
        **describe_conditions("benchmarks.cpu.fuzz_bundles"),
        "seed": options.seed,
        "cases": number,
        "seconds": round(time.monotonic() - began, 1),
        "kinds": dict(sorted(kinds.items())),
        "peak_growth_mb": round((peak_bytes() - least) / 1e6, 1),
        "found": found,
    }
    write_result(options.out, "fuzz_bundles", result)
    print(json.dumps({name: value for name, value in result.items() if name != "device"}, indent=1))
    sys.exit(bool(found))


def try_case(case: Case, least: int) -> str | None:
    """Makes a changed bundle and uses it. Returns what went wrong, or None."""
    path = CHANGES[case.kind](case)
    before = list_outside(case.place, path)
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    signal.alarm(15 * MOST_SECONDS)
    try:
        use(path, int(case.rng.integers(TURNS)))
    except TooSlow:
        return f"too slow: {traceback.format_exc()[-1500:]}"
    except Exception:
        return traceback.format_exc()[-1500:]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
    if (grown := peak_bytes() - least) > MOST_GROWTH:
        return f"{grown / 1e6:.0f} MB more memory"
    if list_outside(case.place, path) != before:
        return "files outside the bundle have changed"
    return None


def use(path: Path, turn: int) -> None:
    """Does with a bundle what a person does, on an engine of this `turn`. Raises whatever is no message."""
    frames = np.random.default_rng(0).normal(0, 50, (100, 12)).astype("<f4").tobytes()
    call("inspect", path, *(("--json",) if turn % 2 else ()))
    call("run", path, "-", "--engine", ENGINES[turn % len(ENGINES)], stdin=frames)
    if turn == TURNS - 1:
        call("run", path, "-", "--engine", "onnxruntime", "--out", "out.nwb", stdin=frames)
    if turn == TURNS - 2:
        call("bench", path, *QUICK, "--out", "bench.json")
        call("report", "bench.json", "--out", "page.html")
    with suppress(EdgeDistillError):
        bundle = open_bundle(path)
        for read in (
            read_holdout,
            read_reference,
            read_range_table,
            lambda b: read_ridge(b, Decoder(b, "oracle").shape),
        ):
            with suppress(EdgeDistillError):
                read(bundle)


def call(*words: object, stdin: bytes | None = None) -> None:
    """Runs a command. Raises what the command line would have shown as a traceback."""
    result = CliRunner().invoke(command_line, [str(word) for word in words], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    if "\x1b" in result.stdout or "\x1b" in result.stderr:
        raise AssertionError(f"{words[0]} printed a control character")


def list_outside(place: Path, bundle: Path) -> list[tuple[str, int]]:
    """Returns the files of a folder that are not the bundle, with the time of their last change."""
    return sorted(
        (str(path), path.lstat().st_mtime_ns)
        for path in place.rglob("*")
        if bundle not in (path, *path.parents) and not path.is_dir()
    )


def peak_bytes() -> int:
    """Returns the most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _stop(number: int, frame: object) -> None:
    raise TooSlow


if __name__ == "__main__":
    main()
