"""Caps what a file may claim before memory is taken for it, and what a name may do to those who read it.

A bundle, a settings file or a session may come from a stranger. Sizes that stand in such a file are compared with these
limits first, and names lose what a terminal or a spreadsheet would obey.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
import sys
import unicodedata
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

MOST_SETTINGS_BYTES = 1 << 20  # of a TOML file
MOST_MANIFEST_BYTES = 8 << 20  # parsed JSON takes up to thirty times its text
MOST_JSON_BYTES = 16 << 20  # of any other JSON in a bundle
MOST_RESULT_BYTES = 64 << 20  # of a result of `bench`, of ranges, and of the log of a training
MOST_MODEL_BYTES = 256 << 20  # of the facts of a model, which hold a matrix for each array
MOST_UNPACKED_BYTES = 256 << 20  # of an .npz or the zip of a bundle beyond its own size; ours are not packed
MOST_DIRECTORY_BYTES = 16 << 20  # of the list of files in a zip
BUNDLE_GB, BUNDLE_FILES = 2, 10_000
LARGER = "EDGEDISTILL_LARGEST_BUNDLE_GB"  # the variable by which a user allows more
FORMULA = "=+-@"  # what begins a formula in a spreadsheet


def most_bundle_bytes() -> int:
    """Returns the bytes that the files of a bundle may have in all, which a user may raise."""
    told = os.environ.get(LARGER, "")
    return max(BUNDLE_GB, int(told) if told.isascii() and told.isdecimal() and len(told) < 9 else 0) * 10**9


def most_bundle_files() -> int:
    """Returns the number of files that a bundle may have. It grows with the bytes that a user allows."""
    return BUNDLE_FILES * most_bundle_bytes() // (BUNDLE_GB * 10**9)


def most_graph_bytes() -> int:
    """Returns the memory that all graphs on onnxruntime may take in one process. A user may raise it."""
    return most_bundle_bytes() // 2


def read_plain(path: Path, most: int) -> bytes:
    """Returns the bytes of a plain file of at most `most` bytes.

    Raises OSError for a larger one, and for a pipe or a device, which would be read for ever.
    """
    if path.is_dir():  # which would be named by the number of its descriptor
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe without a writer would wait in open
    with os.fdopen(descriptor, "rb") as file:
        require_plain(path, os.fstat(descriptor))
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"larger than {most} bytes", str(path))
    return data


def read_json(path: Path, most: int) -> Any:
    """Returns what a JSON file of at most `most` bytes holds.

    Raises OSError as `read_plain` does, and ValueError for anything but JSON.
    """
    data = read_plain(path, most)
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("lists and objects lie in each other too deep") from error


def require_plain(path: Path, found: os.stat_result) -> None:
    """Raises OSError where a path is neither a plain file nor a folder."""
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        raise OSError(errno.EINVAL, "not a plain file", str(path))


def find_zip_fault(file: IO[bytes]) -> str | None:
    """Returns why the directory of a zip must not be read, or None. It looks at its declared size alone."""
    read_end: Any = getattr(zipfile, "_EndRecData", None)  # what ZipFile itself finds; it is not public
    end = None if read_end is None else read_end(file)
    file.seek(0)
    if end and not 0 <= end[5] <= MOST_DIRECTORY_BYTES:
        return f"its list of files has {end[5]} bytes, at most {MOST_DIRECTORY_BYTES} are read"
    return None


def find_unpacking_fault(packed: int, whole: int) -> str | None:
    """Returns why a zip of so many bytes must not be unpacked to so many, or None. What we write is not packed."""
    return f"{packed} bytes claim to unpack to {whole}" if whole > packed + MOST_UNPACKED_BYTES else None


def find_npz_fault(file: IO[bytes]) -> str | None:
    """Returns why arrays must not be read from an opened .npz, or None.

    Raises ValueError or zipfile's errors for a file that is none.
    """
    if (fault := find_zip_fault(file)) is not None:
        return fault
    packed = file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        whole = sum(entry.file_size for entry in entries)
        if (fault := find_unpacking_fault(packed, whole)) is not None:
            return fault
        for entry in entries:
            with archive.open(entry) as member:
                if (needed := _array_bytes(member)) > entry.file_size:
                    return f"'{entry.filename}' claims {needed} bytes and holds {entry.file_size}"
    return None


def _array_bytes(file: IO[bytes]) -> int:
    """Returns how many bytes an .npy claims to have, its header among them."""
    major = np.lib.format.read_magic(file)[0]
    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return file.tell() + math.prod(shape) * dtype.itemsize if min(shape, default=0) >= 0 else sys.maxsize


def plain_text(text: str) -> str:
    """Returns a text without control characters other than new lines and tabs, as a terminal may show it."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp"))


def plain_line(text: str) -> str:
    """Returns a text as one line without control characters."""
    return plain_text(text).replace("\n", " ").replace("\t", " ")


def plain_name(text: str) -> str:
    """Returns a name as a column of a CSV may show it: one line, and no formula of a spreadsheet."""
    name = plain_line(text).strip()
    return f"'{name}" if name.startswith(tuple(FORMULA)) else name
