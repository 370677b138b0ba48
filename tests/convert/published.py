"""Writes small files in the layouts in which the data sets were published. Arguments say what is odd about them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from scipy.io import savemat

TRUE_HZ = 24414.3378  # by the timestamps; 24414.0625 nominal
BROADBAND = "acquisition/timeseries/broadband"
VOLTS_PER_BIT = 0.5e-6


@dataclass
class Makin:
    """What `write_makin` wrote: the two files, and the values in them."""

    mat: Path
    broadband: Path
    data: np.ndarray
    timestamps: np.ndarray
    t: np.ndarray
    cursor_mm: np.ndarray
    spikes: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)  # by channel and number of the unit


def write_makin(
    folder: Path,
    *,
    name: str = "indy_20160407_02",
    seconds: float = 3.0,
    channels: int = 4,
    rate: float = TRUE_HZ,
    start: float = 10.0,
    step_after: int | None = None,
    step_s: float = 0.4,
    extra: tuple[str, ...] = ("S1 001",),
    fingers: int = 3,
) -> Makin:
    """Writes a session: `channels` of M1 with broadband, and the channels `extra` with units alone."""
    rng = np.random.default_rng(4)
    folder.mkdir(parents=True, exist_ok=True)
    frames = round(seconds * rate)
    timestamps = start + np.arange(frames) / rate
    if step_after is not None:
        timestamps[step_after:] += step_s
    data = rng.integers(-2000, 2000, (frames, channels)).astype(np.int16)
    names = [f"M1 {i + 1:03d}" for i in range(channels)]
    broadband = folder / f"{name}.nwb"
    with h5py.File(broadband, "w") as file:
        file["nwb_version"] = "NWB-1.0.5"
        group = file.create_group(BROADBAND)
        stored = group.create_dataset("data", data=data, chunks=(256, min(channels, 32)), compression="gzip")
        stored.attrs["conversion"] = np.float32(VOLTS_PER_BIT)
        stored.attrs["unit"] = np.bytes_(b"volt")
        group["timestamps"] = timestamps
        group["electrode_names"] = np.array([text.encode() for text in names])
        grid = np.array([(0.4e-3 * (i % 10), 0.4e-3 * (i // 10), 0.0) for i in range(channels)])
        file["general/extracellular_ephys/electrode_map"] = grid
    t = np.arange(start + 0.2, float(timestamps[-1]) - 0.2, 1 / 250)
    cursor = np.stack([80 * np.sin(t), 60 * np.cos(t)])  # mm
    made = Makin(folder / f"{name}.mat", broadband, data, timestamps, t, cursor.T)
    with matlab73(made.mat) as file:
        file["t"], file["cursor_pos"], file["target_pos"] = t[None], cursor, np.sign(cursor) * 50
        file["finger_pos"] = np.concatenate([np.zeros((1, len(t))), -cursor / 10, np.zeros((3, len(t)))])[:fingers]
        for channel in (*names, *extra):
            for unit in range(3):
                n = 0 if unit == 2 and channel != names[0] else 40 + 10 * unit
                times = np.sort(rng.uniform(t[0], t[-1], n))
                if n:
                    made.spikes[channel, unit] = times
        cells = [[made.spikes.get((channel, unit)) for channel in (*names, *extra)] for unit in range(3)]
        store_cells(file, "spikes", cells)
        store_cells(file, "chan_names", [[np.frombuffer(c.encode(), np.uint8) for c in (*names, *extra)]], np.uint16)
    return made


def matlab73(path: Path) -> h5py.File:
    """Opens a new MATLAB 7.3 file: HDF5 after 512 bytes of MATLAB's own, as MATLAB writes it."""
    file = h5py.File(path, "w", userblock_size=512)
    file.close()
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Wed Feb 1 2017".ljust(512, b" "))
    return h5py.File(path, "r+")


