"""Finds, reads and checks the builds of a bundle that this user made on this machine.

A build is a folder with the sources of an engine, the compiled files, and `build.json`, which says what the folder was
made from and what it needs to run. Builds are kept in the user's cache, in a folder for each bundle and machine. They
are read from there with their ownership checked, and each file that is loaded is compared with its hash in `build.json`
first. A library that was made for another bundle, interface or chip is refused, and the error names the difference.

The folder `build/` inside a bundle holds copies for people. Whoever made the bundle may have written anything there, so
nothing in it is ever read.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from edgedistill.assets import engine_code_digest
from edgedistill.bundle.reading import Bundle
from edgedistill.config import parse
from edgedistill.errors import ConfigError, EngineError, NotCompiled
from edgedistill.kept_folders import note_use
from edgedistill.machine.processor import read_architecture
from edgedistill.machine.programs import identify_program
from edgedistill.machine.system_files import read_system_file
from edgedistill.user_cache import find_cache, read_private

BUILD_JSON = "build.json"
FORMAT = 3  # in format 2 a build did not say which code and which compilers made it
MACHINE_ID = "/etc/machine-id"
LOADED = (".so", ".cubin", ".plan")  # endings of the files that are loaded
ABI_VERSION = 4  # ED_ABI_VERSION of kernels/include/edgedistill.h
LABELS = {"c": "C", "cuda": "CUDA", "tensorrt": "TensorRT"}  # the name of each compiled engine in messages
REMADE = "c"  # the engine that is compiled again by itself where a build does not fit

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fingerprint:
    """Describes what the compiled files depend on besides the bundle."""

    architecture: str  # "x86_64", "aarch64", "arm"
    ops: str  # the variant of the inner loops
    requires: tuple[str, ...]  # extensions of the instruction set, as /proc/cpuinfo names them
    compiler: str  # first line of its --version
    flags: tuple[str, ...]
    digest: str  # sha256 of all sources and of the fields above
    device: dict[str, str] = field(default_factory=dict)  # chip, toolkit, driver, TensorRT and so on, for a GPU engine


@dataclass(frozen=True)
class BuildRecord:
    """Holds the content of `build.json`."""

    format: int
    target: str
    created_by: str
    manifest: str  # sha256 of the bundle
    abi: int
    model: str  # the <model> of ed_model_<model> in C
    library: str  # file name; "" where only the sources were prepared, to be compiled on the device
    fingerprint: Fingerprint
    sizes: dict[str, int]  # bytes of the library and, where they are known, of state, flash and ram
    files: dict[str, str]  # name -> sha256, without build.json
    engine: str = "c"  # one of LABELS
    notes: tuple[str, ...] = ()  # for the reader, such as whether the engine was run where it was compiled
    code: str = ""  # `engine_code_digest` of the edgedistill that made it
    tools: dict[str, str] = field(default_factory=dict)  # compiler -> `identify_program`

    def write(self, folder: Path) -> None:
        """Writes build.json into `folder`, in which `compile` prepares the build before it moves it to its place."""
        (folder / BUILD_JSON).write_bytes(self.to_bytes())

    def to_bytes(self) -> bytes:
        """Returns the content of build.json."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()


def build_folder(bundle: Bundle, target: str) -> Path:
    """Returns the folder in the user's cache of what is compiled for `target` on this machine. It may not exist yet."""
    return builds_folder(bundle) / target


def builds_folder(bundle: Bundle) -> Path:
    """Returns the folder in the user's cache that holds this bundle's builds, one for each target.

    A home directory may be shared by machines. The name of the folder therefore depends on the machine as well.
    """
    # The spike student has the sha256 of the bundle it is part of, and another name.
    key = f"{bundle.sha256}\n{bundle.manifest.name}\n{read_system_file(MACHINE_ID) or ''}"
    return find_cache() / hashlib.sha256(key.encode()).hexdigest()[:32]


def read_record(folder: Path) -> BuildRecord:
    """Returns the content of the build.json of a folder in the cache.

    Raises NotCompiled where there is none, and EngineError where it is damaged, was written by another version, or lies
    where others than this user can write.
    """
    try:
        found = json.loads(read_private(folder, BUILD_JSON))
        note_use(folder.parent)
        _require_format(folder, found)
        return parse(BuildRecord, found, str(folder / BUILD_JSON))
    except FileNotFoundError as error:
        raise NotCompiled(f"{folder}: nothing is compiled here yet", got=f"no {BUILD_JSON}") from error
    except OSError as error:
        raise _untrusted(folder, BUILD_JSON, error) from error
    except (ValueError, AttributeError, TypeError, RecursionError, ConfigError) as error:
        raise EngineError(f"{folder}: '{BUILD_JSON}' is damaged", got=str(error).splitlines()[0]) from error


