"""A bundle: everything one decoder needs, in a folder `NAME.edge/` or the same as one .zip.

In come a manifest and files; out goes a bundle whose every byte is covered by a sha256, and back a
`Bundle` that has been checked. `manifest.json` lists the hashes of all files under "files" and holds its
own under "sha256" (the hash of the manifest with that figure replaced by zeros), so that a byte changed
anywhere is found and named.

A device may add files under `build/`; those, like any file that the manifest does not list, are never
read through a bundle, so they are ignored here.
"""

from edgedistill.bundle.graph_verdicts import GraphVerdict, graph_verdicts, left_out, why_left_out
from edgedistill.bundle.reading import FORMAT, MANIFEST, Bundle, open_bundle
from edgedistill.bundle.shipping import ship, zip_path
from edgedistill.bundle.writing import refuse_foreign, write_bundle

__all__ = [
    "FORMAT",
    "MANIFEST",
    "Bundle",
    "GraphVerdict",
    "graph_verdicts",
    "left_out",
    "open_bundle",
    "refuse_foreign",
    "ship",
    "why_left_out",
    "write_bundle",
    "zip_path",
]
