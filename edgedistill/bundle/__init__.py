"""Writes and reads bundles. A bundle is a folder `NAME.edge/` or a .zip with everything that one decoder needs.

A manifest and files come in and are written as a bundle whose every byte is covered by a sha256. A `Bundle` that has
been checked comes back. `manifest.json` lists the hashes of all files under "files". Its own hash is under "sha256",
and is computed with that value replaced by zeros. A changed byte is therefore found wherever it is, and the error names
its file.

`manifest` and `contents` turn the files into typed values. A `Bundle` never reads files that the manifest does not
list. `signing` tells who signed a bundle. `build_record` describes what this user compiled of a bundle, which lies
outside of it.
"""

from edgedistill.bundle.manifest import MANIFEST, SIGNATURE, GraphVerdict, Manifest, reasons_left_out
from edgedistill.bundle.reading import FORMAT, Bundle, open_bundle
from edgedistill.bundle.shipping import ship, zip_path
from edgedistill.bundle.signing import load_signing_key, require_signature, sign_bundle
from edgedistill.bundle.writing import fill_bundle, refuse_foreign, replace_bundle, write_bundle

__all__ = [
    "FORMAT",
    "MANIFEST",
    "SIGNATURE",
    "Bundle",
    "GraphVerdict",
    "Manifest",
    "fill_bundle",
    "load_signing_key",
    "open_bundle",
    "reasons_left_out",
    "refuse_foreign",
    "replace_bundle",
    "require_signature",
    "ship",
    "sign_bundle",
    "write_bundle",
    "zip_path",
]
