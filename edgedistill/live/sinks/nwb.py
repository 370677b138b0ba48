"""Records a stream in one NWB file: raw frames, what was decoded from them, and flags.

Rows are written twice a second, and then the file is whole: if the program is killed, it holds all but the last half of
a second and what waited for the disk. Lost frames are NaN, and long gaps take no space. `edgedistill run` on the file
decodes what the stream decoded, bit for bit.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from edgedistill.bundle.manifest import Channel
from edgedistill.data.nwb_writing import GrowingNwb
from edgedistill.decoding import BLOCK_BINS, Predictions, check_destination, make_nwb
from edgedistill.errors import ConfigError
from edgedistill.files import output_error
from edgedistill.limits import plain_line
from edgedistill.live.records import DecodedBin, Floats, StreamBlock, StreamDescription
from edgedistill.runtime import Flag
from edgedistill.stream_file import NWB_FOLDER, SERIES, list_rows

COMMIT_S = 0.5
CHUNK_BYTES = 1 << 20
RAW, LATENCY = "raw", "latency"
RAW_PATH = "acquisition/raw/data"
NUMBER = re.compile(r"[0-9]{1,9}")  # an id that NWB can hold
NOT_WRITTEN = Flag.GAP | Flag.INVALID  # of bins that this file missed


class NwbSink:
    """Appends to one file."""

    is_record = True

    def __init__(self, place: str) -> None:
        """`place` is a path that ends in .nwb. Raises ConfigError or OutputError for another."""
        self._path = Path(place)
        if self._path.suffix.lower() != ".nwb":
            raise ConfigError(f"nwb:{place} is no NWB file", expected="nwb:NAME.nwb")
        check_destination(self._path)
        self._file: GrowingNwb | None = None
        self._description: StreamDescription | None = None
        self._frames, self._bins = 0, 0  # rows that were written or wait
        self._waiting: list[StreamBlock] = []
        self._committed = 0.0

    def open(self, description: StreamDescription) -> None:
        """Writes the file with everything but rows. It replaces the one that was there."""
        self._description = description
        nwb = _make_file(description)
        datasets = {name: f"{NWB_FOLDER}/{name}/data" for name in (*SERIES, LATENCY)} | {RAW: RAW_PATH}
        try:
            self._file = GrowingNwb(nwb, self._path, datasets)
        except OSError as error:
            raise output_error(self._path, "the recording of the stream", error) from error
        self._committed = monotonic()

    def accept(self, block: StreamBlock) -> None:
        """Keeps the block for the next time that rows are written."""
        self._waiting.append(block)
        self.idle()

    def idle(self) -> None:
        """Writes the rows that wait, twice a second. Raises OutputError."""
        if self._waiting and monotonic() - self._committed >= COMMIT_S:
            self._commit()

    def close(self) -> None:
        """Writes the rest and ends the file."""
        if self._file is None:
            return
        file = self._file
        try:
            if self._waiting:
                self._commit()
        finally:
            self._file = None
            file.close()

    def _commit(self) -> None:
        assert self._file is not None
        waiting, self._waiting = self._waiting, []
        try:
            self._write_frames(waiting)
            self._write_bins([bin_ for block in waiting for bin_ in block.bins])
            self._file.flush()
        except OSError as error:
            step = "free space or choose another file; what was recorded before stays in this one"
            raise output_error(self._path, "the recording of the stream", error, step) from error
        self._committed = monotonic()

    def _write_frames(self, blocks: Sequence[StreamBlock]) -> None:
        """Writes frames that follow each other at once, because each write of HDF5 takes a fixed time."""
        assert self._file is not None
        run: list[Floats] = []
        for block in blocks:
            missed = block.first_frame - self._frames
            lost = missed + (block.frame_count if block.frames is None else 0)
            if lost:
                self._append_frames(run)
                run = []
                self._file.skip(RAW, lost)
            if block.frames is not None:
                run.append(block.frames)
            self._frames = block.first_frame + block.frame_count
        self._append_frames(run)

    def _append_frames(self, run: Sequence[Floats]) -> None:
        assert self._file is not None
        if run:
            self._file.append({RAW: np.concatenate(run)})

    def _write_bins(self, bins: Sequence[DecodedBin]) -> None:
        assert self._file is not None
        assert self._description is not None
        at = 0
        while at < len(bins):
            if bins[at].index > self._bins:
                self._miss(bins[at].index - self._bins)
            stop = at + 1
            while stop < len(bins) and bins[stop].index == bins[stop - 1].index + 1:
                stop += 1
            run = bins[at:stop]
            rows = list_rows(Predictions(self._description.info, tuple(bin_.output for bin_ in run)))
            self._file.append(rows | {LATENCY: np.array([bin_.latency_s for bin_ in run], np.float32)})
            self._bins, at = run[-1].index + 1, stop

    def _miss(self, count: int) -> None:
        """Adds rows for bins that this file was too slow for."""
        assert self._file is not None
        for name in ("kinematics", "deviation", LATENCY, "bad_channels"):
            self._file.skip(name, count)
        self._file.append({"flags": np.full(count, int(NOT_WRITTEN), np.uint8)})
        self._bins += count


def _make_file(description: StreamDescription) -> Any:
    """Returns the file in memory, all series without rows."""
    from pynwb import H5DataIO, TimeSeries
    from pynwb.ecephys import ElectricalSeries

    predictions = Predictions(description.info, (), source=description.source, session_start=description.started)
    nwb = make_nwb(predictions, growing=True, command="stream")
    channels = len(description.channel_ids)
    nwb.create_device("amplifier", description=plain_line(description.source))
    region = _add_electrodes(nwb, description.channels)
    rows = max(1, min(round(description.rate), CHUNK_BYTES // (4 * channels)))
    nwb.add_acquisition(
        ElectricalSeries(
            name=RAW,
            data=H5DataIO(
                np.empty((0, channels), np.float32),
                maxshape=(None, channels),
                chunks=(rows, channels),
                fillvalue=np.float32(np.nan),
            ),
            electrodes=region,
            rate=float(description.rate),
            starting_time=0.0,
            conversion=1e-6,
            description="frames of the stream in microvolts, in the order of the bundle; lost ones are NaN",
        )
    )
    latency = TimeSeries(
        name=LATENCY,
        data=H5DataIO(np.empty(0, np.float32), maxshape=(None,), chunks=(BLOCK_BINS,), fillvalue=np.float32(np.nan)),
        unit="seconds",
        rate=1 / description.bin_s,
        starting_time=description.bin_s,
        description="time from the arrival of the last frame of the bin to its output",
    )
    nwb.processing["behavior"]["decoded"].add_timeseries(latency)
    return nwb


def _add_electrodes(nwb: Any, channels: Sequence[Channel]) -> Any:
    """Adds an electrode for each channel, with the ids, labels and positions of the bundle as far as it has them."""
    group = nwb.create_electrode_group(
        "array", "electrodes of the bundle", location="unknown", device=nwb.devices["amplifier"]
    )
    labelled = all(channel.label for channel in channels)
    axes = ("rel_x", "rel_y", "rel_z")
    placed = {len(channel.position or ()) for channel in channels} in ({1}, {2}, {3})
    numbered = all(NUMBER.fullmatch(c.id) for c in channels) and len({int(c.id) for c in channels}) == len(channels)
    if labelled or not numbered:
        nwb.add_electrode_column("channel_name", "name of the channel")
    for channel in channels:
        facts: dict[str, Any] = {"id": int(channel.id)} if numbered else {}
        if labelled or not numbered:
            facts["channel_name"] = plain_line(channel.label or channel.id)
        if placed:
            facts |= dict(zip(axes, channel.position or (), strict=False))
        nwb.add_electrode(location="unknown", group=group, **facts)
    return nwb.create_electrode_table_region(list(range(len(channels))), "all channels")
