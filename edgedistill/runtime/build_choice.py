"""Which of a bundle's builds this machine runs: an engine and what it checks go in, a folder and its record come out.

A bundle may have been compiled for several targets. The one that the engine is compiled for by default goes first;
any other that fits will do, as on a board for which a workstation compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgedistill.bundle import Bundle
from edgedistill.bundle.build_record import BUILD_JSON, BuildRecord, build_folder, read_record
from edgedistill.errors import EngineError

Check = Callable[[Path, BuildRecord, Bundle], None]  # raises EngineError unless this machine can run that build


def chosen_build(bundle: Bundle, own: str, engine: str, check: Check) -> tuple[Path, BuildRecord]:
    """The build for target `own`, or else one for another target that this machine can run.

    EngineError says why none can be used; builds of other engines are left out.
    """
    first = build_folder(bundle, own)
    others = sorted(path.parent for path in first.parent.glob(f"[!.]*/{BUILD_JSON}") if path.parent != first)
    refused = []
    for folder in (first, *others):
        found = fitting(folder, bundle, engine, check)
        if isinstance(found, BuildRecord):
            return folder, found
        if found is not None:
            refused.append(found)
    told = (error for error in refused if "nothing is compiled" not in error.what)
    nothing = EngineError(f"{first}: nothing is compiled here yet", got="builds of other engines only")
    raise next(told, refused[0] if refused else nothing)


def own_target(bundle: Bundle, engine: str, usual: str) -> str:
    """The target whose build goes first: that of the bundle where it was built for this engine, else the usual one."""
    manifest = bundle.manifest
    return str(manifest["target"]) if manifest.get("engine") == engine and "target" in manifest else usual


def fitting(folder: Path, bundle: Bundle, engine: str, check: Check) -> BuildRecord | EngineError | None:
    """What is compiled in a folder, or why this machine cannot use it; None where it is of another engine."""
    try:
        record = read_record(folder)
        if record.engine != engine:
            return None
        check(folder, record, bundle)
    except EngineError as error:
        return error
    return record


def with_command(error: EngineError, bundle: Bundle, target: str) -> EngineError:
    """The error with the command that compiles anew, unless it names one of its own."""
    step = error.next_step or f"edgedistill compile {bundle.path} --target {target}"
    return type(error)(error.what, got=error.got, expected=error.expected, causes=error.causes, next_step=step)
