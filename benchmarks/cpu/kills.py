"""Kills build, compile, run and adapt at random moments, and asks what is left and what the same command makes of it.

A command runs in a process of its own. It dies without a chance to tidy up: after a random time of the processor, after
a random time of the clock, or right before a random call that changes a file or folder, all drawn from a seed. What
counts as found: a result that is not the old one or the whole new one, a command that afterwards fails or ends with
other bytes than an undisturbed run, and anything hidden that the undisturbed run leaves behind. Measured times, on
which gates are judged, differ from run to run. The models have a few hundred weights and the measures are short, so
that a kill costs seconds, and one process does all of a build; with `--whole` all is as a user builds with the preset
nano. The result is written to `kills.json`, and the exit code is 1 if anything was found.

    python -m benchmarks.cpu.kills [--kills 100] [--seconds 3600] [--seed 0] [--whole]
        [--data DATA] [--preset P] [--target T] [--bundle B]
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.cpu.small_builds import quick_measures, write_preset, write_quick_host
from benchmarks.harness import RESULTS, describe_conditions, option_parser, write_result
from edgedistill.bundle import open_bundle
from edgedistill.cli import main as command_line
from edgedistill.errors import EdgeDistillError
from edgedistill.staging import LEFTOVER

SHARES = {"build": 4, "compile": 2, "run": 2, "adapt": 2}  # of ten kills
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.copytree")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
TIMERS = {
    "processor": (signal.ITIMER_PROF, signal.SIGPROF),
    "clock": (signal.ITIMER_REAL, signal.SIGALRM),
}
KINDS = ("change", *TIMERS)
DONE = (0, 3)  # exit codes: done, and done with a gate that is missed
HEAVY = ("edgedistill.pipeline", "edgedistill.pipeline.adaptation", "edgedistill.bench", "edgedistill.compile.engines")
TIMED = ("gates", "sha256", "metrics")  # keys of a manifest that hold measured times, or depend on them
OLD = "the old result\n"


@dataclass(frozen=True)
class Task:
    """Describes a command, and what it writes in a folder."""

    name: str
    words: Callable[[Path], list[object]]  # in a folder -> the words of the command
    prepare: Callable[[Path], object]  # puts into an empty folder what is there before the command
    read: Callable[[Path], object]  # returns what the command has written, None where nothing was


@dataclass
class Moment:
    """Says when a process dies: after so many seconds of the processor or of the clock, or before a change."""

    kind: str | None = None  # one of KINDS; None: it lives to its end
    at: float = 0.0
    counted: int = field(default=0, init=False)  # changes of a file or folder

    def arm(self) -> None:
        """Lets this process die at that moment."""
        sys.addaudithook(self._count)
        if self.kind in TIMERS:
            timer, number = TIMERS[self.kind]
            signal.signal(number, signal.SIG_DFL)  # which ends a process as SIGKILL does
            signal.setitimer(timer, self.at)

    def _count(self, event: str, arguments: tuple[object, ...]) -> None:
        if event in CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES):
            self.counted += 1
            if self.kind == "change" and self.counted == self.at:
                os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class End:
    """Says how a process ended, and what it had used until then."""

    code: int | None  # None where it was killed
    used: dict[str, float]  # by kind of moment
    text: str


def main() -> None:
    parser = option_parser(__doc__, RESULTS / "cpu")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument(
        "--seconds", type=float, default=3600, help="of the kills, which share it as they share --kills"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="sessions of three days, simulated where it is left out")
    parser.add_argument("--whole", action="store_true", help="the preset nano and all measures, which takes hours")
    parser.add_argument("--preset", type=Path, help="another preset")
    parser.add_argument("--target", type=Path, help="another target")
    parser.add_argument(
        "--bundle", type=Path, help="a bundle of these sessions, so that none has to be built and killed"
    )
    options = parser.parse_args()
    for module in HEAVY:  # before the processes fork, so that each of them need not import it
        importlib.import_module(module)
    with tempfile.TemporaryDirectory() as folder, nullcontext() if options.whole else quick_measures():
        options.preset = options.preset or ("nano" if options.whole else write_preset(Path(folder, "tiny.toml")))
        options.target = options.target or ("host" if options.whole else write_quick_host(Path(folder, "host.toml")))
        result = kill_all(options, Path(folder))
    write_result(options.out, "kills", {**describe_conditions("benchmarks.cpu.kills"), **result})
    print(json.dumps(result, indent=1))
    sys.exit(bool(result["found"]))


def kill_all(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Kills every command as often as its share says, and returns what was found."""
    began, rng = time.monotonic(), np.random.default_rng(options.seed)
    data = options.data or simulate(folder)
    whole = folder / "whole"
    whole.mkdir()
    kills: Counter[str] = Counter()
    how: Counter[str] = Counter()
    found: list[dict[str, object]] = []
    deadline, chosen = began, tasks(options, data, whole)
    for task in chosen:
        share = SHARES[task.name] / sum(SHARES[one.name] for one in chosen)
        deadline += share * options.seconds
        trial = Trial(folder, whole, rng, deadline, kills, how, found)
        kill_task(task, round(share * options.kills), trial)
    seconds = round(time.monotonic() - began, 1)
    return {"seed": options.seed, "kills": dict(kills), "how": dict(how), "seconds": seconds, "found": found}


