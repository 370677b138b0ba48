"""Decodes a whole recording or a stream, and writes the predictions as CSV or NWB.

A `Decoder` and a recording, or a binary stream of frames, go in. Outputs come out bin by bin as they complete, or as a
file that appears only when it is whole. A prediction belongs to the end of its bin. For bin k of a stream this is
(k + 1) / 100 s after the first frame. For a recording it is that moment on the clock of the recording. `matching`
compares a recording with the bundle before it is decoded.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from edgedistill.errors import OutputError, RecordingError
from edgedistill.files import atomic_write
from edgedistill.limits import plain_line, plain_name
from edgedistill.runtime import Decoder, Flag, Output
from edgedistill.runtime.decoder import DecoderInfo

if TYPE_CHECKING:
    from edgedistill.data.recording import Recording
    from edgedistill.matching import MatchedRecording

BINS_PER_S = 100
BLOCK_VALUES = 1 << 20  # frames x channels pushed at a time: 4 MB
READ_BYTES = 1 << 16
BLOCK_BINS = 4096  # of a series that grows
FORMATS = (".csv", ".nwb")


class ByteStream(Protocol):
    """Describes a buffered binary stream to read from, such as `sys.stdin.buffer`."""

    def read1(self, size: int, /) -> bytes:
        """Returns at most `size` bytes as soon as there are any, and none at the end."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Holds all outputs of one run, with the facts that a file of them must state."""

    info: DecoderInfo
    outputs: tuple[Output, ...]
    end_s: npt.NDArray[np.float64] | None = None  # (B,) ends of the bins on the clock of the recording
    bins_per_s: float | None = float(BINS_PER_S)  # on that clock; None where it is not constant
    source: str = "stream"
    series: str | None = None  # the LFP that was read
    notes: tuple[str, ...] = ()  # how the LFP of the recording was read
    warnings: tuple[str, ...] = ()
    session_id: str | None = None
    subject_id: str | None = None
    session_start: str | None = None  # ISO 8601
    subject_facts: dict[str, Any] = field(default_factory=dict)  # species, sex, age ... as the recording gives them

    @property
    def kinematics(self) -> npt.NDArray[np.float32]:
        """Returns the kinematics (B, K) in the units of `info.output_units`."""
        shape = (len(self.outputs), len(self.info.output_names))
        return np.array([output.kinematics for output in self.outputs], np.float32).reshape(shape)

    @property
    def deviations(self) -> npt.NDArray[np.float32]:
        """Returns the standard deviations (B, K) of the kinematics, in the same units."""
        return np.array([output.deviation for output in self.outputs], np.float32).reshape(self.kinematics.shape)

    @property
    def times_s(self) -> npt.NDArray[np.float64]:
        """Returns the ends of the bins (B,) in seconds, which are the times that their kinematics belong to."""
        return np.array([time_s(output) for output in self.outputs]) if self.end_s is None else self.end_s

    @property
    def flags(self) -> npt.NDArray[np.uint8]:
        """Returns the flags (B,), as bits of `Flag`."""
        return np.array([int(output.flags) for output in self.outputs], np.uint8)

    @property
    def bad_channels(self) -> npt.NDArray[np.int32]:
        """Returns the number of channels (B,) that were masked."""
        return np.array([output.bad_channels for output in self.outputs], np.int32)

    def counts(self) -> dict[str, int]:
        """Counts the bins that carry each flag, by the flag's name in small letters."""
        return Tally().add(self.outputs).counts()


class Tally:
    """Counts bins and their flags, of outputs that need not be kept."""

    def __init__(self) -> None:
        self.bins = 0
        self.most_bad = 0  # channels that were masked at once
        self._flagged = dict.fromkeys(Flag, 0)

    def add(self, outputs: Sequence[Output]) -> Tally:
        """Counts some more, and returns itself."""
        self.bins += len(outputs)
        for output in outputs:
            self.most_bad = max(self.most_bad, output.bad_channels)
            if output.flags:
                for flag in Flag:
                    self._flagged[flag] += bool(output.flags & flag)
        return self

    def counts(self) -> dict[str, int]:
        """Returns how many bins carry each flag, by the flag's name in small letters."""
        return {str(flag.name).lower(): count for flag, count in self._flagged.items()}


# ---------------------------------------------------------------- decoding


def decode_file(decoder: Decoder, recording: Recording) -> Predictions:
    """Compares a recording with the decoder's bundle and decodes its whole LFP in a fresh stream.

    Raises RecordingError where it does not fit. `Predictions.warnings` holds what else differs.
    """
    from edgedistill.matching import match_recording

    return decode_matched(decoder, match_recording(decoder.bundle, recording))


