"""Measures how fast the front end is, and in how much memory it filters an NWB file, on one core.

A file with minutes of 96 channels at 24414.0625 Hz (int16, chunked) is written to a temporary folder first. A table and
`frontend.json` come out. Each measurement is a process of its own, bound to one core with one thread:

  stream    opens the file, reads it in blocks of a second and calls `FrontEnd.push`; reading is part of the time
  baseline  decimates and filters a whole array in memory, by plain scipy with the same sections
  kilohertz calls `FrontEnd.push` at 1 kHz with 32 channels in memory

The file was just written, so it is read from the page cache and not from a disk.

    python -m benchmarks.cpu.frontend [--minutes 10] [--out benchmarks/results/cpu]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from scipy.signal import sosfilt

from benchmarks.harness import (
    RESULTS,
    describe_conditions,
    option_parser,
    read_peak_mb,
    run_isolated,
    show_subjects,
    write_result,
)
from edgedistill.frontend import FrontEnd, FrontEndConfig, filter_sections, group_delay_ms, settling_bins

RATE, CHANNELS = Fraction(390625, 16), 96
UV_PER_COUNT = 0.25
LEAST_SPEED, MOST_MB = 20.0, 600.0  # the gates: times real time, peak memory
MODULE = "benchmarks.cpu.frontend"
BASELINE_S = 20  # ten minutes as float64 would be 11 GB

Figures = dict[str, float]


def main() -> None:
    parser = option_parser(__doc__, RESULTS / "cpu")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--measure", choices=sorted(SUBJECTS), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps({**SUBJECTS[options.measure](options.file), "peak_mb": read_peak_mb()}))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "session.nwb"
        write_recording(file, options.minutes)
        file_mb = file.stat().st_size / 1e6
        core = max(os.sched_getaffinity(0))
        subjects = {
            name: run_isolated(MODULE, ["--measure", name, "--file", str(file)], core=core) for name in SUBJECTS
        }
    result = {
        **describe_conditions(MODULE, cores_used=1),
        **describe_settings(),
        "file_mb": file_mb,
        "subjects": subjects,
        "gates": judge_gates(subjects["stream"]),
    }
    show(result)
    write_result(options.out, "frontend", result)


# ------------------------------------------------------------------------------------------- the recording


def write_recording(file: Path, minutes: float) -> None:
    """Writes NWB with int16 LFP and its conversion to volts. It is drifting noise with hum and a dead channel."""
    import h5py
    from pynwb import NWBHDF5IO, H5DataIO, NWBFile
    from pynwb.ecephys import LFP, ElectricalSeries

    frames = int(minutes * 60 * RATE)
    start = datetime(2020, 1, 1, tzinfo=timezone.utc)
    nwb = NWBFile("front-end benchmark", "benchmark", start, session_id="benchmark")
    group = nwb.create_electrode_group("array", "96 electrodes", "motor cortex", nwb.create_device("array"))
    for _ in range(CHANNELS):
        nwb.add_electrode(group=group, location="motor cortex")
    lfp = LFP()
    # The container is added before its series, because pynwb would lose the electrode table otherwise.
    nwb.create_processing_module("ecephys", "LFP").add(lfp)
    series = ElectricalSeries(
        name="ElectricalSeries",
        data=H5DataIO(shape=(frames, CHANNELS), dtype=np.dtype(np.int16), chunks=(4096, CHANNELS)),
        electrodes=nwb.create_electrode_table_region(list(range(CHANNELS)), "all"),
        rate=float(RATE),
        conversion=UV_PER_COUNT * 1e-6,
    )
    lfp.add_electrical_series(series)
    with NWBHDF5IO(file, "w") as io:
        io.write(nwb)
    with h5py.File(file, "r+") as opened:
        data = opened["processing/ecephys/LFP/ElectricalSeries/data"]
        block = make_frames(RATE, CHANNELS, seconds=10, seed=0)
        counts = np.round(block / UV_PER_COUNT).astype(np.int16)
        for first in range(0, frames, len(counts)):
            data[first : first + len(counts)] = counts[: frames - first]


def make_frames(rate: Fraction, channels: int, seconds: int, seed: int) -> np.ndarray:
    """Returns frames (n, C) float32 in uV."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * rate), dtype=np.float32) / np.float32(rate)
    frames = rng.standard_normal((len(t), channels), dtype=np.float32)
    frames *= 20
    frames += (10 * np.sin(2 * np.pi * 60 * t) + 80 * np.sin(2 * np.pi * 1.3 * t))[:, None]
    frames[:, -1] = 0
    return frames


