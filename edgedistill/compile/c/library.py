"""A bundle and a target in, the C engine with this model out, compiled: `build/<target>/` inside the bundle.

The folder holds the sources as a firmware project can take them (`include/`, `c/`, the generated `model/`), the
shared library or static archive made of them, a README, and `build.json`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgedistill.bundle import Bundle
from edgedistill.bundle.build_record import BuildRecord, Fingerprint
from edgedistill.compile.build_folder import CompiledEngine, made_once, planned
from edgedistill.compile.bundle_sources import encoded, kernel_files, model_inputs
from edgedistill.compile.c.footprint import flash_and_ram, state_bytes
from edgedistill.compile.c.model_source import c_sources
from edgedistill.compile.c.toolchain import Toolchain, find_toolchain
from edgedistill.target import Target

SOURCES = ("c/ed_api.c", "c/ed_engine.c")  # the translation units; all else is included by them
INCLUDES = ("-Iinclude", "-Ic", "-Imodel")


def compile_c_library(bundle: Bundle, target: Target, force: bool = False) -> CompiledEngine:
    """Compile the bundle's INT8 student and front end for a target, unless that is done already.

    EngineError for a zip, a missing compiler (with its Debian package), a failing one (with the command), and for a
    student the C engine cannot run; OutputError where the bundle's folder cannot be written to.
    """
    toolchain = find_toolchain(target)
    sources = {**kernel_sources(), **model_sources(bundle, toolchain.ops)}
    ending = ".so" if toolchain.compiler.library == "shared" else ".a"
    plan = planned(bundle, target, sources, facts_of(toolchain), (toolchain.compiler.command,), ending)
    return made_once(plan, lambda folder, record: _compile(folder, toolchain, record), force)


def kernel_sources() -> dict[str, bytes]:
    """`include/` and `c/` of kernels: name -> contents."""
    return kernel_files("include", "c")


def model_sources(bundle: Bundle, ops: str) -> dict[str, bytes]:
    """`model/`: shape and numbers of the bundle's student and front end, packed for a variant of the inner loops."""
    return encoded(c_sources(*model_inputs(bundle), ops))


def facts_of(toolchain: Toolchain) -> Fingerprint:
    """A compiler's part of the fingerprint."""
    requires = toolchain.variant.requires
    return Fingerprint(toolchain.architecture, toolchain.ops, requires, toolchain.version, toolchain.flags, "")


def _compile(folder: Path, toolchain: Toolchain, record: BuildRecord) -> BuildRecord:
    options = (*INCLUDES, f'-DED_MODEL_HEADER="model_{record.model}.h"')
    objects = []
    for source in SOURCES:
        objects.append(f"{Path(source).stem}.o")
        toolchain.compile(folder, source, objects[-1], options)
    toolchain.link(folder, objects, record.library)
    sizes = {"library": (folder / record.library).stat().st_size, "state": state_bytes(folder, toolchain, options)}
    if toolchain.compiler.library == "static":
        sizes |= flash_and_ram(folder, toolchain, options, objects, record.model, sizes["state"])
    for name in objects:
        (folder / name).unlink()
    (folder / "README").write_text(_readme(toolchain, record), encoding="utf-8")
    return replace(record, sizes=sizes)


def _readme(toolchain: Toolchain, record: BuildRecord) -> str:
    command = f"{toolchain.compiler.command} {' '.join(toolchain.flags)} {' '.join(INCLUDES)}"
    define = f"-DED_MODEL_HEADER='\"model_{record.model}.h\"'"
    return (
        f"The INT8 decoder '{record.model}' for target '{record.target}', by {record.created_by}, from the bundle with"
        f" sha256 {record.manifest}: {record.library}, and its sources.\n"
        f"To compile it into a project, take include/, c/ and model/: {command} {define} -c {' '.join(SOURCES)}\n"
        f"include/edgedistill.h tells how to call it; the model is `extern const ed_model ed_model_{record.model};`\n"
    )
