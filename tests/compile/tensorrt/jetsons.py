"""Pretends that this machine is a Jetson, with the GPU and programs that a test wants, and writes a bundle for it."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.cpu.array_models import draw_smoothing_model
from edgedistill.bundle import Bundle, write_bundle
from edgedistill.bundle.build_record import BuildRecord
from edgedistill.bundle.contents import read_decoder_spec, read_int8_model
from edgedistill.compile.tensorrt import device, trials
from edgedistill.errors import EngineError
from edgedistill.machine import jetson
from edgedistill.machine.gpu import Gpu
from edgedistill.measure.latency import LatencyUs
from edgedistill.numerics import Oracle
from edgedistill.numerics.smoothing import OutputSmoother
from edgedistill.pipeline.channel_files import neutral_channel_files, write_smoothing_file
from edgedistill.quantization.onnx_graph import graph_from_student, list_weight_shapes
from edgedistill.runtime import tensorrt_engine
from edgedistill.target import load_target

from ...bundles import SHAPE, holdout, manifest, student_files
from .fake_tensorrt import HEADER, Behavior, fake_tensorrt

SMOOTHING = draw_smoothing_model(SHAPE.outputs, 1)
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

NANO = load_target("jetson")
FORCE = "--target jetson --force"
THOR = Gpu("Thor", "sm_110", "13000")


@dataclass
class Plans:
    """Selects how the plans behave that are built on this Jetson."""

    p50_us: dict[str, float] = field(default_factory=lambda: {"int8-plugin": 40.0, "int8": 60.0, "fp16": 50.0})
    flipped: set[str] = field(default_factory=set)  # names of forms of which one key in ten is off by one
    off: set[str] = field(default_factory=set)  # names of forms with wrong outputs where the oracle's state was set
    drifting: set[str] = field(default_factory=set)  # names of forms with wrong outputs where their state is their own
    not_finite: set[str] = field(default_factory=set)  # names of forms that return NaN
    not_opening: dict[str, str] = field(default_factory=dict)
    opened: list[str] = field(default_factory=list)  # names of forms, in the order in which they were opened


@dataclass
class Jetson:
    """Describes the Jetson that this process takes its machine for. A test changes its fields."""

    tensorrt: Behavior
    plans: Plans
    gpu: Gpu
    board: str | None = "NVIDIA Jetson Orin Nano"
    jetpack: str | None = "6.1"


class PlanEngine:
    """Stands in for a library that opened a plan. It is the oracle, with a fault where the test wants one."""

    def __init__(self, opened: tuple[str, Plans, Bundle], shape: Any, front_end: Any) -> None:
        self.form, self.plans, bundle = opened
        self.oracle, self.rng = Oracle(read_int8_model(bundle, shape)), np.random.default_rng(0)
        self.smoother, self.raw_kinematics = OutputSmoother(SMOOTHING), np.zeros(shape.outputs, np.float32)
        self.bins, self.decoded = _decode_holdout(bundle)
        self.at: int | None = 0  # place in the holdout, or None after a state was set

    def step(self, bin: Any, /) -> Any:
        kinematics = self.oracle.step(bin) if self.at is None else self.decoded[self.at % len(self.decoded)]
        faulty = self.plans.off if self.at is None else self.plans.drifting
        self.at = None if self.at is None else self.at + 1
        scale = 0.3 if self.form in faulty else 0.0
        factor = np.nan if self.form in self.plans.not_finite else 1 + scale * self.rng.normal()
        self.raw_kinematics = kinematics * np.float32(factor)
        return self.smoother.step(self.raw_kinematics)

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
        self.smoother.reset()


_DECODED: dict[str, tuple[Any, Any]] = {}


def _decode_holdout(bundle: Bundle) -> tuple[Any, Any]:
    """Returns the holdout's bins and the oracle's raw outputs. This is computed once per bundle."""
    if bundle.sha256 not in _DECODED:
        evidence = trials.evidence_of(bundle)
        _DECODED[bundle.sha256] = evidence.bins, evidence.raw
    return _DECODED[bundle.sha256]


def become_jetson(monkeypatch: pytest.MonkeyPatch, folder: Path, bundle: Bundle, **behavior: Any) -> Jetson:
    """Makes this process take its machine for a Jetson that can open plans. `behavior` is that of TensorRT."""
    here = become_board(monkeypatch, folder, **behavior)
    _stand_in_for_plans(monkeypatch, here, bundle)
    return here


def become_board(monkeypatch: pytest.MonkeyPatch, folder: Path, **behavior: Any) -> Jetson:
    """Makes this process take its machine for a Jetson. The real engine opens plans."""
    here = Jetson(Behavior(**behavior), Plans(), Gpu("Orin", "sm_87", "12060"))
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    for name, text in (("nvcc", NVCC), ("cmake", CMAKE)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(here.tensorrt))
    monkeypatch.delitem(sys.modules, device.BUILDER, raising=False)
    for module in (device, tensorrt_engine):
        monkeypatch.setattr(module, "find_gpu", lambda: here.gpu)
    monkeypatch.setattr(jetson, "read_board", lambda: here.board)
    monkeypatch.setattr(jetson, "read_jetpack_version", lambda: here.jetpack)
    monkeypatch.setattr(jetson, "read_tensorrt_version", lambda: here.tensorrt.version)
    return here


def import_tensorrt_anew(monkeypatch: pytest.MonkeyPatch, here: Jetson) -> None:
    """Makes the next compilation import TensorRT again, in the version that the test has set."""
    here.tensorrt.loaded.clear()
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(here.tensorrt))
    monkeypatch.delitem(sys.modules, device.BUILDER, raising=False)


def _stand_in_for_plans(monkeypatch: pytest.MonkeyPatch, here: Jetson, bundle: Bundle) -> None:
    def opened(record: BuildRecord, files: Mapping[str, bytes]) -> tuple[str, Plans, Bundle]:
        form = record.fingerprint.device["form"]
        assert files[tensorrt_engine.PLAN].startswith(HEADER)
        here.plans.opened.append(form)
        if form in here.plans.not_opening:
            raise EngineError("the engine there does not start", got=here.plans.not_opening[form])
        return form, here.plans, bundle

    monkeypatch.setattr(trials, "open_plan", opened)
    monkeypatch.setattr(trials, "AbiEngine", PlanEngine)
    monkeypatch.setattr(trials, "time_forms", _stand_in_for_timing(here.plans))


def _stand_in_for_timing(plans: Plans) -> Callable[..., dict[str, LatencyUs]]:
    def timed(trials: Any, evidence: Any) -> dict[str, LatencyUs]:
        found = {trial.form.name: plans.p50_us[trial.form.name] for trial in trials}
        return {name: LatencyUs(p50, p50, p50 * 1.2, p50 * 2, p50 * 3, p50, 100) for name, p50 in found.items()}

    return timed


def write_jetson_bundle(path: Path, with_reference: bool = True, **changes: object) -> Bundle:
    """Writes a bundle with all that a Jetson needs, whose outputs are smoothed.

    Its float student decodes the holdout as well as its oracle.
    """
    files = student_files(SHAPE, seed=0)
    rng = np.random.default_rng(0)
    weights = {
        n: (rng.normal(size=s) / np.sqrt(s[-1])).astype(np.float32) for n, s in list_weight_shapes(SHAPE).items()
    }
    files |= neutral_channel_files(SHAPE.channels, SHAPE.outputs) | write_smoothing_file(SMOOTHING)
    files["student.fp16.onnx"] = graph_from_student(SHAPE, weights, "float16").SerializeToString()
    facts = manifest(**{"target": "jetson", "engine": "tensorrt", **changes})
    bundle = write_bundle(path, facts, {**files, "holdout.npz": holdout(files["student.onnx"])})
    model = read_int8_model(bundle, read_decoder_spec(bundle).shape)
    held = _holdout_of_oracle(files["student.onnx"], model)
    made = {**files, "holdout.npz": held}
    if with_reference:
        made["reference.npz"] = _reference(model)
    return write_bundle(path, facts, made)


def _holdout_of_oracle(graph: bytes, model: Any) -> bytes:
    """Returns a holdout whose kinematics are the oracle's smoothed outputs with noise, so that R² is 0.9 in INT8."""
    with np.load(io.BytesIO(holdout(graph))) as stored:
        arrays = dict(stored)
    decoded = SMOOTHING.run(Oracle(model).run(arrays["bins"]))
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
