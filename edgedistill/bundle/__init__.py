"""Writes and reads bundles: everything that one decoder needs, in a folder `NAME.edge/` or in one .zip.

A manifest and files come in and are written as a bundle whose every byte is covered by a sha256. A `Bundle` that has
been checked comes back. `manifest.json` lists the hashes of all files under "files" and holds its own under "sha256",
which is the hash of the manifest with that value replaced by zeros. A byte that is changed anywhere is therefore found,
and its file is named.

`manifest` and `contents` turn the files into typed values. `build_record` knows what a device adds under `build/`.
Those files, like all that the manifest does not list, are never read through a `Bundle`.
"""

from edgedistill.bundle.manifest import MANIFEST, GraphVerdict, Manifest, reasons_left_out
from edgedistill.bundle.reading import FORMAT, Bundle, open_bundle
from edgedistill.bundle.shipping import ship, zip_path
from edgedistill.bundle.writing import refuse_foreign, write_bundle

__all__ = [
    "FORMAT",
    "MANIFEST",
    "Bundle",
    "GraphVerdict",
    "Manifest",
    "open_bundle",
    "reasons_left_out",
    "refuse_foreign",
    "ship",
    "write_bundle",
    "zip_path",
]
