"""Prepares a GPU engine on a machine that cannot compile it.

A bundle, a target and the sources go in. The folder `build/<target>/` comes out with the sources, a README and a record
that names no library. The error that stopped the compiling is raised again, with the command that finishes the work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from time import monotonic
from types import MappingProxyType

from edgedistill.bundle import Bundle
from edgedistill.bundle.build_record import BUILD_JSON, BuildRecord, Fingerprint
from edgedistill.compile.build_folder import CompiledEngine, build_spec, sha256, write_to_bundle
from edgedistill.errors import DeviceError
from edgedistill.target import Target

NOTHING: Mapping[str, bytes] = MappingProxyType({})
NOTE = "prepared: to be compiled on the device"


def prepare_sources(
    bundle: Bundle, target: Target, sources: Mapping[str, bytes], readme: Callable[[BuildRecord], str]
) -> None:
    """Leaves the sources in the bundle for the device to compile. A bundle in a zip has no place for them.

    `readme` returns the text of the README. Raises OutputError for a bundle where a link stands in the way.
    """
    engine, files = describe_prepared(bundle, target, sources), dict(sources)
    if bundle.path.is_dir():
        files["README"] = readme(engine.record).encode()
        digests = {name: sha256(data) for name, data in sorted(files.items())}
        files[BUILD_JSON] = replace(engine.record, files=digests).to_bytes()
        write_to_bundle(engine, bundle, files)


def describe_prepared(bundle: Bundle, target: Target, sources: Mapping[str, bytes] = NOTHING) -> CompiledEngine:
    """Returns an engine of which this machine can only prepare the sources."""
    spec = build_spec(bundle, target, sources, Fingerprint("", "", (), "", (), ""), commands=(), ending=None)
    folder, record = bundle.path / "build" / target.name, replace(spec.record, notes=(NOTE,))
    return CompiledEngine(folder, record, (), False, monotonic() - spec.began)


def compile_command(bundle: Bundle, target: Target) -> str:
    """Returns the command that compiles a bundle for a target."""
    return f"edgedistill compile {bundle.path} --target {target.name}"


def replace_next_step(error: DeviceError, next_step: str, causes: tuple[str, ...]) -> DeviceError:
    """Returns the same error with another next step and other causes."""
    return DeviceError(error.what, got=error.got, expected=error.expected, causes=causes, next_step=next_step)
