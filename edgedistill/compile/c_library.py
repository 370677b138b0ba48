"""A bundle and a target in, `build/<target>/` inside the bundle out: the C engine with this model, compiled.

The folder holds the sources as a firmware project can take them (`include/`, `c/`, the generated `model/`), the
shared library or static archive made of them, a README, and `build.json`, which says what it was made from and what
it needs. It is written beside its place and moved there whole; nothing is compiled again that is already there.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic

from edgedistill import __version__
from edgedistill.assets import asset_folder
from edgedistill.bundle import Bundle
from edgedistill.compile.c_model import ModelFacts, c_identifier, c_sources
from edgedistill.compile.footprint import MAP, flash_and_ram, state_bytes
from edgedistill.compile.toolchain import Toolchain, find_toolchain
from edgedistill.errors import EngineError, OutputError
from edgedistill.runtime.build_record import (
    ABI_VERSION,
    FORMAT,
    BuildRecord,
    Fingerprint,
    build_folder,
    check_files,
    read_record,
)
from edgedistill.runtime.decoder import described, int8_model
from edgedistill.target import Gate, Target

SOURCES = ("c/ed_api.c", "c/ed_engine.c")  # the translation units; all else is included by them
WEIGHTS = "student.int8.safetensors"
INCLUDES = ("-Iinclude", "-Ic", "-Imodel")


@dataclass(frozen=True)
class CompiledEngine:
    """What `compile_bundle` made, or found made."""

    folder: Path
    record: BuildRecord
    gates: tuple[Gate, ...]  # of the sizes
    compiled: bool  # False: everything was there already
    seconds: float

    @property
    def library(self) -> Path:
        """The shared library or static archive."""
        return self.folder / self.record.library


def compile_bundle(bundle: Bundle, target: Target, force: bool = False) -> CompiledEngine:
    """Compile the bundle's INT8 student and front end for a target, unless that is done already.

    EngineError for a zip, a missing compiler (with its Debian package), a failing one (with the command), and for a
    student the C engine cannot run; OutputError where the bundle's folder cannot be written to.
    """
    began = monotonic()
    folder = build_folder(bundle, target.name)
    toolchain = find_toolchain(target)
    sources = {**kernel_sources(), **model_sources(bundle, toolchain.ops)}
    record = _planned(bundle, toolchain, c_identifier(str(bundle.manifest["name"])), sources)
    found = None if force else _up_to_date(folder, record)
    if found is None:
        with _written_beside(folder) as temporary:
            record = _compile(temporary, toolchain, record, sources)
    made = found or record
    return CompiledEngine(folder, made, judged(target, made), found is None, monotonic() - began)


# ---------------------------------------------------------------- what goes in


def kernel_sources() -> dict[str, bytes]:
    """`include/` and `c/` of kernels: name -> contents."""
    kernels = asset_folder("kernels")
    files = (file for part in ("include", "c") for file in (kernels / part).iterdir())
    return {
        f"{'include' if file.name == 'edgedistill.h' else 'c'}/{file.name}": file.read_bytes()
        for file in files
        if file.name.endswith((".c", ".h"))
    }


def model_sources(bundle: Bundle, ops: str) -> dict[str, bytes]:
    """`model/`: shape and numbers of the bundle's student and front end, packed for a variant of the inner loops."""
    shape, front_end, info, mean, std = described(bundle, "c")
    facts = ModelFacts(
        name=info.name,
        channel_ids=info.channel_ids,
        output_names=info.output_names,
        output_units=info.output_units,
        mean=tuple(mean),
        std=tuple(std),
        warmup_bins=info.warmup_bins,
        group_delay_ms=info.group_delay_ms,
        manifest_sha256=bundle.sha256,
        weights_sha256=str(bundle.manifest["files"].get(WEIGHTS)),
    )
    texts = c_sources(int8_model(bundle, shape), front_end, facts, ops)
    return {f"model/{file}": text.encode() for file, text in texts.items()}


def _planned(bundle: Bundle, toolchain: Toolchain, name: str, sources: Mapping[str, bytes]) -> BuildRecord:
    """The record of what would be made, before sizes and what is compiled are known."""
    digests = {file: _sha256(data) for file, data in sorted(sources.items())}
    facts = Fingerprint(
        toolchain.architecture, toolchain.ops, toolchain.variant.requires, toolchain.version, toolchain.flags, ""
    )
    recipe = json.dumps([digests, asdict(facts), toolchain.compiler.command, ABI_VERSION])
    fingerprint = replace(facts, recipe=_sha256(recipe.encode()))
    library = f"libed_{name}{'.so' if toolchain.compiler.library == 'shared' else '.a'}"
    by = f"edgedistill {__version__}"
    target, manifest = toolchain.target, bundle.sha256
    return BuildRecord(FORMAT, target, by, manifest, ABI_VERSION, name, library, fingerprint, {}, digests)


def _up_to_date(folder: Path, planned: BuildRecord) -> BuildRecord | None:
    """What is there, if it is what would be made and whole."""
    try:
        found = read_record(folder)
        same = replace(found, sizes={}, files={}) == replace(planned, sizes={}, files={})
        check_files(folder, found)
    except EngineError:
        return None
    return found if same else None


# ---------------------------------------------------------------- what comes out


def _compile(folder: Path, toolchain: Toolchain, planned: BuildRecord, sources: Mapping[str, bytes]) -> BuildRecord:
    for name, data in sources.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    options = (*INCLUDES, f'-DED_MODEL_HEADER="model_{planned.model}.h"')
    objects = []
    for source in SOURCES:
        objects.append(f"{Path(source).stem}.o")
        toolchain.compile(folder, source, objects[-1], options)
    toolchain.link(folder, objects, planned.library)
    sizes = {"library": (folder / planned.library).stat().st_size, "state": state_bytes(folder, toolchain, options)}
    if toolchain.compiler.library == "static":
        sizes |= flash_and_ram(folder, toolchain, options, objects, planned.model, sizes["state"])
    for name in objects:
        (folder / name).unlink()
    (folder / "README").write_text(_readme(toolchain, planned), encoding="utf-8")
    added = [name for name in ("README", planned.library, MAP) if (folder / name).exists()]
    made = {name: _sha256((folder / name).read_bytes()) for name in added}
    record = replace(planned, sizes=sizes, files={**planned.files, **made})
    record.write(folder)
    return record


def judged(target: Target, record: BuildRecord) -> tuple[Gate, ...]:
    """The target's gates on sizes."""
    figures = {f"{name}_bytes": float(size) for name, size in record.sizes.items()}
    return tuple(gate for gate in target.judge(figures) if gate.value is not None)


def _readme(toolchain: Toolchain, record: BuildRecord) -> str:
    command = f"{toolchain.compiler.command} {' '.join(toolchain.flags)} {' '.join(INCLUDES)}"
    define = f"-DED_MODEL_HEADER='\"model_{record.model}.h\"'"
    return (
        f"The INT8 decoder '{record.model}' for target '{record.target}', by {record.created_by}, from the bundle with"
        f" sha256 {record.manifest}: {record.library}, and its sources.\n"
        f"To compile it into a project, take include/, c/ and model/: {command} {define} -c {' '.join(SOURCES)}\n"
        f"include/edgedistill.h tells how to call it; the model is `extern const ed_model ed_model_{record.model};`\n"
    )


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


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
