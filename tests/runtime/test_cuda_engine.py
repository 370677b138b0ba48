"""The CUDA engine on an emulated GPU gives the oracle's bits, and refuses unfit files before it loads them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from edgedistill.assets import asset_folder
from edgedistill.bundle import Bundle, open_bundle, write_bundle
from edgedistill.bundle.build_record import build_folder
from edgedistill.bundle.contents import INT8_WEIGHTS, REFERENCE
from edgedistill.compile.c.library import compile_c_library

from ..bundles import write_test_bundle
from ..compile.cuda.emulated_gpu import EmulatedGpu
from ..compile.engines import SHAPES, copy_builds, quick_host, reference_of, write_engine_bundle
from ..numerics.students import random_model

KINDS = ("slow", "fast")


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> EmulatedGpu:
    return EmulatedGpu(tmp_path_factory.mktemp("emulated-gpu"))


@pytest.fixture(scope="module")
def bundles(gpu: EmulatedGpu, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """Returns bundles that are compiled for the emulated GPU and for this machine."""
    folder = tmp_path_factory.mktemp("cuda-engine")
    made = {kind: write_engine_bundle(folder / f"{kind}.edge", kind) for kind in KINDS}
    for bundle in made.values():
        compile_c_library(bundle, quick_host())
        told = gpu.edgedistill("compile", bundle.path, "--target", "cuda")
        assert told["compiled"]
    return made


@pytest.fixture
def copied(
    gpu: EmulatedGpu, bundles: dict[str, Bundle], tmp_path: Path, session_cache: Path, own_cache: Path
) -> Iterator[Bundle]:
    """Returns a compiled bundle that a test may damage, as well as its builds in a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(gpu.env, "XDG_CACHE_HOME", str(own_cache.parent))
        copy_builds(bundles["slow"], session_cache, own_cache)
        yield open_bundle(shutil.copytree(bundles["slow"].path, tmp_path / "slow.edge"))


@pytest.mark.parametrize(
    ("checks", "kind", "order"),
    [
        ("stream,moved,foreign", "slow", ""),
        ("stream", "fast", ""),
        *(pytest.param("stream", kind, "reversed", marks=pytest.mark.variant) for kind in KINDS),
        pytest.param("moved", "fast", "", marks=pytest.mark.variant),
    ],
)
def test_a_decoder_on_the_gpu_gives_the_oracles_bits(
    gpu: EmulatedGpu, bundles: dict[str, Bundle], checks: str, kind: str, order: str
) -> None:
    done = gpu.python("-m", "tests.runtime.cuda_checks", checks, bundles[kind].path, ED_EMULATED_ORDER=order)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_device_that_fails_in_the_middle_is_told_and_can_be_opened_again(
    gpu: EmulatedGpu, bundles: dict[str, Bundle]
) -> None:
    fault = {"ED_FAKE_CUDA": "cuGraphLaunch:30:719"}
    done = gpu.python("-m", "tests.runtime.cuda_checks", "failing", bundles["slow"].path, **fault)
    assert done.returncode == 0, done.stderr[-3000:]


# ---------------------------------------------------------------- compiling on a machine with a GPU


def test_what_is_compiled_was_checked_on_the_gpu_and_says_so(gpu: EmulatedGpu, copied: Bundle) -> None:
    record = json.loads((copied.path / "build" / "cuda" / "build.json").read_text())
    assert record["engine"] == "cuda"
    assert record["fingerprint"]["device"] == {"chip": "sm_87", "toolkit": "13.0", "driver": "13000"}
    assert record["notes"] == ["checked on emulated GPU: 30 steps of the reference, every bit"]
    assert {"student_step.cubin", "libed_slow_1.so", "README"} <= record["files"].keys()
    assert not gpu.edgedistill("compile", copied.path, "--target", "cuda")["compiled"]


@pytest.mark.parametrize(
    "env", [{"FAKE_CUDA": "12.9"}, pytest.param({"ED_FAKE_CUDA_DRIVER": "13010"}, marks=pytest.mark.variant)]
)
def test_another_toolkit_and_another_driver_each_need_another_build(
    gpu: EmulatedGpu, copied: Bundle, env: dict[str, str]
) -> None:
    assert gpu.edgedistill("compile", copied.path, "--target", "cuda", **env)["compiled"]


