"""A decoder over a whole recording or a stream: raw frames go in, predictions come out, as CSV or NWB.

In: a `Decoder`, and a recording or a binary stream of frames. Out: outputs bin by bin as they complete, or a
file of them that appears only when it is whole. A prediction belongs to the end of its bin: bin k to
(k + 1) / 100 s after the first frame, on the clock of the recording.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from edgedistill.errors import OutputError, RecordingError
from edgedistill.runtime import Decoder, Flag, Output
from edgedistill.runtime.decoder import DecoderInfo

if TYPE_CHECKING:
    from edgedistill.data.recording import Lfp, Recording

BINS_PER_S = 100
BLOCK_VALUES = 1 << 20  # frames x channels pushed at a time: 4 MB
READ_BYTES = 1 << 16
FORMATS = (".csv", ".nwb")


class ByteStream(Protocol):
    """What is read from: a buffered binary stream such as `sys.stdin.buffer`."""

    def read1(self, size: int, /) -> bytes:
        """At most `size` bytes, as soon as there are any; none at the end."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Every output of one run, with what a file of them must say about itself."""

    info: DecoderInfo
    outputs: tuple[Output, ...]
    start_s: float = 0.0  # of bin 0, on the clock of the recording
    source: str = "stream"
    session_id: str | None = None
    subject_id: str | None = None
    session_start: str | None = None  # ISO 8601

    @property
    def kinematics(self) -> npt.NDArray[np.float32]:
        """(B, K) in the units of `info.output_units`."""
        shape = (len(self.outputs), len(self.info.output_names))
        return np.array([output.kinematics for output in self.outputs], np.float32).reshape(shape)

    @property
    def flags(self) -> npt.NDArray[np.uint8]:
        """(B,) bits of `Flag`."""
        return np.array([int(output.flags) for output in self.outputs], np.uint8)

    @property
    def bad_channels(self) -> npt.NDArray[np.int32]:
        """(B,) channels that were masked."""
        return np.array([output.bad_channels for output in self.outputs], np.int32)

    def counts(self) -> dict[str, int]:
        """How many bins carry each flag, by its name in small letters."""
        return {str(flag.name).lower(): int(np.count_nonzero(self.flags & flag)) for flag in Flag}


# ---------------------------------------------------------------- decoding


def run_file(decoder: Decoder, recording: Recording) -> Predictions:
    """The whole LFP of a recording through a fresh stream. RecordingError where it does not fit."""
    lfp = matching_lfp(decoder.info, recording)
    return Predictions(
        info=decoder.info,
        outputs=tuple(outputs_of_lfp(decoder, lfp)),
        start_s=lfp.start_s,
        source=str(recording.path),
        session_id=recording.session_id,
        subject_id=recording.subject_id,
        session_start=recording.session_start,
    )


