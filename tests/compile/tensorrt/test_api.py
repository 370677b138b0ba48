"""The members of TensorRT's Python bindings that edgedistill uses exist in every version on a Jetson, 10.3 to 11.4."""

from __future__ import annotations

import inspect
import re
import types
from pathlib import Path

import pytest

from benchmarks.tensorrt.wheels import BINDINGS

from .fake_tensorrt import Behavior, fake_tensorrt
from .tensorrt_bindings import NEEDED, bindings, signatures_in
from .tensorrt_uses import complaints

PACKAGE = Path(__file__).parents[3] / "edgedistill"
BUILDER = PACKAGE / "compile/tensorrt/builder.py"
IMPORT = "import tensorrt as trt"


@pytest.mark.parametrize("version", BINDINGS)
def test_every_use_of_the_bindings_exists_in_the_version(version: str) -> None:
    offered = bindings(version)
    uses = complaints(BUILDER.read_text(encoding="utf-8"), offered)
    assert not uses.found
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
        assert used in uses.checked


def test_the_builder_is_the_only_module_that_imports_tensorrt_and_calls_it_trt() -> None:
    importing = re.compile(r"^\s*(import tensorrt\b.*|from tensorrt\b.*)", re.MULTILINE)
    found = {path: importing.findall(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
    assert {path: lines for path, lines in found.items() if lines} == {BUILDER: [IMPORT]}


@pytest.mark.parametrize(
    ("correct", "wrong", "version", "complaint"),
    [
        # TensorRT 11 removed these, so that only its check complains.
        ("Flag.STRONGLY_TYPED", "Flag.EXPLICIT_BATCH", "11.4.0.106", "has no EXPLICIT_BATCH"),
        ("Flag.STRONGLY_TYPED", "Flag.EXPLICIT_BATCH", "10.3.0", ""),
        ("device_memory_size_v2", "device_memory_size", "11.4.0.106", "ICudaEngine has no device_memory_size"),
        ("device_memory_size_v2", "device_memory_size", "10.3.0", ""),
        ("registry.get_creator", "registry.get_plugin_creator", "11.4.0.106", "has no get_plugin_creator"),
        # This version does not have the method yet.
        ("parser.parse(graph)", "network.add_attention(graph)", "10.3.0", "INetworkDefinition has no add_attention"),
        # No version has ever had these.
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
def test_a_use_that_a_version_does_not_have_is_caught(correct: str, wrong: str, version: str, complaint: str) -> None:
    offered = bindings(version)
    source = BUILDER.read_text(encoding="utf-8")
    assert correct in source
    found = "\n".join(complaints(source.replace(correct, wrong), offered).found)
    if not complaint:
        assert not found
    else:
        assert re.search(complaint, found), found


def test_an_object_without_a_declared_class_is_caught_too() -> None:
    source = "import tensorrt as trt\nregistry = trt.get_plugin_registry()\nregistry.anything()\n"
    assert "annotate it" in complaints(source, bindings("10.13.3.9")).found[0]


@pytest.mark.parametrize("version", BINDINGS)
def test_the_names_that_version_11_removed_or_added_tell_the_versions_apart(version: str) -> None:
    """The loader must read the requested version. Otherwise the tests above would prove nothing."""
    offered, new = bindings(version), version.startswith("11")
    assert offered.has_member("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH") != new
    assert ("IInt8Calibrator" in offered.classes) != new
    assert offered.has_member("OnnxParser", "supports_model") != new
    assert offered.has_member("INetworkDefinition", "add_attention") == (version in ("10.16.1.11", "11.4.0.106"))


@pytest.mark.parametrize("version", BINDINGS)
def test_the_stand_in_for_tensorrt_has_no_names_of_its_own(version: str) -> None:
    """The names of fake_tensorrt.py, with which the builder is tested, exist in every real version."""
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


def test_the_bindings_need_nine_functions() -> None:
    assert sum(map(len, NEEDED.values())) == 9