def test_four_bit_weights_stay_packed_where_the_target_says_so(gpu: EmulatedGpu, tmp_path: Path) -> None:
    whole = write_engine_bundle(tmp_path / "whole.edge", "slow")
    model = random_model(SHAPES["slow"], four=("layers.0.qkv", "layers.1.qkv", "layers.0.down"))
    files = {name: whole.read(name) for name in whole.names} | {
        INT8_WEIGHTS: save(model.to_file()),
        REFERENCE: reference_of(model, np.random.default_rng(0)),
    }
    four = write_bundle(tmp_path / "four.edge", json.loads((whole.path / "manifest.json").read_text()), files)
    own, text = tmp_path / "packing.toml", (asset_folder("targets") / "cuda.toml").read_text(encoding="utf-8")
    own.write_text(text.replace('name = "cuda"', 'name = "packing"').replace("bits = false", "bits = true"))
    expanded, packed = (gpu.edgedistill("compile", four.path, "--target", target)["notes"] for target in ("cuda", own))
    assert expanded[0] == packed[0] == "checked on emulated GPU: 30 steps of the reference, every bit"
    assert "read as the int8 weights" in expanded[1]
    assert packed[1] == "four-bit weights are packed in: qkv"
    headers = [(four.path / "build" / name / "model" / "model_slow_1.h").read_text() for name in ("cuda", "packing")]
    assert ["ED_FOUR_BITS_QKV 1" in header for header in headers] == [False, True]


def test_an_engine_that_computes_something_else_is_not_left_in_the_bundle(gpu: EmulatedGpu, tmp_path: Path) -> None:
    whole = write_engine_bundle(tmp_path / "whole.edge", "slow")
    with np.load(whole.path / REFERENCE) as stored:
        arrays = dict(stored)
    arrays["kinematics"][17] = np.nextafter(arrays["kinematics"][17], np.float32(np.inf))
    np.savez(tmp_path / REFERENCE, **arrays)
    files = {name: whole.read(name) for name in whole.names} | {REFERENCE: (tmp_path / REFERENCE).read_bytes()}
    other = write_bundle(tmp_path / "other.edge", json.loads((whole.path / "manifest.json").read_text()), files)
    error = gpu.edgedistill("compile", other.path, "--target", "cuda", code=1)["error"]
    assert "does not compute" in error["what"]
    assert error["got"].startswith("step 17")
    assert not (other.path / "build").exists()
    assert not build_folder(other, "cuda").exists()


def test_another_chip_is_compiled_for_when_it_is_named(gpu: EmulatedGpu, copied: Bundle) -> None:
    told = gpu.edgedistill("compile", copied.path, "--target", "cuda", "--chip", "sm_90")
    assert told["device"] == {"chip": "sm_90", "toolkit": "13.0", "driver": ""}
    assert "not run" in told["notes"][0]
    old = {"ED_FAKE_CUDA_CHIP": "sm_90", "ED_FAKE_CUDA_DRIVER": "12060"}
    error = gpu.edgedistill("run", copied.path, "-", "--engine", "cuda", code=1, **old)["error"]
    assert "newer toolkit" in error["what"]
    assert error["next_step"].endswith("--target cuda")


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("env", "mentions"),
    [
        ({"ED_FAKE_CUDA_CHIP": "sm_90"}, ("another chip", "chip sm_87", "chip sm_90")),
        ({"ED_FAKE_CUDA": "cuMemAlloc_v2:1:2"}, ("out of memory", "-13")),
        ({"LD_LIBRARY_PATH": ""}, ("no CUDA driver",)),
        *(
            pytest.param(*further, marks=pytest.mark.variant)
            for further in (
                ({"ED_FAKE_CUDA_DRIVER": "12060"}, ("another driver", "driver 13000", "driver 12060")),
                ({"ED_FAKE_CUDA": "cuModuleLoadData:1:209"}, ("another chip", "-12")),
                ({"ED_FAKE_CUDA": "cuInit:1:100"}, ("no GPU",)),
            )
        ),
    ],
)
def test_a_machine_that_cannot_run_it_says_why_and_what_to_do(
    gpu: EmulatedGpu, bundles: dict[str, Bundle], env: dict[str, str], mentions: tuple[str, ...]
) -> None:
    done = gpu.python("-m", "edgedistill", "run", bundles["slow"].path, "-", "--engine", "cuda", "--json", **env)
    assert done.returncode == 1, done.stderr
    error = json.loads(done.stdout)["error"]
    said = " ".join(str(value) for value in error.values())
    for text in mentions:
        assert text in said
    assert error["next_step"]
    if "another" in error["what"]:
        assert f"edgedistill compile {bundles['slow'].path} --target cuda" in error["next_step"]


