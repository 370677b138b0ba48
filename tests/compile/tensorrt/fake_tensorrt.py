"""Stands in for the module `tensorrt`, with the names that edgedistill's builder uses and no others.

A Behavior selects faults. test_api.py checks these names against the real bindings, so that the stand-in cannot differ
from TensorRT unnoticed. A plan is the graph that it was built from, with a header.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from types import ModuleType
from typing import Any

HEADER = b"plan of "
CACHE = b"tactics"


@dataclass
class Behavior:
    """Selects what goes wrong, and records what was called."""

    version: str = "10.3.0"
    parse_error: dict[bytes, tuple[str, str, str]] = field(
        default_factory=dict
    )  # part of a graph -> node, operator, text
    build_error: dict[bytes, str] = field(default_factory=dict)  # part of a graph -> text in the log
    plugin_refused: bool = False
    no_start: bool = False
    during_build: Callable[[], None] | None = None
    workspace: list[int] = field(default_factory=list)
    caches: list[bytes] = field(default_factory=list)  # arguments of the calls of config.create_timing_cache
    steps: list[bool] = field(default_factory=list)  # return values of the progress monitor
    loaded: list[str] = field(default_factory=list)
    flags: list[int] = field(default_factory=list)
    plan_of: Callable[[bytes], bytes] = lambda graph: HEADER + graph


def fake_tensorrt(behavior: Behavior) -> ModuleType:
    """Returns a module `tensorrt` with that behavior."""
    module: Any = ModuleType("tensorrt")

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

        def __init__(self) -> None:
            pass

    class IProgressMonitor:
        def __init__(self) -> None:
            pass

    class MemoryPoolType(Enum):
        WORKSPACE = 0

    class ProfilingVerbosity(Enum):
        DETAILED = 2

    class LayerInformationFormat(Enum):
        JSON = 1

    class NetworkDefinitionCreationFlag:
        STRONGLY_TYPED = 1

    class TensorFormat:
        LINEAR = 0

    class ITensor:
        allowed_formats = -1  # all formats are allowed

    class INetworkDefinition:
        graph: bytes

        def __init__(self) -> None:
            self.tensors = ITensor(), ITensor()
            self.num_inputs = self.num_outputs = 1

        def get_input(self, index: int) -> ITensor:
            return self.tensors[index]

        def get_output(self, index: int) -> ITensor:
            return self.tensors[1 + index]

    class ITimingCache:
        def __init__(self, held: bytes) -> None:
            self.held = held

        def serialize(self) -> bytes:
            return self.held + CACHE

    class IBuilderConfig:
        profiling_verbosity: ProfilingVerbosity
        progress_monitor: Any
        cache: ITimingCache

        def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
            assert pool is MemoryPoolType.WORKSPACE
            behavior.workspace.append(pool_size)

        def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
            behavior.caches.append(serialized_timing_cache)
            return ITimingCache(serialized_timing_cache)

        def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
            self.cache = cache
            return not ignore_mismatch and not cache.held.startswith(b"foreign")

    class IHostMemory(bytes):
        pass

    class IPluginRegistry:
        def get_creator(self, type: str, version: str, plugin_namespace: str = "") -> object | None:
            return (type, version) if behavior.loaded else None

        def load_library(self, plugin_path: str) -> object | None:
            if behavior.plugin_refused:
                return None
            behavior.loaded.append(plugin_path)
            return object()

    class Builder:
        def __init__(self, logger: Any) -> None:
            self.logger = logger
            if behavior.no_start:
                logger.log(ILogger.ERROR, "CUDA initialization failure with error: 35")
                raise TypeError("pybind11::init(): factory function returned nullptr")

        def create_network(self, flags: int = 0) -> INetworkDefinition:
            behavior.flags.append(flags)
            return INetworkDefinition()

        def create_builder_config(self) -> IBuilderConfig:
            return IBuilderConfig()

        def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
            assert [tensor.allowed_formats for tensor in network.tensors] == [1 << TensorFormat.LINEAR] * 2
            monitor = config.progress_monitor
            monitor.phase_start("Building Engine", None, 2)
            if behavior.during_build:
                behavior.during_build()
            for step in range(2):
                behavior.steps.append(monitor.step_complete("Building Engine", step))
                if not behavior.steps[-1]:
                    return None
            monitor.phase_finish("Building Engine")
            for part, text in behavior.build_error.items():
                if part in network.graph:
                    self.logger.log(ILogger.WARNING, "a warning before it")
                    self.logger.log(ILogger.ERROR, text)
                    return None
            return IHostMemory(behavior.plan_of(network.graph))

    class ParserError:
        def __init__(self, name: str, operator: str, text: str) -> None:
            self.parts = name, operator, text

        def node(self) -> int:
            return 7

        def node_name(self) -> str:
            return self.parts[0]

        def node_operator(self) -> str:
            return self.parts[1]

        def desc(self) -> str:
            return self.parts[2]

    class OnnxParser:
        def __init__(self, network: INetworkDefinition, logger: Any) -> None:
            self.network, self.errors = network, list[ParserError]()

        def parse(self, model: bytes, path: str | None = None) -> bool:
            self.network.graph = model
            self.errors = [ParserError(*error) for part, error in behavior.parse_error.items() if part in model]
            return not self.errors

        @property
        def num_errors(self) -> int:
            return len(self.errors)

        def get_error(self, index: int) -> ParserError:
            return self.errors[index]

    class EngineInspector:
        def get_engine_information(self, format: LayerInformationFormat) -> str:
            return '{"Layers": ["attention"]}'

    class ICudaEngine:
        device_memory_size_v2 = 4096

        def create_engine_inspector(self) -> EngineInspector:
            return EngineInspector()

    class Runtime:
        def __init__(self, logger: Any) -> None:
            pass

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
            return ICudaEngine() if serialized_engine else None

    classes = [thing for thing in locals().values() if isinstance(thing, type)]
    for cls in classes:
        setattr(module, cls.__name__, cls)
    module.get_plugin_registry = IPluginRegistry
    module.__version__ = behavior.version
    return module
