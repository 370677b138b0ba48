"""Measures the memory of `simulate`, of `build` by the minutes of a session, and of `pretrain` by their number.

A table and `memory.json`, or `memory-KIND.json` with --only, come out. Every command runs in a process of its own, and
the figure is the most memory that its largest process had in use (ru_maxrss), pages of mapped files included. What this
program held when it started the command counts too, which is less than any command takes:

  simulate       one session of --minutes and --channels, by `edgedistill simulate`
  build M min    `build --preset nano --steps 20` on one session of --channels, of a quarter of --minutes and of all
  pretrain N     `pretrain --preset nano --steps 2` on 10 sessions and on --sessions, of two minutes each

The sessions of `build` and `pretrain` are noise of which a part follows the movement, with spikes that do. Those of
`pretrain` are one file under other identities, the first ten with behavior and the others without.

    python -m benchmarks.cpu.memory [--minutes 60] [--channels 96] [--sessions 300] [--only build] [--whole] [--out DIR]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np

from benchmarks.harness import RESULTS, describe_conditions, option_parser, say, show_subjects, write_result

MODULE = "benchmarks.cpu.memory"
KINDS = ("simulate", "build", "pretrain")
RATE, BINS_PER_S = 1000, 100
UNITS = 64
FEW_SESSIONS, SHORT_MINUTES, FEW_CHANNELS = 10, 2.2, 4
MOST_MB = 2000.0  # of a build of an hour
MOST_GROWTH = 1.2  # of a pretraining, from few sessions to many
START = datetime(2024, 1, 1, tzinfo=timezone.utc)
SERIES = "processing/ecephys/LFP/lfp/data"


def main() -> None:
    parser = option_parser(__doc__, RESULTS / "cpu")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--channels", type=int, default=96)
    parser.add_argument("--sessions", type=int, default=300)
    parser.add_argument("--only", choices=KINDS, action="append", help="one kind; repeat for several [all]")
    parser.add_argument("--whole", action="store_true", help="leave out the build of a quarter of --minutes")
    options = parser.parse_args()
    kinds, subjects = options.only or KINDS, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "simulate" in kinds:
            wanted = ["--minutes", f"{options.minutes:g}", "--channels", str(options.channels), "--sessions", "1"]
            subjects[f"simulate {options.minutes:g} min"] = measure(["simulate", "--out", str(folder / "sim"), *wanted])
            shutil.rmtree(folder / "sim")
        lengths = (options.minutes,) if options.whole else (options.minutes / 4, options.minutes)
        for minutes in lengths if "build" in kinds else ():
            session = write_session(folder / "one.nwb", minutes, options.channels)
            subjects[f"build {minutes:g} min"] = measure(["build", *list_build_options(session, folder)])
            shutil.rmtree(folder / "one.work")
        if "pretrain" in kinds:
            for count in (FEW_SESSIONS, options.sessions):
                sessions = write_sessions(folder / f"many{count}", count)
                wanted = ["--preset", "nano", "--steps", "2", "--out", str(folder / f"teacher{count}")]
                subjects[f"pretrain {count} sessions"] = measure(["pretrain", str(sessions), *wanted])
    result = {
        **describe_conditions(MODULE, cores_used=1),
        "channels": options.channels,
        "subjects": subjects,
        "gates": judge_gates(subjects),
    }
    show_subjects(result, "command", {"peak_mb": "peak MB", "seconds": "took s", "cpu_s": "CPU s"})
    write_result(options.out, "-".join(["memory", *(options.only or ())]), result)


def list_build_options(session: Path, folder: Path) -> list[str]:
    """Returns the options of a short build."""
    wanted = ["--target", "host", "--preset", "nano", "--steps", "20", "--data", str(session)]
    return [*wanted, "--out", str(folder / "one.edge"), "--work", str(folder / "one.work")]


def measure(arguments: list[str]) -> dict[str, float]:
    """Runs a command of edgedistill, and returns the most memory that one of its processes had in use."""
    say("edgedistill " + " ".join(arguments))
    start = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen([sys.executable, "-m", "edgedistill", *arguments], env=environment)
    _, status, used = os.wait4(run.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, 3):  # 3: a gate was missed, as after so few steps
        raise SystemExit(f"edgedistill {arguments[0]} ended with {code}")
    seconds = time.perf_counter() - start
    return {"peak_mb": used.ru_maxrss / 1024, "seconds": seconds, "cpu_s": used.ru_utime + used.ru_stime}


def judge_gates(subjects: dict[str, dict[str, float]]) -> list[dict[str, object]]:
    """Returns whether memory stays below its limits."""
    gates: list[dict[str, object]] = []
    for name, figures in subjects.items():
        if name.startswith("build"):
            value = figures["peak_mb"]
            gates.append({"name": f"{name}: peak MB", "value": value, "limit": MOST_MB, "ok": value < MOST_MB})
    many = [figures["peak_mb"] for name, figures in subjects.items() if name.startswith("pretrain")]
    if len(many) == 2:
        grown = many[1] / many[0]
        gates.append({"name": "pretrain: growth", "value": grown, "limit": MOST_GROWTH, "ok": grown < MOST_GROWTH})
    return gates


# ------------------------------------------------------------------------------------------- the sessions


def write_session(path: Path, minutes: float, channels: int) -> Path:
    """Writes a session of LFP in int16, UNITS units and a velocity, a minute at a time."""
    import h5py
    from pynwb import NWBHDF5IO, H5DataIO, NWBFile, TimeSeries, ecephys
    from pynwb.behavior import BehavioralTimeSeries
    from scipy.signal import lfilter

    rng = np.random.default_rng(0)
    bins = round(minutes * 60 * BINS_PER_S)
    velocity = lfilter([1], [1, -0.99], rng.normal(size=(bins, 2)), axis=0)
    nwb = NWBFile("memory benchmark", "benchmark-0", START, session_id="benchmark-0")
    group = nwb.create_electrode_group("array", "electrodes", "motor cortex", nwb.create_device("array"))
    for _ in range(channels):
        nwb.add_electrode(group=group, location="motor cortex")
    container, frames = ecephys.LFP(), bins * RATE // BINS_PER_S
    nwb.create_processing_module("ecephys", "LFP").add(container)
    container.add_electrical_series(
        ecephys.ElectricalSeries(
            name="lfp",
            data=H5DataIO(shape=(frames, channels), dtype=np.dtype(np.int16), chunks=(4096, channels)),
            electrodes=nwb.create_electrode_table_region(list(range(channels)), "all"),
            rate=float(RATE),
            conversion=1e-7,
        )
    )
    for weights in rng.normal(0, 0.05, (UNITS, 2)):
        spikes = rng.poisson(np.minimum(np.exp(1.5 + velocity @ weights) / BINS_PER_S, 1))
        at = np.repeat(np.arange(bins), spikes)
        nwb.add_unit(spike_times=np.sort(at + rng.random(len(at))) / BINS_PER_S)
    series = TimeSeries(name="cursor_vel", data=velocity, rate=float(BINS_PER_S), unit="cm/s", description="(x, y)")
    nwb.create_processing_module("behavior", "cursor").add(BehavioralTimeSeries(time_series=series, name="Velocity"))
    with NWBHDF5IO(path, "w") as io:
        io.write(nwb)
    step = 60 * BINS_PER_S
    noise = lfilter([1], [1, -0.95], rng.normal(0, 60, (10 * step, channels)), axis=0)
    pattern = 40 * rng.normal(size=(2, channels))
    with h5py.File(path, "r+") as file:
        for first in range(0, bins, step):
            moved = np.repeat(velocity[first : first + step], RATE // BINS_PER_S, axis=0)
            rolled = np.roll(noise, int(rng.integers(len(noise))), axis=0)[: len(moved)]
            file[SERIES][10 * first : 10 * first + len(moved)] = np.rint(rolled + moved @ pattern).astype(np.int16)
    return path


def write_sessions(folder: Path, count: int) -> Path:
    """Writes so many short sessions: one recording, each time under another identity and a day later.

    The first FEW_SESSIONS have a behavior. A probe of the teacher on each of hundreds would take an hour.
    """
    import h5py

    folder.mkdir()
    first = write_session(folder / "session_000.nwb", SHORT_MINUTES, FEW_CHANNELS)
    for number in range(1, count):
        path = folder / f"session_{number:03d}.nwb"
        shutil.copy(first, path)
        with h5py.File(path, "r+") as file:
            file["identifier"][()] = f"benchmark-{number}"
            file["general/session_id"][()] = f"benchmark-{number}"
            file["session_start_time"][()] = (START + timedelta(days=number)).isoformat()
            if number >= FEW_SESSIONS:
                del file["processing/behavior"]
    return folder


if __name__ == "__main__":
    main()
