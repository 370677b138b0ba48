"""Opens a folder or a zip as a checked `Bundle`, which hands out nothing that does not match its hash."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from edgedistill.bundle.manifest import MANIFEST, SIGNATURE, Manifest, parse_manifest
from edgedistill.contained import NOT_PLAIN, open_file
from edgedistill.errors import BundleError
from edgedistill.limits import (
    BUNDLE_GB,
    LARGER,
    MOST_JSON_BYTES,
    MOST_MANIFEST_BYTES,
    find_unpacking_fault,
    find_zip_fault,
    most_bundle_bytes,
    most_bundle_files,
)
from edgedistill.scratch import fill_file

FORMAT = 3  # in format 1 lost channels were not filled in, in format 2 outputs were not smoothed

BLANK = "0" * 64
_OWN_KEYS = ("format", "sha256", "files")
CHUNK = 1 << 20
_DAMAGED = (  # zipfile and zlib raise these on bytes that were changed
    OSError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    RuntimeError,
    ValueError,
)


@dataclass(frozen=True)
class Bundle:
    """Gives access to a verified bundle. A file is read when a caller asks for it, and is checked again then."""

    path: Path
    manifest: Manifest = field(repr=False)
    prefix: str = field(default="", repr=False)  # folder of the manifest inside a zip, or "" if it is at the top

    @property
    def names(self) -> tuple[str, ...]:
        """Returns the names of the files in the bundle, sorted, without manifest.json."""
        return tuple(sorted(self.manifest.files))

    @property
    def sha256(self) -> str:
        """Returns the hash that identifies the whole bundle."""
        return self.manifest.sha256

    def read(self, name: str) -> bytes:
        """Returns the bytes of one listed file. Raises BundleError if it is not listed or was changed."""
        most = MOST_JSON_BYTES if name.endswith(".json") else most_bundle_bytes()
        data = read_member(self.path, self.prefix + self._require_listed(name), most)
        self._check(name, hashlib.sha256(data).hexdigest())
        return data

    def open_copy(self, name: str) -> IO[bytes]:
        """Returns a copy of one listed file, opened at its beginning. Raises BundleError as `read` does.

        Where a command named a folder for scratch, the copy is a file there and takes no memory. Nobody else can change
        it after it was checked.
        """
        chunks = _chunks(self.path, self.prefix + self._require_listed(name), most_bundle_bytes())

        def write(file: IO[bytes]) -> None:
            digest = hashlib.sha256()
            for chunk in chunks:
                digest.update(chunk)
                file.write(chunk)
            self._check(name, digest.hexdigest())

        return fill_file(write)

    def verify(self) -> None:
        """Hashes every listed file. Raises BundleError that names the first damaged or missing one."""
        room = most_bundle_bytes()
        with _opened(self.path) as archive:
            for name in self.names:
                digest, size = _digest(self.path, archive, self.prefix + name, room)
                self._check(name, digest)
                room -= size

    def list_uncovered(self) -> tuple[str, ...]:
        """Returns the names of all files in the bundle that no hash covers, sorted, such as those of build/.

        edgedistill reads none of them. The manifest and its signature, which check themselves, are not among them. A
        second file of the same name in a zip is.
        """
        if self.path.is_dir():
            folders = os.walk(self.path)  # which does not follow links; one to a folder is named as a file is
            found = [
                Path(top, name)
                for top, inner, files in folders
                for name in (*files, *(d for d in inner if Path(top, d).is_symlink()))
            ]
            names = Counter(path.relative_to(self.path).as_posix() for path in found)
        else:
            with _archive(self.path) as archive:
                names = Counter(name for name in archive.namelist() if not name.endswith("/"))
        covered = Counter(self.prefix + name for name in (MANIFEST, SIGNATURE, *self.manifest.files))
        return tuple(sorted((names - covered).elements()))

    def _require_listed(self, name: str) -> str:
        if name not in self.manifest.files:
            raise BundleError(f"{self.path}: no file '{name}' in this bundle", expected=", ".join(self.names))
        return name

    def _check(self, name: str, digest: str) -> None:
        if digest != self.manifest.files[name]:
            raise BundleError(
                f"{self.path}: '{name}' was changed after the bundle was written",
                got=f"sha256 {digest}",
                expected=f"sha256 {self.manifest.files[name]}",
                causes=("a copy that broke off or a bad disk", "an edit by hand"),
                next_step="copy the bundle again from where it was built, or build it again",
            )


def open_bundle(path: str | Path) -> Bundle:
    """Opens the bundle at `path`, a folder or a .zip, and verifies every file.

    Raises BundleError if it is not a bundle, has a newer format, or is damaged or incomplete. The error names the
    faulty file.
    """
    path = Path(path)
    prefix = _prefix(path)
    raw = _read_manifest(path, prefix)
    bundle = Bundle(path, parse_manifest(path, _checked_manifest(path, raw)), prefix)
    bundle.verify()
    return bundle


def read_raw_manifest(path: Path) -> bytes:
    """Returns the manifest of a folder or zip, of which nothing was checked. Raises BundleError where it has none."""
    return _read_manifest(path, _prefix(path))


# ---------------------------------------------------------------- reading


def _read_manifest(path: Path, prefix: str) -> bytes:
    return read_member(path, prefix + MANIFEST, MOST_MANIFEST_BYTES)


def _checked_manifest(path: Path, raw: bytes) -> dict[str, Any]:
    """Returns the JSON of the manifest after all checks that need no other file."""
    try:
        manifest = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: '{MANIFEST}' is damaged: it is not JSON", got=error) from error
    if not isinstance(manifest, dict) or any(key not in manifest for key in _OWN_KEYS):
        raise _not_a_bundle(path, f"a {MANIFEST} of another program")
    if (b"\\u" in raw or b"\xed" in raw) and not _is_text(manifest):  # an escape, or half a character in UTF-8
        raise BundleError(f"{path}: '{MANIFEST}' is damaged: a name in it holds half a character")
    _check_format(path, manifest["format"])
    files, own = manifest["files"], manifest["sha256"]
    if not isinstance(files, dict) or not all(map(_is_digest, (own, *files.values()))):
        raise BundleError(f"{path}: '{MANIFEST}' is damaged: its list of files makes no sense")
    if len(files) > most_bundle_files():
        raise _too_many_files(f"{path}: '{MANIFEST}'", len(files))
    for name in files:
        check_name(f"{path}: '{MANIFEST}'", name)
    if hashlib.sha256(raw.replace(own.encode(), BLANK.encode(), 1)).hexdigest() != own:
        raise BundleError(
            f"{path}: '{MANIFEST}' was changed after the bundle was written",
            causes=("an edit by hand", "a copy that broke off or a bad disk"),
            next_step="copy the bundle again from where it was built, or build it again",
        )
    return manifest


def _too_many_files(where: str, found: int) -> BundleError:
    return BundleError(
        f"{where} lists too many files",
        got=found,
        expected=f"at most {most_bundle_files()}",
        next_step=f"if you trust this bundle: {LARGER}={2 * BUNDLE_GB} edgedistill ...",
    )


def _check_format(path: Path, found: object) -> None:
    if type(found) is not int or found < 1:
        raise BundleError(f"{path}: '{MANIFEST}' is damaged: there is no such format", got=found, expected=FORMAT)
    if found > FORMAT:
        raise BundleError(
            f"{path}: '{MANIFEST}' is of a newer format",
            got=f"format {found}",
            expected=f"format {FORMAT} or older",
            next_step="pip install --upgrade edgedistill",
        )


def check_name(where: str, name: str) -> None:
    """Raises BundleError for a name that is not plain and relative, because it could lead out of the bundle."""
    plain = name == str(PurePosixPath(name)) and not re.search(r"[\x00-\x1f\\:]", name)
    inside = plain and not name.startswith("/") and ".." not in name.split("/") and name != "."
    if not inside or name in (MANIFEST, SIGNATURE) or name.startswith("build/"):
        raise BundleError(
            f"{where}: '{name}' is not a valid name for a file of a bundle",
            expected="a relative path that stays inside the bundle, outside build/",
        )


def _is_text(content: object) -> bool:
    """Returns whether all texts in parsed JSON can be written again. JSON may hold one half of a pair of surrogates."""
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _prefix(path: Path) -> str:
    """Returns the folder that holds the manifest: "", or "NAME.edge/" in a zip of the folder. Raises BundleError."""
    if path.is_dir():
        if not os.path.lexists(path / MANIFEST):
            raise _not_a_bundle(path, f"a folder without {MANIFEST}")
        return ""
    if not path.exists():
        raise BundleError(f"{path}: there is no such file or folder", expected="a bundle: NAME.edge or a .zip")
    if not path.is_file():
        raise _not_a_bundle(path, "neither a file nor a folder")
    with _archive(path) as archive:
        names = archive.namelist()
    found = [name for name in names if name.split("/")[-1] == MANIFEST and name.count("/") <= 1]
    if not found:
        raise _not_a_bundle(path, f"a zip without {MANIFEST}")
    return min(found, key=len)[: -len(MANIFEST)]


def _not_a_bundle(path: Path, got: str) -> BundleError:
    return BundleError(
        f"{path}: this is not an edgedistill bundle",
        got=got,
        expected="a folder NAME.edge or a .zip, written by `edgedistill build`",
    )


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with path.open("rb") as file:
            begins_as_zip = file.read(2) == b"PK"
            fault = find_zip_fault(file)
        if fault is not None:
            raise BundleError(f"{path}: this zip is too large to be a bundle", got=fault)
        archive = zipfile.ZipFile(path)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read", got=error.strerror or error) from error
    except _DAMAGED as error:
        if not begins_as_zip:
            raise _not_a_bundle(path, "a file that is not a zip") from error
        cause = "a copy or download that broke off"
        raise BundleError(f"{path}: this zip is damaged or cut short", got=error, causes=(cause,)) from error
    with archive:
        if len(archive.infolist()) > most_bundle_files():
            raise _too_many_files(f"{path}: this zip", len(archive.infolist()))
        whole = sum(entry.file_size for entry in archive.infolist())
        if (fault := find_unpacking_fault(path.stat().st_size, whole)) is not None:
            raise BundleError(
                f"{path}: this zip is too large to be a bundle",
                got=fault,
                causes=("it was packed again by another program", "it was made to do harm"),
                next_step=f"if you trust it: unzip {path}, and name the folder",
            )
        yield archive


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile | None]:
    """Opens a bundle that is a zip, whose list of files is read once then. A folder gives None."""
    if path.is_dir():
        yield None
    else:
        with _archive(path) as archive:
            yield archive


@contextmanager
def _stream(path: Path, archive: zipfile.ZipFile | None, name: str) -> Iterator[IO[bytes]]:
    """Opens one file of a bundle that was opened. An error that occurs while it is read names the file."""
    try:
        with open_file(path, name) if archive is None else archive.open(name) as file:
            yield file
    except (FileNotFoundError, KeyError) as error:
        raise BundleError(
            f"{path}: '{name}' is missing",
            causes=("a copy that broke off", "a file removed by hand"),
            next_step="copy the bundle again from where it was built, or build it again",
        ) from error
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.errno in NOT_PLAIN:
            raise BundleError(f"{path}: '{name}' is not read", got=error.strerror, expected="a plain file") from error
        raise BundleError(f"{path}: '{name}' cannot be read: it is damaged", got=error) from error


def read_member(path: Path, name: str, most: int) -> bytes:
    """Returns the bytes of any file inside a bundle, whose hash is not checked. Raises BundleError beyond `most`."""
    whole = io.BytesIO()  # one read of `most` bytes would take that memory first, and a list of parts takes it twice
    for chunk in _chunks(path, name, most):
        whole.write(chunk)
    return whole.getvalue()


def _chunks(path: Path, name: str, most: int) -> Iterator[bytes]:
    """Yields the bytes of any file inside a bundle, whose hash is not checked. Raises BundleError beyond `most`."""
    size = 0
    with _opened(path) as archive, _stream(path, archive, name) as file:
        while chunk := file.read(CHUNK):
            size += len(chunk)
            _require_room(path, name, size, most)
            yield chunk


def _digest(path: Path, archive: zipfile.ZipFile | None, name: str, room: int) -> tuple[str, int]:
    """Returns the hash of a file and its bytes, of which there may be `room`."""
    digest, size = hashlib.sha256(), 0
    with _stream(path, archive, name) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
            _require_room(path, name, size, room)
    return digest.hexdigest(), size


def _require_room(path: Path, name: str, size: int, most: int) -> None:
    if size > most:
        raise BundleError(
            f"{path}: this is too large for a bundle: '{name}' ends beyond what is read",
            expected=f"at most {most} bytes of it, {most_bundle_bytes() // 10**9} GB in all files",
            next_step=f"if you trust this bundle: {LARGER}={2 * (most_bundle_bytes() // 10**9)} edgedistill ...",
        )
