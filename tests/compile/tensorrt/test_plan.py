"""A bundle becomes a plan. The best form is kept, all are recorded, and a plan that does not fit is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edgedistill.bundle import Bundle
from edgedistill.bundle.build_record import build_folder, check_files, read_record
from edgedistill.cli import main
from edgedistill.compile.build_folder import CompiledEngine
from edgedistill.compile.engines import compile_bundle
from edgedistill.compile.tensorrt import trials
from edgedistill.compile.tensorrt.forms import FORMS, read_forms, time_forms
from edgedistill.compile.tensorrt.plan import compile_tensorrt_plan
from edgedistill.errors import EngineError, StalePlan
from edgedistill.runtime import Decoder
from edgedistill.runtime.tensorrt_engine import PLUGIN

from .jetsons import FORCE, NANO, THOR, Jetson, become_jetson, import_tensorrt_anew, write_jetson_bundle


def forms_of(engine: CompiledEngine) -> dict[str, dict[str, Any]]:
    forms = json.loads((engine.folder / "forms.json").read_text())["forms"]
    return {form["form"]: form for form in forms}


# ---------------------------------------------------------------- which form is kept


def test_all_three_forms_are_built_and_the_fastest_is_kept(jetson: Jetson, bundle: Bundle) -> None:
    engine = compile_bundle(bundle, NANO)
    forms = forms_of(engine)
    assert {name: form["state"] for name, form in forms.items()} == {
        "int8-plugin": "kept",
        "int8": "slower",
        "fp16": "slower",
    }
    assert forms["int8"]["why"] == "60.0 µs a step (p50), 'int8-plugin' takes 40.0"
    assert forms["int8-plugin"]["near"].startswith("0 of ")
    assert forms["fp16"]["near"].startswith("not compared")
    assert all(form["r2"] > 0.8 and abs(form["r2_drop"]) < 1e-6 for form in forms.values())
    assert b"EdAttention" in (engine.folder / "student.plan").read_bytes()
    assert engine.record.fingerprint.device == {
        "chip": "sm_87",
        "toolkit": "12.6",
        "driver": "12060",
        "tensorrt": "10.3.0",
        "jetpack": "6.1",
        "plugin": engine.record.files[PLUGIN],
        "form": "int8-plugin",
    }
    assert {gate.name: gate.ok for gate in engine.gates} == {"int8_r2_drop": True, "step_p99_us": True}
    assert {"layers-int8-plugin.json", "layers-int8.json", "layers-fp16.json", "timing.cache"} <= set(
        engine.record.files
    )
    assert not (engine.folder / "out").exists()
    assert "kept, 40.0 µs a step" in engine.record.notes[0]
    assert "student.plan" in (engine.folder / "README").read_text()
    kept = build_folder(bundle, "jetson")
    check_files(kept, read_record(kept))


@pytest.mark.parametrize("fastest", ["int8-plugin", "int8", "fp16"])
def test_the_fastest_form_is_kept_whichever_it_is(jetson: Jetson, bundle: Bundle, fastest: str) -> None:
    jetson.plans.p50_us[fastest] = 10.0
    engine = compile_tensorrt_plan(bundle, NANO)
    assert forms_of(engine)[fastest]["state"] == "kept"
    assert engine.record.fingerprint.device["form"] == fastest
    graph = bundle.read(next(form.graph for form in FORMS if form.name == fastest))
    assert (engine.folder / "student.plan").read_bytes().endswith(graph)


def test_the_fastest_is_not_kept_where_it_drifts_from_the_oracle(jetson: Jetson, bundle: Bundle) -> None:
    jetson.plans.drifting = {"int8-plugin"}
    forms = forms_of(compile_tensorrt_plan(bundle, NANO))
    assert forms["int8-plugin"]["state"] == "refused"
    assert "self-check: its R² on the holdout differs by -0." in forms["int8-plugin"]["why"]
    assert forms["fp16"]["state"] == "kept"


def test_a_form_that_loses_too_much_r2_is_reported_and_kept_where_there_is_no_other(
    jetson: Jetson, bundle: Bundle
) -> None:
    strict = replace(NANO, gates={"int8_r2_drop_max": -0.5, "fp16_r2_drop_max": -0.5})
    engine = compile_tensorrt_plan(bundle, strict)
    assert [gate.ok for gate in engine.gates] == [False]
    assert sum(form["state"] == "kept" for form in forms_of(engine).values()) == 1
    again = compile_tensorrt_plan(bundle, strict)
    assert not again.compiled
    assert [gate.ok for gate in again.gates] == [False]


def test_a_slow_step_misses_the_gate_on_time(jetson: Jetson, bundle: Bundle) -> None:
    jetson.plans.p50_us = dict.fromkeys(jetson.plans.p50_us, 12_000.0)
    gates = {gate.name: gate.ok for gate in compile_tensorrt_plan(bundle, NANO).gates}
    assert gates == {"int8_r2_drop": True, "step_p99_us": False}


def test_forms_are_timed_in_turn_from_a_fresh_state(jetson: Jetson, bundle: Bundle, monkeypatch: Any) -> None:
    monkeypatch.setattr(trials, "time_forms", lambda trials, evidence: time_forms(trials, evidence, steps=60))
    forms = forms_of(compile_tensorrt_plan(bundle, NANO))
    assert all(form["latency_us"]["p99"] >= form["latency_us"]["p50"] > 0 for form in forms.values())


def test_a_form_that_cannot_be_built_does_not_stop_the_others(jetson: Jetson, bundle: Bundle) -> None:
    jetson.tensorrt.parse_error = {b"EdAttention": ("/layers.0/core", "EdAttention", "Plugin not found")}
    forms = forms_of(compile_tensorrt_plan(bundle, NANO))
    assert forms["int8-plugin"]["state"] == "not built"
    assert "node '/layers.0/core' (EdAttention): Plugin not found" in forms["int8-plugin"]["why"]
    assert forms["fp16"]["state"] == "kept"


def test_a_form_that_does_not_open_does_not_stop_the_others(jetson: Jetson, bundle: Bundle) -> None:
    jetson.plans.not_opening = {"int8-plugin": "code -15 of ed_open"}
    forms = forms_of(compile_tensorrt_plan(bundle, NANO))
    assert (forms["int8-plugin"]["state"], forms["fp16"]["state"]) == ("not built", "kept")


def test_the_command_shows_the_forms_and_its_exit_code_says_that_a_gate_was_missed(
    jetson: Jetson, bundle: Bundle
) -> None:
    printed = CliRunner().invoke(main, ["compile", str(bundle.path)])  # the bundle names the target
    assert printed.exit_code == 0
    for part in ("int8-plugin", "kept", "slower", "40.000", "jetpack 6.1", "step_p99_us", "met"):
        assert part in printed.stdout
    printed = json.loads(CliRunner().invoke(main, ["compile", str(bundle.path), "--json"]).stdout)
    assert [form["form"] for form in printed["forms"]] == ["int8-plugin", "int8", "fp16"]
    assert printed["plan_bytes"] > 0
    assert not printed["compiled"]
    jetson.plans.p50_us = dict.fromkeys(jetson.plans.p50_us, 12_000.0)
    missed = CliRunner().invoke(main, ["compile", str(bundle.path), "--force"])
    assert missed.exit_code == 3
    assert "MISSED" in missed.stdout


def test_the_outcomes_of_the_forms_are_read_back(jetson: Jetson, bundle: Bundle, tmp_path: Path) -> None:
    engine = compile_tensorrt_plan(bundle, NANO)
    assert [outcome.form for outcome in read_forms(engine.folder)] == ["int8-plugin", "int8", "fp16"]
    assert read_forms(tmp_path) == ()


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
    assert "marked student.int8.plugin.onnx as unusable: it gave values" in forms["int8-plugin"]["why"]
    assert forms["fp16"]["state"] == "kept"


def test_a_plan_that_gives_nan_is_refused_whatever_its_form(jetson: Jetson, bundle: Bundle) -> None:
    jetson.plans.not_finite = {"int8-plugin", "fp16"}
    forms = forms_of(compile_tensorrt_plan(bundle, NANO))
    assert (forms["int8-plugin"]["state"], forms["fp16"]["state"]) == ("refused", "refused")
    assert "not finite" in forms["fp16"]["why"]
    assert forms["int8"]["state"] == "kept"


def test_where_every_form_is_off_nothing_is_left_in_cache_and_bundle(
    jetson: Jetson, bundle: Bundle, own_cache: Path
) -> None:
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
    assert not list(own_cache.rglob("build.json"))


def test_a_bundle_without_reference_is_judged_by_its_holdout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bundle = write_jetson_bundle(tmp_path / "d.edge", with_reference=False, metrics={"deployed_r2": None})
    become_jetson(monkeypatch, tmp_path, bundle)
    forms = forms_of(compile_tensorrt_plan(bundle, NANO))
    assert forms["int8-plugin"]["near"] == "not compared: the bundle holds no reference.npz"
    assert "no deployed_r2" in forms["int8"]["why"] or forms["int8"]["state"] == "slower"


# ---------------------------------------------------------------- an existing plan


def test_a_plan_that_is_there_is_not_made_again(jetson: Jetson, bundle: Bundle) -> None:
    first = compile_tensorrt_plan(bundle, NANO)
    second = compile_tensorrt_plan(bundle, NANO)
    assert (first.compiled, second.compiled) == (True, False)
    assert second.gates == first.gates
    assert len(jetson.tensorrt.workspace) == 3
    assert compile_tensorrt_plan(bundle, NANO, force=True).compiled


def _chip(here: Jetson) -> None:
    here.gpu = THOR


def _driver(here: Jetson) -> None:
    here.gpu = replace(here.gpu, driver="13000")


def _tensorrt(here: Jetson) -> None:
    here.tensorrt.version = "10.13.3.9"


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
    engine = compile_tensorrt_plan(bundle, NANO)
    plan = (engine.folder / "student.plan").read_bytes()
    change(jetson)
    if name == "tensorrt":
        import_tensorrt_anew(monkeypatch, jetson)
        jetson.tensorrt.version = "10.13.3"
    both = replace(NANO, chips=("sm_87", "sm_110"))
    with pytest.raises(StalePlan, match=f"built for another {name}") as caught:
        compile_tensorrt_plan(bundle, both)
    for part in (f"{name} {was}", f"{name} {found}", FORCE):
        assert part in str(caught.value)
    assert (engine.folder / "student.plan").read_bytes() == plan
    with pytest.raises(EngineError, match=f"compiled for another {name}") as caught:
        Decoder.open(bundle.path)  # this fails before the plan is read
    for part in (f"{name} {was}", f"{name} {found}", FORCE):
        assert part in str(caught.value)
    again = compile_tensorrt_plan(bundle, both, force=True)
    assert again.record.fingerprint.device[name] == found


def test_a_plugin_of_another_hash_is_refused_by_name(jetson: Jetson, bundle: Bundle) -> None:
    engine = compile_tensorrt_plan(bundle, NANO)
    (engine.folder / PLUGIN).write_bytes(b"another")
    with pytest.raises(EngineError, match="built with another plugin") as caught:
        Decoder.open(bundle.path)
    assert engine.record.files[PLUGIN] in str(caught.value)
    assert FORCE in str(caught.value)
    with pytest.raises(StalePlan, match="changed after it was compiled") as caught:
        compile_tensorrt_plan(bundle, NANO)
    assert FORCE in str(caught.value)
    (engine.folder / PLUGIN).unlink()
    with pytest.raises(EngineError, match="no such file"):
        Decoder.open(bundle.path)


def test_a_damaged_plan_or_record_is_refused_by_name(jetson: Jetson, bundle: Bundle) -> None:
    engine = compile_tensorrt_plan(bundle, NANO)
    (engine.folder / "student.plan").write_bytes(b"plan of something else")
    with pytest.raises(EngineError, match=r"'student.plan' was changed") as caught:
        Decoder.open(bundle.path)
    assert FORCE in str(caught.value)
    (engine.folder / "build.json").write_text("{")
    with pytest.raises(EngineError, match="damaged") as caught:
        Decoder.open(bundle.path)
    assert FORCE in str(caught.value)
    with pytest.raises(StalePlan, match="damaged") as caught:
        compile_tensorrt_plan(bundle, NANO)
    assert FORCE in str(caught.value)
    assert compile_tensorrt_plan(bundle, NANO, force=True).compiled


def test_a_plan_of_another_bundle_is_refused(jetson: Jetson, bundle: Bundle) -> None:
    engine = compile_tensorrt_plan(bundle, NANO)
    replace(engine.record, manifest="0" * 64).write(engine.folder)
    with pytest.raises(StalePlan, match="from another bundle") as caught:
        compile_tensorrt_plan(bundle, NANO)
    assert FORCE in str(caught.value)
    with pytest.raises(EngineError, match="from another bundle"):
        Decoder.open(bundle.path)
