"""Runs some inputs of libFuzzer over the whole C interface; the fuzzing benchmark runs for longer."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .c_builds import ROOT

EMPTY = "#include <stddef.h>\nint LLVMFuzzerTestOneInput(const char *data, size_t n) { return !data && n; }\n"


@pytest.mark.parametrize("variants", [("--variants", "scalar"), pytest.param((), marks=pytest.mark.variant)])
def test_no_input_breaks_the_engine(tmp_path: Path, variants: tuple[str, ...]) -> None:
    """Compiling every variant with the sanitizers takes a minute."""
    require_libfuzzer(tmp_path)
    command = [sys.executable, "-m", "benchmarks.cpu.fuzz", "--inputs", "300", "--seed", "1", "--out", str(tmp_path)]
    command += variants
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "fuzz.json").read_text())
    assert result["found"] == 0
    assert result["inputs"] >= 300
    assert result["edges"] > 1000


def require_libfuzzer(folder: Path) -> None:
    if shutil.which("clang") is None:
        pytest.skip("no clang (apt install clang)")
    (folder / "empty.c").write_text(EMPTY)
    command = ["clang", "-fsanitize=fuzzer,address,undefined", "empty.c", "-o", "empty"]
    if subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode:
        pytest.skip("clang has no libFuzzer or sanitizers here (apt install libclang-rt-dev)")
