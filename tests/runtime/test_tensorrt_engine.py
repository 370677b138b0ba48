"""The TensorRT engine compiles and decodes in Python, with stand-ins for TensorRT and the GPU.

The sources that `compile` writes, the runtime in C++ over the C ABI, the plugin, the append kernel (emulated), and
everything in Python are real. libnvinfer and libcuda are stand-ins, with a plan that computes what the C engine
computes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgedistill.bundle.build_record import BuildRecord, build_folder
from edgedistill.bundle.contents import read_decoder_spec, read_int8_model
from edgedistill.compile.tensorrt import plan as plan_compiler
from edgedistill.compile.tensorrt import trials
from edgedistill.compile.tensorrt.device import Machine
from edgedistill.compile.tensorrt.forms import time_forms
from edgedistill.errors import EngineError
from edgedistill.numerics import Oracle
from edgedistill.runtime import Decoder
from edgedistill.target import load_target

from ..compile.tensorrt.jetsons import become_board, write_jetson_bundle
from ..kernels import c_builds
from ..kernels.cuda_engines import emulated_driver
from ..kernels.tensorrt_builds import FETCHED, compile_cpp, headers
from ..kernels.tensorrt_fakes import (
    append_kernel,
    fake_tensorrt,
    looks_for,
    plan,
    plugin_library,
    student_kernel,
    tensors_of,
)


def test_a_bundle_is_compiled_and_decodes_with_the_bits_of_the_oracle(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    include = headers(FETCHED)
    bundle = write_jetson_bundle(tmp_path / "decoder.edge", metrics={"deployed_r2": 0.9})
    shape = read_decoder_spec(bundle).shape
    model = read_int8_model(bundle, shape)
    driver = emulated_driver(tmp_path)
    nvinfer, append, plugin = (
        fake_tensorrt(tmp_path, FETCHED, driver),
        append_kernel(tmp_path),
        plugin_library(tmp_path, FETCHED),
    )
    (student := tmp_path / "student").mkdir()
    c_builds.write_sources(student, model, "scalar")
    text = plan(FETCHED, student_kernel(student), "fake_student", tensors_of(shape)).encode()

    def by_hand(folder: Path, record: BuildRecord, machine: Machine) -> None:
        """Compiles the sources in a folder, as CMake would do."""
        define = f'-DED_MODEL_HEADER="model_{record.model}.h"'
        own = ("-I", str(folder / "include"), "-I", str(folder / "c"), "-I", str(folder / "model"))
        objects = [
            c_builds.compile_c(
                folder,
                f"{name}.o",
                [folder / f"c/{name}.c"],
                (*own, "-O1", "-fPIC", "-c", define, "-DED_DEVICE"),
                "gcc",
            )
            for name in ("ed_api", "ed_engine")
        ]
        sources = [folder / "tensorrt/engine.cpp", *objects]
        compile_cpp(folder / record.library, sources, ("-O1", define, *looks_for(driver, nvinfer), *own, *include))
        for path in objects:
            path.unlink()
        (folder / "append.cubin").write_bytes(append.read_bytes())
        (folder / "libed_plugin.so").write_bytes(plugin.read_bytes())

    here = become_board(monkeypatch, tmp_path, plan_of=lambda graph: text)
    here.tensorrt.parse_error = {bundle.read("student.fp16.onnx"): ("n", "MatMul", "the fake has no float16")}
    monkeypatch.setattr(plan_compiler, "run_cmake", by_hand)
    monkeypatch.setattr(trials, "time_forms", lambda trials, evidence: time_forms(trials, evidence, steps=50))
    made = plan_compiler.compile_tensorrt_plan(bundle, load_target("jetson"))
    told = {outcome.form: outcome for outcome in plan_compiler.read_forms(made.folder)}
    assert {told["int8-plugin"].state, told["int8"].state} == {"kept", "slower"}
    assert told["fp16"].state == "not built"
    for name in ("int8-plugin", "int8"):
        assert str(told[name].near).startswith("0 of ")
        assert told[name].latency_us["p50"] > 0
    _decodes_like_the_oracle(bundle.path, model)
    (build_folder(bundle, "jetson") / "append.cubin").write_bytes(b"no kernel")
    with pytest.raises(EngineError, match=r"'append.cubin' was changed"):
        Decoder.open(bundle.path)


def _decodes_like_the_oracle(path: Path, model: Any) -> None:
    decoder, reference, oracle = Decoder.open(path), Decoder.open(path, "oracle"), Oracle(model)
    assert decoder.info.engine == "tensorrt"
    rng = np.random.default_rng(11)
    for bin in rng.normal(size=(60, model.shape.channels)).astype(np.float32):
        oracle.step(bin)
        assert decoder.step(bin).tobytes() == reference.step(bin).tobytes()  # smoothed, unlike those of the oracle
    state = decoder.export_state()
    for name, array in oracle.export_state().items():
        assert np.array_equal(state[f"state_{name}"], array)
    frames = (20 * rng.normal(size=(500, model.shape.channels))).astype(np.float32)
    here, there = Decoder.open(path), Decoder.open(path, "oracle")
    for mine, theirs in zip(here.push(frames), there.push(frames), strict=True):
        assert mine.kinematics.tobytes() == theirs.kinematics.tobytes()
