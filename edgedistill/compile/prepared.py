"""Prepares a GPU engine on a machine that cannot compile it.

A bundle, a target and the sources go in. The folder `build/<target>/` comes out with the sources, a README and a record
that names no library. The error that stopped the compiling is raised again, with the command that finishes the work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from edgedistill.bundle import Bundle
from edgedistill.bundle.build_record import BuildRecord, Fingerprint, build_folder, read_record
from edgedistill.compile.build_folder import build_if_missing, build_spec, write_readme
from edgedistill.errors import DeviceError, EngineError
from edgedistill.target import Target

NOTE = "prepared: to be compiled on the device"


def prepare_sources(
    bundle: Bundle, target: Target, sources: Mapping[str, bytes], readme: Callable[[BuildRecord], str]
) -> None:
    """Leaves the sources in the bundle for the device to compile, unless this bundle is compiled there already.

    `readme` returns the text of the README. Raises EngineError for a bundle in a zip, and OutputError for one that
    cannot be written to.
    """
    if _is_compiled(build_folder(bundle, target.name), bundle):
        return

    def prepare(folder: Path, record: BuildRecord) -> BuildRecord:
        write_readme(folder, readme(record))
        return replace(record, notes=(NOTE,))

    spec = build_spec(bundle, target, sources, Fingerprint("", "", (), "", (), ""), commands=(), ending=None)
    build_if_missing(spec, prepare)


def compile_command(bundle: Bundle, target: Target) -> str:
    """Returns the command that compiles a bundle for a target."""
    return f"edgedistill compile {bundle.path} --target {target.name}"


def replace_next_step(error: DeviceError, next_step: str, causes: tuple[str, ...]) -> DeviceError:
    """Returns the same error with another next step and other causes."""
    return DeviceError(error.what, got=error.got, expected=error.expected, causes=causes, next_step=next_step)


def _is_compiled(folder: Path, bundle: Bundle) -> bool:
    try:
        found = read_record(folder)
    except EngineError:
        return False  # there is no build, or its record cannot be read
    return bool(found.library) and found.manifest == bundle.sha256