# -------------------------------------------------------------------------------------------- the subjects


def measure_stream(file: Path) -> Figures:
    """Measures the whole file, read as `edgedistill run` reads it."""
    from edgedistill.data.lfp.lfp import Gap
    from edgedistill.data.recording import open_recording

    reading = filtering = 0.0
    bins = 0
    with open_recording(file) as recording:
        lfp = recording.lfp
        assert lfp is not None
        front = FrontEnd(FrontEndConfig(lfp.rate, lfp.channels))
        begin, mark = read_clocks(), time.perf_counter()
        for block in lfp.read_blocks(int(lfp.rate)):
            assert not isinstance(block, Gap)
            read = time.perf_counter()
            bins += len(front.push(block).values)
            reading, filtering, mark = (
                reading + read - mark,
                filtering + time.perf_counter() - read,
                time.perf_counter(),
            )
        figures = compute_speed(lfp.duration_s, begin, bins)
    return figures | {"reading_s": reading, "front_end_s": filtering}


def measure_baseline(file: Path) -> Figures:
    """Measures the arithmetic alone in scipy, without channel rules, blocks or reading."""
    config = FrontEndConfig(RATE, CHANNELS)
    decimator, shaper = filter_sections(config)
    frames = np.ascontiguousarray(make_frames(RATE, CHANNELS, BASELINE_S, seed=0).T, dtype=np.float64)
    begin = read_clocks()
    kept = sosfilt(decimator, frames)[:, :: config.decimation]
    out = sosfilt(shaper, kept)
    return compute_speed(BASELINE_S, begin, out.shape[1] // 10)


def measure_kilohertz(file: Path) -> Figures:
    """Measures ten minutes at 1 kHz with 32 channels, which lie in memory."""
    rate, channels, length = Fraction(1000), 32, 600
    frames = make_frames(rate, channels, length, seed=0)
    front = FrontEnd(FrontEndConfig(rate, channels))
    begin = read_clocks()
    return compute_speed(length, begin, len(front.push(frames).values))


SUBJECTS: dict[str, Callable[[Path], Figures]] = {
    "stream": measure_stream,
    "baseline": measure_baseline,
    "kilohertz": measure_kilohertz,
}


def read_clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def compute_speed(length_s: float, begin: tuple[float, float], bins: int) -> Figures:
    """Returns the figures since `begin`, which `read_clocks` gave.

    `cpu_s` below `seconds` tells a busy machine from a slow program.
    """
    seconds, cpu_s = (now - then for now, then in zip(read_clocks(), begin, strict=True))
    figures = {"signal_s": length_s, "seconds": seconds, "times_real_time": length_s / seconds, "bins": bins}
    return figures | {"cpu_s": cpu_s, "times_real_time_by_cpu": length_s / cpu_s}


# ---------------------------------------------------------------------------------------------- the result


def describe_settings() -> dict[str, object]:
    """Returns the front end that was measured: its configuration, sections, delays and settling time."""
    config = FrontEndConfig(RATE, CHANNELS)
    return {
        "config": config.to_json(),
        "sections": [len(sections) for sections in filter_sections(config)],
        "group_delay_ms": {f"{hz:g} Hz": group_delay_ms(config, hz) for hz in (2.0, 5.0, 10.0, 20.0, 40.0)},
        "settling_bins": settling_bins(config),
    }


def judge_gates(stream: Figures) -> list[dict[str, object]]:
    faster, smaller = stream["times_real_time"], stream["peak_mb"]
    return [
        {"name": "times real time", "value": faster, "limit": LEAST_SPEED, "ok": faster >= LEAST_SPEED},
        {"name": "peak MB", "value": smaller, "limit": MOST_MB, "ok": smaller < MOST_MB},
    ]


def show(result: dict[str, Any]) -> None:
    columns = {
        "signal_s": "signal s",
        "seconds": "took s",
        "times_real_time": "x real time",
        "times_real_time_by_cpu": "x by CPU time",
        "peak_mb": "peak MB",
    }
    show_subjects(result, "subject", columns)


if __name__ == "__main__":
    main()
