"""Opens the engines that a bundle can be compiled for, and tells which of them run on this machine.

A bundle and the name of an engine go in, and the opened engine comes out. This is the only module that knows all
compiled engines. Each of them is found, checked and opened in a module of its own.
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
from edgedistill.runtime.build_choice import Check, choose_build, choose_target, examine_build
from edgedistill.runtime.c_engine import HOST, can_compile_c, check_c_build, open_c_engine
from edgedistill.runtime.cuda_engine import TARGET, check_cuda_build, open_cuda_engine
from edgedistill.runtime.tensorrt_engine import TARGET as JETSON
from edgedistill.runtime.tensorrt_engine import check_tensorrt_build, open_tensorrt_engine
from edgedistill.target import GPU_ENGINES


class Opener(Protocol):
    """Types the function that opens one kind of engine."""

    def __call__(self, bundle: Bundle, shape: StudentShape, config: FrontEndConfig) -> AbiEngine:
        """Returns the engine at the start of a stream.

        Raises EngineError, with the command that helps, where it cannot run.
        """


@dataclass(frozen=True)
class EngineKind:
    """Describes one kind of compiled engine: its usual target, and how a build of it is opened and checked."""

    target: str  # the target that `edgedistill compile` makes it for by default
    open: Opener
    check: Check


COMPILED = {
    "c": EngineKind(HOST, open_c_engine, check_c_build),
    "cuda": EngineKind(TARGET, open_cuda_engine, check_cuda_build),
    "tensorrt": EngineKind(JETSON, open_tensorrt_engine, check_tensorrt_build),
}


def choose_engine(bundle: Bundle) -> str:
    """Chooses the engine that runs a bundle's INT8 student on this machine.

    This is the GPU engine that the bundle was built for, if it is compiled and can run here. Otherwise it is the C
    engine if that is compiled, or if the bundle was built for it and a compiler is here. Otherwise it is the ONNX
    graph.
    """
    own = str(bundle.manifest.engine)
    if own in GPU_ENGINES and is_compiled(bundle, own):
        return own
    return "c" if is_compiled(bundle, "c") or (own == "c" and can_compile_c()) else "onnxruntime-int8"


def is_compiled(bundle: Bundle, engine: str) -> bool:
    """Returns whether this user's cache holds a build of that engine which runs here."""
    kind = COMPILED[engine]
    try:
        choose_build(bundle, choose_target(bundle, engine, kind.target), engine, kind.check)
    except EngineError:
        return False
    return True


def why_not_here(bundle: Bundle, target: str, engine: str) -> str | None:
    """Returns the reason why this machine cannot run what was compiled for `target`, or None where it can."""
    found = examine_build(build_folder(bundle, target), bundle, engine, COMPILED[engine].check)
    if found is None:
        return f"what is compiled for '{target}' is of another engine"
    return found.what if isinstance(found, EngineError) else None
