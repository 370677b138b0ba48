"""Compiles the C engine of a bundle in the user's cache.

A bundle and a target go in. A folder comes out with the sources that a firmware project can use (`include/`, `c/` and
the generated `model/`), the shared library or static archive made from them, a README, and `build.json`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgedistill.bundle import Bundle
from edgedistill.bundle.build_record import BuildRecord
from edgedistill.compile.build_folder import CompiledEngine, build_if_missing, build_spec, write_readme
from edgedistill.compile.bundle_sources import kernel_files, model_files, model_inputs
from edgedistill.compile.c.footprint import flash_and_ram, state_bytes
from edgedistill.compile.c.model_source import c_sources
from edgedistill.compile.c.toolchain import Toolchain, find_toolchain
from edgedistill.target import Target

SOURCES = ("c/ed_api.c", "c/ed_engine.c")  # the translation units, which include all other files
INCLUDES = ("-Iinclude", "-Ic", "-Imodel")


def compile_c_library(bundle: Bundle, target: Target, force: bool = False) -> CompiledEngine:
    """Compiles the bundle's INT8 student and front end for a target, unless that is done already.

    Raises EngineError for a compiler that is missing (with its Debian package) or fails (with the command), and for a
    student that the C engine cannot run. Raises OutputError for a cache that cannot be written to.
    """
    toolchain = find_toolchain(target)
    sources = {**kernel_sources(), **model_sources(bundle, toolchain.ops)}
    ending = ".so" if toolchain.compiler.library == "shared" else ".a"
    spec = build_spec(bundle, target, sources, toolchain.fingerprint, (toolchain.compiler.command,), ending)
    return build_if_missing(spec, lambda folder, record: _compile(folder, toolchain, record), force)


def kernel_sources() -> dict[str, bytes]:
    """Returns the files of `include/` and `c/` in kernels, as name -> contents."""
    return kernel_files("include", "c")


def model_sources(bundle: Bundle, ops: str) -> dict[str, bytes]:
    """Returns the files of `model/` with the student and front end, packed for a variant of the inner loops."""
    return model_files(c_sources(*model_inputs(bundle), ops))


def header_option(model: str) -> str:
    """Returns the option by which the engine's sources include the header of a model."""
    return f'-DED_MODEL_HEADER="model_{model}.h"'


def _compile(folder: Path, toolchain: Toolchain, record: BuildRecord) -> BuildRecord:
    options = (*INCLUDES, header_option(record.model))
    objects = toolchain.compile_all(folder, SOURCES, options)
    toolchain.link(folder, objects, record.library)
    sizes = {"library": (folder / record.library).stat().st_size, "state": state_bytes(folder, toolchain, options)}
    if toolchain.compiler.library == "static":
        sizes |= flash_and_ram(folder, toolchain, options, objects, record.model, sizes["state"])
    for name in objects:
        (folder / name).unlink()
    write_readme(folder, _readme(toolchain, record))
    return replace(record, sizes=sizes)


def _readme(toolchain: Toolchain, record: BuildRecord) -> str:
    command = f"{toolchain.compiler.command} {' '.join(toolchain.flags)} {' '.join(INCLUDES)}"
    define = f"-DED_MODEL_HEADER='\"model_{record.model}.h\"'"
    return (
        f"The INT8 decoder '{record.model}' for target '{record.target}', by {record.created_by}, from the bundle with"
        f" sha256 {record.manifest}: {record.library}, and its sources.\n"
        f"To compile it into a project, take include/, c/ and model/: {command} {define} -c {' '.join(SOURCES)}\n"
        f"include/edgedistill.h says how to call it; the model is `extern const ed_model ed_model_{record.model};`\n"
    )
