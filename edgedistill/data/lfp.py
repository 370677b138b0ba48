"""Chooses the LFP among the ElectricalSeries of an NWB file, and reads its frames in microvolts.

The input is the time series of an open file. The output is an `Lfp`, which reads frames on demand, so that an hour of
96 channels at 30 kHz is never held in memory. Volts become microvolts here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.data.candidates import find_named
from edgedistill.data.series import Series, read_nominal_rate, read_regular_clock
from edgedistill.errors import RecordingError

MIN_RATE_HZ = 200
READ_BYTES = 64 << 20  # largest float32 result of one read

# pynwb always says volts; the attribute in the file is what its writer meant
MICROVOLTS = {
    "volts": 1e6, "volt": 1e6, "v": 1e6,
    "millivolts": 1e3, "millivolt": 1e3, "mv": 1e3,
    "microvolts": 1.0, "microvolt": 1.0, "uv": 1.0, "µv": 1.0, "μv": 1.0,
}  # fmt: skip


@dataclass(frozen=True)
class Electrode:
    """Describes the electrode of one channel, as far as the electrode table does."""

    id: str
    label: str | None = None  # unique name of the contact, e.g. of the column `channel_name`
    position: tuple[float, ...] | None = None
    bad: str | None = None  # why the table marks it as bad


@dataclass(frozen=True)
class Gap:
    """Stands for frames that were lost."""

    frames: int


@dataclass(frozen=True)
class Lfp:
    """Reads the LFP of one session. Frame i lies at `start_s + i / rate` seconds on the clock of the file."""

    file: Path
    series: str
    others: tuple[str, ...]  # paths of the ElectricalSeries that were not chosen
    rate: Fraction
    frames: int
    channels: int
    channel_ids: tuple[str, ...]
    start_s: float
    transposed: bool  # stored (channels, time), against the standard
    gain_uv: npt.NDArray[np.float64] = field(repr=False)  # (channels,)
    offset_uv: float
    _data: Any = field(repr=False)
    electrodes: tuple[Electrode, ...] = ()  # one a channel

    def times_at(self, frames: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Returns the times in seconds of frames, on the clock of the file."""
        return self.start_s + np.asarray(frames, np.float64) / float(self.rate)

    @property
    def duration_s(self) -> float:
        """Returns the duration in seconds: frames over rate."""
        return float(self.frames / self.rate)

    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Reads the frames [start, stop) that exist as (frames, channels) in uV; NaN stays NaN."""
        start, stop, _ = slice(start, stop).indices(self.frames)
        try:
            if self.transposed:
                raw = np.ascontiguousarray(np.asarray(self._data[:, start:stop]).T)
            else:
                raw = np.asarray(self._data[start:stop])
        except (OSError, RuntimeError) as error:
            raise RecordingError(
                f"{self.file}: frames {start} to {stop} of {self.series} cannot be read",
                got=str(error),
                causes=("the file is damaged", "it was compressed with a filter that is not installed"),
                next_step="copy the file again, or check it with `h5ls -r`",
            ) from error
        return self._to_microvolts(raw.reshape(len(raw), self.channels))

    def _to_microvolts(self, raw: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        # a float32 product is exact enough for int16 and float32; wider types are scaled before they are rounded
        narrow = raw.dtype.itemsize <= 2 or raw.dtype == np.float32
        kind = np.float32 if narrow else np.float64
        scaled = np.multiply(raw, self.gain_uv.astype(kind), dtype=kind)
        if self.offset_uv:
            scaled += kind(self.offset_uv)
        return np.asarray(scaled, dtype=np.float32)

    def read_blocks(self, frames_per_block: int) -> Iterator[npt.NDArray[np.float32] | Gap]:
        """Yields all frames in order, (frames_per_block, channels) at a time. The last block may be shorter."""
        span = self._choose_read_span(frames_per_block)
        for first in range(0, self.frames, span):
            loaded = self.read(first, first + span)
            for at in range(0, len(loaded), frames_per_block):
                yield loaded[at : at + frames_per_block]

    def _choose_read_span(self, frames_per_block: int) -> int:
        """Returns how many frames to read at once: whole chunks, so that no chunk is unpacked twice."""
        chunks = getattr(self._data, "chunks", None)
        wanted = chunks[1 if self.transposed else 0] if chunks else 1
        budget = max(1, READ_BYTES // (4 * self.channels))
        return frames_per_block * max(1, min(-(-wanted // frames_per_block), budget // frames_per_block))


def find_lfp(series: Sequence[Series], file: Path, named: str | None = None) -> Lfp | None:
    """Returns the LFP among the series of a file, or None.

    Series of at least 200 Hz come before slower ones. Among them, a series in an LFP container or with "lfp" in its
    path comes first, then other processed series, then raw acquisition. The series with most channels wins a tie.

    Raises RecordingError where the chosen series has no regular clock or is not (time, channels).
    """
    found = sorted(find_electrical_series(series), key=_rank)
    if not found:
        return None
    if named is not None:
        first = find_named(found, named, "--lfp", file)[0]
        found = [first, *(one for one in found if one is not first)]
    return _open_lfp(found[0], tuple(s.path for s in found[1:]), file)


def find_electrical_series(series: Sequence[Series]) -> list[Series]:
    """Returns the series of continuous voltages. Snippets around spikes are not among them."""
    from pynwb.ecephys import ElectricalSeries, SpikeEventSeries

    return [s for s in series if isinstance(s.node, ElectricalSeries) and not isinstance(s.node, SpikeEventSeries)]


def _rank(series: Series) -> tuple[bool, int, int, str]:
    named = "lfp" in series.path.lower() or type(series.node.parent).__name__ == "LFP"
    tier = 0 if named else 2 if series.path.startswith("acquisition/") else 1
    return not read_nominal_rate(series) >= MIN_RATE_HZ, tier, -_find_layout(series)[1], series.path


def _find_layout(series: Series) -> tuple[int, int, bool]:
    """Returns (frames, channels, transposed). One row for each electrode means that time comes second."""
    shape = series.shape
    if len(shape) < 2:
        return (shape[0] if shape else 0), 1, False
    count = len(_read_electrode_rows(series) or ())
    transposed = count == shape[0] and count != shape[1]
    return (shape[1], shape[0], True) if transposed else (shape[0], shape[1], False)


def _read_electrode_rows(series: Series) -> list[int] | None:
    region = getattr(series.node, "electrodes", None)
    return None if region is None else [int(row) for row in region.data[:]]


def _read_channel_ids(series: Series, channels: int) -> tuple[str, ...]:
    """Returns ids from the electrode table, or column numbers where those are missing or not unique."""
    rows = _read_electrode_rows(series)
    if rows is not None and len(rows) == channels:
        ids = tuple(str(series.node.electrodes.table.id[row]) for row in rows)
        if len(set(ids)) == channels:
            return ids
    return tuple(str(channel) for channel in range(channels))


def _open_lfp(series: Series, others: tuple[str, ...], file: Path) -> Lfp:
    node, shape = series.node, series.shape
    if len(shape) not in (1, 2) or not np.issubdtype(node.data.dtype, np.number) or 0 in shape[1:]:
        raise RecordingError(
            f"{file}: {series.path} is not an LFP of time by channels",
            got=f"shape {shape}, type {node.data.dtype}",
            expected="numbers in (time, channels)",
            next_step="write the series again as (time, channels)",
        )
    frames, channels, transposed = _find_layout(series)
    start_s, rate = read_regular_clock(series, frames, file)
    volts = MICROVOLTS.get(str(getattr(node.data, "attrs", {}).get("unit", "volts")).strip().lower(), 1e6)
    return Lfp(
        file=file,
        series=series.path,
        others=others,
        rate=rate,
        frames=frames,
        channels=channels,
        channel_ids=_read_channel_ids(series, channels),
        start_s=start_s,
        transposed=transposed,
        gain_uv=_read_gain(node, channels, file, series.path) * volts,
        offset_uv=float(getattr(node, "offset", None) or 0.0) * volts,
        _data=node.data,
        electrodes=_read_electrodes(series, channels),
    )


def _read_electrodes(series: Series, channels: int) -> tuple[Electrode, ...]:
    ids, rows = _read_channel_ids(series, channels), _read_electrode_rows(series)
    if rows is None or len(rows) != channels:
        return tuple(Electrode(id) for id in ids)
    table = series.node.electrodes.table
    labels = (
        [str(table["channel_name"][row]) for row in rows] if "channel_name" in table.colnames else [None] * channels
    )
    axes = [name for name in ("rel_x", "rel_y") if name in table.colnames]
    axes = axes or [name for name in ("x", "y", "z") if name in table.colnames]
    marked = [bool(table["bad_channel"][row]) if "bad_channel" in table.colnames else False for row in rows]
    return tuple(
        Electrode(
            id,
            label,
            tuple(float(table[axis][row]) for axis in axes) or None,
            "bad_channel is true" if bad else None,
        )
        for id, label, bad, row in zip(ids, labels, marked, rows, strict=True)
    )


def _read_gain(node: Any, channels: int, file: Path, path: str) -> npt.NDArray[np.float64]:
    """Returns by channel the factor from stored numbers to the file's unit: `conversion` times `channel_conversion`."""
    conversion = 1.0 if node.conversion is None else float(node.conversion)
    per_channel = getattr(node, "channel_conversion", None)
    factors = np.ones(channels) if per_channel is None else np.asarray(per_channel[:], np.float64).ravel()
    if len(factors) != channels or not np.isfinite(factors * conversion).all():
        raise RecordingError(
            f"{file}: {path} cannot be converted to volts",
            got=f"conversion {conversion}, channel_conversion for {len(factors)} of {channels} channels",
            expected="finite factors, one per channel",
            next_step="correct `conversion` and `channel_conversion` in the file",
        )
    return factors * conversion