def outputs_of_lfp(decoder: Decoder, lfp: Lfp) -> Iterator[Output]:
    """Outputs bin by bin; the file is read in blocks, so its length does not matter."""
    decoder.reset()
    for frames in lfp.read_blocks(max(1, BLOCK_VALUES // lfp.channels)):
        yield from decoder.push(frames)


def outputs_of_stream(decoder: Decoder, stream: ByteStream) -> Iterator[list[Output]]:
    """Outputs of little-endian float32 frames in uV, channels interleaved, as soon as frames arrive.

    RecordingError, after all whole frames were decoded, when the stream ends inside a frame.
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
    if rest:
        raise RecordingError(
            "the stream ended inside a frame",
            got=f"{len(rest)} bytes after the last whole frame",
            expected=f"frames of {4 * channels} bytes: {channels} channels of float32",
            causes=("the sender has another number of channels", "the samples are not float32"),
        )


def matching_lfp(info: DecoderInfo, recording: Recording) -> Lfp:
    """The LFP of a recording, when its channels and rate are those the decoder was trained on."""
    recording.require(("lfp",))
    lfp = recording.lfp
    assert lfp is not None
    if lfp.channels != len(info.channel_ids):
        raise _does_not_fit(recording, f"{lfp.channels} channels", f"{len(info.channel_ids)} channels")
    if lfp.rate != info.rate:
        raise _does_not_fit(recording, f"{float(lfp.rate):.10g} Hz", f"{float(info.rate):.10g} Hz")
    if lfp.channel_ids != info.channel_ids:
        pairs = zip(lfp.channel_ids, info.channel_ids, strict=True)
        at = next(i for i, (found, wanted) in enumerate(pairs) if found != wanted)
        raise _does_not_fit(
            recording,
            f"'{lfp.channel_ids[at]}' as channel {at + 1}",
            f"'{info.channel_ids[at]}': ids and order as in the bundle",
        )
    return lfp


def _does_not_fit(recording: Recording, got: str, expected: str) -> RecordingError:
    return RecordingError(
        f"{recording.path}: this LFP is not from the array that the bundle decodes",
        got=got,
        expected=expected,
        causes=("the session is of another array", "the bundle was built on other sessions"),
        next_step="edgedistill inspect shows channels and rate of a recording and of a bundle",
    )


# ---------------------------------------------------------------- writing


def time_s(output: Output, start_s: float = 0.0) -> float:
    """The end of the output's bin, which is the moment its kinematics are of."""
    return start_s + (output.bin + 1) / BINS_PER_S


def csv_header(info: DecoderInfo) -> str:
    """The first line of a CSV; outputs carry their unit, as in `cursor_vel_x (cm/s)`."""
    outputs = zip(info.output_names, info.output_units, strict=True)
    named = [f"{name} ({unit})" if unit else name for name, unit in outputs]
    return ",".join(["bin", "end_frame", "time_s", "flags", "bad_channels", *map(_quoted, named)])


def csv_line(output: Output, start_s: float = 0.0) -> str:
    """One output; nine digits give every float32 back exactly."""
    head = f"{output.bin},{output.end_frame},{time_s(output, start_s):.6f},{int(output.flags)}"
    return ",".join([head, str(output.bad_channels), *(f"{value:.9g}" for value in output.kinematics)])


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if set(text) & set(',"\n') else text


def check_destination(path: Path) -> None:
    """OutputError, before hours of decoding, for a path that `write_predictions` could not write."""
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
            next_step="choose another --out",
        )


def write_predictions(predictions: Predictions, path: Path) -> None:
    """As CSV or NWB, by the suffix; the file appears whole or not at all. OutputError."""
    check_destination(path)
    write = _write_nwb if path.suffix.lower() == ".nwb" else _write_csv
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        write(predictions, partial)
        partial.replace(path)
    except OSError as error:
        raise OutputError(
            f"{path}: the predictions could not be written",
            got=error.strerror or str(error),
            causes=("the disk is full", "the folder is read-only"),
            next_step="free space or choose another --out; nothing half-written was left there",
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _write_csv(predictions: Predictions, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(csv_header(predictions.info) + "\n")
        file.writelines(csv_line(output, predictions.start_s) + "\n" for output in predictions.outputs)


def _write_nwb(predictions: Predictions, path: Path) -> None:
    from pynwb import NWBFile
    from pynwb.behavior import BehavioralTimeSeries
    from pynwb.file import Subject

    from edgedistill.data.nwb_writing import write_nwb

    start = predictions.session_start
    subject = predictions.subject_id
    nwb = NWBFile(
        session_description=f"kinematics decoded by edgedistill from {predictions.source}",
        identifier=str(uuid.uuid4()),
        session_id=predictions.session_id,
        session_start_time=datetime.fromisoformat(start) if start else datetime.now(timezone.utc),
        source_script=f"edgedistill run, bundle {predictions.info.name} {predictions.info.sha256}",
        source_script_file_name="edgedistill run",
        subject=Subject(subject_id=subject, description="see the recording") if subject else None,
    )
    module = nwb.create_processing_module("behavior", "decoded from LFP, one value each 10 ms")
    module.add(BehavioralTimeSeries(time_series=_series(predictions), name="decoded"))
    write_nwb(nwb, path)


def _series(predictions: Predictions) -> list[Any]:
    from pynwb import TimeSeries

    info = predictions.info
    units = sorted(set(info.output_units))
    outputs = ", ".join(f"{n} ({u})" for n, u in zip(info.output_names, info.output_units, strict=True))
    clock = {"rate": float(BINS_PER_S), "starting_time": predictions.start_s + 1 / BINS_PER_S}
    flags = ", ".join(f"{int(flag)} {str(flag.name).lower()}" for flag in Flag)
    unit = units[0] if len(units) == 1 else "see description"
    parts: Iterable[tuple[str, npt.NDArray[Any], str, str]] = (
        ("kinematics", predictions.kinematics, unit, f"columns: {outputs}"),
        ("flags", predictions.flags, "bits", f"sum of: {flags}"),
        ("bad_channels", predictions.bad_channels, "channels", "channels masked in the bin"),
    )
    return [TimeSeries(name=n, data=data, unit=u, description=text, **clock) for n, data, u, text in parts]
