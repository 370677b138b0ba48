"""A Jetson that is none: GPU, JetPack, TensorRT, nvcc and CMake as a test wants them, and a bundle to compile there."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgedistill.bundle import Bundle, write_bundle
from edgedistill.bundle.build_record import BuildRecord
from edgedistill.compile.tensorrt import device, trials
from edgedistill.errors import EngineError
from edgedistill.machine import jetson
from edgedistill.machine.gpu import Gpu
from edgedistill.measure.latency import LatencyUs
from edgedistill.numerics import Oracle
from edgedistill.quantization.onnx_graph import graph_from_student, list_weight_shapes
from edgedistill.runtime import tensorrt_engine
from edgedistill.runtime.decoder import described, int8_model

from ...bundles import SHAPE, holdout, manifest, student_files
from .fake_tensorrt import HEADER, Behavior, fake_tensorrt

BIN = "#!/bin/sh\n"
NVCC = BIN + (
    'case "$1" in\n'
    '  --version) echo "Cuda compilation tools, release 12.6, V12.6.68";;\n'
    "  *) echo sm_87; echo sm_110;;\n"
    "esac\n"
)
CMAKE = BIN + (
    'if [ "$1" = "--build" ]; then\n'
    '  echo runtime > $(cat out/library); echo "plugin of $(cat out/chip)" > libed_plugin.so\n'
    "  echo cubin > append.cubin\n"
    "else\n"
    "  mkdir -p out\n"
    '  for word in "$@"; do case "$word" in\n'
    '    -DED_MODEL=*) echo "libed_${word#-DED_MODEL=}.so" > out/library;;\n'
    '    -DCMAKE_CUDA_ARCHITECTURES=*) echo "${word#*=}" > out/chip;;\n'
    "  esac; done\n"
    "fi\n"
)
FORMS = {"int8-plugin": b"EdAttention", "int8": b"", "fp16": b""}  # what only this form's graph holds


@dataclass
class Plans:
    """How the plans behave that are built here."""

    p50_us: dict[str, float] = field(default_factory=lambda: {"int8-plugin": 40.0, "int8": 60.0, "fp16": 50.0})
    flipped: set[str] = field(default_factory=set)  # one key in ten is off by one
    noisy: set[str] = field(default_factory=set)  # R² suffers, integers do not
    not_finite: set[str] = field(default_factory=set)
    not_opening: dict[str, str] = field(default_factory=dict)
    opened: list[str] = field(default_factory=list)


@dataclass
class Jetson:
    """What the test turned this machine into."""

    told: Behavior
    plans: Plans
    gpu: Gpu
    board: str | None = "NVIDIA Jetson Orin Nano"
    jetpack: str | None = "6.1"


class PlanEngine:
    """What a library would be that opened a plan: the oracle, with a fault where the test wants one."""

    def __init__(self, opened: tuple[str, Plans, Bundle], shape: Any, front_end: Any) -> None:
        self.form, self.plans, bundle = opened
        self.oracle, self.rng = Oracle(int8_model(bundle, shape)), np.random.default_rng(0)
        self.bins, self.decoded = _decoded(bundle)
        self.at: int | None = 0  # in the holdout; None once a state was set

    def step(self, bin: Any, /) -> Any:
        kinematics = self.oracle.step(bin) if self.at is None else self.decoded[self.at % len(self.decoded)]
        self.at = None if self.at is None else self.at + 1
        if self.form in self.plans.not_finite:
            return kinematics * np.float32(np.nan)
        scale = 0.3 if self.form in self.plans.noisy else 0.0
        return kinematics * np.float32(1 + scale * self.rng.normal())

    def import_state(self, state: Any, /) -> None:
        assert self.form != "fp16"
        self.oracle.import_state(state)
        self.at = None

    def export_state(self) -> Any:
        state = self.oracle.export_state()
        if self.form in self.plans.flipped:
            state["ring_k_0"] = np.where(self.rng.random(state["ring_k_0"].shape) < 0.1, 1, state["ring_k_0"])
        return state

    def reset(self) -> None:
        self.at = 0


_HELD: dict[str, tuple[Any, Any]] = {}


def _decoded(bundle: Bundle) -> tuple[Any, Any]:
    """The holdout's bins and what the oracle makes of them, computed once a bundle."""
    if bundle.sha256 not in _HELD:
        evidence = trials.evidence_of(bundle)
        _HELD[bundle.sha256] = evidence.bins, Oracle(evidence.model).run(evidence.bins)
    return _HELD[bundle.sha256]


