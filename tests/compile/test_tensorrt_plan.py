"""A bundle to its plan: which form is kept, what is recorded of all of them, and what each failure says."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edgedistill.bundle import Bundle, open_bundle
from edgedistill.cli import main
from edgedistill.compile import tensorrt_machine, tensorrt_trials
from edgedistill.compile.built_folder import CompiledEngine
from edgedistill.compile.engines import compile_bundle, compile_or_prepare
from edgedistill.compile.nvcc import nvcc_path
from edgedistill.compile.tensorrt_forms import FORMS, read_forms, timed
from edgedistill.compile.tensorrt_plan import compile_tensorrt_plan
from edgedistill.compile.tensorrt_sources import cmake_commands, tensorrt_sources
from edgedistill.errors import ConfigError, DeviceError, EngineError
from edgedistill.measure.score import fit_of
from edgedistill.numerics import Oracle
from edgedistill.runtime import Decoder
from edgedistill.runtime.build_record import check_files, read_record
from edgedistill.runtime.c_abi import load_library
from edgedistill.runtime.cuda_driver import Gpu
from edgedistill.runtime.tensorrt_engine import PLUGIN
from edgedistill.target import load_target

from ..kernels.tensorrt_builds import headers
from .fake_tensorrt import fake_tensorrt
from .jetsons import Jetson, become_jetson, write_jetson_bundle

NANO = load_target("jetson")
FORCE = "--target jetson --force"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundles")
    bundle = write_jetson_bundle(folder / "decoder.edge")
    r2 = _r2_of_oracle(bundle)
    return write_jetson_bundle(folder / "decoder.edge", metrics={"deployed_r2": r2, "int8_r2": r2})


@pytest.fixture
def bundle(written: Bundle, tmp_path: Path) -> Bundle:
    shutil.copytree(written.path, tmp_path / "decoder.edge", ignore=shutil.ignore_patterns("build"))
    return open_bundle(tmp_path / "decoder.edge")


@pytest.fixture
def jetson(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bundle: Bundle) -> Jetson:
    return become_jetson(monkeypatch, tmp_path, bundle)


def _r2_of_oracle(bundle: Bundle) -> float:
    evidence = tensorrt_trials.evidence_of(bundle)
    guess = Oracle(evidence.model).run(evidence.bins)
    r2 = fit_of(guess[evidence.score_from :], evidence.kinematics[evidence.score_from :], "").r2
    assert r2 is not None
    return r2


def forms_of(made: CompiledEngine) -> dict[str, dict[str, Any]]:
    told = json.loads((made.folder / "forms.json").read_text())["forms"]
    return {form["form"]: form for form in told}


# ---------------------------------------------------------------- which form is kept


def test_all_three_forms_are_built_and_the_fastest_is_kept(jetson: Jetson, bundle: Bundle) -> None:
    made = compile_bundle(bundle, NANO)
    forms = forms_of(made)
    assert {name: form["state"] for name, form in forms.items()} == {
        "int8-plugin": "kept",
        "int8": "slower",
        "fp16": "slower",
    }
    assert forms["int8"]["why"] == "60.0 µs a step (p50), 'int8-plugin' takes 40.0"
    assert forms["int8-plugin"]["near"].startswith("0 of ")
    assert forms["fp16"]["near"].startswith("not compared")
    assert all(form["r2"] > 0.8 and abs(form["r2_drop"]) < 1e-6 for form in forms.values())
    assert b"EdAttention" in (made.folder / "student.plan").read_bytes()
    assert made.record.fingerprint.device == {
        "chip": "sm_87",
        "toolkit": "12.6",
        "driver": "12060",
        "tensorrt": "10.3.0",
        "jetpack": "6.1",
        "plugin": made.record.files[PLUGIN],
        "form": "int8-plugin",
    }
    assert {gate.name: gate.ok for gate in made.gates} == {"int8_r2_drop": True, "step_p99_us": True}
    assert {"layers-int8-plugin.json", "layers-int8.json", "layers-fp16.json", "timing.cache"} <= set(made.record.files)
    assert not (made.folder / "out").exists()
    assert "kept, 40.0 µs a step" in made.record.notes[0]
    assert "student.plan" in (made.folder / "README").read_text()
    check_files(made.folder, read_record(made.folder))


@pytest.mark.parametrize("fastest", ["int8-plugin", "int8", "fp16"])
def test_whichever_is_fastest_is_kept(jetson: Jetson, bundle: Bundle, fastest: str) -> None:
    jetson.plans.p50_us[fastest] = 10.0
    made = compile_tensorrt_plan(bundle, NANO)
    assert forms_of(made)[fastest]["state"] == "kept"
    assert made.record.fingerprint.device["form"] == fastest
    graph = bundle.read(next(form.graph for form in FORMS if form.name == fastest))
    assert (made.folder / "student.plan").read_bytes().endswith(graph)


def test_the_fastest_is_not_kept_where_it_drifts_from_the_oracle(jetson: Jetson, bundle: Bundle) -> None:
    jetson.plans.drifting = {"int8-plugin"}
    forms = forms_of(compile_tensorrt_plan(bundle, NANO))
    assert forms["int8-plugin"]["state"] == "refused"
    assert "self-check: its R² on the holdout differs by -0.0" in forms["int8-plugin"]["why"]
    assert forms["fp16"]["state"] == "kept"


def test_a_form_that_costs_too_much_in_r2_is_told_and_still_kept_where_there_is_no_other(
    jetson: Jetson, bundle: Bundle
) -> None:
    strict = replace(NANO, gates={"int8_r2_drop_max": -0.5, "fp16_r2_drop_max": -0.5})
    made = compile_tensorrt_plan(bundle, strict)
    assert [gate.ok for gate in made.gates] == [False]
    assert sum(form["state"] == "kept" for form in forms_of(made).values()) == 1
    again = compile_tensorrt_plan(bundle, strict)
    assert not again.compiled
    assert [gate.ok for gate in again.gates] == [False]


def test_a_slow_step_misses_the_gate_on_time(jetson: Jetson, bundle: Bundle) -> None:
    jetson.plans.p50_us = dict.fromkeys(jetson.plans.p50_us, 12_000.0)
    gates = {gate.name: gate.ok for gate in compile_tensorrt_plan(bundle, NANO).gates}
    assert gates == {"int8_r2_drop": True, "step_p99_us": False}


def test_forms_are_timed_in_turn_from_a_fresh_state(jetson: Jetson, bundle: Bundle, monkeypatch: Any) -> None:
    monkeypatch.setattr(tensorrt_trials, "timed", lambda trials, evidence: timed(trials, evidence, steps=60))
    forms = forms_of(compile_tensorrt_plan(bundle, NANO))
    assert all(form["latency_us"]["p99"] >= form["latency_us"]["p50"] > 0 for form in forms.values())


def test_a_form_that_cannot_be_built_does_not_stop_the_others(jetson: Jetson, bundle: Bundle) -> None:
    jetson.told.parse_error = {b"EdAttention": ("/layers.0/core", "EdAttention", "Plugin not found")}
    forms = forms_of(compile_tensorrt_plan(bundle, NANO))
    assert forms["int8-plugin"]["state"] == "not built"
    assert "node '/layers.0/core' (EdAttention): Plugin not found" in forms["int8-plugin"]["why"]
    assert forms["fp16"]["state"] == "kept"


def test_a_form_that_does_not_open_does_not_stop_the_others(jetson: Jetson, bundle: Bundle) -> None:
    jetson.plans.not_opening = {"int8-plugin": "code -15 of ed_open"}
    forms = forms_of(compile_tensorrt_plan(bundle, NANO))
    assert (forms["int8-plugin"]["state"], forms["fp16"]["state"]) == ("not built", "kept")


def test_the_command_shows_the_forms_and_says_a_missed_gate_by_its_exit_code(jetson: Jetson, bundle: Bundle) -> None:
    printed = CliRunner().invoke(main, ["compile", str(bundle.path)])  # the target stands in the bundle
    assert printed.exit_code == 0
    for part in ("int8-plugin", "kept", "slower", "40.000", "jetpack 6.1", "step_p99_us", "met"):
        assert part in printed.stdout
    told = json.loads(CliRunner().invoke(main, ["compile", str(bundle.path), "--json"]).stdout)
    assert [form["form"] for form in told["forms"]] == ["int8-plugin", "int8", "fp16"]
    assert told["plan_bytes"] > 0
    assert not told["compiled"]
    jetson.plans.p50_us = dict.fromkeys(jetson.plans.p50_us, 12_000.0)
    missed = CliRunner().invoke(main, ["compile", str(bundle.path), "--force"])
    assert missed.exit_code == 3
    assert "MISSED" in missed.stdout


# ---------------------------------------------------------------- the self-check


def test_a_plan_that_is_off_is_refused(jetson: Jetson, bundle: Bundle) -> None:
    jetson.plans.off = {"int8-plugin"}
    forms = forms_of(compile_tensorrt_plan(bundle, NANO))
    assert forms["int8-plugin"]["state"] == "refused"
    assert "self-check: one of its outputs is off by" in forms["int8-plugin"]["why"]
    assert forms["fp16"]["state"] == "kept"


def test_integers_that_differ_are_told_and_no_reason_to_refuse(jetson: Jetson, bundle: Bundle) -> None:
    jetson.plans.flipped = {"int8-plugin"}
    forms = forms_of(compile_tensorrt_plan(bundle, NANO))
    assert forms["int8-plugin"]["state"] == "kept"
    assert not forms["int8-plugin"]["near"].startswith("0 of ")
    assert "integers differ (" in forms["int8-plugin"]["near"]


def test_a_form_that_the_build_left_out_is_not_tried(
    jetson: Jetson, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    graphs = {"student.int8.plugin.onnx": {"usable": False, "reason": "it gave values that are not finite"}}
    bundle = write_jetson_bundle(tmp_path / "e.edge", graphs=graphs)
    become_jetson(monkeypatch, tmp_path, bundle)
    forms = forms_of(compile_tensorrt_plan(bundle, NANO))
    assert forms["int8-plugin"]["state"] == "not built"
    assert "left student.int8.plugin.onnx out of use: it gave values" in forms["int8-plugin"]["why"]
    assert forms["fp16"]["state"] == "kept"


def test_a_plan_that_gives_nan_is_refused_whatever_its_form(jetson: Jetson, bundle: Bundle) -> None:
    jetson.plans.not_finite = {"int8-plugin", "fp16"}
    forms = forms_of(compile_tensorrt_plan(bundle, NANO))
    assert (forms["int8-plugin"]["state"], forms["fp16"]["state"]) == ("refused", "refused")
    assert "not finite" in forms["fp16"]["why"]
    assert forms["int8"]["state"] == "kept"


def test_where_every_form_is_off_nothing_is_left_in_the_bundle(jetson: Jetson, bundle: Bundle) -> None:
    jetson.plans.off, jetson.plans.not_finite = {"int8-plugin", "int8"}, {"fp16"}
    with pytest.raises(EngineError, match=r"no form .* computes what its definition says") as caught:
        compile_tensorrt_plan(bundle, NANO)
    for part in (
        "int8-plugin: self-check",
        "fp16: it gave values",
        "outputs off by at most 0.1 standard deviations",
        "--engine c",
    ):
        assert part in str(caught.value)
    assert not (bundle.path / "build/jetson").exists()


def test_a_bundle_without_reference_is_judged_by_its_holdout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bundle = write_jetson_bundle(tmp_path / "d.edge", with_reference=False, metrics={"deployed_r2": None})
    become_jetson(monkeypatch, tmp_path, bundle)
    forms = forms_of(compile_tensorrt_plan(bundle, NANO))
    assert forms["int8-plugin"]["near"] == "not compared: the bundle holds no reference.npz"
    assert "no deployed_r2" in forms["int8"]["why"] or forms["int8"]["state"] == "slower"


# ---------------------------------------------------------------- what the builder says


def test_the_builder_is_given_workspace_strong_typing_and_the_tactics_of_the_plan_before(
    jetson: Jetson, bundle: Bundle
) -> None:
    compile_tensorrt_plan(bundle, NANO)
    assert jetson.told.workspace == [512 << 20] * 3
    assert jetson.told.flags == [2] * 3
    assert jetson.told.caches == [b"", b"tactics", b"tacticstactics"]
    assert len(jetson.told.loaded) == 1
    assert jetson.told.loaded[0].endswith(PLUGIN)
    compile_tensorrt_plan(bundle, NANO, force=True)
    assert jetson.told.caches[3] == b"tactics" * 3


def test_a_timing_cache_of_another_version_is_replaced_by_an_empty_one(jetson: Jetson, bundle: Bundle) -> None:
    made = compile_tensorrt_plan(bundle, NANO)
    (made.folder / "timing.cache").write_bytes(b"foreign")
    compile_tensorrt_plan(bundle, NANO, force=True)
    assert jetson.told.caches[3:5] == [b"foreign", b""]


def test_memory_that_runs_out_in_the_builder(jetson: Jetson, bundle: Bundle) -> None:
    jetson.told.build_error = {b"": "[virtualMemoryBuffer.cpp] Error Code 2: OutOfMemory (requested 2147483648 bytes)"}
    with pytest.raises(EngineError, match=r"ran out of memory over student.int8.plugin.onnx") as caught:
        compile_tensorrt_plan(bundle, NANO)
    for part in ("requested 2147483648", "workspace_mb = 512", "'jetson'", "isolate multi-user.target", "other forms"):
        assert part in str(caught.value)


def test_a_layer_without_a_kernel(jetson: Jetson, bundle: Bundle) -> None:
    jetson.told.build_error = {b"": "Error Code 10: Could not find any implementation for node {ForeignNode[a...b]}."}
    with pytest.raises(EngineError, match=r"no kernel for a layer of student.int8") as caught:
        compile_tensorrt_plan(bundle, NANO)
    assert "ForeignNode" in str(caught.value)
    assert "larger workspace_mb" in str(caught.value)


def test_an_operator_that_the_parser_does_not_know(jetson: Jetson, bundle: Bundle) -> None:
    jetson.told.parse_error = {b"": ("node_12", "QuantizeLinear", "unsupported data type")}
    with pytest.raises(EngineError, match=r"TensorRT 10.3.0 cannot read student.int8.plugin.onnx") as caught:
        compile_tensorrt_plan(bundle, NANO)
    assert "node 'node_12' (QuantizeLinear): unsupported data type" in str(caught.value)


def test_a_plugin_that_does_not_load_and_a_builder_that_does_not_start(jetson: Jetson, bundle: Bundle) -> None:
    jetson.told.plugin_refused = True
    with pytest.raises(EngineError, match="does not load the plugin") as caught:
        compile_tensorrt_plan(bundle, NANO)
    assert "libnvinfer-dev" in str(caught.value)
    jetson.told.plugin_refused, jetson.told.no_start = False, True
    with pytest.raises(EngineError, match="does not start on this machine") as caught:
        compile_tensorrt_plan(bundle, NANO)
    assert "error: 35" in str(caught.value)


def test_progress_is_told_and_ctrl_c_stops_the_builder_without_an_exception_in_it(
    jetson: Jetson, bundle: Bundle
) -> None:
    told: list[tuple[str, int, int]] = []
    compile_tensorrt_plan(bundle, NANO, report=lambda *progress: told.append(progress))
    assert told[:2] == [("Building Engine", 1, 2), ("Building Engine", 2, 2)]

    def interrupted(*progress: object) -> None:
        raise KeyboardInterrupt

    jetson.told.steps.clear()
    with pytest.raises(KeyboardInterrupt):
        compile_tensorrt_plan(bundle, NANO, force=True, report=interrupted)
    assert jetson.told.steps == [False]
    assert not list((bundle.path / "build").glob(".*"))
    assert not compile_tensorrt_plan(bundle, NANO).compiled  # what was there is there still


def test_what_cmake_says_is_told_with_the_command(jetson: Jetson, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "programs/cmake").write_text("#!/bin/sh\necho 'CMake Error: NvInferRuntime.h not found' >&2\nexit 1\n")
    with pytest.raises(EngineError, match="plugin and its runtime failed") as caught:
        compile_tensorrt_plan(bundle, NANO)
    for part in ("NvInferRuntime.h not found", "cmake -B out -DED_MODEL=test", "libnvinfer-headers-dev"):
        assert part in str(caught.value)


# ---------------------------------------------------------------- a plan that is there


def test_nothing_is_made_again_that_is_there(jetson: Jetson, bundle: Bundle) -> None:
    first = compile_tensorrt_plan(bundle, NANO)
    second = compile_tensorrt_plan(bundle, NANO)
    assert (first.compiled, second.compiled) == (True, False)
    assert second.gates == first.gates
    assert len(jetson.told.workspace) == 3
    assert compile_tensorrt_plan(bundle, NANO, force=True).compiled


def _chip(here: Jetson) -> None:
    here.gpu = Gpu("Thor", "sm_110", "13000")


def _driver(here: Jetson) -> None:
    here.gpu = replace(here.gpu, driver="13000")


def _tensorrt(here: Jetson) -> None:
    here.told.version = "10.13.3.9"


def _jetpack(here: Jetson) -> None:
    here.jetpack = "6.2"


@pytest.mark.parametrize(
    ("change", "name", "was", "found"),
    [
        (_chip, "chip", "sm_87", "sm_110"),
        (_driver, "driver", "12060", "13000"),
        (_tensorrt, "tensorrt", "10.3.0", "10.13.3"),
        (_jetpack, "jetpack", "6.1", "6.2"),
    ],
)
def test_a_plan_of_another_device_or_version_is_made_again_on_request_only(
    jetson: Jetson, bundle: Bundle, monkeypatch: Any, change: Any, name: str, was: str, found: str
) -> None:
    made = compile_tensorrt_plan(bundle, NANO)
    plan = (made.folder / "student.plan").read_bytes()
    change(jetson)
    if name == "tensorrt":
        _again(monkeypatch, jetson)
        jetson.told.version = "10.13.3"
    both = replace(NANO, chips=("sm_87", "sm_110"))
    with pytest.raises(EngineError, match=f"built for another {name}") as caught:
        compile_tensorrt_plan(bundle, both)
    for part in (f"{name} {was}", f"{name} {found}", FORCE):
        assert part in str(caught.value)
    assert (made.folder / "student.plan").read_bytes() == plan
    with pytest.raises(EngineError, match=f"compiled for another {name}") as caught:
        Decoder.open(bundle.path)  # before a byte of the plan is read
    for part in (f"{name} {was}", f"{name} {found}", FORCE):
        assert part in str(caught.value)
    again = compile_tensorrt_plan(bundle, both, force=True)
    assert again.record.fingerprint.device[name] == found


def _again(monkeypatch: pytest.MonkeyPatch, here: Jetson) -> None:
    """TensorRT is imported anew, in its new version."""
    here.told.loaded.clear()
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(here.told))
    monkeypatch.delitem(sys.modules, tensorrt_machine.BUILDER, raising=False)


def test_a_plugin_of_another_hash_is_refused_by_name(jetson: Jetson, bundle: Bundle) -> None:
    made = compile_tensorrt_plan(bundle, NANO)
    (made.folder / PLUGIN).write_bytes(b"another")
    with pytest.raises(EngineError, match="built with another plugin") as caught:
        Decoder.open(bundle.path)
    assert made.record.files[PLUGIN] in str(caught.value)
    assert FORCE in str(caught.value)
    with pytest.raises(EngineError, match="changed after it was compiled") as caught:
        compile_tensorrt_plan(bundle, NANO)
    assert FORCE in str(caught.value)
    (made.folder / PLUGIN).unlink()
    with pytest.raises(EngineError, match="no such file"):
        Decoder.open(bundle.path)


def test_a_plan_or_a_record_that_was_damaged_is_refused_by_name(jetson: Jetson, bundle: Bundle) -> None:
    made = compile_tensorrt_plan(bundle, NANO)
    (made.folder / "student.plan").write_bytes(b"plan of something else")
    with pytest.raises(EngineError, match=r"'student.plan' was changed") as caught:
        Decoder.open(bundle.path)
    assert FORCE in str(caught.value)
    (made.folder / "build.json").write_text("{")
    for opening in (Decoder.open, lambda path: compile_tensorrt_plan(open_bundle(path), NANO)):
        with pytest.raises(EngineError, match="damaged") as caught:
            opening(bundle.path)
        assert FORCE in str(caught.value)
    assert compile_tensorrt_plan(bundle, NANO, force=True).compiled


def test_a_plan_of_another_bundle_is_refused(jetson: Jetson, bundle: Bundle) -> None:
    made = compile_tensorrt_plan(bundle, NANO)
    replace(made.record, manifest="0" * 64).write(made.folder)
    with pytest.raises(EngineError, match="from another bundle") as caught:
        compile_tensorrt_plan(bundle, NANO)
    assert FORCE in str(caught.value)
    with pytest.raises(EngineError, match="from another bundle"):
        Decoder.open(bundle.path)


# ---------------------------------------------------------------- machines that are not the device


def _no_gpu() -> Gpu:
    raise DeviceError("there is no CUDA driver on this machine", got="none", next_step="edgedistill doctor")


def test_a_machine_without_gpu_prepares_and_names_the_next_command(
    jetson: Jetson, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_machine, "find_gpu", _no_gpu)
    jetson.board = None
    with pytest.raises(DeviceError, match="no CUDA driver") as caught:
        compile_bundle(bundle, NANO)
    command = f"edgedistill compile {bundle.path} --target jetson   (on the Jetson, with a copy of the bundle)"
    assert caught.value.next_step == command
    made = compile_or_prepare(bundle, NANO)
    assert made.library is None
    assert made.lacking is not None
    assert made.lacking.next_step == command
    names = set(made.record.files)
    assert {"README", "tensorrt/plugin.cpp", "tensorrt/runtime.cpp", "model/model_test.h"} <= names
    assert {"c/ed_device.h", "include/edgedistill.h", "model/model_test_data.h"} <= names
    assert not any(name.endswith((".plan", ".so")) or name.startswith("model/model_test_w") for name in names)
    text = (made.folder / "README").read_text()
    assert "cmake -B out -DED_MODEL=test" in text
    assert "edgedistill compile BUNDLE --target jetson" in text
    with pytest.raises(EngineError, match="prepared, not compiled") as refused:
        Decoder.open(bundle.path)
    assert "--force" not in str(refused.value)


def test_what_was_prepared_elsewhere_is_finished_on_the_device(
    jetson: Jetson, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(tensorrt_machine, "find_gpu", _no_gpu)
        assert not compile_or_prepare(bundle, NANO).compiled
    made = compile_bundle(bundle, NANO)
    assert made.compiled
    with monkeypatch.context() as elsewhere:  # and a machine without the GPU leaves it alone
        elsewhere.setattr(tensorrt_machine, "find_gpu", _no_gpu)
        assert compile_or_prepare(bundle, NANO).record == made.record


def test_versions_that_are_too_old(jetson: Jetson, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    jetson.jetpack = "5.1.3"
    with pytest.raises(DeviceError, match="JetPack is too old for target 'jetson'") as caught:
        compile_tensorrt_plan(bundle, NANO)
    for part in ("JetPack 5.1.3", "JetPack 6.1 to 7.2", "install JetPack 6.1 or later", "then edgedistill compile"):
        assert part in str(caught.value)
    jetson.jetpack, jetson.told.version = "6.1", "8.5.2"
    _again(monkeypatch, jetson)
    with pytest.raises(DeviceError, match="TensorRT is too old") as caught:
        compile_tensorrt_plan(bundle, NANO)
    assert "TensorRT 8.5.2" in str(caught.value)


def test_versions_that_are_newer_than_known_are_noted_and_tried(
    jetson: Jetson, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    jetson.jetpack, jetson.told.version = "8.0", "12.0.1.2"
    _again(monkeypatch, jetson)
    notes = "\n".join(compile_tensorrt_plan(bundle, NANO).record.notes)
    assert "JetPack 8.0 is newer" in notes
    assert "TensorRT 12.0.1 is newer" in notes


def test_a_chip_of_another_board_is_refused(jetson: Jetson, bundle: Bundle) -> None:
    _chip(jetson)
    with pytest.raises(DeviceError, match="not that of target 'jetson'") as caught:
        compile_tensorrt_plan(bundle, NANO)
    assert "Thor, sm_110" in str(caught.value)
    assert "sm_87" in str(caught.value)


def test_tensorrt_cmake_and_nvcc_that_are_missing_are_told_with_their_packages(
    jetson: Jetson, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "tensorrt", None)
        without.delitem(sys.modules, tensorrt_machine.BUILDER, raising=False)
        with pytest.raises(DeviceError, match="needs TensorRT and its Python package") as caught:
            compile_tensorrt_plan(bundle, NANO)
    for part in ("python3-libnvinfer", "--system-site-packages", f"then edgedistill compile {bundle.path}"):
        assert part in str(caught.value)
    with monkeypatch.context() as without:
        without.setattr(tensorrt_machine.shutil, "which", lambda name: None)
        with pytest.raises(DeviceError, match=r"needs CMake|nvcc"):
            compile_tensorrt_plan(bundle, NANO)
    (tmp_path / "programs/nvcc").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(DeviceError, match="nvcc"):
        compile_tensorrt_plan(bundle, NANO)


def test_a_plan_is_not_cross_compiled(jetson: Jetson, bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="built on its own device") as caught:
        compile_bundle(bundle, NANO, chip="sm_87")
    assert "--target jetson" in str(caught.value)


def test_what_came_of_the_forms_is_read_back(jetson: Jetson, bundle: Bundle, tmp_path: Path) -> None:
    made = compile_tensorrt_plan(bundle, NANO)
    assert [outcome.form for outcome in read_forms(made.folder)] == ["int8-plugin", "int8", "fp16"]
    assert read_forms(tmp_path) == ()


def test_cmake_makes_plugin_runtime_and_kernel_of_the_prepared_sources(
    written: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the real CMake, nvcc and headers; what it made loads on a machine with neither GPU nor TensorRT."""
    (_, root, *_), nvcc = headers("10.3"), nvcc_path("nvcc")
    if nvcc is None or shutil.which("cmake") is None:
        pytest.skip("no nvcc or no cmake")
    monkeypatch.setenv("TENSORRT_ROOT", root)
    for name, data in tensorrt_sources(written).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    for command in cmake_commands("test", "sm_87", nvcc):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "append.cubin").read_bytes().startswith(b"\x7fELF")
    ctypes.CDLL(str(tmp_path / "libed_plugin.so"))
    path = tmp_path / "libed_test.so"
    library = load_library(path, path.read_bytes())
    assert library.ed_open(str(tmp_path).encode(), ctypes.byref(ctypes.c_void_p())) < 0
