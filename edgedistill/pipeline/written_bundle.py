"""Writes a bundle, compiles its engine, measures it, judges the gates of its target, and signs it.

The files of a bundle go in, with the facts for its manifest and a verdict on every step graph. The bundle on disk comes
out, in one step: all of this happens in a hidden folder beside its place. `build` and `adapt` write their bundles here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgedistill.bench import QUICK, bench
from edgedistill.bundle import GraphVerdict, fill_bundle, open_bundle, replace_bundle, sign_bundle
from edgedistill.bundle.writing import Files
from edgedistill.compile.build_folder import CompiledEngine
from edgedistill.compile.engines import compile_or_prepare, compile_spike_student
from edgedistill.errors import EngineError
from edgedistill.pipeline.default_engine import DefaultEngine, choose_default_engine
from edgedistill.pipeline.result import Metrics, none_if_nan
from edgedistill.runtime.compiled_engines import COMPILED
from edgedistill.target import Gate, Target
from edgedistill.user_cache import use_temporary_cache

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

Facts = dict[str, object]  # JSON
Figures = dict[str, float | None]  # by the name of their gate


@dataclass(frozen=True, eq=False)
class BundleContents:
    """Holds everything that a bundle is written from."""

    out: Path
    target: Target
    files: Files
    graphs: Mapping[str, GraphVerdict]  # by file name
    facts: Facts  # keys of the manifest, without engine, gates, graphs and metrics
    metrics: Metrics | None = None  # None where the bench measures them
    why: Mapping[str, str] = field(default_factory=dict)  # why a figure cannot be measured, by the name of its gate
    key: Ed25519PrivateKey | None = None  # signs the bundle

    @property
    def wanted_engine(self) -> str:
        """Returns the target's engine, or onnxruntime for a zip, because a zip cannot hold a compiled library."""
        return "onnxruntime" if self.out.suffix == ".zip" else self.target.engine


@dataclass(frozen=True, eq=False)
class WrittenBundle:
    """Describes a bundle that was written."""

    gates: tuple[Gate, ...]
    compiled: CompiledEngine | None  # None where the default engine needs no compiling
    graphs: Mapping[str, GraphVerdict]
    metrics: Metrics
    signed_by: str | None = None  # fingerprint of the key


def write_and_judge(contents: BundleContents) -> WrittenBundle:
    """Writes the bundle, compiles its engine, measures it and signs it.

    If the target's engine has no usable graph, or cannot be compiled, another engine becomes the default, and the gate
    `default_engine_usable` is missed. The bundle is written in any case.
    """
    with replace_bundle(contents.out) as hidden:
        written = make_and_judge(contents, hidden)
    return replace(written, compiled=name_final_place(written.compiled, hidden, contents.out))


def make_and_judge(contents: BundleContents, hidden: Path) -> WrittenBundle:
    """Makes the bundle at the path where nobody looks for it yet."""
    files, graphs = contents.files, contents.graphs
    chosen = choose_default_engine(contents.wanted_engine, graphs)
    fill_bundle(hidden, write_manifest(contents, chosen), files)
    with use_temporary_cache():  # this library is only measured: one fits one manifest, which gets its gates below
        first, engine = compile_or_substitute(contents, hidden, chosen)
        if engine != chosen:
            fill_bundle(hidden, write_manifest(contents, engine), files)
        figures, why = measure_bundle(contents, hidden, engine)
    sizes = {f"{name}_bytes": float(size) for name, size in first.record.sizes.items()} if first else {}
    metrics = metrics_from_figures(figures) if contents.metrics is None else contents.metrics
    judged = {**figures, **sizes, "int8_r2_drop": int8_r2_drop(metrics)}
    gates = contents.target.judge(judged, {**why, **contents.why})
    fill_bundle(hidden, write_manifest(contents, engine, metrics, (*gates, *engine.gates())), files)
    # Compiled again, for the user's cache, so that it runs at once on this machine. A plan may fail the second time.
    final, last = compile_or_substitute(contents, hidden, engine)
    gates = (*gates, *last.gates())
    if last != engine:
        fill_bundle(hidden, write_manifest(contents, last, metrics, gates), files)
    if final is not None and final.lacking is None:
        compile_spike_student(open_bundle(hidden), contents.target)
    signed_by = None if contents.key is None else sign_bundle(open_bundle(hidden), contents.key)
    return WrittenBundle(gates, final, graphs, metrics, signed_by)


def measure_bundle(contents: BundleContents, hidden: Path, engine: DefaultEngine) -> tuple[Figures, dict[str, str]]:
    """Returns the figures that the gates are judged on, and the reason for each figure that is missing.

    Returns no figures if no engine is left that a bench can run.
    """
    try:
        found = bench(open_bundle(hidden), QUICK)
    except EngineError as error:
        if engine.reason is None:
            raise
        error.rename(str(hidden), str(contents.out))
        return {}, dict.fromkeys(("step_p99_us", "deployed_r2"), error.what)
    return found.figures, found.why


def compile_or_substitute(
    contents: BundleContents, hidden: Path, engine: DefaultEngine
) -> tuple[CompiledEngine | None, DefaultEngine]:
    """Compiles the default engine, and returns it with the engine that decodes by default.

    That is `engine`, or a substitute where compiling failed.
    """
    try:
        return compile_engine(contents, hidden, engine), engine
    except EngineError as error:
        error.rename(str(hidden), str(contents.out))
        return None, choose_default_engine(contents.wanted_engine, contents.graphs, error)


def compile_engine(contents: BundleContents, hidden: Path, engine: DefaultEngine) -> CompiledEngine | None:
    """Compiles the bundle's engine for its target, or prepares it for the device.

    Returns None where the default engine needs no compiling. Raises EngineError where compiling fails although this
    machine has every tool that is needed for it.
    """
    return compile_or_prepare(open_bundle(hidden), contents.target) if engine.name in COMPILED else None


def name_final_place(compiled: CompiledEngine | None, hidden: Path, out: Path) -> CompiledEngine | None:
    """Returns an engine whose copy, and the command that finishes it, are named by the final path of the bundle."""
    if compiled is None:
        return None
    if compiled.lacking is not None:
        compiled.lacking.rename(str(hidden), str(out))
    inside = compiled.folder.is_relative_to(hidden)
    return replace(compiled, folder=out / compiled.folder.relative_to(hidden)) if inside else compiled


def metrics_from_figures(figures: Figures) -> Metrics:
    """Returns the R² of both students as a bench measured it on the holdout, or None for what it did not measure."""
    whole, drop = figures.get("deployed_r2"), figures.get("int8_r2_drop")
    return {"deployed_r2": whole, "int8_r2": None if whole is None or drop is None else whole - drop}


def int8_r2_drop(metrics: Metrics) -> float | None:
    """Returns the R² of the float student minus the R² of the INT8 student, both streamed."""
    whole, eight = (none_if_nan(metrics.get(name)) for name in ("deployed_r2", "int8_r2"))
    return None if whole is None or eight is None else whole - eight


def write_manifest(
    contents: BundleContents, engine: DefaultEngine, metrics: Metrics | None = None, gates: Sequence[Gate] = ()
) -> Facts:
    """Returns the content of `manifest.json`, except for the keys that `write_bundle` adds."""
    known = contents.metrics if metrics is None else metrics
    return {
        **contents.facts,
        "target": contents.target.name,
        "engine": engine.name,
        "metrics": {name: none_if_nan(value) for name, value in (known or {}).items()},
        "gates": [asdict(gate) for gate in gates],
        "graphs": {name: verdict.to_json() for name, verdict in contents.graphs.items()},
    }
