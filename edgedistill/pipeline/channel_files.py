"""Writes what a decoder knows of its channels and outputs besides the student: fill-in, deviations and smoothing."""

from __future__ import annotations

import numpy as np
from safetensors.numpy import save

from edgedistill.bundle.contents import DEVIATION, FILL_IN, SMOOTHING, SMOOTHING_TENSORS
from edgedistill.frontend import SPATIAL_TENSORS, SpatialModel
from edgedistill.numerics.deviation import DeviationModel
from edgedistill.numerics.smoothing import SmoothingModel


def write_channel_files(spatial: SpatialModel, deviation: DeviationModel) -> dict[str, bytes]:
    """Returns the contents of `fill_in.safetensors` and `deviation.safetensors` by name."""
    arrays = {name: getattr(spatial, name) for name in SPATIAL_TENSORS}
    tables = {name: getattr(deviation, name) for name in ("at_rest", "by_speed", "center", "weight")}
    return {FILL_IN: save(arrays), DEVIATION: save(tables)}


def write_smoothing_file(smoothing: SmoothingModel | None) -> dict[str, bytes]:
    """Returns the content of `smoothing.safetensors` by name, or nothing for a decoder that does not smooth."""
    if smoothing is None:
        return {}
    return {SMOOTHING: save({name: getattr(smoothing, name) for name in SMOOTHING_TENSORS})}


def neutral_channel_files(channels: int, outputs: int) -> dict[str, bytes]:
    """Returns the same files for a student that is fed bins alone, such as the spike student."""
    ones, table = np.ones(channels, np.float32), np.zeros((channels + 1, outputs), np.float32)
    spatial = SpatialModel(np.eye(channels, dtype=np.float32)[None], ones, ones, ones, 0, common_average=False)
    zeros = np.zeros(outputs, np.float32)
    return write_channel_files(spatial, DeviationModel(table, table, zeros, zeros))
