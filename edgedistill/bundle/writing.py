"""Writes a bundle. A manifest and files go in, and a complete folder or zip comes out, or none at all."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from edgedistill.bundle.manifest import MANIFEST
from edgedistill.bundle.reading import BLANK, CHUNK, FORMAT, Bundle, check_name, open_bundle, read_raw_manifest
from edgedistill.errors import BundleError, OutputError
from edgedistill.files import atomic_write, remove

Content = bytes | Path | IO[bytes]  # the bytes of a file, or a file to copy, which may be opened
Files = Mapping[str, Content]  # by the name inside the bundle
OpenMember = Callable[[str, int], IO[bytes]]  # name and size in bytes -> the member, opened for writing


def write_bundle(path: str | Path, manifest: Mapping[str, object], files: Files) -> Bundle:
    """Writes a folder, or a zip if `path` ends in .zip, and returns it as an opened bundle.

    `files` maps names inside the bundle to their bytes, or to a file to copy, by its path or opened. An opened one
    stays open and is copied from its beginning. This function adds the keys "format", "files" and "sha256" to the
    manifest. An older bundle at `path` is replaced together with its `build/`, which was made for the older files.
    Raises OutputError if `path` holds anything else or cannot be written.
    """
    with replace_bundle(Path(path)) as hidden:
        fill_bundle(hidden, manifest, files)
    return open_bundle(path)


@contextmanager
def replace_bundle(path: Path) -> Iterator[Path]:
    """Yields a hidden path beside `path`, in which a bundle is made. At the end it replaces the one at `path`.

    Raises OutputError as `write_bundle` does.
    """
    target = path.resolve()
    refuse_foreign(target)
    with atomic_write(target, "the bundle") as hidden:
        yield hidden


def fill_bundle(hidden: Path, manifest: Mapping[str, object], files: Files) -> None:
    """Writes a bundle to the path of `replace_bundle`, also in place of one that was written there before.

    Raises OSError, and BundleError for the name of a file that no bundle may have.
    """
    for name in files:
        check_name(str(hidden), name)
    remove(hidden)
    write = _write_zip if hidden.suffix == ".zip" else _write_folder
    write(hidden, manifest, files)


# ---------------------------------------------------------------- content


def _write_folder(folder: Path, manifest: Mapping[str, object], files: Files) -> None:
    def member(name: str, size: int) -> IO[bytes]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        return (folder / name).open("xb")

    _fill(member, manifest, files)


def _write_zip(path: Path, manifest: Mapping[str, object], files: Files) -> None:
    """Writes a zip without dates, so that equal content gives equal bytes.

    It is not compressed, because weights and recorded signals do not get smaller.
    """
    with zipfile.ZipFile(path, "x") as archive:

        def member(name: str, size: int) -> IO[bytes]:
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o644 << 16
            entry.file_size = size  # above 2 GiB the header must know it beforehand
            return archive.open(entry, "w")

        _fill(member, manifest, files)


def _fill(member: OpenMember, manifest: Mapping[str, object], files: Files) -> None:
    digests = {name: _copy(source, member, name) for name, source in sorted(files.items())}
    _copy(_manifest_bytes({**manifest, "files": digests}), member, MANIFEST)


def _copy(source: Content, member: OpenMember, name: str) -> str:
    """Copies a file in blocks and returns its sha256."""
    if isinstance(source, Path):
        with source.open("rb") as opened:
            return _copy(opened, member, name)
    digest, reader = hashlib.sha256(), io.BytesIO(source) if isinstance(source, bytes) else source
    size = reader.seek(0, os.SEEK_END)
    reader.seek(0)
    with member(name, size) as writer:
        while chunk := reader.read(CHUNK):
            digest.update(chunk)
            writer.write(chunk)
    return digest.hexdigest()


def _manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    """Returns the manifest with its own hash. Raises BundleError for a value that JSON cannot hold, such as NaN.

    Bytes of a file's name that are no text become question marks.
    """
    blank = {"format": FORMAT, "sha256": BLANK, **{k: v for k, v in manifest.items() if k not in _OURS}}
    try:
        text = json.dumps(blank, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise BundleError(f"'{MANIFEST}' cannot hold this manifest", got=error) from error
    raw = text.encode(errors="replace")
    return raw.replace(BLANK.encode(), hashlib.sha256(raw).hexdigest().encode(), 1)


_OURS = ("format", "sha256")


# ---------------------------------------------------------------- place


def refuse_foreign(target: Path) -> None:
    """Raises OutputError unless `target` is free, an empty folder, or a bundle of the same kind to replace."""
    if not target.exists() or _is_replaceable(target):
        return
    raise OutputError(
        f"{target}: this path exists and is not a bundle",
        expected="a path that is free, or a bundle to replace",
        next_step="choose another --out, or remove it by hand",
    )


def _is_replaceable(target: Path) -> bool:
    try:
        if target.is_file() != (target.suffix == ".zip"):
            return False
        if target.is_dir() and not any(target.iterdir()):
            return True
        manifest = json.loads(read_raw_manifest(target))
    except (OSError, BundleError, ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and {"format", "files", "sha256"} <= manifest.keys()