def test_a_kernel_that_was_changed_is_refused_before_it_is_loaded(gpu: EmulatedGpu, copied: Bundle) -> None:
    cubin = build_folder(copied, "cuda") / "student_step.cubin"
    cubin.write_bytes(cubin.read_bytes()[:-1])
    env = {"ED_FAKE_CUDA": "cuModuleLoadData:1:999"}
    error = gpu.edgedistill("run", copied.path, "-", "--engine", "cuda", code=1, **env)["error"]
    assert "'student_step.cubin' was changed" in error["what"]


# ---------------------------------------------------------------- bench

SHORT = ("--steps", "5", "--closed-loop", "0", "--energy", "0", "--against", "onnxruntime-int8")


@pytest.fixture(scope="module")
def whole(gpu: EmulatedGpu, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Returns a bundle with a holdout that was built for a GPU."""
    bundle = write_test_bundle(tmp_path_factory.mktemp("bench") / "test.edge", target="cuda", engine="cuda")
    assert gpu.edgedistill("compile", bundle.path)["target"] == "cuda"  # the target that the bundle was built for
    return bundle


def test_a_bench_times_what_is_compiled_here_and_judges_it(gpu: EmulatedGpu, whole: Bundle) -> None:
    found = gpu.edgedistill("bench", whole.path, *SHORT, code=(0, 3))  # 3, as emulation is slow and may miss a gate
    engines = {row["name"]: row["engine"] for row in found["subjects"]}
    assert (engines["lfp-student-int8"], engines["onnxruntime-int8"]) == ("cuda", "onnxruntime")
    gate = {gate["name"]: gate for gate in found["gates"]}["step_p99_us"]
    assert gate["value"] > 0
    asked = gpu.edgedistill("bench", whole.path, *SHORT, "--engine", "onnxruntime-int8")
    assert "onnxruntime-int8" not in {row["name"] for row in asked["subjects"]}
    gate = {gate["name"]: gate for gate in asked["gates"]}["step_p99_us"]
    assert (gate["value"], gate["ok"], "ships 'cuda'" in gate["reason"]) == (None, None, True)


@pytest.mark.variant
def test_a_subject_on_the_gpu_has_an_energy_whatever_the_bundle_was_built_for(gpu: EmulatedGpu, tmp_path: Path) -> None:
    other = write_test_bundle(tmp_path / "host.edge", target="host", engine="c")
    gpu.edgedistill("compile", other.path, "--target", "cuda")
    quick = ("--steps", "5", "--closed-loop", "0", "--quick", "--against", "lfp-student-int8", "--engine", "cuda")
    done = gpu.python("-m", "edgedistill", "bench", other.path, *quick, "--json")
    assert done.returncode in (0, 3), done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)["subjects"]}
    assert (rows["lfp-student-int8"]["engine"], rows["lfp-student-int8"]["energy_source"]) == (
        "cuda",
        "NVML: GPU board",
    )
    assert rows["lfp-student-int8"]["energy_mj_per_step"] > 0
    assert rows["lfp-student-int8"]["idle_mw"] == pytest.approx(50_000, rel=0.2)
    assert "NVML" not in rows["lfp-student-fp32"]["energy_source"]
    assert "energy of lfp-student-int8: about 8 s (NVML: GPU board)" in done.stderr


def test_a_bench_elsewhere_leaves_the_gpus_time_empty_with_the_reason(gpu: EmulatedGpu, whole: Bundle) -> None:
    found = gpu.edgedistill("bench", whole.path, *SHORT, LD_LIBRARY_PATH="")
    assert {row["name"]: row["engine"] for row in found["subjects"]}["lfp-student-int8"] == "onnxruntime"
    gate = {gate["name"]: gate for gate in found["gates"]}["step_p99_us"]
    assert (gate["value"], "no CUDA driver" in gate["reason"]) == (None, True)
    error = gpu.edgedistill("bench", whole.path, "--engine", "cuda", code=1, LD_LIBRARY_PATH="")["error"]
    assert "no CUDA driver" in error["what"]
