"""Opens the TensorRT engine. A bundle goes in, and a started decoder comes out.

A plan is made on its own device, for one chip, TensorRT, driver and plugin. These are listed in build.json and compared
before TensorRT reads the plan. The results are near those of the oracle, not equal to them. `abi_engine` calls the
decoder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from edgedistill.bundle import Bundle
from edgedistill.bundle.build_record import BUILD_JSON, BuildRecord, check_device, check_fits, read_loaded_files
from edgedistill.config import StudentShape
from edgedistill.errors import DeviceError, EngineError, NotCompiled, StalePlan
from edgedistill.frontend import FrontEndConfig
from edgedistill.machine import jetson
from edgedistill.machine.gpu import Gpu, find_gpu
from edgedistill.runtime.abi_engine import AbiEngine, OpenedLibrary
from edgedistill.runtime.build_choice import add_compile_command, choose_build, choose_target
from edgedistill.runtime.cuda_engine import open_build

TARGET = "jetson"
PLAN, PLUGIN = "student.plan", "libed_plugin.so"
PRECISIONS = {"int8-plugin": "int8", "int8": "int8", "fp16": "float16"}  # by the form that was kept


def open_tensorrt_engine(bundle: Bundle, shape: StudentShape, config: FrontEndConfig) -> AbiEngine:
    """Opens what `edgedistill compile` left in the user's cache for this device.

    Raises EngineError that says what is missing, has changed, or was made for another bundle, chip, TensorRT or plugin,
    and which command helps. This is NotCompiled, or StalePlan for a plan that does not fit any more.
    """
    target = choose_target(bundle, "tensorrt", TARGET)
    try:
        folder, record = choose_build(bundle, target, "tensorrt", check_tensorrt_build)
        return AbiEngine(open_plan(record, read_loaded_files(folder, record)), shape, config)
    except EngineError as error:
        raise _add_forced_command(error, bundle, target) from error


def open_plan(record: BuildRecord, files: Mapping[str, bytes]) -> OpenedLibrary:
    """Starts a decoder of the plan among checked files. Raises EngineError if it does not start."""
    form = record.fingerprint.device.get("form", "")
    return replace(open_build(record, files), precision=PRECISIONS.get(form, "int8"))


def check_tensorrt_build(folder: Path, record: BuildRecord, bundle: Bundle) -> None:
    """Raises EngineError unless this device can run the plan. This check does not read the plan itself."""
    check_fits(folder, record, bundle)
    facts = list_device_facts(find_gpu())
    if "tensorrt" not in facts:
        made_with = record.fingerprint.device.get("tensorrt", "")
        raise DeviceError(
            f"{folder}: the plan there needs TensorRT, which is not on this machine",
            got="no libnvinfer",
            expected=f"TensorRT {made_with}",
            next_step="sudo apt install tensorrt   (on a Jetson, it is a part of JetPack)",
        )
    check_device(folder, record, facts)
    check_plugin(folder, record)


def list_device_facts(gpu: Gpu) -> dict[str, str]:
    """Returns what a plan depends on, by its name in a fingerprint. Facts that are unknown here are left out."""
    found = {
        "chip": gpu.chip,
        "driver": gpu.driver,
        "tensorrt": jetson.read_tensorrt_version(),
        "jetpack": jetson.read_jetpack_version(),
    }
    return {name: fact for name, fact in found.items() if fact}


def check_plugin(folder: Path, record: BuildRecord) -> None:
    """Raises EngineError unless the plugin beside the plan is the one that the plan was built with."""
    expected, path = record.fingerprint.device.get("plugin", ""), folder / PLUGIN
    found = plugin_hash(path) if path.exists() else "no such file"
    if expected and found != expected:
        raise EngineError(
            f"{folder}: the plan there was built with another plugin",
            got=f"{PLUGIN}: {found}",
            expected=f"{expected}, in {BUILD_JSON}",
            causes=("the plugin was compiled again without its plan", "a copy that broke off"),
        )


def plugin_hash(path: Path) -> str:
    """Returns the sha256 of a plugin's file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _add_forced_command(error: EngineError, bundle: Bundle, target: str) -> EngineError:
    """Returns the error with the command that helps.

    A plan that no longer fits is never rebuilt without the user's request. For such a plan this returns a StalePlan,
    and its command contains --force.
    """
    if error.next_step or isinstance(error, NotCompiled):
        return add_compile_command(error, bundle, target)
    kind = StalePlan if type(error) is EngineError else type(error)
    step = f"edgedistill compile {bundle.path} --target {target} --force"
    return kind(error.what, got=error.got, expected=error.expected, causes=error.causes, next_step=step)