def _require_format(folder: Path, found: object) -> None:
    format_ = found.get("format") if isinstance(found, dict) else None
    if type(format_) is not int or format_ == FORMAT:
        return  # a value that is not a number is refused as damaged, like other wrong values
    age = "a newer" if format_ > FORMAT else "an older"
    by = found.get("created_by") if isinstance(found, dict) else None
    raise EngineError(
        f"{folder}: '{BUILD_JSON}' was written by {age} edgedistill",
        got=f"format {format_}" + (f", {by}" if by else ""),
        expected=f"format {FORMAT}",
    )


def check_files(folder: Path, record: BuildRecord) -> None:
    """Checks the files of a build. Raises EngineError that names the first file that is missing or has changed."""
    for name in record.files:
        _read_checked(folder, record, name)


def read_loaded_files(folder: Path, record: BuildRecord) -> dict[str, bytes]:
    """Returns the files of a build that are loaded, whose bytes were checked. Raises EngineError as `check_files`."""
    names = [name for name in record.files if name.endswith(LOADED) and "/" not in name]
    return {name: _read_checked(folder, record, name) for name in names}


def list_loaded_files(folder: Path) -> dict[str, bytes]:
    """Returns the same files of a folder in which a build is being made, and which has no record yet."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name.endswith(LOADED)}


def _read_checked(folder: Path, record: BuildRecord, name: str) -> bytes:
    try:
        data = read_private(folder, name)
    except FileNotFoundError as error:
        raise EngineError(f"{folder}: '{name}' is missing", got=error.strerror) from error
    except OSError as error:
        raise _untrusted(folder, name, error) from error
    found, expected = hashlib.sha256(data).hexdigest(), record.files[name]
    if found != expected:
        raise EngineError(
            f"{folder}: '{name}' was changed after it was compiled", got=f"sha256 {found}", expected=expected
        )
    return data


def _untrusted(folder: Path, name: str, error: OSError) -> EngineError:
    return EngineError(
        f"{folder}: '{name}' is not loaded, because it may not be this user's own work",
        got=f"{error.filename or name}: {error.strerror or error}",
        expected="plain files and folders that only this user can write to",
    )


def check_fits(folder: Path, record: BuildRecord, bundle: Bundle) -> None:
    """Checks that a build belongs to this bundle and to this kind of machine.

    Raises EngineError that names the difference: another bundle, interface, compiler, chip or kind of library, or
    another version of the code. Another compiler is only a line in the log for an engine that is not made again by
    itself, because an update of the system must not stop a decoder that works.
    """
    label = LABELS.get(record.engine, record.engine)
    own = f"{folder}: the {label} engine there"
    if record.manifest != bundle.sha256:
        got, expected = f"manifest {record.manifest}", f"manifest {bundle.sha256}"
        raise EngineError(f"{own} was compiled from another bundle", got=got, expected=expected)
    if record.abi != ABI_VERSION:
        raise EngineError(f"{own} has another interface", got=f"ABI {record.abi}", expected=f"ABI {ABI_VERSION}")
    if record.code != engine_code_digest():
        got = record.created_by
        raise EngineError(f"{own} was compiled from other sources", got=got, expected="those of this edgedistill")
    for tool, was in record.tools.items():
        if not (now := identify_program(tool)) or now == was:
            continue
        if record.engine == REMADE:
            raise EngineError(f"{own} was compiled by another '{tool}'", got=was, expected=now)
        logger.warning(
            "%s was compiled by another '%s', and is used as it is; `edgedistill compile` makes it again", own, tool
        )
    if record.fingerprint.architecture != read_architecture():
        got = record.fingerprint.architecture
        raise EngineError(f"{own} was compiled for another chip", got=got, expected=read_architecture())
    if not record.library.endswith(".so"):
        raise EngineError(
            f"{folder}: the library there is for firmware", got=record.library, expected="a shared library"
        )


def check_device(folder: Path, record: BuildRecord, here: Mapping[str, str]) -> None:
    """Checks that the GPU and its software have not changed since compiling. Raises EngineError for the first that has.

    `here` holds the facts of this machine. A fact that is unknown here, or was unknown when compiling, is not compared.
    """
    label = LABELS[record.engine]
    for name, made_for in record.fingerprint.device.items():
        if made_for and here.get(name, made_for) != made_for:
            raise EngineError(
                f"{folder}: the {label} engine there was compiled for another {name}",
                got=f"{name} {made_for} in {BUILD_JSON}",
                expected=f"{name} {here[name]}, which this machine has",
            )
