"""The engines that a bundle is compiled for: a bundle and an engine's name in, the opened engine out.

The one place that knows all of them; each is found, checked and opened in its own module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from edgedistill.bundle import Bundle
from edgedistill.bundle.build_record import build_folder
from edgedistill.config import StudentShape
from edgedistill.errors import EngineError
from edgedistill.frontend import FrontEndConfig
from edgedistill.runtime.abi_engine import AbiEngine
from edgedistill.runtime.build_choice import Check, fitting
from edgedistill.runtime.c_engine import HOST, check_c_build, open_c_engine
from edgedistill.runtime.cuda_engine import TARGET, check_cuda_build, open_cuda_engine
from edgedistill.runtime.tensorrt_engine import TARGET as JETSON
from edgedistill.runtime.tensorrt_engine import check_tensorrt_build, open_tensorrt_engine
from edgedistill.target import GPU_ENGINES


class Opener(Protocol):
    """What opens an engine: EngineError, with the command that helps, where it cannot run."""

    def __call__(self, bundle: Bundle, shape: StudentShape, config: FrontEndConfig) -> AbiEngine:
        """The engine at the start of a stream."""


@dataclass(frozen=True)
class EngineKind:
    """One of them."""

    target: str  # that `compile` makes it for by default
    open: Opener
    check: Check


COMPILED = {
    "c": EngineKind(HOST, open_c_engine, check_c_build),
    "cuda": EngineKind(TARGET, open_cuda_engine, check_cuda_build),
    "tensorrt": EngineKind(JETSON, open_tensorrt_engine, check_tensorrt_build),
}


def engine_here(bundle: Bundle) -> str:
    """What runs a bundle's INT8 student on this machine: the GPU engine it was built for where that is compiled here,
    else the C engine where that is, else the graph."""
    own = str(bundle.manifest.get("engine"))
    if own in GPU_ENGINES and why_not_here(bundle, str(bundle.manifest.get("target")), own) is None:
        return own
    return "c" if is_compiled(bundle, "c") else "onnxruntime-int8"


def is_compiled(bundle: Bundle, engine: str) -> bool:
    """Whether a build of the bundle for the engine's own target is here, whole or not, or another one that fits."""
    if not bundle.path.is_dir():
        return False
    own = build_folder(bundle, COMPILED[engine].target)
    others = (folder.name for folder in own.parent.glob("[!.]*"))
    return own.is_dir() or any(why_not_here(bundle, target, engine) is None for target in others)


def why_not_here(bundle: Bundle, target: str, engine: str) -> str | None:
    """Why this machine cannot run what was compiled for `target`; None where it can."""
    if not bundle.path.is_dir():
        return "a zip holds nothing compiled"
    found = fitting(build_folder(bundle, target), bundle, engine, COMPILED[engine].check)
    if found is None:
        return f"what is compiled for '{target}' is of another engine"
    return found.what if isinstance(found, EngineError) else None