def decode_matched(decoder: Decoder, matched: MatchedRecording) -> Predictions:
    """Decodes the whole LFP of a recording that was compared with the decoder's bundle, in a fresh stream."""
    from edgedistill.data.nwb_writing import read_subject

    outputs = tuple(decode_lfp(decoder, matched))
    end_s, bins_per_s = matched.find_bin_ends(np.array([output.end_frame for output in outputs], np.int64))
    recording = matched.recording
    return Predictions(
        info=decoder.info,
        outputs=outputs,
        end_s=end_s,
        bins_per_s=bins_per_s,
        source=str(recording.path),
        series=matched.series,
        notes=matched.lfp.notes,
        warnings=matched.warnings,
        session_id=recording.session_id,
        subject_id=recording.subject_id,
        session_start=recording.session_start,
        subject_facts=read_subject(recording.path),
    )


def decode_lfp(decoder: Decoder, matched: MatchedRecording) -> Iterator[Output]:
    """Yields outputs bin by bin. The file is read in blocks, so its length does not matter. Lost frames are a gap."""
    decoder.reset()
    for part in matched.read_blocks(max(1, BLOCK_VALUES // len(decoder.info.channel_ids))):
        yield from decoder.push(part) if isinstance(part, np.ndarray) else decoder.gap(part.frames)


def describe_shift(outputs: Sequence[Output]) -> str | None:
    """Returns a warning that counts the bins flagged as shifted, or None where there are none."""
    shifted = sum(bool(output.flags & Flag.SHIFTED) for output in outputs)
    if not shifted:
        return None
    return (
        f"{shifted} of {len(outputs)} bins have another amplitude than the bundle expects, and are flagged as shifted"
    )


def decode_stream(
    decoder: Decoder, stream: ByteStream, *, torn: Literal["refused", "left out"] = "refused"
) -> Iterator[list[Output]]:
    """Yields the outputs of little-endian float32 frames in uV, channels interleaved, as soon as frames arrive.

    When the stream ends inside a frame, this raises RecordingError after all whole frames were decoded, unless such a
    `torn` frame is left out.
    """
    decoder.reset()
    channels = len(decoder.info.channel_ids)
    rest = b""
    while data := stream.read1(READ_BYTES):
        data = rest + data
        whole = len(data) - len(data) % (4 * channels)
        rest = data[whole:]
        frames = np.frombuffer(data[:whole], "<f4").astype(np.float32).reshape(-1, channels)
        if outputs := decoder.push(frames):
            yield outputs
    if rest and torn == "refused":
        raise RecordingError(
            "the stream ended inside a frame",
            got=f"{len(rest)} bytes after the last whole frame",
            expected=f"frames of {4 * channels} bytes: {channels} channels of float32",
            causes=("the sender has another number of channels", "the samples are not float32"),
        )


# ---------------------------------------------------------------- writing


def time_s(output: Output) -> float:
    """Returns when the bin of a stream ends, in seconds after the first frame."""
    return (output.bin + 1) / BINS_PER_S


def format_csv_header(info: DecoderInfo) -> str:
    """Returns the first line of a CSV. Each output is named with its unit, as in `cursor_vel_x (cm/s)`.

    Behind the outputs stand their standard deviations, as in `cursor_vel_x sd (cm/s)`. A name that a spreadsheet would
    take for a formula gets an apostrophe.
    """
    outputs = list(zip(info.output_names, info.output_units, strict=True))
    named = [_name_column(name + kind, unit) for kind in ("", " sd") for name, unit in outputs]
    return ",".join(["bin", "end_frame", "time_s", "flags", "bad_channels", *map(_quoted, named)])


def format_csv_line(output: Output, end_s: float | None = None) -> str:
    """Returns the line of one output, whose bin ends at `end_s`. Nine digits give every float32 back exactly.

    Without `end_s` the output is that of a stream.
    """
    end_s = time_s(output) if end_s is None else end_s
    head = f"{output.bin},{output.end_frame},{end_s:.6f},{int(output.flags)}"
    values = (*output.kinematics, *output.deviation)
    return ",".join([head, str(output.bad_channels), *(f"{value:.9g}" for value in values)])


def _name_column(name: str, unit: str) -> str:
    return plain_name(f"{name} ({unit})" if unit else name)


def _quoted(text: str) -> str:
    """Returns a cell in quotes where a program could end it earlier. Some spreadsheets split lines at semicolons."""
    return '"' + text.replace('"', '""') + '"' if set(text) & set(',;"\n') else text


def check_destination(path: Path) -> None:
    """Raises OutputError, before hours of decoding, for a path that `write_predictions` could not write."""
    if path.suffix.lower() not in FORMATS:
        raise OutputError(
            f"{path}: predictions are not written in this format",
            got=path.suffix or "no suffix",
            expected=f"a name that ends in {' or '.join(FORMATS)}",
        )
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        reason = "a folder of that name" if path.is_dir() else f"{path.parent} cannot be written to"
        raise OutputError(
            f"{path}: cannot be written",
            got=reason,
            causes=("the folder does not exist", "the folder is read-only"),
            next_step="make the folder, or choose another one",
        )


def write_predictions(predictions: Predictions, path: Path) -> None:
    """Writes CSV or NWB, as the suffix says. The file appears whole or not at all. Raises OutputError."""
    check_destination(path)
    write = _write_nwb if path.suffix.lower() == ".nwb" else _write_csv
    elsewhere = "free space or choose another --out; nothing half-written was left there"
    with atomic_write(path, "the predictions", next_step=elsewhere) as partial:
        write(predictions, partial)


def _write_csv(predictions: Predictions, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(format_csv_header(predictions.info) + "\n")
        rows = zip(predictions.outputs, predictions.times_s, strict=True)
        file.writelines(format_csv_line(output, end_s) + "\n" for output, end_s in rows)


def _write_nwb(predictions: Predictions, path: Path) -> None:
    from edgedistill.data.nwb_writing import write_nwb

    write_nwb(make_nwb(predictions), path)


def make_nwb(predictions: Predictions, *, growing: bool = False, command: str = "run") -> Any:
    """Returns predictions as a `pynwb.NWBFile`. `growing` lets rows be added to its series once it is a file.

    HDF5 holds no text with a zero byte or half a character, so names lose them.
    """
    from pynwb import NWBFile
    from pynwb.behavior import BehavioralTimeSeries
    from pynwb.file import Subject

    start = predictions.session_start
    subject = predictions.subject_id
    nwb = NWBFile(
        session_description=plain_line(f"kinematics decoded by edgedistill from {predictions.source}"),
        identifier=str(uuid.uuid4()),
        session_id=predictions.session_id and plain_line(predictions.session_id),
        session_start_time=datetime.fromisoformat(start) if start else datetime.now(timezone.utc),
        source_script=plain_line(f"edgedistill {command}, bundle {predictions.info.name} {predictions.info.sha256}"),
        source_script_file_name=f"edgedistill {command}",
        keywords=["decoded kinematics", "local field potential"],
        subject=Subject(subject_id=plain_line(subject), **predictions.subject_facts) if subject else None,
    )
    module = nwb.create_processing_module("behavior", "decoded from LFP, one value each 10 ms")
    module.add(BehavioralTimeSeries(time_series=_series(predictions, growing), name="decoded"))
    return nwb


def _series(predictions: Predictions, growing: bool) -> list[Any]:
    from pynwb import H5DataIO, TimeSeries

    info = predictions.info
    units = sorted(set(map(plain_line, info.output_units)))
    outputs = ", ".join(plain_line(f"{n} ({u})") for n, u in zip(info.output_names, info.output_units, strict=True))
    times_s = predictions.times_s
    if predictions.bins_per_s is None:
        clock: dict[str, Any] = {"timestamps": times_s}
    else:
        clock = {"rate": predictions.bins_per_s, "starting_time": float(times_s[0]) if times_s.size else 1 / BINS_PER_S}
    flags = ", ".join(f"{int(flag)} {str(flag.name).lower()}" for flag in Flag)
    unit = units[0] if len(units) == 1 else "see description"
    parts: Iterable[tuple[str, Any, str, str]] = (
        ("kinematics", predictions.kinematics, unit, f"columns: {outputs}"),
        ("deviation", predictions.deviations, unit, f"standard deviation of the kinematics, columns: {outputs}"),
        ("flags", predictions.flags, "bits", f"sum of: {flags}"),
        ("bad_channels", predictions.bad_channels, "channels", "channels masked in the bin"),
    )
    if growing:
        parts = [(n, H5DataIO(data, **_room_to_grow(data)), u, text) for n, data, u, text in parts]
    return [TimeSeries(name=n, data=data, unit=u, description=text, **clock) for n, data, u, text in parts]


def _room_to_grow(data: npt.NDArray[Any]) -> dict[str, Any]:
    """Returns the layout of a series that grows by rows. A row that is never written is NaN, or 0 in whole numbers."""
    fill = np.nan if data.dtype.kind == "f" else 0
    return {"maxshape": (None, *data.shape[1:]), "chunks": (BLOCK_BINS, *data.shape[1:]), "fillvalue": fill}
