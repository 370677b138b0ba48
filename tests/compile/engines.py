"""Writes small bundles with random weights, and finds targets to compile them for."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load

from benchmarks.cpu.array_models import draw_deviation_model, draw_smoothing_model, draw_spatial_model
from edgedistill.bundle import Bundle, write_bundle
from edgedistill.bundle.build_record import builds_folder
from edgedistill.compile.c import library
from edgedistill.config import StudentShape
from edgedistill.numerics import Int8Model, Oracle
from edgedistill.pipeline.channel_files import write_channel_files, write_smoothing_file
from edgedistill.target import Target, load_target

from ..bundles import student_files
from ..runtime.streams import ARRAYS

SHAPES = {
    "slow": StudentShape(3, 2, 8, 2, 2, 7, 16, 3, 2, 5),
    "fast": StudentShape(5, 1, 21, 1, 3, 20, 31, 1, 1, 0),
}
SMOOTHING_ORDERS = {"fast": 2}  # of the filter of the outputs; the others are raw


def write_engine_bundle(path: Path, kind: str, name: str = "", seed: int = 0, **changes: object) -> Bundle:
    """Writes a bundle of SHAPES[kind] with a reference. `changes` go into the manifest.

    float32 cannot represent its mean and standard deviation, so that a test would notice if they were rounded.
    """
    shape, config = SHAPES[kind], ARRAYS[kind]
    rng = np.random.default_rng(seed)
    files = student_files(shape, seed)
    manifest = {
        "name": name or f"{kind}-1",
        "model": shape.to_json(),
        "frontend": config.to_json(),
        "normalization": {
            "mean": rng.normal(size=shape.channels).tolist(),
            "std": rng.uniform(10, 30, shape.channels).tolist(),
        },
        "channel_ids": [f'ch "{i}" µ' for i in range(shape.channels)],
        "outputs": [{"name": f"v{i}", "unit": "cm/s"} for i in range(shape.outputs)],
    }
    integers = files["student.int8.safetensors"]
    kept = {"student.int8.safetensors": integers, "reference.npz": reference_of(Int8Model(shape, load(integers)), rng)}
    kept |= write_channel_files(
        draw_spatial_model(config, seed), draw_deviation_model(config.channels, shape.outputs, seed)
    )
    if kind in SMOOTHING_ORDERS:
        kept |= write_smoothing_file(draw_smoothing_model(shape.outputs, SMOOTHING_ORDERS[kind], seed))
    return write_bundle(path, manifest | changes, kept)


def compile_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes engines that are compiled at their first use compile in a tenth of the time."""
    compile_ = library.compile_c_library
    monkeypatch.setattr(library, "compile_c_library", lambda bundle, target: compile_(bundle, quick_host()))


def copy_builds(bundle: Bundle, session_cache: Path, own_cache: Path) -> None:
    """Copies what is compiled of a bundle to the cache of one test, which is in use already."""
    name = builds_folder(bundle).relative_to(own_cache)
    shutil.copytree(session_cache / name, own_cache / name)


def reference_of(model: Int8Model, rng: np.random.Generator) -> bytes:
    """Returns a reference as `build` writes it, in which the oracle starts with a ring that has wrapped around."""
    oracle, bins = Oracle(model), rng.normal(size=(60, model.shape.channels)).astype(np.float32)
    oracle.run(bins[:30])
    arrays = {"bins": bins[30:], **{f"start_{name}": array for name, array in oracle.export_state().items()}}
    arrays["kinematics"] = np.stack([oracle.step(bin) for bin in bins[30:]])
    arrays |= {f"state_{name}": array for name, array in oracle.export_state().items()}
    np.savez(file := io.BytesIO(), **arrays)
    return file.getvalue()


def target_with(name: str = "host", **changes: object) -> Target:
    """Returns a shipped target with another compiler or other flags. Skips the test where the compiler is missing."""
    target = load_target(name)
    assert target.compiler is not None
    compiler = replace(target.compiler, **changes)  # type: ignore[arg-type]
    if shutil.which(compiler.command) is None:
        pytest.skip(f"{compiler.command} is not installed: apt install {compiler.debian_package}")
    return replace(target, compiler=compiler)


def quick_host(ops: str = "scalar") -> Target:
    """Returns the target `host` in plain C without optimization: the same bits, compiled in a tenth of the time."""
    return target_with("host", flags=("-O0",), ops=ops)
