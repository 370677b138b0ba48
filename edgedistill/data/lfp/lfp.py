"""Reads the LFP of an NWB file in microvolts, on one regular grid of frames.

The input is the time series of an open file. The output is an `Lfp`, which reads frames on demand, so that an hour of
96 channels at 30 kHz is never held in memory. Segments of one array are put together. Between them, and where
timestamps step forward, lie declared gaps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgedistill.data.candidates import Candidate
from edgedistill.data.lfp.blocks import FrameReader
from edgedistill.data.lfp.choice import MIN_RATE_HZ, choose_lfp
from edgedistill.data.lfp.clock import Clock, Run, join_clocks, rates_agree, read_clock
from edgedistill.data.lfp.electrodes import Electrode, read_electrodes
from edgedistill.data.lfp.layout import Layout, Scale, describe_unit, find_layout, read_scale
from edgedistill.data.lfp.spike_band import SPIKE_BAND_RATIO, measure_low_ratio
from edgedistill.data.lfp.timestamp_rate import read_typical_rate
from edgedistill.data.series import Series
from edgedistill.errors import RecordingError

__all__ = ["MIN_RATE_HZ", "Electrode", "Gap", "Lfp", "find_lfp"]

LONGEST_S = 31 * 86400  # arrays over the bins of a longer one would take gigabytes


@dataclass(frozen=True)
class Gap:
    """Stands for declared lost frames in a stream of blocks."""

    frames: int


@dataclass(frozen=True, eq=False)
class Part:
    """Holds one stored array of the LFP: its frames and its scale."""

    path: str
    reader: FrameReader
    scale: Scale


@dataclass(frozen=True, eq=False)
class Lfp:
    """Reads the LFP of one session. The grid counts all frames from the first one, gaps included."""

    file: Path
    series: str  # path inside the file; the paths of segments are joined by " + "
    candidates: tuple[Candidate, ...]
    electrodes: tuple[Electrode, ...]  # one per channel
    transposed: bool  # stored (channels, time), against the standard
    notes: tuple[str, ...]  # sentences for the user
    clock: Clock = field(repr=False)
    _parts: tuple[Part, ...] = field(repr=False)
    _columns: tuple[int, ...] | None = field(default=None, repr=False)  # stored column of each channel; None: as stored

    @property
    def others(self) -> tuple[str, ...]:
        """Returns the paths of the ElectricalSeries that are not read."""
        return tuple(candidate.series for candidate in self.candidates if not candidate.read)

    @property
    def rate(self) -> Fraction:
        """Returns the exact rate in Hz."""
        return self.clock.rate

    @property
    def frames(self) -> int:
        """Returns the length of the grid in frames, gaps included."""
        return self.clock.frames

    @property
    def channels(self) -> int:
        """Returns the number of channels."""
        return len(self.electrodes)

    @property
    def channel_ids(self) -> tuple[str, ...]:
        """Returns ids from the electrode table, or column numbers where those are missing or not unique."""
        return tuple(electrode.id for electrode in self.electrodes)

    @property
    def start_s(self) -> float:
        """Returns the time of the first frame in seconds."""
        return self.clock.start_s

    @property
    def duration_s(self) -> float:
        """Returns the seconds from the first frame to the end of the last one, on the clock of the file."""
        return float(self.frames / self.rate) if self.clock.anchors is None else self.clock.stop_s - self.start_s

    @property
    def gaps(self) -> tuple[tuple[int, int], ...]:
        """Returns (first grid frame, frames) of all declared gaps."""
        return self.clock.gaps

    def times_at(self, frames: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Returns the times in s of grid frames, strictly increasing, on the clock of the file."""
        return self.clock.times_at(frames)

    def in_order(self, columns: Sequence[int]) -> Lfp:
        """Returns the same LFP with its channels in another order. `columns` (C,) says which comes first, and so on."""
        stored = range(self.channels) if self._columns is None else self._columns
        electrodes = tuple(self.electrodes[column] for column in columns)
        return replace(self, electrodes=electrodes, _columns=tuple(stored[column] for column in columns))

    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Reads the grid frames [start, stop) that exist as (frames, channels) in uV. Gaps are NaN; NaN stays NaN.

        Raises RecordingError when the file cannot be read.
        """
        start, stop, _ = slice(start, stop).indices(self.frames)
        pieces = list(self._runs_within(start, stop))
        if len(pieces) == 1 and pieces[0][1:] == (start, stop):
            return self._read_run(*pieces[0])
        whole = np.full((max(0, stop - start), self.channels), np.nan, np.float32)
        for run, first, last in pieces:
            whole[first - start : last - start] = self._read_run(run, first, last)
        return whole

    def read_blocks(
        self, frames_per_block: int, start: int = 0, stop: int | None = None
    ) -> Iterator[npt.NDArray[np.float32] | Gap]:
        """Yields the grid frames [start, stop) in order: blocks (n, channels) in uV, and gaps, each whole.

        Blocks have `frames_per_block` frames, and fewer only before a gap and at the end.
        """
        done, stop = start, self.frames if stop is None else stop
        for run, first, last in self._runs_within(start, stop):
            if first > done:
                yield Gap(first - done)
            done = last
            for at in range(first, last, frames_per_block):
                yield self._read_run(run, at, min(at + frames_per_block, last), streaming=True)
        if done < min(stop, self.frames):
            yield Gap(min(stop, self.frames) - done)

    def _runs_within(self, start: int, stop: int) -> Iterator[tuple[Run, int, int]]:
        for run in self.clock.runs:
            first, last = max(start, run.at), min(stop, run.at + run.frames)
            if first < last:
                yield run, first, last

    def _read_run(self, run: Run, first: int, last: int, streaming: bool = False) -> npt.NDArray[np.float32]:
        part, shift = self._parts[run.part], run.first - run.at
        frames = part.scale.apply(part.reader.read(first + shift, last + shift, streaming))
        return frames if self._columns is None else np.take(frames, self._columns, axis=1)


def find_lfp(series: Sequence[Series], file: Path, named: str | None = None) -> Lfp | None:
    """Returns the LFP among the series of a file, or None. `lfp.choice` holds the rules; `named` comes from `--lfp`.

    Raises RecordingError where the choice is not clear, and where the chosen series has no usable clock or shape.
    """
    choice = choose_lfp(series, file, named, lambda parts: _find_fault(parts, file))
    if choice is None:
        return None
    lfp = _open(choice.parts, choice.candidates, file)
    if lfp.frames > LONGEST_S * max(float(lfp.rate), MIN_RATE_HZ):  # a lower rate is refused for itself
        raise RecordingError(
            f"{file}: {lfp.series} claims to last longer than any recording",
            got=f"{float(lfp.frames / lfp.rate) / 86400:.0f} days",
            expected=f"at most {LONGEST_S // 86400} days",
            causes=("the rate or the shape of the dataset is wrong", "the file was made to do harm"),
            next_step="correct the file, or name another series with --lfp",
        )
    return lfp


def _find_fault(parts: Sequence[Series], file: Path) -> str | None:
    """Returns that the data are the spike band, or None."""
    part, layout = _open_part(parts[0], file)
    ratio = measure_low_ratio(part.reader, part.scale, read_typical_rate(parts[0]))
    if layout.frames and ratio is not None and ratio < SPIKE_BAND_RATIO:
        return f"its data are the spike band: 2 to 50 Hz has {ratio:.2g} times the power density of 300 Hz and above"
    return None


def _open_part(series: Series, file: Path) -> tuple[Part, Layout]:
    layout = find_layout(series, file)
    reader = FrameReader(series.node.data, layout.frames, layout.channels, layout.transposed, file, series.path)
    return Part(series.path, reader, read_scale(series, layout.channels, file)), layout


def _open(chosen: Sequence[Series], candidates: tuple[Candidate, ...], file: Path) -> Lfp:
    opened = [_open_part(series, file) for series in chosen]
    clocks = [
        read_clock(series, layout.frames, file, part)
        for part, (series, (_, layout)) in enumerate(zip(chosen, opened, strict=True))
    ]
    _require_like_parts(chosen, opened, clocks, file)
    clock = join_clocks(clocks)
    electrodes, table_notes = read_electrodes(chosen[0].node, opened[0][1].channels)
    notes = [
        f"{s.path} is stored (channels, time), as {x.why}; read as such"
        for s, (_, x) in zip(chosen, opened, strict=True)
        if x.why
    ]
    notes += [f"{one.series} is read: {one.why}" for one in candidates if one.read and "although" in one.why][:1]
    notes += [note for note in map(describe_unit, chosen) if note is not None]
    if len(chosen) > 1:
        lost = sum(frames for _, frames in clock.gaps) / float(clock.rate)
        notes.append(f"{len(chosen)} segments of one array are put together, with {lost:.3f} s of gaps between them")
    return Lfp(
        file=file,
        series=" + ".join(series.path for series in chosen),
        candidates=candidates,
        electrodes=electrodes,
        transposed=opened[0][1].transposed,
        notes=(*notes, *clock.notes, *table_notes),
        clock=clock,
        _parts=tuple(part for part, _ in opened),
    )


def _require_like_parts(
    chosen: Sequence[Series], opened: Sequence[tuple[Part, Layout]], clocks: Sequence[Clock], file: Path
) -> None:
    """Refuses segments whose real clocks or channels differ, which their first and last timestamps did not tell."""
    for series, (_, layout), clock in zip(chosen[1:], opened[1:], clocks[1:], strict=True):
        if layout.channels != opened[0][1].channels or not rates_agree([clock.rate, clocks[0].rate]):
            raise RecordingError(
                f"{file}: {chosen[0].path} and {series.path} are not segments of one array",
                got=f"{opened[0][1].channels} channels at {float(clocks[0].rate):.10g} Hz, "
                f"and {layout.channels} channels at {float(clock.rate):.10g} Hz",
                expected="the same channels and rate",
                next_step=f"--lfp {chosen[0].path} reads the first alone",
            )
