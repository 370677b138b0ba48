"""How fast is the C engine, how far from what the core can do, and how much faster than what else could be run?

Goes in: nothing; students have random weights, on which speed does not depend, or with --bundle those of a bundle.
Goes out: tables, gates, `latency.json`. Everything is measured in one process on one core, in turn: each round times
every subject for a while, so that whatever else the machine does meets all of them. Inside a timed region stands
one call, its inputs ready in memory; beside it the same loop around a function that does nothing.

    python -m benchmarks.cpu.latency [--quick] [--bundle NAME.edge] [--out benchmarks/results/cpu]
"""

from __future__ import annotations

import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cpu.c_models import Built, Decoder, build, build_sources, random_model, variants, write_files
from benchmarks.cpu.c_timing import FRAMES_A_BIN, Roofline, Timer, Times
from benchmarks.cpu.latency_tables import show
from benchmarks.harness import RESULTS, conditions, first_line_of, option_parser, say, write_result
from edgedistill.compile.c.library import kernel_sources, model_sources
from edgedistill.config import StudentShape, load_preset
from edgedistill.measure.latency import LatencyUs, time_steps
from edgedistill.measure.work import count_work

CHANNELS, OUTPUTS = 96, 2
VNNI = "avx512"
PRESETS = ("edge", "nano", "paper")
TIMED_PEERS = ("edge", "nano")  # presets with onnxruntime and PyTorch beside them, and with every variant
WARMUP = 100
BINS = 512  # rows of input, used again from the top
WALK = 2**26  # bytes another program reads between two steps: far more than L2
LEVELS = {"L1": 2**14, "L2": 2**20, "L3": 2**24, "DRAM or L3": 2**28}
SCALES = {  # what is varied of the preset edge
    "window": (50, 100, 200, 400, 800, 1600),
    "layers": (1, 2, 4, 8),
    "channels": (16, 32, 64, 96, 128, 256),
}


