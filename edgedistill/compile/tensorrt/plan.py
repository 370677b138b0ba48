"""A bundle and a Jetson in, a TensorRT engine with this model out: `build/<target>/` inside the bundle.

The folder holds the sources, the plugin and the library that runs a plan (made by CMake, as a person would), the plan
that was kept, what came of the other forms, TensorRT's lists of layers, a README and `build.json`. A plan belongs to
its chip, TensorRT, driver and plugin: all of them stand in the fingerprint, and one that does not fit any more is made
again on request only. A machine that lacks the GPU or TensorRT leaves the sources there, prepared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import monotonic

from edgedistill.bundle import Bundle
from edgedistill.bundle.build_record import BuildRecord, Fingerprint, check_files, read_record
from edgedistill.compile.build_folder import CompiledEngine, Plan, made_once, planned
from edgedistill.compile.tensorrt.device import Machine, find_machine
from edgedistill.compile.tensorrt.forms import KEPT, Outcome, gates_of, read_forms, write_forms
from edgedistill.compile.tensorrt.sources import cmake_commands, made_by_cmake, prepare, readme, tensorrt_sources
from edgedistill.compile.tensorrt.trials import Trials, evidence_of
from edgedistill.errors import DeviceError, EngineError
from edgedistill.machine import jetson
from edgedistill.machine.processor import read_architecture
from edgedistill.runtime.tensorrt_engine import PLAN, PLUGIN, plugin_hash
from edgedistill.target import Target

CACHE = "timing.cache"  # TensorRT's, of the tactics it timed
MADE = ("plugin", "form")  # facts of a fingerprint that are only known afterwards

Report = Callable[[str, int, int], None]  # phase, step, steps


def compile_tensorrt_plan(
    bundle: Bundle, target: Target, force: bool = False, report: Report | None = None
) -> CompiledEngine:
    """Make the bundle's plan on this device, unless that is done already; with `force` in any case.

    DeviceError where this machine is not the device (the sources are left, prepared). EngineError for a plan that is
    there and does not fit any more, for what CMake or TensorRT say, and where no form computes what it should.
    """
    began, sources = monotonic(), tensorrt_sources(bundle)
    try:
        machine = find_machine(target)
    except DeviceError as error:
        prepare(bundle, target, sources)
        raise _finished_there(error, bundle, target) from error
    facts = Fingerprint(read_architecture(), "tensorrt", (), f"CUDA {machine.nvcc.version}", (), "", machine.facts)
    plan = planned(bundle, target, sources, facts, ("cmake", machine.nvcc.command), ".so")
    found = None if force else _found(plan, bundle)
    if found is None:
        made = made_once(plan, lambda folder, record: _compile(folder, record, plan, machine, bundle, report), True)
    else:
        made = CompiledEngine(plan.folder, found, (), False, monotonic() - began)
    return replace(made, gates=(*made.gates, *gates_of(target, read_forms(plan.folder))))


def _compile(
    folder: Path, record: BuildRecord, plan: Plan, machine: Machine, bundle: Bundle, report: Report | None
) -> BuildRecord:
    made_by_cmake(folder, record, machine)
    device = {**record.fingerprint.device, "plugin": plugin_hash(folder / PLUGIN)}
    record = replace(record, fingerprint=replace(record.fingerprint, device=device))
    trials = Trials(folder, record, plan.target, machine.builder, evidence_of(bundle), report)
    outcomes = trials.run(bundle, _old_cache(plan))
    (folder / CACHE).write_bytes(trials.cache)
    write_forms(folder, outcomes)
    kept = next(outcome for outcome in outcomes if outcome.state == KEPT)
    device = {**device, "form": kept.form}
    record = replace(record, fingerprint=replace(record.fingerprint, device=device))
    commands = cmake_commands(record.model, machine.gpu.chip, machine.nvcc.command)
    (folder / "README").write_text(readme(record, commands), encoding="utf-8")
    sizes = {"library": (folder / record.library).stat().st_size, "plan": (folder / PLAN).stat().st_size}
    return replace(record, sizes=sizes, notes=(*(_told(outcome) for outcome in outcomes), *machine.notes))


def _told(outcome: Outcome) -> str:
    time = f", {outcome.latency_us['p50']:.1f} µs a step (p50)" if outcome.latency_us else ""
    r2 = f", R² {outcome.r2:.4f}" if outcome.r2 is not None else ""
    why = f": {outcome.why}" if outcome.why else ""
    return f"{outcome.form} {outcome.state}{time}{r2}{why}"


def _old_cache(plan: Plan) -> bytes:
    """Tactics that an earlier plan was made with; TensorRT itself refuses those of another chip or version."""
    try:
        return (plan.folder / CACHE).read_bytes()
    except OSError:
        return b""


# ---------------------------------------------------------------- what is there already


def _found(plan: Plan, bundle: Bundle) -> BuildRecord | None:
    """The record of a plan that still fits; None where nothing was compiled here. EngineError for one that does not."""
    try:
        found = read_record(plan.folder)
    except EngineError as error:
        if "nothing is compiled" in error.what:
            return None
        raise _stale(error.what, error.got, "a build.json that can be read", plan, bundle) from error
    if not found.library:
        return None
    for name, expected in plan.record.fingerprint.device.items():
        was = found.fingerprint.device.get(name, "")
        if was != expected:
            what = f"{plan.folder}: the plan there was built for another {name}"
            raise _stale(what, f"{name} {was}", f"{name} {expected}, which this machine has", plan, bundle)
    try:
        check_files(plan.folder, found)
    except EngineError as error:
        raise _stale(error.what, error.got, error.expected, plan, bundle) from error
    if _recipe(found) != _recipe(plan.record):
        what = f"{plan.folder}: the plan there was built from other sources, or from another bundle"
        got = f"{found.created_by}, bundle {found.manifest[:12]}…"
        expected = f"{plan.record.created_by}, bundle {plan.record.manifest[:12]}…"
        raise _stale(what, got, expected, plan, bundle)
    return found


def _recipe(record: BuildRecord) -> BuildRecord:
    device = {name: fact for name, fact in record.fingerprint.device.items() if name not in MADE}
    fingerprint = replace(record.fingerprint, device=device)
    return replace(record, sizes={}, files={}, notes=(), fingerprint=fingerprint)


def _stale(what: str, got: object, expected: object, plan: Plan, bundle: Bundle) -> EngineError:
    return EngineError(
        what,
        got=got,
        expected=expected,
        next_step=f"edgedistill compile {bundle.path} --target {plan.target.name} --force   (takes minutes)",
    )


def _finished_there(error: DeviceError, bundle: Bundle, target: Target) -> DeviceError:
    """The error with the command that finishes the work: here, once what is missing is installed, if this is a
    Jetson, and else there."""
    command = f"edgedistill compile {bundle.path} --target {target.name}"
    if jetson.read_board() is not None and error.next_step:
        step, causes = f"{error.next_step}; then {command}", error.causes
    else:
        step = f"{command}   (on the Jetson, with a copy of the bundle)"
        causes = ("this machine is not the device: the sources are prepared in the bundle",)
    return DeviceError(error.what, got=error.got, expected=error.expected, causes=causes, next_step=step)
