"""Chooses the build of a bundle that this machine runs, among those in the user's cache.

An engine and a function that checks its builds go in. The folder and record of a build come out. A bundle may have been
compiled for several targets. The build for the engine's usual target is tried first. Otherwise any build that fits this
machine is used, for example one for a target of the user's own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgedistill.bundle import Bundle
from edgedistill.bundle.build_record import BUILD_JSON, BuildRecord, build_folder, read_record
from edgedistill.errors import EngineError, NotCompiled
from edgedistill.target import target_names

Check = Callable[[Path, BuildRecord, Bundle], None]  # raises EngineError unless this machine can run that build


def choose_build(bundle: Bundle, target: str, engine: str, check: Check) -> tuple[Path, BuildRecord]:
    """Returns the build for `target`, or else a build for another target that this machine can run.

    Builds of other engines are ignored. Raises EngineError that says why no build can be used, and NotCompiled where
    there is none.
    """
    first = build_folder(bundle, target)
    others = sorted(path.parent for path in first.parent.glob(f"[!.]*/{BUILD_JSON}") if path.parent != first)
    refused = []
    for folder in (first, *others):
        found = examine_build(folder, bundle, engine, check)
        if isinstance(found, BuildRecord):
            return folder, found
        if found is not None:
            refused.append(found)
    telling = [error for error in refused if not isinstance(error, NotCompiled)]
    nothing = NotCompiled(f"{first}: nothing is compiled here yet", got="builds of other engines only")
    raise next(iter((*telling, *refused)), nothing)


def choose_target(bundle: Bundle, engine: str, usual: str) -> str:
    """Returns the target whose build is tried first: the bundle's own if it has this engine, otherwise `usual`.

    A manifest may hold anything as the name of its target. It counts only where it is one of edgedistill's own.
    """
    own = bundle.manifest.target
    return own if own is not None and bundle.manifest.engine == engine and own in target_names() else usual


def examine_build(folder: Path, bundle: Bundle, engine: str, check: Check) -> BuildRecord | EngineError | None:
    """Returns the build record of a folder, or the error that says why this machine cannot use it.

    Returns None for a build of another engine.
    """
    try:
        record = read_record(folder)
        if record.engine != engine:
            return None
        check(folder, record, bundle)
    except EngineError as error:
        return error
    return record


def add_compile_command(error: EngineError, bundle: Bundle, target: str) -> EngineError:
    """Returns the error with the command that compiles again, unless the error already names a next step."""
    step = error.next_step or f"edgedistill compile {bundle.path} --target {target}"
    return type(error)(error.what, got=error.got, expected=error.expected, causes=error.causes, next_step=step)