@dataclass(frozen=True)
class Schedule:
    """How long each subject is timed, in steps."""

    rounds: int = 10
    steps: int = 20000  # of the C engine
    scale_steps: int = 5000
    peer_steps: int = 1000  # of onnxruntime
    torch_steps: int = 200
    windows: int = 10  # of the paper's model
    paced: int = 300

    def a_round(self, total: int) -> int:
        """Its part of `total` steps."""
        return max(1, total // self.rounds)


QUICK = Schedule(rounds=2, steps=1000, scale_steps=200, peer_steps=60, torch_steps=6, windows=2, paced=20)

Turn = Callable[[], Times]  # times a subject for a while


def main() -> None:
    parser = option_parser(__doc__, RESULTS / "cpu")
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps and less, to try this script")
    parser.add_argument("--bundle", type=Path, help="a bundle (folder), measured beside the presets")
    parser.add_argument("--no-peers", action="store_true", help="the C engine alone")
    options = parser.parse_args()
    schedule = QUICK if options.quick else Schedule()
    compiler = first_line_of("gcc", "--version")
    before = conditions("benchmarks.cpu.latency", compiler=compiler, l2_bytes=cache_bytes("LEVEL2"), cores_used=1)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        result = before | measured(Path(folder), schedule, options.bundle, not options.no_peers)
    result |= {"after": {"load": [round(part, 2) for part in os.getloadavg()], "interruptions": interruptions()}}
    result["gates"] = gates(result)
    write_result(options.out, "latency", result)
    show(result)


def cache_bytes(level: str) -> int:
    done = subprocess.run(["getconf", f"{level}_CACHE_SIZE"], capture_output=True, text=True, check=False)
    return int(done.stdout.strip() or 0) if done.returncode == 0 else 0


def interruptions() -> int:
    """How often another program took the core away."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


# ---------------------------------------------------------------- subjects


class Subjects:
    """Compiled students and the loops that time them; names are `what/subject` of the result."""

    def __init__(self, folder: Path, schedule: Schedule) -> None:
        self.folder, self.schedule = folder, schedule
        self.timer = Timer(made(folder / "timer"))
        self.turns: dict[str, Turn] = {}
        self.built: dict[str, Built] = {}
        self.decoders: dict[str, Decoder] = {}
        self.shapes: dict[str, StudentShape] = {}
        self.python: dict[str, tuple[int, Callable[[Any], object], int]] = {}

    def add(self, name: str, shape: StudentShape, ops: str, steps: int, built: Built | None = None) -> str:
        """A student, timed by `ed_step`; returns the name with the variant."""
        key = f"{name}, {ops}"
        say(f"compiling {key}")
        place = made(self.folder / key.replace("/", "-"))
        self.built[key] = built or build(place, random_model(shape), ops)
        self.decoders[key], self.shapes[key] = Decoder(self.built[key]), shape
        bins = random_bins(shape.channels)
        count, decoder = self.schedule.a_round(steps), self.decoders[key]
        self.turns[f"step/{key}"] = lambda: self.timer.steps(decoder, bins, WARMUP + count)[WARMUP:]
        return key

    def add_data(self, key: str) -> None:
        """The same step over other data: its time must not depend on it."""
        decoder, shape = self.decoders[key], self.shapes[key]
        count = self.schedule.a_round(self.schedule.steps // 4)
        bins = random_bins(shape.channels)
        fresh = max(1, min(100, count // 2))
        scaled = {"silence": 0.0, "saturated": 1e4, "denormal": 1e-41}
        others = {name: (scale * bins).astype(np.float32) for name, scale in scaled.items()}
        self.turns[f"data/{key}: full rings"] = lambda: self.timer.steps(decoder, bins, WARMUP + count)[WARMUP:]
        self.turns[f"data/{key}: fresh rings"] = lambda: self.timer.steps(decoder, bins, count, fresh)
        for name, values in others.items():
            self.turns[f"data/{key}: {name}"] = lambda values=values: self.timer.steps(decoder, values, WARMUP + count)[
                WARMUP:
            ]

    def add_push(self, key: str) -> None:
        """`ed_push` of the ten frames of a bin."""
        decoder, channels = self.decoders[key], self.shapes[key].channels
        frames = (25 * np.random.default_rng(1).standard_normal((BINS, FRAMES_A_BIN, channels))).astype(np.float32)
        count = self.schedule.a_round(self.schedule.steps)
        self.turns[f"push/{key}"] = lambda: self.timer.pushes(decoder, frames, WARMUP + count)[WARMUP:]
        self.turns["empty/push"] = lambda: self.timer.pushes(None, frames, count)

    def add_empty(self) -> None:
        """The loop around nothing."""
        bins, count = random_bins(CHANNELS), self.schedule.a_round(self.schedule.steps)
        self.turns["empty/step"] = lambda: self.timer.steps(None, bins, count)

    def add_python(self, name: str, step: Callable[[Any], object], channels: int, steps: int) -> None:
        """A step called from Python."""
        rows, count = random_bins(channels), self.schedule.a_round(steps)
        warmup = min(20, count)
        self.turns[name] = lambda: time_steps({"it": step}, rows, warmup, count)["it"].astype(np.uint64)

    def paced(self, key: str) -> dict[str, Any]:
        """Steps every 10 ms, with caches as the wait leaves them, walked over, or flushed."""
        decoder, count = self.decoders[key], max(1, self.schedule.paced // 5)
        bins, room = random_bins(self.shapes[key].channels), np.ones(WALK // 8, np.uint64)
        ways = {"idle between": (room[:0], False), "64 MiB read between": (room, False), "flushed": (room[:0], True)}
        times: dict[str, list[Times]] = {name: [] for name in ways}
        self.timer.steps(decoder, bins, WARMUP)
        for _ in range(5):
            for name, (other, flushed) in ways.items():
                times[name].append(self.timer.paced(decoder, bins, count, other, flushed))
        return {name: summary(parts) for name, parts in times.items()}


def made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def random_bins(channels: int) -> Any:
    return np.random.default_rng(0).standard_normal((BINS, channels)).astype(np.float32)


def summary(parts: list[Times]) -> dict[str, float]:
    return LatencyUs.from_times(np.concatenate(parts)).to_json()


# ---------------------------------------------------------------- the run


def measured(folder: Path, schedule: Schedule, bundle: Path | None, with_peers: bool) -> dict[str, Any]:
    subjects = Subjects(folder, schedule)
    add_presets(subjects, bundle)
    native = [key for key in subjects.shapes if key.endswith(variants()[0])]
    for key in native:
        subjects.add_push(key)
    subjects.add_data(native[0])
    subjects.add_empty()
    add_scales(subjects)
    if with_peers:
        add_peers(subjects)
    roofline = Roofline(made(folder / "roofline"), cache_bytes("LEVEL2") or 2**20)
    clocks = time.perf_counter(), time.process_time()
    times = run_rounds(subjects, roofline)
    seconds, own = time.perf_counter() - clocks[0], time.process_time() - clocks[1]
    found: dict[str, Any] = {
        "variants": variants(),
        "schedule": vars(schedule),
        "seconds": seconds,
        "core_share": own / seconds,
    }
    for name, parts in times.items():
        what, _, subject = name.partition("/")
        found.setdefault(what, {})[subject] = summary(parts)
    say("paced at 100 Hz")
    found["paced"] = {key: subjects.paced(key) for key in native}
    found["roofline"] = {
        "bytes_per_ns": {name: roofline.bytes_per_ns.get(size) for name, size in LEVELS.items()},
        "multiply_adds_per_ns": roofline.multiply_adds_per_ns,
        "steps": {key: with_ratio(roofline, shape, found, key) for key, shape in subjects.shapes.items()},
    }
    found["sizes"] = {key: sizes(subjects, key) for key in subjects.shapes if key.split(", ")[0] not in SCALES}
    return found


def add_presets(subjects: Subjects, bundle: Path | None) -> None:
    for preset in PRESETS:
        shape = load_preset(preset).student.shape(CHANNELS, OUTPUTS)
        for ops in variants() if preset in TIMED_PEERS else variants()[:1]:
            subjects.add(preset, shape, ops, subjects.schedule.steps if ops == VNNI else subjects.schedule.steps // 4)
    if bundle is not None:
        from edgedistill.bundle import open_bundle
        from edgedistill.bundle.contents import read_decoder_spec
        from edgedistill.compile.model_facts import c_identifier

        opened = open_bundle(bundle)
        spec = read_decoder_spec(opened)
        name, shape = spec.name, spec.shape
        place = made(subjects.folder / "bundle")
        write_files(place, {**kernel_sources(), **model_sources(opened, variants()[0])})
        built = build_sources(place, variants()[0], c_identifier(name), (), ())
        subjects.add(name, shape, variants()[0], subjects.schedule.steps, built)


def add_scales(subjects: Subjects) -> None:
    edge = load_preset("edge").student.shape(CHANNELS, OUTPUTS)
    for what, values in SCALES.items():
        for value in values:
            shape = replace(edge, **{what: value})
            subjects.add(f"{what}, {value}", shape, variants()[0], subjects.schedule.scale_steps)


def add_peers(subjects: Subjects) -> None:
    from peers import eager_step, onnxruntime_steps, paper_window, python_step

    schedule = subjects.schedule
    for preset in TIMED_PEERS:
        key = f"{preset}, {variants()[0]}"
        shape = subjects.shapes[key]
        for name, step in onnxruntime_steps(shape, made(subjects.folder / f"onnx-{preset}")).items():
            subjects.add_python(f"peers/{preset}, {name}", step, CHANNELS, schedule.peer_steps)
        step = python_step(subjects.built[key], shape)
        subjects.add_python(f"peers/{preset}, C engine from Python", step, CHANNELS, schedule.peer_steps)
        subjects.add_python(f"peers/{preset}, PyTorch eager", eager_step(preset, shape), CHANNELS, schedule.torch_steps)
    window = paper_window(CHANNELS, OUTPUTS)
    subjects.add_python("peers/paper, PyTorch, its 5 s window again", window, CHANNELS, schedule.windows)


def run_rounds(subjects: Subjects, roofline: Roofline) -> dict[str, list[Times]]:
    """Every subject once a round."""
    sizes = sorted({*LEVELS.values(), *(count_work(shape).bytes for shape in subjects.shapes.values())})
    times: dict[str, list[Times]] = {name: [] for name in subjects.turns}
    for number in range(subjects.schedule.rounds):
        say(f"round {number + 1} of {subjects.schedule.rounds}")
        roofline.measure(sizes)
        for name, turn in subjects.turns.items():
            times[name].append(turn())
    return times


def with_ratio(roofline: Roofline, shape: StudentShape, found: dict[str, Any], key: str) -> dict[str, float] | None:
    """The floor of a step, and how many times that the median took."""
    floor = roofline.floor_us(shape)
    return floor and floor | {"ratio": found["step"][key]["p50"] / floor["max_us"]}


def sizes(subjects: Subjects, key: str) -> dict[str, int]:
    """Bytes: of a decoder's memory, an exported state, what a step reads, code, constants."""
    info, built = subjects.decoders[key].info, subjects.built[key]
    weights = random_model(subjects.shapes[key]).weight_bytes
    return {"state": info.state_bytes, "exported": info.export_bytes, "weights": weights, **built.sizes}


# ---------------------------------------------------------------- gates


def gates(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What issue and README promise where the CPU has AVX-512 VNNI; `ok` is None where it has not."""
    vnni = VNNI in result["variants"]
    edge, nano = f"edge, {VNNI}", f"nano, {VNNI}"
    step, push = result["step"], result["push"]
    peers = [v["p50"] for n, v in result.get("peers", {}).items() if n.startswith("edge, onnxruntime")]
    figures: dict[str, tuple[float | None, float, bool]] = {  # value, limit, whether it is the least allowed
        "edge: ed_step p50, us": (vnni and step[edge]["p50"], 15.0, False),
        "edge: ed_step p50 over roofline": (vnni and result["roofline"]["steps"][edge]["ratio"], 2.2, False),
        "edge: fastest onnxruntime over ed_step": (
            min(peers) / step[edge]["p50"] if vnni and peers else None,
            14.0,
            True,
        ),
        "edge: ed_push of ten frames p50, us": (vnni and push[edge]["p50"], 40.0, False),
        "nano: ed_step p50, us": (vnni and step[nano]["p50"], 3.0, False),
    }
    return [
        {
            "name": name,
            "value": value or None,
            "limit": limit,
            "ok": ((value >= limit) if least else (value <= limit)) if value else None,
        }
        for name, (value, limit, least) in figures.items()
    ]


if __name__ == "__main__":
    main()
