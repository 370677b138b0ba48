"""`build.json`: what lies in a bundle's `build/<target>/`, what it was made from and what it needs to run.

Written by `edgedistill compile`, and checked here before anything in that folder is loaded: a library of another
bundle, another interface or another chip is refused by name while it is still only a file.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from edgedistill.bundle import Bundle
from edgedistill.config import parse
from edgedistill.errors import ConfigError, EngineError
from edgedistill.runtime.processor import architecture, cpu_features

BUILD_JSON = "build.json"
FORMAT = 1
ABI_VERSION = 1  # ED_ABI_VERSION of kernels/include/edgedistill.h


@dataclass(frozen=True)
class Fingerprint:
    """What the files depend on besides the bundle."""

    architecture: str  # "x86_64", "aarch64", "arm"
    ops: str  # the variant of the inner loops
    requires: tuple[str, ...]  # extensions of the instruction set, as /proc/cpuinfo names them
    compiler: str  # first line of its --version
    flags: tuple[str, ...]
    recipe: str  # sha256 of all sources and of the fields above


@dataclass(frozen=True)
class BuildRecord:
    """`build.json`."""

    format: int
    target: str
    created_by: str
    manifest: str  # sha256 of the bundle
    abi: int
    model: str  # C name: ed_model_<model>
    library: str  # file name
    fingerprint: Fingerprint
    sizes: dict[str, int]  # bytes: library, and where known state, flash, ram
    files: dict[str, str]  # name -> sha256, without build.json

    def write(self, folder: Path) -> None:
        """As build.json of `folder`."""
        (folder / BUILD_JSON).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def build_folder(bundle: Bundle, target: str) -> Path:
    """Where what was compiled for `target` lies. EngineError for a zip: a compiler needs a folder."""
    if not bundle.path.is_dir():
        raise EngineError(
            f"{bundle.path}: a bundle in a zip holds no compiled engine",
            expected="the same bundle as a folder",
            next_step=f"unzip {bundle.path} -d {bundle.path.with_suffix('')}",
        )
    return bundle.path / "build" / target


def read_record(folder: Path) -> BuildRecord:
    """What build.json says. EngineError where it is damaged, of a newer version, or missing."""
    try:
        found = json.loads((folder / BUILD_JSON).read_text(encoding="utf-8"))
        if isinstance(found, dict) and isinstance(found.get("format"), int) and found["format"] > FORMAT:
            raise EngineError(f"{folder}: compiled by a newer edgedistill", got=found["format"], expected=FORMAT)
        return parse(BuildRecord, found, str(folder / BUILD_JSON))
    except FileNotFoundError as error:
        raise EngineError(f"{folder}: nothing is compiled here yet", got=f"no {BUILD_JSON}") from error
    except (OSError, ValueError, AttributeError, TypeError, ConfigError) as error:
        raise EngineError(f"{folder}: '{BUILD_JSON}' is damaged", got=str(error).splitlines()[0]) from error


def check_files(folder: Path, record: BuildRecord) -> None:
    """EngineError names the first file that is missing or not what was compiled."""
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
    """EngineError names what differs: bundle, interface, chip or kind of library."""
    for what, got, expected in (
        ("was compiled from another bundle", f"manifest {record.manifest}", f"manifest {bundle.sha256}"),
        ("has another interface", f"ABI {record.abi}", f"ABI {ABI_VERSION}"),
        ("was compiled for another chip", record.fingerprint.architecture, architecture()),
    ):
        if got != expected:
            raise EngineError(f"{folder}: the C engine there {what}", got=got, expected=expected)
    if missing := sorted(set(record.fingerprint.requires) - cpu_features()):
        raise EngineError(
            f"{folder}: the C engine there was compiled for another chip",
            got=f"it needs {', '.join(missing)}",
            expected="instructions that this CPU has",
        )
    if not record.library.endswith(".so"):
        raise EngineError(f"{folder}: what is there is for firmware", got=record.library, expected="a shared library")
