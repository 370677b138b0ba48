"""Writes small NWB files of many shapes, as labs write them. Arguments say what is missing or misplaced."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from pynwb import NWBHDF5IO, NWBFile, TimeSeries
from pynwb.behavior import BehavioralTimeSeries, Position, SpatialSeries
from pynwb.ecephys import LFP, ElectricalSeries
from pynwb.file import Subject

START = datetime(2024, 5, 1, 12, tzinfo=timezone.utc)
SECONDS = 125.0


def new_nwb(session_id: str | None = "s1", day: int = 1) -> NWBFile:
    return NWBFile(
        session_description="test",
        identifier=f"test-{session_id}-{day}",
        session_id=session_id,
        session_start_time=START.replace(day=day),
        subject=Subject(subject_id="monkey", species="Macaca mulatta", description="none", sex="U", age="P9Y"),
    )


def lfp_volts(rate: float = 250.0, channels: int = 3, seconds: float = SECONDS) -> np.ndarray:
    """Returns white noise of 100 uV, (time, channels)."""
    rng = np.random.default_rng(5)
    return (rng.standard_normal((round(seconds * rate), channels)) * 1e-4).astype(np.float32)


def add_electrodes(nwb: NWBFile, channels: int, first_id: int = 0) -> Any:
    device = nwb.create_device(f"array{len(nwb.devices)}")
    group = nwb.create_electrode_group(f"g{len(nwb.electrode_groups)}", description="", location="M1", device=device)
    before = 0 if nwb.electrodes is None else len(nwb.electrodes)
    for channel in range(channels):
        nwb.add_electrode(id=first_id + before + channel, x=1.0, y=float(channel), z=0.0, location="M1", group=group)
    return nwb.create_electrode_table_region(list(range(before, before + channels)), "all")


def add_lfp(
    nwb: NWBFile,
    data: np.ndarray,
    *,
    where: str = "LFP",
    name: str = "ElectricalSeries",
    channels: int | None = None,
    first_id: int = 0,
    region: Any = None,
    **settings: Any,
) -> None:
    """Adds an LFP. `where` is LFP (in ecephys), LFP/other (another module), ecephys, acquisition or acquisition/LFP.

    New electrodes are added unless `region` names some.
    """
    channels = channels or (data.shape[1] if data.ndim > 1 else 1)
    region = add_electrodes(nwb, channels, first_id) if region is None else region
    if "rate" not in settings and "timestamps" not in settings:
        settings["rate"] = 250.0
    series = ElectricalSeries(name=name, data=data, electrodes=region, **settings)
    if where == "acquisition":
        nwb.add_acquisition(series)
        return
    if where == "acquisition/LFP":
        container = LFP(name="LFP")
        nwb.add_acquisition(container)
        container.add_electrical_series(series)
        return
    module_name = "fields" if where == "LFP/other" else "ecephys"
    module = nwb.processing.get(module_name) or nwb.create_processing_module(module_name, "test")
    if where == "ecephys":
        module.add(series)
        return
    if "LFP" not in module.data_interfaces:
        module.add(LFP(name="LFP"))
    module["LFP"].add_electrical_series(series)


def add_units(nwb: NWBFile, spikes: list[np.ndarray] | None = None, seconds: float = SECONDS) -> None:
    if spikes is None:
        rng = np.random.default_rng(7)
        spikes = [np.sort(rng.uniform(0, seconds, 600)) for _ in range(4)]
    for times in spikes:
        nwb.add_unit(spike_times=times)


def velocity(rate: float = 100.0, seconds: float = SECONDS) -> np.ndarray:
    t = np.arange(round(seconds * rate)) / rate
    return np.stack([np.sin(t), np.cos(t)], axis=1)


def add_behavior(
    nwb: NWBFile,
    data: np.ndarray | None = None,
    *,
    kind: str = "TimeSeries",
    name: str = "cursor_vel",
    container: str | None = None,
    module: str | None = "behavior",
    **settings: Any,
) -> None:
    """Adds a behavior series. `container` is Position, BehavioralTimeSeries or none. No module means acquisition."""
    data = velocity() if data is None else data
    if "timestamps" not in settings:
        settings.setdefault("rate", 100.0)
    if kind == "SpatialSeries":
        series: Any = SpatialSeries(name=name, data=data, reference_frame="screen", **settings)
    else:
        settings.setdefault("unit", "cm/s")
        series = TimeSeries(name=name, data=data, **settings)
    node = series
    if container == "Position":
        node = Position(name="Position", spatial_series=series)
    elif container == "BehavioralTimeSeries":
        node = BehavioralTimeSeries(name="BehavioralTimeSeries", time_series=series)
    if module is None:
        nwb.add_acquisition(node)
        return
    (nwb.processing.get(module) or nwb.create_processing_module(module, "test")).add(node)


def write(nwb: NWBFile, path: Path) -> Path:
    with NWBHDF5IO(str(path), "w") as io:
        io.write(nwb)
    return path


def whole_session(
    path: Path, session_id: str | None = "s1", day: int = 1, seconds: float = SECONDS, **behavior: Any
) -> Path:
    """Writes LFP, units and velocity with nothing odd about them."""
    nwb = new_nwb(session_id, day)
    add_lfp(nwb, lfp_volts(seconds=seconds))
    add_units(nwb, seconds=seconds)
    add_behavior(nwb, **({"data": velocity(seconds=seconds)} | behavior))
    return write(nwb, path)
