"""One step graph in, one TensorRT plan out. The only module that calls TensorRT's own Python bindings, and so the only
one that cannot be imported without them.

The network is strongly typed: precisions are those of the graph, so that the same code serves TensorRT 10.3 to 11,
where calibrators and precision flags are gone. What stands here on an object of TensorRT's is held against the bindings
of four versions by tests/compile/tensorrt/test_api.py, which reads this file: annotations of TensorRT's types are part
of that check.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tensorrt as trt

from edgedistill.errors import EngineError

VERSION = str(trt.__version__)
MEGABYTE = 1 << 20
MEMORY = ("out of memory", "outofmemory", "failed_allocation", "insufficient memory", "cudaerrormemoryallocation")
NO_KERNEL = ("could not find any implementation", "unsupported", "not supported")

Report = Callable[[str, int, int], None]  # phase, step, steps


@dataclass(frozen=True)
class BuilderOptions:
    """What every plan of a target is built with."""

    target: str
    workspace_mb: int
    plugin: Path  # registered before a graph is read
    report: Report | None = None


@dataclass(frozen=True, eq=False)
class BuiltPlan:
    """A plan, and what is known of it."""

    plan: bytes
    layers: str  # JSON of TensorRT's inspector
    memory_bytes: int  # of its activations
    cache: bytes  # tactics that were timed, for the next plan
    warnings: tuple[str, ...]


def build_plan(graph: bytes, name: str, options: BuilderOptions, cache: bytes = b"") -> BuiltPlan:
    """The plan of `graph`, called `name` in messages; `cache` is of an earlier plan on the same chip and version.

    EngineError says what TensorRT said: a node it cannot read, memory that ran out, a layer without a kernel.
    KeyboardInterrupt stops it between two steps of the builder.
    """
    log = Log()
    try:
        builder = trt.Builder(log)  # first: the registry of plugins tells its errors to the logger of a builder
    except TypeError as error:  # how the bindings tell that TensorRT gave them nothing
        raise _does_not_start(log) from error
    _register_plugin(log, options.plugin)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(log, network, graph, name)
    _lay_out(network)
    config, monitor = _config(builder, options), Monitor(options.report)
    config.progress_monitor = monitor
    tactics = _tactics(config, cache)
    serialized = builder.build_serialized_network(network, config)
    if monitor.stopped:
        raise KeyboardInterrupt
    if serialized is None:
        raise _not_built(log, name, options)
    plan = bytes(serialized)
    layers, memory = _inspected(log, plan, name)
    return BuiltPlan(plan, layers, memory, bytes(tactics.serialize()), tuple(log.warnings))


def _does_not_start(log: Log) -> EngineError:
    return EngineError(
        f"TensorRT {VERSION} does not start on this machine",
        got=log.last(),
        causes=("its CUDA is newer than the GPU's driver", "libnvinfer and its Python package are of two versions"),
        next_step="edgedistill doctor",
    )


def _register_plugin(log: Log, path: Path) -> None:
    """Makes EdAttention known to parser, builder and runtime of this process, once."""
    registry: trt.IPluginRegistry = trt.get_plugin_registry()
    if registry.get_creator("EdAttention", "1", "") is None and registry.load_library(str(path)) is None:
        raise EngineError(
            f"{path}: TensorRT {VERSION} does not load the plugin",
            got=log.last(),
            expected="a library compiled with the headers of this TensorRT",
            causes=("TensorRT was updated and its headers were not: libnvinfer-dev",),
            next_step="sudo apt install --reinstall libnvinfer-dev libnvinfer-headers-dev",
        )


def _parse(log: Log, network: trt.INetworkDefinition, graph: bytes, name: str) -> None:
    parser = trt.OnnxParser(network, log)
    if parser.parse(graph):
        return
    told = [_told(parser.get_error(i)) for i in range(parser.num_errors)]
    raise EngineError(
        f"TensorRT {VERSION} cannot read {name}",
        got="; ".join(told) or log.last(),
        expected="a graph whose every operator it imports",
        causes=("a version of TensorRT that this edgedistill was not tried with", "the plugin is not of this bundle"),
        next_step="edgedistill targets   (versions that a target takes)",
    )


def _lay_out(network: trt.INetworkDefinition) -> None:
    """Inputs and outputs row-major, as the runtime gives and takes them: by default TensorRT may choose any format."""
    linear = 1 << int(trt.TensorFormat.LINEAR)
    for i in range(network.num_inputs):
        network.get_input(i).allowed_formats = linear
    for i in range(network.num_outputs):
        network.get_output(i).allowed_formats = linear


def _told(error: trt.ParserError) -> str:
    node = f"node '{error.node_name()}' ({error.node_operator()}): " if error.node() >= 0 else ""
    return f"{node}{error.desc()}"


def _config(builder: trt.Builder, options: BuilderOptions) -> trt.IBuilderConfig:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb * MEGABYTE)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the inspector: layers by the graph's names
    return config


def _tactics(config: trt.IBuilderConfig, cache: bytes) -> trt.ITimingCache:
    """The timing cache that the builder reads and fills: an earlier one, or an empty one where that is of another chip
    or version. To be held while it builds."""
    if cache:
        earlier = config.create_timing_cache(cache)
        if config.set_timing_cache(earlier, ignore_mismatch=False):
            return earlier
    empty = config.create_timing_cache(b"")
    config.set_timing_cache(empty, ignore_mismatch=False)
    return empty


def _inspected(log: Log, plan: bytes, name: str) -> tuple[str, int]:
    """The list of layers as JSON, and the bytes of device memory that activations take."""
    runtime = trt.Runtime(log)
    engine: trt.ICudaEngine | None = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(f"TensorRT {VERSION} does not open the plan that it built of {name}", got=log.last())
    inspector = engine.create_engine_inspector()
    layers = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    return str(layers), int(engine.device_memory_size_v2)


# ---------------------------------------------------------------- what TensorRT says


class Log(trt.ILogger):  # type: ignore[misc]
    """Keeps what TensorRT complains of; nothing is printed."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def log(self, severity: object, msg: str) -> None:
        """Called by TensorRT, from any thread."""
        if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
            self.errors.append(msg)
        elif severity == trt.ILogger.WARNING:
            self.warnings.append(msg)

    def last(self) -> str:
        """The last complaint."""
        return self.errors[-1] if self.errors else "not a word"


