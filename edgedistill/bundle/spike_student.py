"""Opens the spike student of a bundle as a bundle of its own, so that it can be compiled and run like the decoder.

A bundle goes in, and a `Bundle` for its folder `subjects/spike-student/` comes out. The spike student decodes bins of
z-scored spike counts and needs no front end. Its manifest holds one all the same, because every compiled engine has a
front end, but no frames are ever fed to it.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TypeVar

from edgedistill.bundle.contents import INT8_WEIGHTS, SPIKE_FOLDER, SPIKE_MODEL, read_spike_student
from edgedistill.bundle.manifest import parse_manifest
from edgedistill.bundle.reading import Bundle
from edgedistill.frontend import FrontEndConfig

T = TypeVar("T")

NEVER_FED = Fraction(1000)  # frames a second, of a front end that gets no frames


def holds_spike_student(bundle: Bundle) -> bool:
    """Returns whether the bundle holds a spike student in INT8, which can then be compiled."""
    return {SPIKE_MODEL, SPIKE_FOLDER + INT8_WEIGHTS} <= set(bundle.names)


def open_spike_student(bundle: Bundle) -> Bundle:
    """Returns the spike student as a bundle. Raises BundleError where `model.json` does not describe a student."""
    shape, own, path = read_spike_student(bundle).shape, bundle.manifest, bundle.path
    files = {name: digest for name, digest in own.files.items() if name.startswith(SPIKE_FOLDER)}
    graphs = {name: verdict.to_json() for name, verdict in own.graphs.items() if name.startswith(SPIKE_FOLDER)}
    content = {
        "format": own.format,
        "sha256": own.sha256,
        "files": _without_folder(files),
        "name": f"{own.name}_spike_student",
        "model": shape.to_json(),
        "frontend": FrontEndConfig(
            rate=NEVER_FED, channels=shape.channels, fill_sweeps=0, common_average=False
        ).to_json(),
        "normalization": {"mean": [0.0] * shape.channels, "std": [1.0] * shape.channels},
        "channel_ids": [f"unit {unit}" for unit in range(shape.channels)],
        "outputs": own.decoder.get("outputs"),
        "engine": own.engine,
        "target": own.target,
        "graphs": _without_folder(graphs),
    }
    return Bundle(path, parse_manifest(path, content), bundle.prefix + SPIKE_FOLDER)


def _without_folder(entries: dict[str, T]) -> dict[str, T]:
    return {name.removeprefix(SPIKE_FOLDER): value for name, value in entries.items()}
