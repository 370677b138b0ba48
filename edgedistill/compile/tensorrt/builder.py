"""Builds a TensorRT plan from a step graph.

The bytes of an ONNX graph go in, and a plan with facts about it comes out. This is the only module that calls
TensorRT's own Python bindings, and therefore the only one that cannot be imported without them.

The network is strongly typed. Its precisions are those of the graph, so that the same code works with TensorRT 10.3 to
11, where calibrators and precision flags no longer exist. tests/compile/tensorrt/test_api.py reads this file and checks
every use of TensorRT's objects against the bindings of four versions. The annotations of TensorRT's types are part of
that check.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tensorrt as trt

from edgedistill.compile.tensorrt import Report
from edgedistill.errors import EngineError

VERSION = str(trt.__version__)
MEGABYTE = 1 << 20
MEMORY = ("out of memory", "outofmemory", "failed_allocation", "insufficient memory", "cudaerrormemoryallocation")
ECHO = "::catchCudaError::"  # TensorRT reports a CUDA error once more, after the error that says what it prevented
NO_KERNEL = ("could not find any implementation", "unsupported", "not supported")


@dataclass(frozen=True)
class BuilderOptions:
    """Holds the settings that every plan of a target is built with."""

    target: str  # name of the target
    workspace_mb: int
    plugin: Path  # the library to register before a graph is read
    report: Report | None = None


@dataclass(frozen=True, eq=False)
class BuiltPlan:
    """Holds a plan, and facts about it."""

    plan: bytes
    layers: str  # the list of layers, as JSON of TensorRT's inspector
    memory_bytes: int  # device memory for its activations
    cache: bytes  # the tactics that were timed, for use by the next plan
    warnings: tuple[str, ...]


def build_plan(graph: bytes, name: str, options: BuilderOptions, cache: bytes = b"") -> BuiltPlan:
    """Builds the plan of `graph`, which messages call `name`.

    `cache` holds the tactics of an earlier plan for the same chip and version. Raises EngineError with TensorRT's
    message for a node that it cannot read, for memory that ran out, or for a layer without a kernel. Raises
    KeyboardInterrupt where the user stopped it, between two steps of the builder.
    """
    log = Log()
    try:
        builder = trt.Builder(
            log
        )  # must come first, because the registry of plugins reports its errors to the logger of a builder
    except TypeError as error:  # TensorRT's bindings raise this if TensorRT returned no object
        raise _start_error(log) from error
    _register_plugin(log, options.plugin)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(log, network, graph, name)
    _set_row_major(network)
    config, monitor = _configure(builder, options), Monitor(options.report)
    config.progress_monitor = monitor
    tactics = _set_tactics(config, cache)
    serialized = builder.build_serialized_network(network, config)
    if monitor.stopped:
        raise KeyboardInterrupt
    if serialized is None:
        raise _build_error(log, name, options)
    plan = bytes(serialized)
    layers, memory = _inspect(log, plan, name)
    return BuiltPlan(plan, layers, memory, bytes(tactics.serialize()), tuple(log.warnings))


def _start_error(log: Log) -> EngineError:
    return EngineError(
        f"TensorRT {VERSION} does not start on this machine",
        got=log.last_error(),
        causes=("its CUDA is newer than the GPU's driver", "libnvinfer and its Python package are of two versions"),
        next_step="edgedistill doctor",
    )


def _register_plugin(log: Log, path: Path) -> None:
    """Registers EdAttention for the parser, the builder and the runtime of this process, once."""
    registry: trt.IPluginRegistry = trt.get_plugin_registry()
    if registry.get_creator("EdAttention", "1", "") is None and registry.load_library(str(path)) is None:
        raise EngineError(
            f"{path}: TensorRT {VERSION} does not load the plugin",
            got=log.last_error(),
            expected="a library compiled with the headers of this TensorRT",
            causes=("TensorRT was updated and its headers were not: libnvinfer-dev",),
            next_step="sudo apt install --reinstall libnvinfer-dev libnvinfer-headers-dev",
        )


def _parse(log: Log, network: trt.INetworkDefinition, graph: bytes, name: str) -> None:
    parser = trt.OnnxParser(network, log)
    if parser.parse(graph):
        return
    errors = [_describe_error(parser.get_error(i)) for i in range(parser.num_errors)]
    raise EngineError(
        f"TensorRT {VERSION} cannot read {name}",
        got="; ".join(errors) or log.last_error(),
        expected="a graph whose every operator it imports",
        causes=("edgedistill was not tried with this version of TensorRT", "the plugin is not of this bundle"),
        next_step="edgedistill targets   (versions that a target takes)",
    )


def _set_row_major(network: trt.INetworkDefinition) -> None:
    """Makes inputs and outputs row-major, as the engine expects them. By default TensorRT may choose any format."""
    linear = 1 << int(trt.TensorFormat.LINEAR)
    for i in range(network.num_inputs):
        network.get_input(i).allowed_formats = linear
    for i in range(network.num_outputs):
        network.get_output(i).allowed_formats = linear


def _describe_error(error: trt.ParserError) -> str:
    node = f"node '{error.node_name()}' ({error.node_operator()}): " if error.node() >= 0 else ""
    return node + "; ".join(_without_echo(error.desc().splitlines()))


def _configure(builder: trt.Builder, options: BuilderOptions) -> trt.IBuilderConfig:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb * MEGABYTE)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector then lists layers by the graph's names
    return config


def _set_tactics(config: trt.IBuilderConfig, cache: bytes) -> trt.ITimingCache:
    """Gives the builder a timing cache, and returns the cache, which must be kept while the builder runs.

    It has the content of the earlier cache, or is empty if that cache is for another chip or version.
    """
    if cache:
        earlier = config.create_timing_cache(cache)
        if config.set_timing_cache(earlier, ignore_mismatch=False):
            return earlier
    empty = config.create_timing_cache(b"")
    config.set_timing_cache(empty, ignore_mismatch=False)
    return empty


def _inspect(log: Log, plan: bytes, name: str) -> tuple[str, int]:
    """Returns the list of layers as JSON, and the bytes of device memory that activations take."""
    runtime = trt.Runtime(log)
    engine: trt.ICudaEngine | None = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(f"TensorRT {VERSION} cannot open the plan that it built from {name}", got=log.last_error())
    inspector = engine.create_engine_inspector()
    layers = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    return str(layers), int(engine.device_memory_size_v2)


# ---------------------------------------------------------------- what TensorRT says


class Log(trt.ILogger):  # type: ignore[misc]
    """Keeps TensorRT's errors and warnings, and prints nothing."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def log(self, severity: object, msg: str) -> None:
        """Keeps one message. TensorRT calls this from any thread."""
        if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
            self.errors.append(msg)
        elif severity == trt.ILogger.WARNING:
            self.warnings.append(msg)

    def last_error(self) -> str:
        """Returns the last error that says what failed."""
        return (_without_echo(self.errors) or self.errors or ["no message"])[-1]


