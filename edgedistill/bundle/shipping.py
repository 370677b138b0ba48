"""Packs a bundle with its `build/` folder as one zip, which is easy to copy to a device.

Unpacked on the device, the zip becomes the same folder NAME.edge, and `edgedistill compile` can finish the build there.
The zip itself can be opened as a bundle too.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

from edgedistill.bundle.manifest import MANIFEST, SIGNATURE
from edgedistill.bundle.reading import Bundle
from edgedistill.bundle.writing import refuse_foreign
from edgedistill.contained import list_files, open_file
from edgedistill.errors import BundleError
from edgedistill.files import atomic_write


def zip_path(bundle: Path) -> Path:
    """Returns the path of a bundle's zip, which is NAME.edge.zip beside the bundle."""
    return bundle.with_name(f"{bundle.name}.zip")


def ship(bundle: Bundle) -> Path:
    """Checks a bundle that is a folder, writes its zip, and returns the path of the zip.

    An older zip of a bundle is replaced. Raises OutputError if anything else has that path, or if the zip cannot be
    written.
    """
    folder, path = bundle.path.resolve(), zip_path(bundle.path)
    refuse_foreign(path)
    bundle.verify()
    try:
        signature = [SIGNATURE] if os.path.lexists(folder / SIGNATURE) else []
        names = [MANIFEST, *signature, *bundle.names, *list_files(folder, "build")]
    except OSError as error:
        raise BundleError(f"{bundle.path}: '{error.filename}' is not packed", got=error.strerror) from error
    whole = f"the bundle itself is whole: copy {bundle.path} as it is"
    with (
        atomic_write(path, "the zip of the bundle", next_step=whole) as partial,
        zipfile.ZipFile(partial, "x") as archive,
    ):
        for name in names:
            _add(archive, folder, name)
    return path


def _add(archive: zipfile.ZipFile, folder: Path, name: str) -> None:
    """Adds one file without a date, so that equal content gives equal bytes. Only sources are compressed."""
    entry = zipfile.ZipInfo(f"{folder.name}/{name}")
    entry.external_attr = 0o644 << 16
    entry.compress_type = zipfile.ZIP_DEFLATED if name.startswith("build/") else zipfile.ZIP_STORED
    with open_file(folder, name) as source:
        entry.file_size = os.fstat(source.fileno()).st_size
        with archive.open(entry, "w") as target:
            shutil.copyfileobj(source, target)
