"""A bundle for a GPU is prepared where there is no GPU, and refused where the kernels cannot run it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edgedistill.bundle import Bundle, open_bundle
from edgedistill.cli import main
from edgedistill.compile.cuda import chip
from edgedistill.compile.cuda.module import describe_four_bits, require_kernels_fit
from edgedistill.compile.engines import compile_bundle, compile_or_prepare
from edgedistill.errors import ConfigError, DeviceError, EngineError, NotCompiled
from edgedistill.machine.gpu import Gpu
from edgedistill.runtime import Decoder
from edgedistill.runtime.compiled_engines import choose_engine, why_not_here
from edgedistill.target import Cuda, load_target

from ...numerics.students import random_model
from ..engines import write_engine_bundle

CUDA = load_target("cuda")
HERE = Gpu("NVIDIA H200", "sm_90", "13000")


@pytest.fixture
def bundle(tmp_path: Path, own_cache: Path) -> Bundle:
    return write_engine_bundle(tmp_path / "a.edge", "slow")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def find() -> Gpu:
        raise DeviceError("there is no CUDA driver on this machine", next_step="edgedistill doctor")

    monkeypatch.setattr(chip, "find_gpu", find)
    monkeypatch.setattr("edgedistill.runtime.cuda_engine.find_gpu", find)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chip, "find_gpu", lambda: HERE)
    monkeypatch.setattr("edgedistill.runtime.cuda_engine.find_gpu", lambda: HERE)


def read_copy(bundle: Bundle) -> dict[str, Any]:
    """Returns the build.json that was left in the bundle, for people."""
    found = json.loads((bundle.path / "build" / "cuda" / "build.json").read_text())
    assert isinstance(found, dict)
    return found


# ---------------------------------------------------------------- machines other than the device


def test_without_a_gpu_the_sources_are_prepared_and_the_command_is_told(bundle: Bundle, no_gpu: None) -> None:
    with pytest.raises(DeviceError, match="no CUDA driver") as caught:
        compile_bundle(bundle, CUDA)
    assert f"edgedistill compile {bundle.path} --target cuda" in str(caught.value.next_step)
    folder = bundle.path / "build" / "cuda"
    record = read_copy(bundle)
    assert (record["library"], record["engine"], record["target"]) == ("", "cuda", "cuda")
    wanted = ("include/edgedistill.h", "c/ed_engine.c", "cuda/student_step.cu", "cuda/engine.cpp")
    assert {*wanted, "model/model_slow_1.h", "README", "CMakeLists.txt"} <= record["files"].keys()
    assert "edgedistill compile BUNDLE --target cuda" in (folder / "README").read_text()
    open_bundle(bundle.path)


def test_how_four_bit_weights_are_read_is_said() -> None:
    packing = replace(CUDA, cuda=Cuda(pack_four_bits=True))
    some = random_model(four=("layers.0.qkv", "layers.1.qkv", "layers.0.out"))
    assert "pack_four_bits = true" in describe_four_bits(some, CUDA)[0]
    assert describe_four_bits(some, packing) == ("four-bit weights are packed in: qkv",)
    assert "in none all layers have four bits" in describe_four_bits(random_model(four=("layers.0.out",)), packing)[0]
    assert describe_four_bits(random_model(), packing) == ()


def test_a_build_reports_what_is_missing_and_does_not_fail(bundle: Bundle, no_gpu: None) -> None:
    engine = compile_or_prepare(bundle, CUDA)
    assert (engine.compiled, engine.library, engine.gates) == (False, None, ())
    assert engine.lacking is not None
    assert "--target cuda" in str(engine.lacking.next_step)


def test_with_a_gpu_but_without_nvcc_its_package_is_to_be_installed_first(bundle: Bundle, gpu: None) -> None:
    missing = replace(CUDA, cuda=Cuda("of-dreams-nvcc"))
    with pytest.raises(DeviceError, match="of-dreams-nvcc") as caught:
        compile_bundle(bundle, missing)
    step = str(caught.value.next_step)
    assert step.index("install") < step.index("edgedistill compile")
    assert read_copy(bundle)["library"] == ""


def test_a_driver_older_than_the_toolkit_is_to_be_updated_first(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(chip, "find_gpu", lambda: Gpu("Orin", "sm_87", "12060"))
    program = tmp_path / "nvcc"
    program.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n")
    program.chmod(0o755)
    with pytest.raises(DeviceError, match="older than its CUDA toolkit") as caught:
        compile_bundle(bundle, replace(CUDA, cuda=Cuda(str(program))))
    assert "CUDA 12.6" in str(caught.value)
    step = str(caught.value.next_step)
    assert step.index("update the driver") < step.index(f"edgedistill compile {bundle.path} --target cuda")


def test_what_a_bundle_came_with_is_replaced_by_sources_of_this_edgedistill(bundle: Bundle, no_gpu: None) -> None:
    folder = bundle.path / "build" / "cuda"
    folder.mkdir(parents=True)
    (folder / "engine.cpp").write_text("of somebody else")
    (folder / "build.json").write_text("{")
    compile_or_prepare(bundle, CUDA)
    assert read_copy(bundle)["notes"] == ["prepared: to be compiled on the device"]
    assert not (folder / "engine.cpp").exists()


def test_the_command_fails_with_exit_1_and_leaves_the_sources(bundle: Bundle, no_gpu: None) -> None:
    result = CliRunner().invoke(main, ["compile", str(bundle.path), "--target", "cuda", "--json"])
    assert result.exit_code == 1
    error = json.loads(result.stdout)["error"]
    assert (error["type"], "no CUDA driver" in error["what"]) == ("DeviceError", True)
    assert (bundle.path / "build" / "cuda" / "build.json").exists()


# ---------------------------------------------------------------- refusals


def test_a_prepared_engine_is_not_opened_and_no_other_takes_its_place(bundle: Bundle, no_gpu: None) -> None:
    compile_or_prepare(bundle, CUDA)
    with pytest.raises(NotCompiled, match="nothing is compiled") as caught:
        Decoder(bundle, "cuda")
    assert f"edgedistill compile {bundle.path} --target cuda" in str(caught.value.next_step)
    assert choose_engine(bundle) == "onnxruntime-int8"
    assert "nothing is compiled" in str(why_not_here(bundle, "cuda", "cuda"))


def test_a_window_or_parts_that_the_kernels_cannot_take_are_refused() -> None:
    require_kernels_fit(2048, ())
    with pytest.raises(EngineError, match="window is too large") as caught:
        require_kernels_fit(2049, ())
    assert "[student]" in str(caught.value.next_step)
    with pytest.raises(EngineError, match="in INT8") as caught:
        require_kernels_fit(200, ("embed",))
    assert "--recipe" in str(caught.value.next_step)


def test_a_zip_gets_no_sources(tmp_path: Path, own_cache: Path, no_gpu: None) -> None:
    zipped = write_engine_bundle(tmp_path / "a.edge.zip", "slow")
    before = zipped.path.read_bytes()
    with pytest.raises(DeviceError, match="no CUDA driver"):
        compile_bundle(zipped, CUDA)
    assert zipped.path.read_bytes() == before


def test_a_chip_is_refused_for_targets_without_a_gpu(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="runs on no GPU"):
        compile_bundle(bundle, load_target("host"), chip="sm_87")