def store_cells(file: h5py.File, name: str, cells: list[list[np.ndarray | None]], kind: Any = np.float64) -> None:
    """Stores a cell array as MATLAB does: references to datasets in #refs#, and an empty cell as its shape."""
    refs = file.require_group("#refs#")
    table = np.empty((len(cells), len(cells[0])), dtype=h5py.ref_dtype)
    for i, row in enumerate(cells):
        for j, values in enumerate(row):
            if values is None:
                cell = refs.create_dataset(f"{name}{i}_{j}", data=np.zeros(2, np.uint64))
                cell.attrs["MATLAB_empty"] = np.uint8(1)
            else:
                column = values.astype(kind)
                cell = refs.create_dataset(
                    f"{name}{i}_{j}", data=column[:, None] if kind == np.uint16 else column[None]
                )
            cell.attrs["MATLAB_class"] = np.bytes_(b"char" if kind == np.uint16 else b"double")
            table[i, j] = cell.ref
    file.create_dataset(name, data=table, dtype=h5py.ref_dtype)
    file[name].attrs["MATLAB_class"] = np.bytes_(b"cell")


@dataclass
class FlintTrialData:
    time: np.ndarray
    hand: np.ndarray  # cm
    velocity: np.ndarray  # cm/s
    lfp: list[np.ndarray]  # uV, by neuron
    spikes: list[np.ndarray]


def write_flint(
    path: Path,
    *,
    recordings: int = 1,
    trials: int = 3,
    seconds: float = 2.0,
    pause_s: float = 0.73,
    neurons: int = 4,
    with_lfp: int = 3,
    in_metres: bool = False,
    leave_out: str | None = None,
    clock_begins_anew: bool = False,
) -> list[list[FlintTrialData]]:
    """Writes `Subject(i).Trial(j)` in MATLAB 5, with LFP at 2 kHz for the first neurons. Returns what is in it."""
    rng = np.random.default_rng(9)
    made: list[list[FlintTrialData]] = []
    subjects = []
    for _ in range(recordings):
        begin, rows, kept = 5.0, [], []
        for _ in range(trials):
            time = begin + np.arange(round(seconds * 100)) / 100
            hand = np.stack([9 * np.sin(2 * time), 8 * np.cos(2 * time), np.zeros_like(time)], axis=1)
            speed = np.stack([18 * np.cos(2 * time), -16 * np.sin(2 * time), np.zeros_like(time)], axis=1)
            lfp = [60 * rng.standard_normal(20 * len(time)) if k < with_lfp else np.zeros(0) for k in range(neurons)]
            spikes = [np.sort(rng.uniform(time[0], time[-1], 12)) for _ in range(neurons)]
            kept.append(FlintTrialData(time, hand, speed, lfp, spikes))
            cells = np.zeros((neurons, 1), dtype=[("Spike", object), ("LFP", object)])
            for k in range(neurons):
                cells[k, 0] = (spikes[k][:, None], lfp[k][:, None] if len(lfp[k]) else np.zeros((0, 0)))
            scale = 0.01 if in_metres else 1.0
            row = {
                "Time": (time - begin if clock_begins_anew else time)[:, None],
                "HandPos": hand * scale,
                "HandVel": speed * scale,
                "TargetPos": np.where(time[:, None] > time[50], 10.0, np.nan) * np.ones((1, 2)) * scale,
                "Condition": "good",
                "Neuron": cells,
            }
            row.pop(leave_out or "", None)
            rows.append(row)
            begin = float(time[-1]) + 0.01 + pause_s
        made.append(kept)
        table = np.zeros((trials, 1), dtype=[(key, object) for key in rows[0]])
        for j, row in enumerate(rows):
            table[j, 0] = tuple(row.values())
        subjects.append(table)
    subject = np.zeros((1, recordings), dtype=[("Trial", object)])
    for i, table in enumerate(subjects):
        subject[0, i] = (table,)
    savemat(path, {"Subject": subject}, do_compression=True)
    return made
