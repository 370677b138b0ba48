"""What a bundle holds for a bench: arrays of the holdout, shapes, parameters; and what of it is missing, by name."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from edgedistill.bundle import Bundle
from edgedistill.config import StudentShape
from edgedistill.errors import BundleError

Floats = npt.NDArray[np.float32]

SPIKE_FOLDER = "subjects/spike-student/"
ARRAYS = ("bins", "counts", "kinematics", "score_from")


@dataclass(frozen=True, eq=False)
class Holdout:
    """The held-out stretch: what goes in (T, …), what was true (T, K), and from which bin on it counts."""

    bins: Floats  # (T, C) z-scored LFP
    counts: npt.NDArray[Any] | None  # (T, U) spikes
    kinematics: npt.NDArray[Any]  # (T, K), NaN where unknown
    score_from: int

    @classmethod
    def of(cls, bundle: Bundle) -> Holdout:
        """`holdout.npz`. BundleError names a part that is missing."""
        with np.load(io.BytesIO(bundle.read("holdout.npz")), allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored if key in ARRAYS}
        for name in ("bins", "kinematics"):
            if not len(arrays.get(name, ())):
                raise BundleError(f"{bundle.path}: 'holdout.npz' holds no '{name}'", got=sorted(arrays))
        first = int(arrays.get("score_from", np.array(0)))
        return cls(arrays["bins"].astype(np.float32), arrays.get("counts"), arrays["kinematics"], first)


def raw_frames(bundle: Bundle) -> Floats | None:
    """Raw frames (n, C) in uV of the holdout; None where the bundle holds none."""
    if "holdout.npz" not in bundle.names:
        return None
    with np.load(io.BytesIO(bundle.read("holdout.npz")), allow_pickle=False) as stored:
        return stored["frames"].astype(np.float32) if "frames" in stored else None


def spike_counts(bundle: Bundle, holdout: Holdout) -> tuple[StudentShape, Floats]:
    """The spike student's shape, and the counts as it takes them."""
    if holdout.counts is None or not len(holdout.counts):
        raise BundleError(f"{bundle.path}: 'holdout.npz' holds no 'counts'", next_step="build the bundle again")
    model = json.loads(bundle.read(SPIKE_FOLDER + "model.json"))
    if not isinstance(model, dict):
        raise BundleError(f"{bundle.path}: '{SPIKE_FOLDER}model.json' does not describe a model", got=repr(model))
    shape = shape_of(bundle, model.get("model"), SPIKE_FOLDER + "model.json")
    return shape, standardised(holdout.counts, model.get("normalization"))


def standardised(counts: npt.NDArray[Any], normalization: Any) -> Floats:
    """Counts (T, U) as the spike models take them: (x - mean) / std, 0 where std is 0."""
    if not normalization:
        return counts.astype(np.float32)
    mean, std = (np.asarray(normalization[key], np.float64) for key in ("mean", "std"))
    scaled = np.divide(counts - mean, std, out=np.zeros(counts.shape), where=std > 0)
    return scaled.astype(np.float32)


def shape_of(bundle: Bundle, found: object, name: str) -> StudentShape:
    """A student's shape out of a file's JSON."""
    if not isinstance(found, dict):
        raise BundleError(f"{bundle.path}: '{name}' does not describe a model", got=repr(found))
    return StudentShape.from_json(found, f"{bundle.path}: '{name}', model")


def tensors_of(bundle: Bundle, name: str) -> dict[str, npt.NDArray[Any]]:
    """Of a safetensors file."""
    try:
        return load_safetensors(bundle.read(name))
    except SafetensorError as error:
        raise BundleError(f"{bundle.path}: '{name}' is not a safetensors file", got=error) from error
