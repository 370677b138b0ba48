"""Writes `build/<target>/` inside a bundle, in the same way for every compiled engine.

A BuildSpec goes in, which says what to build, from which sources and with which compilers. A CompiledEngine comes out.
The folder holds the sources, the compiled files, a README, and `build.json`, which says what the folder was made from
and what it needs. The folder appears whole or not at all. A build that is already there and fits is kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic

from edgedistill import __version__
from edgedistill.bundle import Bundle
from edgedistill.bundle.build_record import (
    ABI_VERSION,
    FORMAT,
    BuildRecord,
    Fingerprint,
    build_folder,
    check_files,
    read_record,
)
from edgedistill.compile.model_facts import c_identifier
from edgedistill.errors import EngineError
from edgedistill.files import atomic_write
from edgedistill.target import Gate, Target


@dataclass(frozen=True, eq=False)
class BuildSpec:
    """Says what is to be built. All of it is known before anything is compiled."""

    target: Target
    folder: Path
    record: BuildRecord  # without sizes; its only digest is that of the sources
    sources: Mapping[str, bytes]  # file name relative to the folder -> contents
    began: float  # seconds of time.monotonic()


@dataclass(frozen=True)
class CompiledEngine:
    """Describes a build that lies in its folder, whether it was made now or earlier."""

    folder: Path
    record: BuildRecord
    gates: tuple[Gate, ...]  # the target's gates on sizes and speed, judged for this build
    compiled: bool  # False if the build was already there, or this machine cannot compile it
    seconds: float
    lacking: EngineError | None = None  # why this machine could only prepare it, and the command that finishes it

    @property
    def library(self) -> Path | None:
        """Returns the path of the shared library or static archive, or None where only sources are prepared."""
        return self.folder / self.record.library if self.record.library else None


def build_spec(
    bundle: Bundle,
    target: Target,
    sources: Mapping[str, bytes],
    fingerprint: Fingerprint,
    commands: tuple[str, ...],
    ending: str | None,
) -> BuildSpec:
    """Returns the description of a build from `sources` for a target.

    `fingerprint` comes without its digest, which is computed here. `commands` are the command lines of the compilers.
    `ending` is the suffix of the library libed_NAME, or None where the sources are only prepared for another machine.
    Raises EngineError for a bundle in a zip.
    """
    began, folder = monotonic(), build_folder(bundle, target.name)
    name = c_identifier(bundle.manifest.name)
    digests = {file: sha256(data) for file, data in sorted(sources.items())}
    inputs = json.dumps([digests, asdict(fingerprint), commands, ABI_VERSION])
    record = BuildRecord(
        format=FORMAT,
        target=target.name,
        created_by=f"edgedistill {__version__}",
        manifest=bundle.sha256,
        abi=ABI_VERSION,
        model=name,
        library="" if ending is None else f"libed_{name}{ending}",
        fingerprint=replace(fingerprint, digest=sha256(inputs.encode())),
        sizes={},
        files=digests,
        engine=target.engine,
    )
    return BuildSpec(target, folder, record, sources, began)


def build_if_missing(
    spec: BuildSpec, compile_sources: Callable[[Path, BuildRecord], BuildRecord], force: bool = False
) -> CompiledEngine:
    """Builds what `spec` describes, unless the same build is there already. With `force` it is built in any case.

    `compile_sources` gets a folder that holds the sources, and the record. It leaves in the folder the compiled files
    beside the sources, and returns the record with sizes and notes. If it raises an error, the bundle keeps what it had
    before. Raises OutputError where the bundle's folder cannot be written to.
    """
    found = None if force else _find_current_build(spec)
    record = _build(spec, compile_sources) if found is None else found
    return CompiledEngine(spec.folder, record, size_gates(spec.target, record), found is None, monotonic() - spec.began)


def size_gates(target: Target, record: BuildRecord) -> tuple[Gate, ...]:
    """Judges the sizes of a build by the target's gates, and returns the gates whose size is known."""
    figures = {f"{name}_bytes": float(size) for name, size in record.sizes.items()}
    return tuple(gate for gate in target.judge(figures) if gate.value is not None)


def remove_results(record: BuildRecord, facts: Collection[str] = ()) -> BuildRecord:
    """Returns a record without the facts that only a finished build knows, for the comparison with a BuildSpec's.

    These facts are sizes, notes, the digests of files, and the facts of the device that `facts` names. The digests of
    the sources still count, because they are part of the fingerprint's digest.
    """
    device = {name: fact for name, fact in record.fingerprint.device.items() if name not in facts}
    return replace(record, sizes={}, files={}, notes=(), fingerprint=replace(record.fingerprint, device=device))


def add_device_facts(record: BuildRecord, **facts: str) -> BuildRecord:
    """Returns a record with more facts about the device in its fingerprint."""
    device = {**record.fingerprint.device, **facts}
    return replace(record, fingerprint=replace(record.fingerprint, device=device))


def write_readme(folder: Path, text: str) -> None:
    """Writes the README of a build folder."""
    (folder / "README").write_text(text, encoding="utf-8")


def sha256(data: bytes) -> str:
    """Returns the SHA-256 of `data` in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def _find_current_build(spec: BuildSpec) -> BuildRecord | None:
    """Returns the record of the build in the folder if it is whole and equals what would be built, otherwise None."""
    try:
        found = read_record(spec.folder)
        check_files(spec.folder, found)
    except EngineError:
        return None
    return found if remove_results(found) == remove_results(spec.record) else None


def _build(spec: BuildSpec, compile_sources: Callable[[Path, BuildRecord], BuildRecord]) -> BuildRecord:
    step = "copy the bundle to a place that can be written to, and compile it there"
    with atomic_write(spec.folder, "the compiled engine", next_step=step) as folder:
        folder.mkdir()
        for name, data in spec.sources.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        record = compile_sources(folder, spec.record)
        record = replace(record, files=_digests_of_files(folder))
        record.write(folder)
    return record


def _digests_of_files(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path.read_bytes()) for path in files}
