"""Reads, writes and checks `build.json`, which describes what lies in a bundle's `build/<target>/`.

`edgedistill compile` writes this file, which says what the folder was made from and what it needs to run. Its content
is checked here before anything in that folder is loaded. A library that was made for another bundle, interface or chip
is therefore refused before it is loaded, and the error names the difference.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from edgedistill.bundle.reading import Bundle
from edgedistill.config import parse
from edgedistill.errors import ConfigError, EngineError, NotCompiled, OnlyPrepared
from edgedistill.machine.processor import read_architecture

BUILD_JSON = "build.json"
FORMAT = 2  # in format 1 the digest was called "recipe"
ABI_VERSION = 4  # ED_ABI_VERSION of kernels/include/edgedistill.h
LABELS = {"c": "C", "cuda": "CUDA", "tensorrt": "TensorRT"}  # the name of each compiled engine in messages


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

    def write(self, folder: Path) -> None:
        """Writes build.json into `folder`, in which `compile` prepares the build before it moves it to its place."""
        (folder / BUILD_JSON).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def build_folder(bundle: Bundle, target: str) -> Path:
    """Returns the folder of what is compiled for `target`.

    Raises EngineError for a bundle in a zip, because a compiler needs a folder.
    """
    if not bundle.path.is_dir():
        raise EngineError(
            f"{bundle.path}: a bundle in a zip holds no compiled engine",
            expected="the same bundle as a folder",
            next_step=f"unzip {bundle.path}" + ("" if bundle.prefix else f" -d {bundle.path.with_suffix('')}"),
        )
    return bundle.path / "build" / target


def read_record(folder: Path) -> BuildRecord:
    """Returns the content of a folder's build.json.

    Raises NotCompiled where there is none, and EngineError where it is damaged or was written by another version.
    """
    try:
        found = json.loads((folder / BUILD_JSON).read_text(encoding="utf-8"))
        _require_format(folder, found)
        return parse(BuildRecord, found, str(folder / BUILD_JSON))
    except FileNotFoundError as error:
        raise NotCompiled(f"{folder}: nothing is compiled here yet", got=f"no {BUILD_JSON}") from error
    except (OSError, ValueError, AttributeError, TypeError, ConfigError) as error:
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
    for name, digest in record.files.items():
        try:
            found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        except OSError as error:
            raise EngineError(f"{folder}: '{name}' is missing", got=error.strerror) from error
        if found != digest:
            raise EngineError(
                f"{folder}: '{name}' was changed after it was compiled", got=f"sha256 {found}", expected=digest
            )


def check_fits(folder: Path, record: BuildRecord, bundle: Bundle) -> None:
    """Checks that a build belongs to this bundle and to this kind of machine.

    Raises EngineError that names the difference: another bundle, interface, chip or kind of library. Raises
    OnlyPrepared where the device has not compiled the sources yet.
    """
    label = LABELS.get(record.engine, record.engine)
    own = f"{folder}: the {label} engine there"
    if record.manifest != bundle.sha256:
        got, expected = f"manifest {record.manifest}", f"manifest {bundle.sha256}"
        raise EngineError(f"{own} was compiled from another bundle", got=got, expected=expected)
    if record.abi != ABI_VERSION:
        raise EngineError(f"{own} has another interface", got=f"ABI {record.abi}", expected=f"ABI {ABI_VERSION}")
    if not record.library:
        expected = "a library, compiled on the device"
        raise OnlyPrepared(f"{own} is prepared, not compiled", got="sources and packed weights", expected=expected)
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