class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
    """Reports the builder's progress, and stops it at Ctrl-C, as no exception may pass through TensorRT."""

    def __init__(self, report: Report | None) -> None:
        trt.IProgressMonitor.__init__(self)
        self.report, self.steps, self.stopped = report, dict[str, int](), False

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """Stores how many steps a phase has. A phase may contain others."""
        self.steps[phase_name] = num_steps

    def step_complete(self, phase_name: str, step: int) -> bool:
        """Reports a step, and returns whether the builder should go on."""
        try:
            if self.report:
                self.report(phase_name, step + 1, self.steps.get(phase_name, 0))
        except KeyboardInterrupt:
            self.stopped = True
        return not self.stopped

    def phase_finish(self, phase_name: str) -> None:
        """Forgets a phase that has ended."""
        self.steps.pop(phase_name, None)


def _build_error(log: Log, name: str, options: BuilderOptions) -> EngineError:
    """Returns the error for a builder that returned no plan, with the cause that its messages name."""
    memory = _first_with(log.errors + log.warnings, MEMORY)
    if memory:
        return EngineError(
            f"TensorRT's builder ran out of memory when it built {name}",
            got=memory,
            expected=f"at most workspace_mb = {options.workspace_mb} of target '{options.target}', and as much free",
            causes=("other programs hold the memory that CPU and GPU share", "the desktop: about 1 GB"),
            next_step="close other programs (the desktop: sudo systemctl isolate multi-user.target), or compile with a"
            " copy of the target's file that names a smaller workspace_mb",
        )
    layer = _first_with(log.errors, NO_KERNEL)
    if layer:
        return EngineError(
            f"TensorRT {VERSION} has no kernel for a layer of {name}",
            got=layer,
            expected="an implementation of every layer, within the workspace",
            causes=("workspace_mb of the target is too small for any", "a gap of this version of TensorRT"),
            next_step="compile with a copy of the target's file that names a larger workspace_mb",
        )
    return EngineError(f"TensorRT {VERSION} cannot build {name}", got=log.last_error(), next_step="edgedistill doctor")


def _without_echo(lines: Sequence[str]) -> list[str]:
    return [line for line in lines if ECHO not in line]


def _first_with(lines: Sequence[str], words: tuple[str, ...]) -> str:
    """Returns the first line that contains one of `words`, or "" if none does."""
    return next((line for line in lines if any(word in line.lower() for word in words)), "")
