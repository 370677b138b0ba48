"""Makes what the NWB files of all data sets share: the file with its subject, units, electrodes, and room on the disk.

The inputs are facts of a data set and of a session. The outputs are pynwb objects in memory.
"""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import numpy.typing as npt

from edgedistill.errors import ConfigError, OutputError
from edgedistill.files import require_no_input

if TYPE_CHECKING:
    from pynwb import NWBFile

SPARE_BYTES = 64 << 20
CHUNK_BYTES = 1 << 20
SPATIAL_UNITS = {"m": "meters", "cm": "centimeters", "mm": "millimeters"}  # as NWB writes them
ADULT = "P4Y/"  # four years or more: the age is not published
UTC_INSTEAD = timezone(timedelta(0), "UTC, as this machine does not know the zone")
FREE_SPACE = "free space or choose another --out; nothing half-written was left there"


def new_nwb(session_id: str, start: datetime, source: str, subject: dict[str, str], **facts: Any) -> NWBFile:
    """Returns an empty file. The same session always gets the same identifier, by `source`, the data set's address."""
    from pynwb import NWBFile
    from pynwb.file import Subject

    return NWBFile(
        identifier=str(uuid.uuid5(uuid.NAMESPACE_URL, f"{source}#{session_id}")),
        session_id=session_id,
        session_start_time=start,
        source_script="edgedistill convert",
        source_script_file_name="edgedistill convert",
        subject=Subject(**subject),
        **facts,
    )


def parse_start(text: str | None, zone: str) -> datetime | None:
    """Returns a date or a time in ISO 8601 as a datetime, in the time zone of the laboratory unless the text names one.

    Raises ConfigError for a text that is neither.
    """
    if text is None:
        return None
    try:
        return in_zone(parse_time(text), zone)
    except ValueError as error:
        raise ConfigError(
            "--session-start is no date", got=text, expected="a date or a time in ISO 8601, like 2016-04-07T10:30"
        ) from error


def parse_time(text: str) -> datetime:
    """Returns a date or a time in ISO 8601. Raises ValueError for another text. Python 3.10 knows no final Z."""
    return datetime.fromisoformat(re.sub("[Zz]$", "+00:00", text))


def in_zone(time: datetime, zone: str) -> datetime:
    """Returns the time with the zone, or with `UTC_INSTEAD` where this machine does not know the zone."""
    if time.tzinfo is not None:
        return time
    try:
        return time.replace(tzinfo=ZoneInfo(zone))
    except ZoneInfoNotFoundError:
        return time.replace(tzinfo=UTC_INSTEAD)


def describe_zone(start: datetime, zone: str) -> list[str]:
    """Returns a note where UTC stands for the zone."""
    if start.tzinfo is not UTC_INSTEAD:
        return []
    return [f"this machine does not know the time zone {zone}: the start is in UTC; pip install tzdata, convert again"]


def compress(data: npt.NDArray[Any]) -> Any:
    """Returns an array (time, ...) as a dataset in compressed chunks of whole rows."""
    from hdmf.backends.hdf5.h5_utils import H5DataIO

    return H5DataIO(data, **chunks_of_rows(data.shape, data.dtype))


def compressed_space(shape: tuple[int, int], dtype: npt.DTypeLike) -> Any:
    """Returns an empty dataset (time, channels) in compressed chunks of whole rows, which is filled later."""
    from hdmf.backends.hdf5.h5_utils import H5DataIO

    return H5DataIO(shape=shape, dtype=np.dtype(dtype), **chunks_of_rows(shape, np.dtype(dtype)))


def chunks_of_rows(shape: tuple[int, ...], dtype: np.dtype[Any]) -> dict[str, Any]:
    """Returns the layout of a dataset: chunks of about 1 MB that hold whole rows, so that reading in time is linear."""
    row_bytes = int(np.prod(shape[1:])) * dtype.itemsize
    rows = max(1, min(shape[0], CHUNK_BYTES // row_bytes))
    return {"chunks": (rows, *shape[1:]), "compression": "gzip", "compression_opts": 1, "shuffle": True}


def add_electrodes(nwb: NWBFile, names: Sequence[str], locations: Sequence[str], device: Any, **columns: Any) -> None:
    """Adds one electrode a name, with its location, in one group a location. `columns` hold a value an electrode."""
    groups: dict[str, Any] = {}
    nwb.add_electrode_column("channel_name", "name of the channel in the published file")
    for row, (name, location) in enumerate(zip(names, locations, strict=True)):
        if location not in groups:
            text = f"electrodes in {location}"
            groups[location] = nwb.create_electrode_group(f"array {location}", text, location=location, device=device)
        place = {column: float(values[row]) for column, values in columns.items()}
        nwb.add_electrode(channel_name=name, location=location, group=groups[location], **place)


def start_units(nwb: NWBFile, resolution_s: float, description: str) -> None:
    """Gives the file an empty table of units, whose spike times are `resolution_s` apart at least."""
    from pynwb.misc import Units

    nwb.units = Units(name="units", description=description, resolution=resolution_s)


def check_output(out: Path, inputs: Sequence[Path], needed_bytes: int) -> None:
    """Raises OutputError for a path that cannot become the file, and for a disk without room."""
    if out.suffix.lower() != ".nwb" or out.is_dir():
        got = "a folder" if out.is_dir() else out.suffix or "no suffix"
        raise OutputError(f"{out}: cannot become an NWB file", got=got, expected="a name that ends in .nwb")
    require_no_input(out, inputs)
    check_room(out.parent, needed_bytes)


def check_room(folder: Path, needed_bytes: int) -> None:
    """Raises OutputError where the disk of a folder, which need not exist yet, has less room than a file may need."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free, needed = shutil.disk_usage(place).free, needed_bytes + SPARE_BYTES
    if free < needed:
        raise OutputError(
            f"{folder}: not enough room on this disk",
            got=f"{free / 1e9:.2f} GB are free",
            expected=f"up to {needed / 1e9:.2f} GB",
            next_step=FREE_SPACE,
        )