def become_jetson(monkeypatch: pytest.MonkeyPatch, folder: Path, bundle: Bundle, **told: Any) -> Jetson:
    """Makes this process believe that it runs on one, plans and all; `told` are fields of Behavior."""
    here = become_board(monkeypatch, folder, **told)
    _stand_in_for_plans(monkeypatch, here, bundle)
    return here


def become_board(monkeypatch: pytest.MonkeyPatch, folder: Path, **told: Any) -> Jetson:
    """The same without the engines that open plans."""
    here = Jetson(Behavior(**told), Plans(), Gpu("Orin", "sm_87", "12060"))
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    for name, text in (("nvcc", NVCC), ("cmake", CMAKE)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(here.told))
    monkeypatch.delitem(sys.modules, device.BUILDER, raising=False)
    for module in (device, tensorrt_engine):
        monkeypatch.setattr(module, "find_gpu", lambda: here.gpu)
    monkeypatch.setattr(jetson, "board", lambda: here.board)
    monkeypatch.setattr(jetson, "jetpack_version", lambda: here.jetpack)
    monkeypatch.setattr(jetson, "tensorrt_version", lambda: here.told.version)
    return here


def _stand_in_for_plans(monkeypatch: pytest.MonkeyPatch, here: Jetson, bundle: Bundle) -> None:
    def opened(path: Path, record: BuildRecord) -> tuple[str, Plans, Bundle]:
        form = record.fingerprint.device["form"]
        assert (path / tensorrt_engine.PLAN).read_bytes().startswith(HEADER)
        here.plans.opened.append(form)
        if form in here.plans.not_opening:
            raise EngineError("the engine there does not start", got=here.plans.not_opening[form])
        return form, here.plans, bundle

    monkeypatch.setattr(trials, "opened_plan", opened)
    monkeypatch.setattr(trials, "AbiEngine", PlanEngine)
    monkeypatch.setattr(trials, "timed", _timed(here.plans))


def _timed(plans: Plans) -> Callable[..., dict[str, LatencyUs]]:
    def timed(trials: Any, evidence: Any) -> dict[str, LatencyUs]:
        found = {trial.form.name: plans.p50_us[trial.form.name] for trial in trials}
        return {name: LatencyUs(p50, p50, p50 * 1.2, p50 * 2, p50 * 3, p50, 100) for name, p50 in found.items()}

    return timed


def write_jetson_bundle(path: Path, with_reference: bool = True, **changes: object) -> Bundle:
    """A bundle with all that a Jetson needs; its float student decodes the holdout as well as its oracle does."""
    files = student_files(SHAPE, seed=0)
    rng = np.random.default_rng(0)
    weights = {
        n: (rng.normal(size=s) / np.sqrt(s[-1])).astype(np.float32) for n, s in list_weight_shapes(SHAPE).items()
    }
    files["student.fp16.onnx"] = graph_from_student(SHAPE, weights, "float16").SerializeToString()
    facts = manifest(**{"target": "jetson", "engine": "tensorrt", **changes})
    bundle = write_bundle(path, facts, {**files, "holdout.npz": holdout(files["student.onnx"])})
    model = int8_model(bundle, described(bundle, "oracle")[0])
    held = _own_truth(files["student.onnx"], model)
    made = {**files, "holdout.npz": held}
    if with_reference:
        made["reference.npz"] = _reference(model)
    return write_bundle(path, facts, made)


def _own_truth(graph: bytes, model: Any) -> bytes:
    """A holdout whose truth is what the oracle decodes, and noise: R² 0.9 of INT8."""
    with np.load(io.BytesIO(holdout(graph))) as stored:
        arrays = dict(stored)
    decoded = Oracle(model).run(arrays["bins"])
    noise = np.random.default_rng(3).normal(size=decoded.shape) * decoded.std(axis=0) / 3
    arrays["kinematics"] = (decoded + noise).astype(np.float32)
    return _npz(arrays)


def _reference(model: Any) -> bytes:
    oracle, bins = Oracle(model), np.random.default_rng(5).normal(size=(96, model.shape.channels)).astype(np.float32)
    oracle.run(bins[:64])
    start = {f"start_{name}": array for name, array in oracle.export_state().items()}
    kinematics = oracle.run(bins[64:])
    end = {f"state_{name}": array for name, array in oracle.export_state().items()}
    return _npz({"bins": bins[64:], "kinematics": kinematics, **start, **end})


def _npz(arrays: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()
