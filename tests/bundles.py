"""Makes a small whole bundle with random weights, which tests of bench, run and the command line open.

Its array is that of `nwb_files.whole_session`: three channels at 250 Hz, velocity in x and y. The bundle with bands
reads the log power of two bands of each channel beside the slow LFP.
"""

from __future__ import annotations

import io
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from edgedistill.bundle import Bundle, write_bundle
from edgedistill.config import StudentShape
from edgedistill.frontend import FrontEndConfig, SpatialModel
from edgedistill.numerics.deviation import DeviationModel
from edgedistill.numerics.smoothing import SmoothingModel
from edgedistill.pipeline.channel_files import neutral_channel_files, write_channel_files, write_smoothing_file
from edgedistill.quantization.integers import quantize_student
from edgedistill.quantization.onnx_graph import (
    graph_for_plugin,
    graph_from_integers,
    graph_from_student,
    list_weight_shapes,
)

from .numerics.students import likely_ranges

CHANNELS, UNITS, OUTPUTS = 3, 5, 2
T, SCORE_FROM = 1300, 200
SHAPE = StudentShape(CHANNELS, OUTPUTS, 8, 2, 2, 7, 16, 3, 2, 5)
SPIKE_SHAPE = StudentShape(UNITS, OUTPUTS, 8, 2, 2, 7, 16, 3, 2, 5)
CONFIG = FrontEndConfig(rate=Fraction(250), channels=CHANNELS, highpass_hz=1)
BANDED = replace(CONFIG, bands=((12.0, 30.0), (30.0, 60.0)))
BANDED_SHAPE = replace(SHAPE, channels=BANDED.inputs)
SPIKE_STATISTICS = {"mean": [1.0] * UNITS, "std": [1.5] * (UNITS - 1) + [0.0]}


def manifest(**changes: object) -> dict[str, object]:
    return {
        "name": "test",
        "created_by": "test",
        "model": SHAPE.to_json(),
        "frontend": CONFIG.to_json(),
        "normalization": {"mean": [0.0] * CHANNELS, "std": [60.0] * CHANNELS},
        "channel_ids": ["0", "1", "2"],
        "outputs": [{"name": "cursor_vel_x", "unit": "cm/s"}, {"name": "cursor_vel_y", "unit": "cm/s"}],
        "session": {"id": "s1", "subject": "monkey"},
        "preset": "nano",
        "target": "host",
        "metrics": {"deployed_r2": 0.5, "int8_r2": None},
        "gates": [],
        "group_delay_ms": 12.0,
    } | changes


def banded_manifest(**changes: object) -> dict[str, object]:
    """Returns the manifest of the bundle with bands."""
    statistics = {"mean": [0.0] * CHANNELS + [3.0] * 2 * CHANNELS, "std": [60.0] * CHANNELS + [2.0] * 2 * CHANNELS}
    whole = {"model": BANDED_SHAPE.to_json(), "frontend": BANDED.to_json(), "normalization": statistics}
    return manifest(**whole, **changes)


def write_test_bundle(
    path: Path, smoothing_model: SmoothingModel | None = None, bands: bool = False, **changes: object
) -> Bundle:
    """Writes a bundle whose true kinematics are what the LFP student decodes plus noise, so that its R² is near one.

    With `smoothing_model`, the outputs of the LFP student are smoothed, and the truth is what they then are.
    """
    shape, config = (BANDED_SHAPE, BANDED) if bands else (SHAPE, CONFIG)
    files = student_files(shape, seed=0)
    spikes = student_files(SPIKE_SHAPE, seed=1) | {
        "model.json": json.dumps({"model": SPIKE_SHAPE.to_json(), "normalization": SPIKE_STATISTICS}).encode()
    }
    files |= write_channel_files(plain_array(config), deviations())
    spikes |= neutral_channel_files(UNITS, OUTPUTS)
    files |= {f"subjects/spike-student/{name}": data for name, data in spikes.items()}
    whole = banded_manifest(**changes) if bands else manifest(**changes)
    kept = {"holdout.npz": holdout(files["student.onnx"], shape, config, smoothing_model)}
    return write_bundle(path, whole, files | write_smoothing_file(smoothing_model) | kept)


def plain_array(config: FrontEndConfig) -> SpatialModel:
    """Returns the model of an array whose channels have nothing in common."""
    ones, eye = np.ones(config.inputs, np.float32), np.eye(config.channels, dtype=np.float32)
    return SpatialModel(np.stack([eye] * config.features), ones, ones, ones, config.fill_sweeps, config.common_average)


def deviations() -> DeviationModel:
    """Returns deviations that grow with the number of lost channels and with the speed, and differ by output."""
    lost = np.arange(1, CHANNELS + 2, dtype=np.float32)[:, None]
    at_rest, by_speed = lost * np.array([1e-4, 4e-4], np.float32), lost * np.array([1e-6, 0], np.float32)
    return DeviationModel(at_rest, by_speed, np.array([0.1, -0.2], np.float32), np.array([4, 6], np.float32))


def student_files(shape: StudentShape, seed: int) -> dict[str, bytes]:
    rng = np.random.default_rng(seed)
    sizes = list_weight_shapes(shape)
    weights = {n: (rng.normal(size=s) / np.sqrt(s[-1])).astype(np.float32) for n, s in sizes.items()}
    graph = graph_from_student(shape, weights).SerializeToString()
    tensors = quantize_student(shape, weights, likely_ranges(shape))
    return {
        "student.onnx": graph,
        "student.safetensors": save(weights),
        "student.int8.onnx": graph_from_integers(shape, tensors).SerializeToString(),
        "student.int8.plugin.onnx": graph_for_plugin(shape, tensors).SerializeToString(),
        "student.int8.safetensors": save(tensors),
    }


def holdout(
    graph: bytes,
    shape: StudentShape = SHAPE,
    config: FrontEndConfig = CONFIG,
    smoothing: SmoothingModel | None = None,
) -> bytes:
    from edgedistill.runtime.onnx_engine import OnnxEngine

    rng = np.random.default_rng(2)
    present, there = rng.normal(size=(T, config.inputs)).astype(np.float32), np.ones((T, CHANNELS), np.bool_)
    bins = plain_array(config).complete(present, there)
    engine = OnnxEngine(graph, shape)
    decoded = np.stack([engine.step(bin) for bin in bins])
    decoded = decoded if smoothing is None else smoothing.run(decoded)
    kinematics = decoded + 0.01 * rng.normal(size=(T, OUTPUTS))
    kinematics[300:310] = np.nan  # unknown values, which must not count
    kinematics[:SCORE_FROM] = 1e6  # these bins lie before those that count
    counts = rng.poisson(1.0, size=(T, UNITS)).astype(np.uint8)
    file = io.BytesIO()
    inputs = {"bins": bins, "present": present, "there": there, "counts": counts}
    np.savez(file, **inputs, kinematics=kinematics.astype(np.float32), score_from=SCORE_FROM)
    return file.getvalue()
