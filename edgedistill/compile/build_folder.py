"""Writes `build/<target>/` inside a bundle, in the same way for every engine that is compiled.

A BuildSpec comes in: what is to be built, from which sources and with which compilers. A CompiledEngine goes out. The
folder holds the sources, what was compiled from them, a README, and `build.json`, which says what it was made from and
what it needs. It appears whole or not at all, and a build that is already there is kept.
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
    """What is to be built, known before anything is compiled."""

    target: Target
    folder: Path
    record: BuildRecord  # without sizes, and with the digests of the sources alone
    sources: Mapping[str, bytes]  # file name relative to the folder -> contents
    began: float  # seconds of time.monotonic()


@dataclass(frozen=True)
class CompiledEngine:
    """A build that lies in its folder, whether it was made now or earlier."""

    folder: Path
    record: BuildRecord
    gates: tuple[Gate, ...]  # the target's limits, judged for this build
    compiled: bool  # False where the build was there already, or could not be compiled on this machine
    seconds: float
    lacking: EngineError | None = None  # why this machine could only prepare it, with the command that finishes it

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
    """Returns what is to be built from `sources` for a target.

    `fingerprint` comes without its digest, which is computed here. `commands` are the compilers as they are called.
    `ending` is that of the library libed_NAME, or None where the sources are only prepared for another machine. Raises
    EngineError for a bundle in a zip.
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
    """Builds what `spec` describes, unless it is there already; with `force` it is built in any case.

    `compile_sources` gets a folder that holds the sources, and the record. It leaves in the folder what belongs beside
    the sources and nothing else, and returns the record with sizes and notes. Its errors pass through, and what was in
    the bundle before stays. Raises OutputError where the bundle's folder cannot be written to.
    """
    found = None if force else _find_current_build(spec)
    record = _build(spec, compile_sources) if found is None else found
    return CompiledEngine(spec.folder, record, size_gates(spec.target, record), found is None, monotonic() - spec.began)


def size_gates(target: Target, record: BuildRecord) -> tuple[Gate, ...]:
    """Judges the sizes of a build by the target's gates, and returns the gates whose size is known."""
    figures = {f"{name}_bytes": float(size) for name, size in record.sizes.items()}
    return tuple(gate for gate in target.judge(figures) if gate.value is not None)


def remove_results(record: BuildRecord, facts: Collection[str] = ()) -> BuildRecord:
    """Returns a record without what only a finished build knows, so that it can be compared with that of a BuildSpec.

    These are sizes, notes, the digests of files (those of the sources are part of the fingerprint's digest), and the
    facts of the device that `facts` names.
    """
    device = {name: fact for name, fact in record.fingerprint.device.items() if name not in facts}
    return replace(record, sizes={}, files={}, notes=(), fingerprint=replace(record.fingerprint, device=device))


def with_facts(record: BuildRecord, **facts: str) -> BuildRecord:
    """Returns a record with further facts of the device in its fingerprint."""
    device = {**record.fingerprint.device, **facts}
    return replace(record, fingerprint=replace(record.fingerprint, device=device))


def write_readme(folder: Path, text: str) -> None:
    """Writes the README of a build folder."""
    (folder / "README").write_text(text, encoding="utf-8")


def sha256(data: bytes) -> str:
    """Returns the SHA-256 of `data` in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def _find_current_build(spec: BuildSpec) -> BuildRecord | None:
    """Returns the record of the build that is there if it is whole and equals what would be built."""
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