@dataclass(frozen=True)
class Trial:
    """Holds where commands are killed, and what has been counted."""

    folder: Path
    whole: Path  # where the undisturbed results lie
    rng: np.random.Generator
    deadline: float
    kills: Counter[str]  # by command
    how: Counter[str]
    found: list[dict[str, object]]

    def note(self, task: Task, moment: Moment | None, fault: object) -> None:
        """Lists a fault, with the moment of the kill that it came after."""
        when = None if moment is None else f"{moment.kind} {moment.at}"
        self.found.append({"command": task.name, "moment": when, "fault": str(fault)[-1500:]})


def kill_task(task: Task, kills: int, trial: Trial) -> None:
    """Kills one command so often, in rounds from an empty folder until it gets through."""
    task.prepare(trial.whole)
    first = run(task, trial.whole, Moment(), trial.folder / "log")
    expected = task.read(trial.whole)
    if first.code not in DONE or expected is None:
        raise RuntimeError(f"the undisturbed {task.name} failed: {first.text}")
    place = trial.folder / "killed"
    done = 0
    while done < kills and time.monotonic() < trial.deadline:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        task.prepare(place)
        before, end = task.read(place), None
        while end is None and done < kills:
            moment = draw_moment(trial.rng, first)
            ended = run(task, place, moment, trial.folder / "log")
            if ended.code is None:
                done += 1
                trial.kills[task.name] += 1
                trial.how[str(moment.kind)] += 1
            else:
                end = ended
            try:
                left = task.read(place)
                if left not in (before, expected):
                    trial.note(task, moment, f"left neither the old result nor the new one: {compare(left, expected)}")
            except EdgeDistillError as error:
                trial.note(task, moment, error)
        again = end or run(task, place, Moment(), trial.folder / "log")  # one that got through was not disturbed
        if again.code not in DONE:
            trial.note(task, None, f"fails afterwards: {again.text}")
        elif (left := task.read(place)) != expected:
            trial.note(task, None, f"other bytes afterwards: {compare(left, expected)}")
        if stray := [str(path) for path in place.rglob("*") if is_stray(path)]:
            trial.note(task, None, f"left behind: {stray}")


def draw_moment(rng: np.random.Generator, whole: End) -> Moment:
    """Returns a moment of the undisturbed run. What earlier runs have kept makes a run shorter, so some get through."""
    kind = KINDS[rng.integers(len(KINDS))]
    at = rng.uniform(0, whole.used[kind])
    return Moment(kind, 1 + int(at) if kind == "change" else max(0.001, at))


