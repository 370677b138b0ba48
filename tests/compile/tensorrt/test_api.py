"""What we ask of TensorRT's Python bindings exists in each version that a Jetson may have, from 10.3 to 11.4."""

from __future__ import annotations

import inspect
import re
import types
from pathlib import Path

import pytest

from .fake_tensorrt import Behavior, fake_tensorrt
from .tensorrt_bindings import NEEDED, WHEELS, bindings, signatures_in
from .tensorrt_uses import complaints

PACKAGE = Path(__file__).parents[3] / "edgedistill"
BUILDER = PACKAGE / "compile/tensorrt/builder.py"
IMPORT = "import tensorrt as trt"


@pytest.mark.parametrize("version", WHEELS)
def test_every_use_of_the_bindings_exists_in(version: str) -> None:
    offered = bindings(version)
    told = complaints(BUILDER.read_text(encoding="utf-8"), offered)
    assert not told.found
    for used in (
        "Builder.create_network",
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
        "OnnxParser.parse",
        "ParserError.node_name",
        "IBuilderConfig.set_memory_pool_limit",
        "IBuilderConfig.progress_monitor",
        "ITimingCache.serialize",
        "IPluginRegistry.load_library",
        "Runtime.deserialize_cuda_engine",
        "ICudaEngine.device_memory_size_v2",
        "EngineInspector.get_engine_information",
        "ILogger.WARNING",
    ):
        assert used in told.checked


def test_the_builder_is_the_only_module_that_imports_tensorrt_and_calls_it_trt() -> None:
    importing = re.compile(r"^\s*(import tensorrt\b.*|from tensorrt\b.*)", re.MULTILINE)
    found = {path: importing.findall(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
    assert {path: lines for path, lines in found.items() if lines} == {BUILDER: [IMPORT]}


@pytest.mark.parametrize(
    ("correct", "wrong", "version", "told"),
    [
        # what TensorRT 11 took away is caught, and only there
        ("Flag.STRONGLY_TYPED", "Flag.EXPLICIT_BATCH", "11.4.0.106", "has no EXPLICIT_BATCH"),
        ("Flag.STRONGLY_TYPED", "Flag.EXPLICIT_BATCH", "10.3.0", ""),
        ("device_memory_size_v2", "device_memory_size", "11.4.0.106", "ICudaEngine has no device_memory_size"),
        ("device_memory_size_v2", "device_memory_size", "10.3.0", ""),
        ("registry.get_creator", "registry.get_plugin_creator", "11.4.0.106", "has no get_plugin_creator"),
        # what a version does not have yet
        ("parser.parse(graph)", "network.add_attention(graph)", "10.3.0", "INetworkDefinition has no add_attention"),
        # what none has ever had
        ("MemoryPoolType.WORKSPACE", "MemoryPoolType.WORKPLACE", "10.13.3.9", "has no WORKPLACE"),
        ("trt.Runtime(", "trt.RunTime(", "10.16.1.11", "trt has no RunTime"),
        ("ignore_mismatch=False", "ignore=False", "10.3.0", r"set_timing_cache takes \(cache, ignore_mismatch\)"),
        ("create_builder_config()", "create_builder_config(1)", "10.3.0", r"takes \(\)"),
        ("trt.OnnxParser(network, log)", "trt.OnnxParser(network)", "10.3.0", "takes"),
        ("error: trt.ParserError", "error: trt.ParserFault", "10.3.0", "no class ParserFault"),
        ("error: trt.ParserError", "error: trt.IPluginRegistry", "10.3.0", "IPluginRegistry has no node_name"),
        ("step_complete(self, phase_name: str, step: int)", "step_complete(self, step: int)", "10.3.0", "is called"),
        ("progress_monitor =", "progress_monitors =", "10.3.0", "has no progress_monitors"),
    ],
)
def test_a_use_that_a_version_does_not_have_is_caught(correct: str, wrong: str, version: str, told: str) -> None:
    offered = bindings(version)
    source = BUILDER.read_text(encoding="utf-8")
    assert correct in source
    found = "\n".join(complaints(source.replace(correct, wrong), offered).found)
    if not told:
        assert not found
    else:
        assert re.search(told, found), found


def test_what_nobody_declares_is_caught_too() -> None:
    source = "import tensorrt as trt\nregistry = trt.get_plugin_registry()\nregistry.anything()\n"
    assert "annotate it" in complaints(source, bindings("10.13.3.9")).found[0]


@pytest.mark.parametrize("version", WHEELS)
def test_what_is_gone_in_11_was_in_10_and_the_other_way_round(version: str) -> None:
    """The loader tells versions apart: else everything above would hold for nothing."""
    offered, new = bindings(version), version.startswith("11")
    assert offered.has_member("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH") != new
    assert ("IInt8Calibrator" in offered.classes) != new
    assert offered.has_member("OnnxParser", "supports_model") != new
    assert offered.has_member("INetworkDefinition", "add_attention") == (version in ("10.16.1.11", "11.4.0.106"))


@pytest.mark.parametrize("version", WHEELS)
def test_the_stand_in_for_tensorrt_has_no_names_of_its_own(version: str) -> None:
    """fake_tensorrt.py, over which the builder is driven, is a part of each real version."""
    offered, fake = bindings(version), fake_tensorrt(Behavior())
    for name, thing in vars(fake).items():
        if name in vars(types.ModuleType("empty")) and name != "__version__":
            continue
        assert name in offered.module, name
        for member, value in vars(thing).items() if name in offered.classes else ():
            if member.startswith("_"):
                continue
            assert offered.has_member(name, member), (name, member)
            signatures = offered.signatures(name, member)
            if isinstance(value, types.FunctionType) and signatures:
                taken = tuple(inspect.signature(value).parameters)[1:]
                assert taken in [signature.parameters for signature in signatures], (name, member)


def test_signatures_are_read_from_docstrings() -> None:
    doc = (
        "f(*args, **kwargs)\nOverloaded function.\n\n1. f(self: a.T, x: Dict[str, int], y: int = 0) -> a.b.C\n\n"
        "    text\n\n2. f(self: a.T, *, z: Callable[[int, str], bool]) -> None\n"
    )
    first, second = signatures_in(doc, "f")
    assert (first.parameters, first.optional, first.result) == (("x", "y"), 1, "C")
    assert (second.parameters, second.optional, second.result) == (("z",), 0, "")


def test_nine_functions_are_all_that_the_bindings_ask_for() -> None:
    assert sum(map(len, NEEDED.values())) == 9
