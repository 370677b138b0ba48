"""Measures how fast a session is read and binned, and in how much memory, whatever its chunks are, on one core.

Files of 96 channels at 30 kHz (int16) are written to a temporary folder, one after another. A table and `reading.json`
come out. Each file is read and binned by `edgedistill.data.bins` in a process of its own, bound to one core with one
thread:

  rows           chunks of 4096 frames of all channels, compressed (gzip)
  columns        chunks of 2^20 frames of one channel, compressed
  whole columns  one chunk per channel over the whole session, compressed: sorted by time through a scratch file
  plain          one contiguous array, not compressed

The file was just written, so that as much of it as fits is read from the page cache and not from a disk. The folder
(TMPDIR) needs room for one file, and for its scratch file: 41 GB for an hour.

    python -m benchmarks.cpu.reading [--minutes 60] [--layout rows] [--out benchmarks/results/cpu]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import zlib
from datetime import datetime, timezone
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cpu.frontend import make_frames
from benchmarks.harness import (
    RESULTS,
    describe_conditions,
    option_parser,
    read_peak_mb,
    run_isolated,
    say,
    show_subjects,
    write_result,
)

RATE, CHANNELS = 30_000, 96
UV_PER_COUNT = 0.25
PERIOD_S = 10  # the signal repeats after this time, as only its chunks matter
DISTINCT = 8  # whole columns that differ from each other
GZIP_LEVEL = 4
LEAST_SPEED, MOST_MB = 10.0, 1000.0  # the gates: times real time, peak memory
MODULE = "benchmarks.cpu.reading"
LAYOUTS = ("rows", "columns", "whole columns", "plain")
SERIES = "processing/ecephys/LFP/ElectricalSeries/data"


def main() -> None:
    parser = option_parser(__doc__, RESULTS / "cpu")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--layout", choices=LAYOUTS, action="append", help="one layout; repeat for several [all]")
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.file:
        print(json.dumps(measure_binning(options.file)))
        return
    core = max(os.sched_getaffinity(0))
    subjects = {}
    for layout in options.layout or LAYOUTS:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "session.nwb"
            say(f"writing {options.minutes:g} minutes in {layout}")
            write_recording(file, layout, int(options.minutes * 60 * RATE))
            say(f"reading {file.stat().st_size / 1e9:.2f} GB")
            figures = run_isolated(MODULE, ["--file", str(file)], core=core)
            subjects[layout] = {**figures, "file_mb": file.stat().st_size / 1e6}
    result = {
        **describe_conditions(MODULE, cores_used=1),
        "rate_hz": RATE,
        "channels": CHANNELS,
        "minutes": options.minutes,
        "gzip_level": GZIP_LEVEL,
        "subjects": subjects,
        "gates": [gate for name, figures in subjects.items() for gate in judge_gates(name, figures)],
    }
    show(result)
    write_result(options.out, "reading", result)


# ------------------------------------------------------------------------------------------- the recording


def write_recording(file: Path, layout: str, frames: int) -> None:
    """Writes NWB with int16 LFP in one of LAYOUTS. Compressed chunks are made once and written again and again."""
    import h5py
    from pynwb import NWBHDF5IO, H5DataIO, NWBFile
    from pynwb.ecephys import LFP, ElectricalSeries

    chunks = {"rows": (4096, CHANNELS), "columns": (1 << 20, 1), "whole columns": (frames, 1)}.get(layout)
    how = {} if chunks is None else {"chunks": chunks, "compression": "gzip", "compression_opts": GZIP_LEVEL}
    nwb = NWBFile("reading benchmark", "benchmark", datetime(2020, 1, 1, tzinfo=timezone.utc), session_id="benchmark")
    group = nwb.create_electrode_group("array", "96 electrodes", "motor cortex", nwb.create_device("array"))
    for _ in range(CHANNELS):
        nwb.add_electrode(group=group, location="motor cortex")
    lfp = LFP()
    nwb.create_processing_module("ecephys", "LFP").add(lfp)
    lfp.add_electrical_series(
        ElectricalSeries(
            name="ElectricalSeries",
            data=H5DataIO(shape=(frames, CHANNELS), dtype=np.dtype(np.int16), **how),
            electrodes=nwb.create_electrode_table_region(list(range(CHANNELS)), "all"),
            rate=float(RATE),
            conversion=UV_PER_COUNT * 1e-6,
        )
    )
    with NWBHDF5IO(file, "w") as io:
        io.write(nwb)
    counts = make_counts()
    with h5py.File(file, "r+") as opened:
        data = opened[SERIES]
        if layout == "rows":
            _write_rows(data, counts)
        elif chunks is not None:
            _write_columns(data, counts)
        else:
            for first in range(0, frames, len(counts)):
                data[first : first + len(counts)] = counts[: frames - first]


def make_counts() -> np.ndarray:
    """Returns ten seconds of int16 (n, C): white noise of 20 uV with two slow waves."""
    return np.round(make_frames(Fraction(RATE), CHANNELS, PERIOD_S, seed=0) / UV_PER_COUNT).astype(np.int16)


def _write_rows(data: Any, counts: np.ndarray) -> None:
    rows = data.chunks[0]
    packed = [
        zlib.compress(np.ascontiguousarray(counts[at : at + rows]).tobytes(), GZIP_LEVEL)
        for at in range(0, len(counts) - rows + 1, rows)
    ]
    for i, first in enumerate(range(0, len(data), rows)):
        data.id.write_direct_chunk((first, 0), packed[i % len(packed)])


def _write_columns(data: Any, counts: np.ndarray) -> None:
    rows = data.chunks[0]
    packed = [zlib.compress(np.resize(counts[:, channel], rows).tobytes(), GZIP_LEVEL) for channel in range(DISTINCT)]
    for first in range(0, len(data), rows):
        for channel in range(CHANNELS):
            data.id.write_direct_chunk((first, channel), packed[channel % DISTINCT])


# -------------------------------------------------------------------------------------------- the measurement


def measure_binning(file: Path) -> dict[str, float]:
    """Reads and bins the whole file."""
    from edgedistill.data.bins import bins_from_recording
    from edgedistill.data.recording import open_recording

    wall, cpu = time.perf_counter(), time.process_time()
    with open_recording(file) as recording:
        assert recording.lfp is not None
        signal_s = recording.lfp.duration_s
        opened = time.perf_counter() - wall
        bins = bins_from_recording(recording, need=("lfp",))
    seconds, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "signal_s": signal_s,
        "seconds": seconds,
        "opening_s": opened,
        "times_real_time": signal_s / seconds,
        "cpu_s": cpu_s,
        "times_real_time_by_cpu": signal_s / cpu_s,
        "bins": bins.bins,
        "peak_mb": read_peak_mb(),
    }


def judge_gates(name: str, figures: dict[str, float]) -> list[dict[str, object]]:
    faster, smaller = figures["times_real_time"], figures["peak_mb"]
    return [
        {"name": f"{name}: times real time", "value": faster, "limit": LEAST_SPEED, "ok": faster >= LEAST_SPEED},
        {"name": f"{name}: peak MB", "value": smaller, "limit": MOST_MB, "ok": smaller < MOST_MB},
    ]


def show(result: dict[str, Any]) -> None:
    columns = {
        "signal_s": "signal s",
        "seconds": "took s",
        "times_real_time": "x real time",
        "times_real_time_by_cpu": "x by CPU time",
        "peak_mb": "peak MB",
        "file_mb": "file MB",
    }
    show_subjects(result, "layout", columns)


if __name__ == "__main__":
    main()