def run(task: Task, folder: Path, moment: Moment, log: Path) -> End:
    """Runs a command in a process of its own until that moment. What it has started dies with it."""
    (reader, writer), began = os.pipe(), time.monotonic()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setsid()
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(output, 1)
            os.dup2(output, 2)
            moment.arm()
            words = [str(word) for word in task.words(folder)]
            command_line.main(words, prog_name="edgedistill")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        finally:
            os.write(writer, f"{moment.counted} {time.process_time()}".encode())
            sys.stderr.flush()
            os._exit(code)
    os.close(writer)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    changes, processor = (float(number) for number in (os.read(reader, 100) or b"0 0").split())
    os.close(reader)
    used = {"change": changes, "processor": processor, "clock": time.monotonic() - began}
    print(f"{task.name} {moment} ended with {code}: {used}", file=sys.stderr, flush=True)
    return End(code if code >= 0 else None, used, log.read_text(errors="replace")[-1500:])


def is_stray(path: Path) -> bool:
    """Tells whether a path is what a killed process leaves. The cache keeps hidden folders by the bundle's hash."""
    return bool(LEFTOVER.fullmatch(path.name) or path.name.endswith(".lock")) and path.parent.parent.name != "cache"


def compare(left: object, expected: object) -> object:
    """Returns in what a result differs from what was expected."""
    if not isinstance(left, dict) or not isinstance(expected, dict):
        return left if left is None or (isinstance(left, str) and len(left) < 100) else "other content"
    return sorted(str(key) for key in left.keys() | expected.keys() if left.get(key) != expected.get(key))


# ---------------------------------------------------------------- the commands


def simulate(folder: Path) -> Path:
    """Returns a folder with sessions of three days of one small array."""
    from edgedistill.data.simulation.nwb import simulate_to_nwb
    from edgedistill.data.simulation.sessions import SimulationConfig

    small = SimulationConfig(sessions=3, minutes=2.2, channels=4, units=10, population=40, rate_hz=500)
    list(simulate_to_nwb(small, folder / "data"))
    return folder / "data"


def tasks(options: argparse.Namespace, data: Path, whole: Path) -> list[Task]:
    """Returns the commands. Those after `build` use the bundle of its undisturbed run."""
    *earlier, last = sorted(data.glob("*.nwb"))
    made = (options.bundle or whole / "a.edge").resolve()
    target = ("--target", options.target)

    def build(at: Path) -> list[object]:
        words = ["build", *target, "--preset", options.preset, "--steps", 6, "--out", at / "a.edge"]
        words += [word for path in earlier for word in ("--data", path)]
        return [*words, "--cache", at / "cache", *(() if options.whole else ("--jobs", 1))]

    def adapt(at: Path) -> list[object]:
        return ["adapt", made, last, "--to", 60, *target, "--out", at / "b.edge", "--cache", at / "cache"]

    def copy(at: Path) -> None:
        shutil.copytree(made, at / "c.edge", ignore=shutil.ignore_patterns("build"))

    found = [
        Task("build", build, lambda at: None, lambda at: read_bundle(at / "a.edge")),
        Task("compile", lambda at: ["compile", at / "c.edge", *target, "--cache", at / "cache"], copy, read_build),
        Task(
            "run",
            lambda at: ["run", made, last, "--out", at / "out.csv", "--cache", whole / "cache"],
            lambda at: (at / "out.csv").write_text(OLD),
            lambda at: (at / "out.csv").read_text(),
        ),
        Task("adapt", adapt, lambda at: None, lambda at: read_bundle(at / "b.edge")),
    ]
    return found if options.bundle is None else found[1:]


def read_bundle(path: Path) -> dict[str, object] | None:
    """Returns what a bundle says and holds, without measured times. Raises EdgeDistillError unless it is whole."""
    if not os.path.lexists(path):
        return None
    bundle = open_bundle(path)
    manifest = json.loads((path / "manifest.json").read_text())
    if not manifest["gates"]:
        raise EdgeDistillError(f"{path}: a bundle whose gates were not judged")
    built = sorted(file.name for file in (path / "build").rglob("*"))
    kept = {name: value for name, value in manifest.items() if name not in TIMED}
    return {**kept, "gate names": [gate["name"] for gate in manifest["gates"]], "build": built, "names": bundle.names}


def read_build(at: Path) -> dict[str, object] | None:
    """Returns the files of what was compiled into a bundle."""
    folder = at / "c.edge" / "build"
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    found: dict[str, object] = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if not any(LEFTOVER.fullmatch(part) for part in path.parts)
    }
    return found or None


if __name__ == "__main__":
    main()
