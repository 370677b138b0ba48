"""A bundle's spike student seen as a bundle of its own: compiled, found and opened by the same means as the decoder.

It decodes bins of z-scored counts and has no front end; the one that stands in its description is there because every
engine has one, and is never fed. What is compiled of it lies in `subjects/spike-student/build/`.
"""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

from edgedistill.bundle import Bundle, graph_verdicts
from edgedistill.bundle.graph_verdicts import GRAPHS_KEY
from edgedistill.config import StudentShape
from edgedistill.errors import BundleError
from edgedistill.frontend import FrontEndConfig

FOLDER = "subjects/spike-student/"
MODEL = FOLDER + "model.json"
NEVER_FED = Fraction(1000)  # frames a second


def holds_spike_student(bundle: Bundle) -> bool:
    """Whether there is one in INT8, in a folder where it can be compiled."""
    return bundle.path.is_dir() and {MODEL, FOLDER + "student.int8.safetensors"} <= set(bundle.names)


def spike_view(bundle: Bundle) -> Bundle:
    """The view. BundleError for a `model.json` that describes no student."""
    found = json.loads(bundle.read(MODEL))
    model = found.get("model") if isinstance(found, dict) else None
    if not isinstance(model, dict):
        raise BundleError(f"{bundle.path}: '{MODEL}' does not describe a model", got=repr(found))
    shape = StudentShape.from_json(model, f"{bundle.path}: '{MODEL}', model")
    manifest: dict[str, Any] = {
        "format": bundle.manifest["format"],
        "sha256": bundle.sha256,
        "files": {name.removeprefix(FOLDER): bundle.manifest["files"][name] for name in _own(bundle)},
        "name": f"{bundle.manifest['name']}_spike_student",
        "model": shape.to_json(),
        "frontend": FrontEndConfig(rate=NEVER_FED, channels=shape.channels).to_json(),
        "normalization": {"mean": [0.0] * shape.channels, "std": [1.0] * shape.channels},
        "channel_ids": [f"unit {unit}" for unit in range(shape.channels)],
        "outputs": bundle.manifest["outputs"],
        "engine": bundle.manifest.get("engine"),
        "target": bundle.manifest.get("target"),
        GRAPHS_KEY: {
            name.removeprefix(FOLDER): verdict.to_json()
            for name, verdict in graph_verdicts(bundle).items()
            if name.startswith(FOLDER)
        },
    }
    return Bundle(bundle.path / FOLDER.rstrip("/"), manifest)


def _own(bundle: Bundle) -> list[str]:
    return [name for name in bundle.names if name.startswith(FOLDER)]
