"""Writes one simulated reaching session in the layouts and with the accidents that public reports describe.

`ReachSession` holds the data, and writes them as the standard says. Each test changes what its report describes.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from pynwb import NWBHDF5IO, NWBFile, TimeSeries
from pynwb.ecephys import LFP, ElectricalSeries

from edgedistill.data.bins import SessionBins, bins_from_recording
from edgedistill.data.recording import SeriesNames, open_recording
from edgedistill.training.baselines import score_ridge
from edgedistill.training.batches import training_session_from_bins

RATE, SECONDS, CHANNELS, UNITS = 1000, 160, 6, 8
GAP_BINS = 200  # between the blocks of a ridge


class ReachSession:
    """Holds a session of LFP (uV), spikes (s) and the velocity of a cursor (cm/s, 100 Hz)."""

    def __init__(self, seconds: int = SECONDS) -> None:
        rng = np.random.default_rng(11)
        self.seconds = seconds
        self.times_s = np.arange(seconds * 100) / 100
        slow = (np.sin(1.3 * self.times_s) + np.sin(0.37 * self.times_s), np.cos(0.9 * self.times_s))
        self.velocity = np.stack(slow, axis=1) * 10
        t = np.arange(seconds * RATE) / RATE
        drive = np.stack([np.interp(t, self.times_s, column) for column in self.velocity.T], axis=1)
        noise = rng.standard_normal((len(t), CHANNELS)) * 30
        self.lfp_uv = noise + drive @ rng.standard_normal((2, CHANNELS)) * 4
        self.spikes = []
        for _ in range(UNITS):
            chance = np.clip(0.12 + 0.008 * (self.velocity @ rng.standard_normal(2)), 0.01, 0.9)
            self.spikes.append(self.times_s[rng.random(len(chance)) < chance] + 0.004)

    @property
    def position(self) -> np.ndarray:
        """Returns the position of the cursor (n, 2) in cm, whose difference over a bin is the velocity."""
        return np.asarray(np.cumsum(self.velocity, axis=0) / 100)

    def nwb(self, **electrode_columns: list[Any]) -> NWBFile:
        """Returns a file with an electrode table, and nothing else."""
        nwb = NWBFile("reaching", "reach", datetime(2024, 5, 1, 12, tzinfo=timezone.utc), session_id="reach")
        group = nwb.create_electrode_group("m1", "array", "M1", nwb.create_device("array"))
        for name in electrode_columns:
            if name not in ("rel_x", "rel_y", "id"):
                nwb.add_electrode_column(name, name)
        for row in range(CHANNELS):
            values = {name: column[row] for name, column in electrode_columns.items()}
            nwb.add_electrode(location="M1", group=group, **values)
        return nwb

    def add_lfp(self, nwb: NWBFile, name: str = "lfp", **settings: Any) -> None:
        """Adds the LFP to processing/ecephys/LFP. `settings` replace those of the ElectricalSeries."""
        module = nwb.processing.get("ecephys") or nwb.create_processing_module("ecephys", "field")
        if "LFP" not in module.data_interfaces:
            module.add(LFP(name="LFP"))
        module["LFP"].add_electrical_series(self.series(nwb, name, **settings))

    def series(self, nwb: NWBFile, name: str, **settings: Any) -> ElectricalSeries:
        """Returns an ElectricalSeries of the LFP in volts."""
        facts: dict[str, Any] = {"data": (self.lfp_uv * 1e-6).astype(np.float32)}
        if "timestamps" not in settings:
            facts["rate"] = float(RATE)
        if "electrodes" not in settings:
            facts["electrodes"] = nwb.create_electrode_table_region(list(range(CHANNELS)), "all")
        return ElectricalSeries(name=name, **(facts | settings))

    def add_units(self, nwb: NWBFile) -> None:
        """Adds the units table."""
        for times in self.spikes:
            nwb.add_unit(spike_times=times)

    def add_velocity(self, nwb: NWBFile) -> None:
        """Adds the velocity of the cursor to processing/behavior."""
        module = nwb.create_processing_module("behavior", "cursor")
        module.add(TimeSeries(name="cursor_vel", data=self.velocity, unit="cm/s", rate=100.0, description="(x, y)"))

    def write(self, path: Path, change: Callable[[NWBFile], None] | None = None) -> Path:
        """Writes the session as the standard says. `change` may add to the file before it is written."""
        nwb = self.nwb()
        self.add_lfp(nwb)
        self.add_units(nwb)
        self.add_velocity(nwb)
        if change is not None:
            change(nwb)
        return save(nwb, path)


def save(nwb: NWBFile, path: Path) -> Path:
    """Writes the file."""
    with NWBHDF5IO(str(path), "w") as io:
        io.write(nwb)
    return path


def read(path: Path, **names: str) -> SessionBins:
    """Returns the bins of a session."""
    with open_recording(path, SeriesNames(**names)) as recording:
        return bins_from_recording(recording)


def ridge_r2(bins: SessionBins) -> float:
    """Returns the held-out R² of a lagged ridge on the LFP."""
    session = training_session_from_bins(bins, GAP_BINS)
    return score_ridge(session.inputs("lfp").double().numpy(), session).r2
