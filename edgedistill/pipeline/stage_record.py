"""Writes beside the files of a kept stage what they are, and tells later whether anything of it has changed.

A folder and the key of its stage go in. `record.json` lists the size and the SHA-256 of every other file, and holds the
key. A file that was changed, cut off, added, taken away, or replaced by a link is named. Links are never followed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgedistill.contained import open_file, read_file
from edgedistill.files import atomic_write_text, remove
from edgedistill.kept_folders import RECORD

logger = logging.getLogger(__name__)

BLOCK_BYTES = 1 << 20
UNREADABLE = (ValueError, TypeError, RecursionError)  # of a record that is no JSON, or other JSON

Files = dict[str, dict[str, object]]  # name, with "/" between folders -> "bytes" and "sha256"


def begin_record(folder: Path, key: str) -> None:
    """Notes which stage an empty folder belongs to, before its files are made. Raises OutputError."""
    _write(folder, {"key": key})


def write_record(folder: Path, key: str) -> None:
    """Notes which stage a folder belongs to, and what its files are. Raises OSError for a link among them."""
    sizes = _list_sizes(folder)
    _write(folder, {"key": key, "files": {name: _describe(folder, name, size) for name, size in sizes.items()}})


def belongs_to(folder: Path, key: str) -> bool:
    """Tells whether a folder in which a stage works, or has worked, is that of the stage with this key."""
    try:
        return not folder.is_symlink() and _read(folder).get("key") == key
    except (OSError, *UNREADABLE):
        return False


def find_damage(folder: Path, key: str) -> str | None:
    """Returns in what a finished stage differs from its record, in a few words, or None where nothing does.

    Names and sizes are compared before any file is read.
    """
    if folder.is_symlink():
        return "it is a link"
    try:
        record = _read(folder)
        if record.get("key") != key:
            return f"its {RECORD} is of another stage"
        files: Files = dict(record["files"])
        expected = {name: int(str(file["bytes"])) for name, file in files.items()}
        found = _list_sizes(folder)
        if difference := _compare(found, expected):
            return difference
        for name, size in found.items():
            if _describe(folder, name, size) != files[name]:
                return f"'{name}' was changed"
    except OSError as error:
        return f"'{error.filename or RECORD}' cannot be used: {error.strerror}"
    except (KeyError, AttributeError, *UNREADABLE):
        return f"its {RECORD} is damaged"
    return None


def remove_leftovers(folder: Path) -> None:
    """Removes from a folder in which a stage goes on what it did not make itself, or did not finish.

    These are the hidden files of a process that was killed while it wrote, and links, which no stage makes and through
    which it would write elsewhere.
    """
    for here, folders, names in os.walk(folder):
        for path in (Path(here, name) for name in (*folders, *names)):
            if path.is_symlink():
                logger.warning("%s is a link, which is not followed and is removed", path)
            if path.is_symlink() or path.name.startswith("."):
                remove(path)


def _read(folder: Path) -> dict[str, Any]:
    record = json.loads(read_file(folder, RECORD))
    if not isinstance(record, dict):
        raise TypeError(f"{RECORD} is no JSON object")
    return record


def _write(folder: Path, record: Mapping[str, object]) -> None:
    atomic_write_text(folder / RECORD, json.dumps(record, indent=1), "the record of a stage")


def _compare(found: Mapping[str, int], expected: Mapping[str, int]) -> str | None:
    if missing := sorted(expected.keys() - found.keys()):
        return f"'{missing[0]}' is missing"
    if added := sorted(found.keys() - expected.keys()):
        return f"'{added[0]}' was added"
    other = [name for name in sorted(found) if found[name] != expected[name]]
    return f"'{other[0]}' has {found[other[0]]} bytes instead of {expected[other[0]]}" if other else None


def _list_sizes(folder: Path) -> dict[str, int]:
    """Returns the size of every file but the record, by name. Raises OSError for a link and what is no plain file."""
    return {name: size for name, size in sorted(_walk(folder, "")) if name != RECORD}


def _walk(folder: Path, above: str) -> Iterator[tuple[str, int]]:
    with os.scandir(folder / above) as entries:
        for entry in entries:
            name, found = above + entry.name, entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                yield from _walk(folder, name + "/")
            elif stat.S_ISREG(found.st_mode):
                yield name, found.st_size
            else:
                raise OSError(None, "it is a link, or not a plain file", name)


def _describe(folder: Path, name: str, size: int) -> dict[str, object]:
    digest, block = hashlib.sha256(), memoryview(bytearray(BLOCK_BYTES))
    with open_file(folder, name) as file:
        while read := file.readinto(block):  # type: ignore[attr-defined]
            digest.update(block[:read])
    return {"bytes": size, "sha256": digest.hexdigest()}