class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
    """Tells how far the builder is, and stops it at Ctrl-C: an exception must not run through TensorRT."""

    def __init__(self, report: Report | None) -> None:
        trt.IProgressMonitor.__init__(self)
        self.report, self.steps, self.stopped = report, dict[str, int](), False

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """A phase of so many steps begins, perhaps within another."""
        self.steps[phase_name] = num_steps

    def step_complete(self, phase_name: str, step: int) -> bool:
        """Whether to go on."""
        try:
            if self.report:
                self.report(phase_name, step + 1, self.steps.get(phase_name, 0))
        except KeyboardInterrupt:
            self.stopped = True
        return not self.stopped

    def phase_finish(self, phase_name: str) -> None:
        """The phase is over."""
        self.steps.pop(phase_name, None)


def _not_built(log: Log, name: str, options: BuilderOptions) -> EngineError:
    """Why the builder came back empty-handed, from what it said."""
    memory = _first(log.errors + log.warnings, MEMORY)
    if memory:
        return EngineError(
            f"TensorRT's builder ran out of memory over {name}",
            got=memory,
            expected=f"at most workspace_mb = {options.workspace_mb} of target '{options.target}', and as much free",
            causes=("other programs hold the memory that CPU and GPU share", "the desktop: about 1 GB"),
            next_step="close other programs (the desktop: sudo systemctl isolate multi-user.target), or compile with a"
            " copy of the target's file that names a smaller workspace_mb",
        )
    layer = _first(log.errors, NO_KERNEL)
    if layer:
        return EngineError(
            f"TensorRT {VERSION} has no kernel for a layer of {name}",
            got=layer,
            expected="an implementation of every layer, within the workspace",
            causes=("workspace_mb of the target is too small for any", "a gap of this version of TensorRT"),
            next_step="compile with a copy of the target's file that names a larger workspace_mb",
        )
    return EngineError(f"TensorRT {VERSION} does not build {name}", got=log.last(), next_step="edgedistill doctor")


def _first(lines: Sequence[str], words: tuple[str, ...]) -> str:
    return next((line for line in lines if any(word in line.lower() for word in words)), "")
