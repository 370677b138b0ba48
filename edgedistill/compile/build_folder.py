"""A plan in, `build/<target>/` inside the bundle out, the same for every engine that is compiled.

The folder holds the sources, what was compiled of them, a README, and `build.json`, which says what it was made from
and what it needs. It is written beside its place and moved there whole; nothing is made again that is already there.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
from edgedistill.errors import EngineError, OutputError
from edgedistill.target import Gate, Target


@dataclass(frozen=True, eq=False)
class Plan:
    """What would be made, known before anything is."""

    target: Target
    folder: Path
    record: BuildRecord  # with the digests of the sources alone, and without sizes
    sources: Mapping[str, bytes]
    began: float


@dataclass(frozen=True)
class CompiledEngine:
    """What was made, or found made."""

    folder: Path
    record: BuildRecord
    gates: tuple[Gate, ...]  # of the sizes
    compiled: bool  # False: everything was there already, or could not be compiled here
    seconds: float
    lacking: EngineError | None = None  # why this machine could only prepare it, and the next command

    @property
    def library(self) -> Path | None:
        """The shared library or static archive; None where there is none yet."""
        return self.folder / self.record.library if self.record.library else None


def planned(
    bundle: Bundle,
    target: Target,
    sources: Mapping[str, bytes],
    facts: Fingerprint,
    commands: tuple[str, ...],
    ending: str | None,
) -> Plan:
    """The plan for a library libed_NAME with that ending; None: for sources alone, to be compiled elsewhere.

    `facts` is the fingerprint without its digest; `commands` are the compilers as they are called.
    """
    began, folder = monotonic(), build_folder(bundle, target.name)
    name = c_identifier(bundle.manifest.name)
    digests = {file: sha256(data) for file, data in sorted(sources.items())}
    inputs = json.dumps([digests, asdict(facts), commands, ABI_VERSION])
    record = BuildRecord(
        format=FORMAT,
        target=target.name,
        created_by=f"edgedistill {__version__}",
        manifest=bundle.sha256,
        abi=ABI_VERSION,
        model=name,
        library="" if ending is None else f"libed_{name}{ending}",
        fingerprint=replace(facts, digest=sha256(inputs.encode())),
        sizes={},
        files=digests,
        engine=target.engine,
    )
    return Plan(target, folder, record, sources, began)


def made_once(plan: Plan, make: Callable[[Path, BuildRecord], BuildRecord], force: bool = False) -> CompiledEngine:
    """What is planned, made unless it is there already.

    `make` gets a folder with the sources and the record, leaves there what belongs beside them and nothing else, and
    returns the record with sizes and notes. OutputError where the bundle's folder cannot be written to.
    """
    found = None if force else up_to_date(plan)
    if found is None:
        with _written_beside(plan.folder) as temporary:
            for name, data in plan.sources.items():
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                (temporary / name).write_bytes(data)
            record = make(temporary, plan.record)
            record = replace(record, files=_digests(temporary))
            record.write(temporary)
    made = found or record
    return CompiledEngine(plan.folder, made, judged(plan.target, made), found is None, monotonic() - plan.began)


def up_to_date(plan: Plan) -> BuildRecord | None:
    """What is there, if it is what would be made and whole."""
    try:
        found = read_record(plan.folder)
        check_files(plan.folder, found)
    except EngineError:
        return None
    return found if _recipe(found) == _recipe(plan.record) else None


def judged(target: Target, record: BuildRecord) -> tuple[Gate, ...]:
    """The target's gates on sizes."""
    figures = {f"{name}_bytes": float(size) for name, size in record.sizes.items()}
    return tuple(gate for gate in target.judge(figures) if gate.value is not None)


def sha256(data: bytes) -> str:
    """In hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def _recipe(record: BuildRecord) -> BuildRecord:
    """A record without what is only known after compiling; the digests of the sources stand in its fingerprint."""
    return replace(record, sizes={}, files={}, notes=())


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path.read_bytes()) for path in files}


@contextmanager
def _written_beside(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `folder` at the end, if all went well."""
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if folder.exists():
            folder.rename(old := folder.with_name(f"{temporary.name}.old"))
            temporary.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.rename(folder)
    except OSError as error:
        raise OutputError(
            f"{folder}: the compiled engine could not be written",
            got=error,
            causes=("the bundle lies on a disk that is full or read-only",),
            next_step="copy the bundle to a place that can be written to, and compile it there",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
