"""Holds what a manifest says about a model besides its shape and front end, for compiled engines."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgedistill.frontend.spatial import SpatialModel
from edgedistill.numerics.deviation import DeviationModel
from edgedistill.numerics.smoothing import SmoothingModel


@dataclass(frozen=True)
class ModelFacts:
    """Holds the facts of a model that are compiled into its engine."""

    name: str
    channel_ids: tuple[str, ...]
    output_names: tuple[str, ...]
    output_units: tuple[str, ...]
    mean: tuple[float, ...]  # (I,) of the filtered channels in uV, then of the log power of bands
    std: tuple[float, ...]  # (I,)
    spatial: SpatialModel
    deviation: DeviationModel
    warmup_bins: int
    group_delay_ms: float
    manifest_sha256: str
    weights_sha256: str  # of student.int8.safetensors
    smoothing: SmoothingModel | None = None  # None: the outputs are those of the student


def c_identifier(name: str) -> str:
    """Returns a bundle's name as the NAME in ed_model_NAME, which has only letters, digits and underscores."""
    return re.sub(r"[^0-9A-Za-z_]", "_", name) or "_"
