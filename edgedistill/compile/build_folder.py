"""Makes builds in the user's cache, and copies them into bundles, in the same way for every compiled engine.

A BuildSpec goes in, which says what to build, from which sources and with which compilers. A CompiledEngine comes out.
Its folder in the cache holds the sources, the compiled files, a README, and `build.json`, which says what the folder
was made from and what it needs. The folder appears whole or not at all. A build that is already there and fits is kept.

`copy_to_bundle` writes the same files to `build/<target>/` of the bundle, for people and firmware. Nothing is read from
there.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic

from edgedistill import __version__
from edgedistill.assets import engine_code_digest
from edgedistill.bundle import Bundle
from edgedistill.bundle.build_record import (
    ABI_VERSION,
    BUILD_JSON,
    FORMAT,
    BuildRecord,
    Fingerprint,
    build_folder,
    check_files,
    read_record,
)
from edgedistill.bundle.manifest import MANIFEST
from edgedistill.compile.model_facts import c_identifier
from edgedistill.contained import read_file, replace_folder
from edgedistill.errors import EngineError, OutputError
from edgedistill.files import atomic_write, output_error
from edgedistill.machine.programs import identify_program
from edgedistill.staging import opened_folder
from edgedistill.target import Gate, Target
from edgedistill.user_cache import STEP, lock_folder, make_private, make_tree_private

READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class BuildSpec:
    """Says what is to be built. All of it is known before anything is compiled."""

    target: Target
    folder: Path  # in the user's cache
    record: BuildRecord  # without sizes; its only digest is that of the sources
    sources: Mapping[str, bytes]  # file name relative to the folder -> contents
    began: float  # seconds of time.monotonic()


@dataclass(frozen=True)
class CompiledEngine:
    """Describes a build that lies in its folder, whether it was made now or earlier."""

    folder: Path  # in the user's cache, or the copy in the bundle
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

    `fingerprint` comes without its digest, which is computed here. `commands` are the compilers, by name or path.
    `ending` is the suffix of the library libed_NAME, or None where the sources are only prepared for another machine.
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
        code=engine_code_digest(),
        tools={command: identify_program(command) for command in commands},
    )
    return BuildSpec(target, folder, record, sources, began)


def build_if_missing(
    spec: BuildSpec, compile_sources: Callable[[Path, BuildRecord], BuildRecord], force: bool = False
) -> CompiledEngine:
    """Builds what `spec` describes, unless the same build is there already. With `force` it is built in any case.

    `compile_sources` gets a folder that holds the sources, and the record. It leaves in the folder the compiled files
    beside the sources, and returns the record with sizes and notes. If it raises an error, the cache keeps what it had
    before. Raises OutputError where the cache cannot be written to.
    """
    if (reason := make_private(spec.folder.parent)) is not None:
        raise OutputError(f"{spec.folder}: the engine cannot be kept here", got=reason, next_step=STEP)
    with lock_folder(spec.folder.parent):  # of several decoders that are started at once, one compiles
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


def copy_to_bundle(engine: CompiledEngine, bundle: Bundle) -> CompiledEngine:
    """Copies a build from the cache to `build/<target>/` of its bundle, and returns it with the folder of the copy.

    A bundle in a zip or on a read-only disk gets no copy, and the folder stays that in the cache. Raises OutputError
    where the copy cannot be written, also where a link stands in its way.
    """
    if not bundle.path.is_dir():
        return engine
    names = (*engine.record.files, BUILD_JSON)
    return write_to_bundle(engine, bundle, {name: (engine.folder / name).read_bytes() for name in names})


def write_to_bundle(engine: CompiledEngine, bundle: Bundle, files: Mapping[str, bytes]) -> CompiledEngine:
    """Writes files to `build/<target>/` of a bundle that is a folder. Returns and raises as `copy_to_bundle`.

    A bundle that was replaced since it was opened gets nothing, because the files are not its own. Its folder is opened
    once, so that this holds at any moment.
    """
    name = f"build/{engine.record.target}"
    try:
        with opened_folder(bundle.path) as inside:
            if bundle.sha256.encode() not in read_file(inside, MANIFEST):
                raise FileNotFoundError(errno.ENOENT, "it is another bundle now", str(bundle.path))
            replace_folder(inside, name, files)
    except OSError as error:
        if error.errno == errno.ENOENT:
            logger.warning("%s was replaced, so no copy of the engine was left in it", bundle.path)
            return engine
        if error.errno in READ_ONLY:
            logger.warning("%s cannot be written to, so no copy of the engine was left in it", bundle.path)
            return engine
        if error.errno == errno.ELOOP:
            raise OutputError(
                f"{bundle.path}: '{name}' is not written, because a link or a file is in its way",
                got=f"'{error.filename}': {error.strerror}",
                causes=("the bundle was changed by hand, or made to do harm outside it",),
                next_step=f"remove it from {bundle.path}",
            ) from error
        raise output_error(bundle.path / name, "the copy of the engine", error) from error
    return replace(engine, folder=bundle.path / name)


def _build(spec: BuildSpec, compile_sources: Callable[[Path, BuildRecord], BuildRecord]) -> BuildRecord:
    with atomic_write(spec.folder, "the compiled engine", next_step=STEP) as folder:
        folder.mkdir(0o700)
        for name, data in spec.sources.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        record = compile_sources(folder, spec.record)
        record = replace(record, files=_digests_of_files(folder))
        record.write(folder)
        make_tree_private(folder)
    return record


def _digests_of_files(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path.read_bytes()) for path in files}
