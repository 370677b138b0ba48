"""Keeps a session on the bin clock in one file, from which its arrays are read as they are needed.

The file is in the safetensors format: a header in JSON, then one array after another. `save_session_bins` writes it
block by block, and `load_session_bins` maps it, so neither takes memory by the length of the session.
"""

from __future__ import annotations

import json
import math
import mmap
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.data.candidates import SeriesNames
from edgedistill.data.lfp.electrodes import Electrode
from edgedistill.data.session import SessionBins
from edgedistill.errors import ConfigError, RecordingError
from edgedistill.files import atomic_write
from edgedistill.frontend import FrontEndConfig
from edgedistill.scratch import map_file, split_rows

ARRAYS = ("lfp", "bad", "counts", "behavior", "valid", "observed", "disturbed")
DTYPES = {"F64": np.float64, "F32": np.float32, "U8": np.uint8, "BOOL": np.bool_}  # the format's names
ALIGNED = 64  # bytes, at which the arrays begin
DAMAGE_ERRORS = (ConfigError, ValueError, KeyError, TypeError, AttributeError)


def save_session_bins(bins: SessionBins, path: str | Path) -> None:
    """Writes a session as a whole file, without pickle. Raises OutputError."""
    path = Path(path)
    held = {name: array for name in ARRAYS if (array := getattr(bins, name)) is not None}
    arrays = dict(sorted(held.items(), key=lambda one: -one[1].itemsize))  # so that each begins at its own size
    names = {np.dtype(kind): name for name, kind in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"facts": json.dumps(describe_facts(bins))}}
    start = 0
    for name, array in arrays.items():
        stop = start + array.nbytes
        header[name] = {"dtype": names[array.dtype], "shape": list(array.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % ALIGNED)
    with (
        atomic_write(path, "the cached session", next_step=f"df -h {path.parent}") as partial,
        partial.open("wb") as file,
    ):
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            for rows in split_rows(slice(0, len(array)), math.prod(array.shape[1:])):
                file.write(np.ascontiguousarray(array[rows]).data)


def describe_facts(bins: SessionBins) -> dict[str, Any]:
    """Returns everything of a session but its arrays, as JSON."""
    facts = {f.name: getattr(bins, f.name) for f in fields(bins) if f.name not in ARRAYS}
    facts |= {"electrodes": [asdict(one) for one in bins.electrodes], "series": dict(bins.series)}
    facts["names"] = asdict(bins.names)
    facts["frontend"] = None if bins.frontend is None else bins.frontend.to_json()
    return facts


def load_session_bins(path: str | Path) -> SessionBins:
    """Opens what `save_session_bins` wrote. Its arrays cannot be written to. Raises RecordingError on damage."""
    try:
        content = map_file(Path(path))
        begin = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:begin])
        facts = json.loads(header.pop("__metadata__")["facts"])
        found = {name: map_array(content, begin, entry) for name, entry in header.items()}
        arrays: dict[str, Any] = {name: found.get(name) for name in ARRAYS}
        frontend = None if facts["frontend"] is None else FrontEndConfig.from_json(facts.pop("frontend"))
        parsed: dict[str, Any] = {
            "frontend": frontend,
            "electrodes": tuple(_parse_electrode(one) for one in facts["electrodes"]),
            "names": SeriesNames(**facts["names"]),
        }
        plain = {f.name for f in fields(SessionBins)} - {*ARRAYS, *parsed}
        whole: dict[str, Any] = {name: tuple(v) if isinstance(v := facts[name], list) else v for name in plain}
        return SessionBins(**whole, **parsed, **arrays)
    except (OSError, *DAMAGE_ERRORS) as error:
        raise RecordingError(
            f"{path}: not a cached session",
            got=f"{type(error).__name__}: {error}",
            causes=("the file is damaged", "another version wrote it"),
            next_step="delete it; it is made again from the NWB file",
        ) from error


def map_array(content: mmap.mmap, begin: int, entry: dict[str, Any]) -> npt.NDArray[Any]:
    """Returns one array of a mapped file, whose arrays begin at byte `begin`. Raises ValueError if it is not whole."""
    kind, shape = np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"])
    start, stop = entry["data_offsets"]
    count = math.prod(shape)
    if stop - start != count * kind.itemsize or not 0 <= start <= stop <= len(content) - begin:
        raise ValueError(f"an array of {count} numbers in {stop - start} of {len(content) - begin} bytes")
    return np.frombuffer(content, kind, count, begin + start).reshape(shape) if count else np.empty(shape, kind)


def _parse_electrode(stored: dict[str, Any]) -> Electrode:
    position = stored["position"]
    return Electrode(**{**stored, "position": None if position is None else tuple(position)})
