"""A machine that is not the device prepares the sources and says what is missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from edgedistill.bundle import Bundle
from edgedistill.compile.engines import compile_bundle, compile_or_prepare
from edgedistill.compile.tensorrt import device
from edgedistill.compile.tensorrt.plan import compile_tensorrt_plan
from edgedistill.errors import ConfigError, DeviceError, NotCompiled
from edgedistill.machine.gpu import Gpu
from edgedistill.runtime import Decoder

from .jetsons import NANO, THOR, Jetson, import_tensorrt_anew


def _no_gpu() -> Gpu:
    raise DeviceError("there is no CUDA driver on this machine", got="none", next_step="edgedistill doctor")


def test_a_machine_without_a_gpu_prepares_the_sources_and_names_the_next_command(
    jetson: Jetson, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "find_gpu", _no_gpu)
    jetson.board = None
    with pytest.raises(DeviceError, match="no CUDA driver") as caught:
        compile_bundle(bundle, NANO)
    command = f"edgedistill compile {bundle.path} --target jetson   (on the Jetson, with a copy of the bundle)"
    assert caught.value.next_step == command
    engine = compile_or_prepare(bundle, NANO)
    assert engine.library is None
    assert engine.lacking is not None
    assert engine.lacking.next_step == command
    assert engine.folder == bundle.path / "build" / "jetson"
    record = json.loads((engine.folder / "build.json").read_text())
    names = set(record["files"])
    assert names == {str(path.relative_to(engine.folder)) for path in engine.folder.rglob("*.*") if path.is_file()} - {
        "build.json"
    } | {"README"}
    assert {"README", "tensorrt/plugin.cpp", "tensorrt/engine.cpp", "model/model_test.h"} <= names
    assert {"c/ed_device.h", "include/edgedistill.h", "model/model_test_data.h"} <= names
    assert not any(name.endswith((".plan", ".so")) or name.startswith("model/model_test_w") for name in names)
    text = (engine.folder / "README").read_text()
    assert "cmake -B out -DED_MODEL=test" in text
    assert "edgedistill compile BUNDLE --target jetson" in text
    with pytest.raises(NotCompiled, match="nothing is compiled") as refused:
        Decoder.open(bundle.path)
    assert "--force" not in str(refused.value)


def test_a_build_that_was_prepared_elsewhere_is_finished_on_the_device(
    jetson: Jetson, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(device, "find_gpu", _no_gpu)
        assert not compile_or_prepare(bundle, NANO).compiled
    engine = compile_bundle(bundle, NANO)
    assert engine.compiled
    assert (bundle.path / "build/jetson/student.plan").is_file()
    with monkeypatch.context() as elsewhere:  # a machine without the GPU leaves the plan in the cache alone
        elsewhere.setattr(device, "find_gpu", _no_gpu)
        assert compile_or_prepare(bundle, NANO).lacking
    assert not compile_bundle(bundle, NANO).compiled


def test_versions_that_are_too_old_are_refused(jetson: Jetson, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    jetson.jetpack = "5.1.3"
    with pytest.raises(DeviceError, match="JetPack is too old for target 'jetson'") as caught:
        compile_tensorrt_plan(bundle, NANO)
    for part in ("JetPack 5.1.3", "JetPack 6.1 to 7.2", "install JetPack 6.1 or later", "then edgedistill compile"):
        assert part in str(caught.value)
    jetson.jetpack, jetson.tensorrt.version = "6.1", "8.5.2"
    import_tensorrt_anew(monkeypatch, jetson)
    with pytest.raises(DeviceError, match="TensorRT is too old") as caught:
        compile_tensorrt_plan(bundle, NANO)
    assert "TensorRT 8.5.2" in str(caught.value)


def test_versions_that_are_newer_than_known_are_tried_and_noted(
    jetson: Jetson, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    jetson.jetpack, jetson.tensorrt.version = "8.0", "12.0.1.2"
    import_tensorrt_anew(monkeypatch, jetson)
    notes = "\n".join(compile_tensorrt_plan(bundle, NANO).record.notes)
    assert "JetPack 8.0 is newer" in notes
    assert "TensorRT 12.0.1 is newer" in notes


def test_a_chip_of_another_board_is_refused(jetson: Jetson, bundle: Bundle) -> None:
    jetson.gpu = THOR
    with pytest.raises(DeviceError, match="not that of target 'jetson'") as caught:
        compile_tensorrt_plan(bundle, NANO)
    assert "Thor, sm_110" in str(caught.value)
    assert "sm_87" in str(caught.value)


def test_missing_tensorrt_cmake_or_nvcc_is_reported_with_its_package(
    jetson: Jetson, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "tensorrt", None)
        without.delitem(sys.modules, device.BUILDER, raising=False)
        with pytest.raises(DeviceError, match="needs TensorRT and its Python package") as caught:
            compile_tensorrt_plan(bundle, NANO)
    for part in ("python3-libnvinfer", "--system-site-packages", f"then edgedistill compile {bundle.path}"):
        assert part in str(caught.value)
    with monkeypatch.context() as without:
        without.setattr(device.shutil, "which", lambda name: None)
        with pytest.raises(DeviceError, match=r"needs CMake|nvcc"):
            compile_tensorrt_plan(bundle, NANO)
    (tmp_path / "programs/nvcc").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(DeviceError, match="nvcc"):
        compile_tensorrt_plan(bundle, NANO)


def test_a_plan_is_not_cross_compiled(jetson: Jetson, bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="built on its own device") as caught:
        compile_bundle(bundle, NANO, chip="sm_87")
    assert "--target jetson" in str(caught.value)
