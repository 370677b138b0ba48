"""Compiles the TensorRT engine of a bundle in the user's cache, on the device that will run it.

A bundle and a target go in. A folder comes out with the sources, the plugin and the library that runs a plan (both
built by CMake, as they can be built by hand), the plan that was kept, the outcomes of all forms, TensorRT's lists of
layers, a README and `build.json`. A plan fits one chip, TensorRT, driver and plugin. The fingerprint names them, and a
plan that no longer fits is built again only on request. On a machine without the GPU or TensorRT, the bundle gets the
sources, prepared for the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from time import monotonic

from edgedistill.bundle import Bundle
from edgedistill.bundle.build_record import BuildRecord, Fingerprint, check_files, read_record
from edgedistill.compile.build_folder import (
    BuildSpec,
    CompiledEngine,
    add_device_facts,
    build_if_missing,
    build_spec,
    remove_results,
    write_readme,
)
from edgedistill.compile.prepared import compile_command, prepare_sources, replace_next_step
from edgedistill.compile.tensorrt import Report
from edgedistill.compile.tensorrt.device import Machine, find_machine
from edgedistill.compile.tensorrt.forms import KEPT, Outcome, gates_of, read_forms, write_forms
from edgedistill.compile.tensorrt.sources import cmake_commands, prepared_readme, readme, run_cmake, tensorrt_sources
from edgedistill.compile.tensorrt.trials import Trials, evidence_of
from edgedistill.errors import DeviceError, EngineError, NotCompiled, StalePlan
from edgedistill.machine import jetson
from edgedistill.machine.processor import read_architecture
from edgedistill.runtime.tensorrt_engine import PLAN, PLUGIN, plugin_hash
from edgedistill.target import Target
from edgedistill.user_cache import read_private

CACHE = "timing.cache"  # TensorRT's cache of the tactics that it has timed
RESULTS = ("plugin", "form")  # facts of a fingerprint that are unknown until the plan is built


def compile_tensorrt_plan(
    bundle: Bundle, target: Target, force: bool = False, report: Report | None = None
) -> CompiledEngine:
    """Builds the bundle's plan on this device, unless that is done already. With `force` it is built in any case.

    Raises DeviceError where this machine is not the device, and leaves the sources prepared in the bundle. Raises
    StalePlan for an existing plan that does not fit any more. Raises EngineError with the message of CMake or TensorRT,
    and where no form has correct results.
    """
    began, sources = monotonic(), tensorrt_sources(bundle)
    try:
        machine = find_machine(target)
    except DeviceError as error:
        raise _prepare(error, bundle, target, sources) from error
    fingerprint = Fingerprint(
        read_architecture(), "tensorrt", (), f"CUDA {machine.nvcc.version}", (), "", machine.facts
    )
    spec = build_spec(bundle, target, sources, fingerprint, ("cmake", machine.nvcc.command), ".so")
    found = None if force else _find_fitting_plan(spec, bundle)
    if found is None:
        engine = build_if_missing(
            spec, lambda folder, record: _compile(folder, record, spec, machine, bundle, report), force=True
        )
    else:
        engine = CompiledEngine(spec.folder, found, (), False, monotonic() - began)
    return replace(engine, gates=(*engine.gates, *gates_of(target, read_forms(spec.folder))))


def _compile(
    folder: Path, record: BuildRecord, spec: BuildSpec, machine: Machine, bundle: Bundle, report: Report | None
) -> BuildRecord:
    run_cmake(folder, record, machine)
    record = add_device_facts(record, plugin=plugin_hash(folder / PLUGIN))
    trials = Trials(folder, record, spec.target, machine.builder, evidence_of(bundle), report)
    outcomes = trials.run(bundle, _read_old_cache(spec))
    (folder / CACHE).write_bytes(trials.cache)
    write_forms(folder, outcomes)
    kept = next(outcome for outcome in outcomes if outcome.state == KEPT)
    record = add_device_facts(record, form=kept.form)
    commands = cmake_commands(record.model, machine.gpu.chip, machine.nvcc.command)
    write_readme(folder, readme(record, commands))
    sizes = {"library": (folder / record.library).stat().st_size, "plan": (folder / PLAN).stat().st_size}
    return replace(record, sizes=sizes, notes=(*map(_describe_outcome, outcomes), *machine.notes))


def _describe_outcome(outcome: Outcome) -> str:
    time = f", {outcome.latency_us['p50']:.1f} µs a step (p50)" if outcome.latency_us else ""
    r2 = f", R² {outcome.r2:.4f}" if outcome.r2 is not None else ""
    why = f": {outcome.why}" if outcome.why else ""
    return f"{outcome.form} {outcome.state}{time}{r2}{why}"


def _read_old_cache(spec: BuildSpec) -> bytes:
    """Returns the tactics of an earlier plan. TensorRT itself refuses those of another chip or version."""
    try:
        return read_private(spec.folder, CACHE)
    except OSError:
        return b""


# ---------------------------------------------------------------- the plan that is there already


def _find_fitting_plan(spec: BuildSpec, bundle: Bundle) -> BuildRecord | None:
    """Returns the record of a plan that still fits, or None where no plan was built here. Raises StalePlan."""
    try:
        found = read_record(spec.folder)
    except NotCompiled:
        return None
    except EngineError as error:
        raise _stale_plan(error.what, error.got, "a build.json that can be read", spec, bundle) from error
    for name, expected in spec.record.fingerprint.device.items():
        was = found.fingerprint.device.get(name, "")
        if was != expected:
            what = f"{spec.folder}: the plan there was built for another {name}"
            raise _stale_plan(what, f"{name} {was}", f"{name} {expected}, which this machine has", spec, bundle)
    try:
        check_files(spec.folder, found)
    except EngineError as error:
        raise _stale_plan(error.what, error.got, error.expected, spec, bundle) from error
    if remove_results(found, RESULTS) != remove_results(spec.record, RESULTS):
        what = f"{spec.folder}: the plan there was built from other sources, or from another bundle"
        got = f"{found.created_by}, bundle {found.manifest[:12]}…"
        expected = f"{spec.record.created_by}, bundle {spec.record.manifest[:12]}…"
        raise _stale_plan(what, got, expected, spec, bundle)
    return found


def _stale_plan(what: str, got: object, expected: object, spec: BuildSpec, bundle: Bundle) -> StalePlan:
    step = f"{compile_command(bundle, spec.target)} --force   (takes minutes)"
    return StalePlan(what, got=got, expected=expected, next_step=step)


# ---------------------------------------------------------------- what this machine lacks


def _prepare(error: DeviceError, bundle: Bundle, target: Target, sources: Mapping[str, bytes]) -> DeviceError:
    """Prepares the sources, and returns the error with the command that finishes the work.

    On a Jetson this command comes after the one that installs what is missing. Elsewhere it has to be run on the
    Jetson.
    """
    prepare_sources(bundle, target, sources, lambda record: prepared_readme(record, target))
    command = compile_command(bundle, target)
    if jetson.read_board() is not None and error.next_step:
        return replace_next_step(error, f"{error.next_step}; then {command}", error.causes)
    causes = ("this machine is not the device: the sources are prepared in the bundle",)
    return replace_next_step(error, f"{command}   (on the Jetson, with a copy of the bundle)", causes)
