"""Writes short recordings of one array of three contacts, and the bundle of the first of them."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from pynwb import NWBFile
from pynwb.ecephys import LFP, ElectricalSeries

from edgedistill.bundle import Bundle
from edgedistill.data.bins import file_sha256
from edgedistill.data.recording import open_recording
from edgedistill.frontend import FrontEnd, settling_bins
from edgedistill.pipeline.assembled import describe_channel

from ..bundles import CONFIG, write_test_bundle
from ..data.nwb_files import START, write

RATE, SECONDS = 250.0, 20.0
LABELS = ("elec1", "elec2", "elec3")
PLACES = (0.0, 400.0, 800.0)
SERIES = "processing/ecephys/LFP/lfp"


def signal_uv(seconds: float = SECONDS) -> np.ndarray:
    """Returns (frames, 3) in uV. Every channel has another amplitude, so that their order matters."""
    rng = np.random.default_rng(8)
    return (rng.normal(size=(round(seconds * RATE), 3)) * (40, 60, 90)).astype(np.float32)


def write_day(
    path: Path,
    frames_uv: np.ndarray | None = None,
    *,
    order: tuple[int, ...] = (0, 1, 2),
    ids: tuple[int, ...] = (0, 1, 2),
    labels: tuple[str, ...] | None = LABELS,
    places: tuple[float, ...] | None = PLACES,
    bad: tuple[bool, ...] | None = None,
    session_id: str = "s1",
    after: timedelta = timedelta(),
    rate: float = RATE,
    names: tuple[str, ...] = ("lfp",),
    starts: tuple[float, ...] | None = None,
    volts: float = 1e-6,
    invalid_s: tuple[tuple[float, float], ...] = (),
    **series: Any,
) -> Path:
    """Writes a recording whose columns and electrodes stand in `order`. The ids do not: they are those of the rows."""
    frames_uv = signal_uv() if frames_uv is None else frames_uv
    nwb = NWBFile("test", f"{session_id}-{after}", START + after, session_id=session_id)
    group = nwb.create_electrode_group("g", description="", location="M1", device=nwb.create_device("array"))
    if labels is not None:
        nwb.add_electrode_column("channel_name", "label of the contact")
    if bad is not None:
        nwb.add_electrode_column("bad_channel", "whether the contact is broken")
    for row, contact in enumerate(order):
        columns: dict[str, Any] = {}
        if labels is not None:
            columns["channel_name"] = labels[contact]
        if places is not None:
            columns |= {"rel_x": 0.0, "rel_y": places[contact]}
        if bad is not None:
            columns["bad_channel"] = bad[contact]
        nwb.add_electrode(id=ids[row], location="M1", group=group, **columns)
    lfp = LFP(name="LFP")
    nwb.create_processing_module("ecephys", "test").add(lfp)
    for name, start in zip(names, starts or [0.0] * len(names), strict=True):
        region = nwb.create_electrode_table_region([0, 1, 2], "all")
        data = (frames_uv[:, list(order)] * volts).astype(np.float32)
        clock = {} if "timestamps" in series else {"rate": rate, "starting_time": start}
        lfp.add_electrical_series(ElectricalSeries(name=name, data=data, electrodes=region, **clock, **series))
    for begin, end in invalid_s:
        nwb.add_invalid_time_interval(start_time=begin, stop_time=end)
    return write(nwb, path)


def bundle_of(path: Path, out: Path, **changes: Any) -> Bundle:
    """Writes a bundle with the statistics, channels and provenance of one recording. Its weights are random."""
    with open_recording(path) as recording:
        lfp = recording.lfp
        assert lfp is not None
        bins = FrontEnd(CONFIG).push(lfp.read(0, lfp.frames)).values[settling_bins(CONFIG) :]
        return write_test_bundle(
            out,
            **{
                "normalization": {"mean": bins.mean(0).tolist(), "std": bins.std(0).tolist()},
                "channel_ids": list(lfp.channel_ids),
                "channels": [describe_channel(electrode) for electrode in lfp.electrodes],
                "session": {"id": recording.session_id, "subject": None, "start": recording.session_start},
                "provenance": {
                    "sessions": {recording.session_id: file_sha256(path)},
                    "series": {recording.session_id: {"lfp": lfp.series}},
                },
            }
            | changes,
        )
