"""The engines that a bundle is compiled for: a bundle and an engine's name in, the opened engine out.

The one place that knows all of them; each is found, checked and opened in its own module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from edgedistill.bundle import Bundle
from edgedistill.config import StudentShape
from edgedistill.frontend import FrontEndConfig
from edgedistill.runtime.abi_engine import AbiEngine
from edgedistill.runtime.build_choice import Check, fitting
from edgedistill.runtime.build_record import BuildRecord, build_folder
from edgedistill.runtime.c_engine import HOST, check_c_build, open_c_engine


class Opener(Protocol):
    """What opens an engine: EngineError, with the command that helps, where it cannot run."""

    def __call__(self, bundle: Bundle, shape: StudentShape, config: FrontEndConfig) -> AbiEngine:
        """The engine at the start of a stream."""


@dataclass(frozen=True)
class CompiledEngine:
    """One of them."""

    target: str  # that `compile` makes it for by default
    open: Opener
    check: Check


COMPILED = {
    "c": CompiledEngine(HOST, open_c_engine, check_c_build),
}


def is_compiled(bundle: Bundle, engine: str) -> bool:
    """Whether a build of the bundle for the engine's own target is here, whole or not, or another one that fits."""
    if not bundle.path.is_dir():
        return False
    own = build_folder(bundle, COMPILED[engine].target)
    return own.is_dir() or any(fits_here(bundle, folder.name, engine) for folder in own.parent.glob("[!.]*"))


def fits_here(bundle: Bundle, target: str, engine: str) -> bool:
    """Whether this machine can run what was compiled for `target`."""
    return isinstance(fitting(build_folder(bundle, target), bundle, engine, COMPILED[engine].check), BuildRecord)
