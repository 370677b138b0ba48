"""Plants builds in a bundle whose libraries leave a mark when they are loaded, as a stranger could.

A stranger knows all of edgedistill, and can make every hash in a bundle right. Only where the build lies tells it from
one that this user made.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from edgedistill.assets import engine_code_digest
from edgedistill.bundle import Bundle
from edgedistill.bundle.build_record import ABI_VERSION, FORMAT, BuildRecord, Fingerprint
from edgedistill.compile.model_facts import c_identifier
from edgedistill.machine.processor import read_architecture

SOURCE = """
#include <stdio.h>
__attribute__((constructor)) static void leave_a_mark(void) {{
    FILE *file = fopen("{mark}", "a");
    if (file) fclose(file);
}}
"""


def plant_builds(bundle: Bundle, folder: Path) -> Path:
    """Plants a build for every engine in `build/` of a bundle. Returns the file that appears when one is loaded.

    `folder` gets the mark and the library. Skips the test on a machine without gcc.
    """
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    mark, library = folder / "loaded", folder / "planted.so"
    (folder / "planted.c").write_text(SOURCE.format(mark=mark))
    command = ["gcc", "-shared", "-fPIC", "-o", str(library), str(folder / "planted.c")]
    subprocess.run(command, check=True, timeout=300)
    shutil.rmtree(bundle.path / "build", ignore_errors=True)
    for at in (bundle.path / "build", bundle.path / "subjects/spike-student/build"):
        for target, engine in (("host", "c"), ("my-board", "c"), ("cuda", "cuda"), ("jetson", "tensorrt")):
            _plant(at / target, bundle, engine, library)
    outside = folder / "outside"
    outside.mkdir()
    shutil.copy(library, outside / "libed_any.so")
    record = json.loads((bundle.path / "build/my-board/build.json").read_text())
    record["library"], record["files"] = str(outside / "libed_any.so"), {}  # a path, and no hash
    (bundle.path / "build/my-board/build.json").write_text(json.dumps(record))
    (bundle.path / "build/linked").symlink_to(bundle.path / "build/host")
    return mark


def _plant(folder: Path, bundle: Bundle, engine: str, library: Path) -> None:
    name = c_identifier(bundle.manifest.name)
    folder.mkdir(parents=True)
    for file in (f"libed_{name}.so", "student_step.cubin", "student.plan", "libed_plugin.so", "append.cubin"):
        shutil.copy(library, folder / file)
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    facts = Fingerprint(read_architecture(), "scalar", (), "gcc", (), "0" * 64)
    record = BuildRecord(
        FORMAT, folder.name, "a stranger", bundle.sha256, ABI_VERSION, name, f"libed_{name}.so", facts, {}, digests
    )
    record = replace(record, engine=engine, code=engine_code_digest())
    (folder / "build.json").write_text(json.dumps(asdict(record)))
