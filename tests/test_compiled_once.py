"""What was compiled is handed out again for the same command and the same sources, and for nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import compiled_once
from .compiled_once import run_compiler

COMPILER = """#!/bin/sh
echo ran >>"{log}"
for output; do :; done
cat model.h >"$output"
"""


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that writes its header as what it made. It notes in `log` that it ran."""
    (tmp_path / "shared").mkdir()
    monkeypatch.setenv(compiled_once.SHARED, str(tmp_path / "shared"))
    (tmp_path / "cc").write_text(COMPILER.format(log=tmp_path / "log"))
    (tmp_path / "cc").chmod(0o755)
    return tmp_path / "cc"


def compile_in(folder: Path, compiler: Path, model: str, *options: str) -> tuple[str, int]:
    """Returns what was made in a folder of that name, and how often the compiler has run so far."""
    folder.mkdir(exist_ok=True)
    (folder / "model.h").write_text(model)
    output = folder / "made.so"
    done = run_compiler([str(compiler), *options, f"-I{folder}", "-o", str(output)], output, [], cwd=folder)
    assert done.returncode == 0
    return output.read_text(), (compiler.parent / "log").read_text().count("ran")


def test_the_same_sources_and_options_are_compiled_once(compiler: Path, tmp_path: Path) -> None:
    assert compile_in(tmp_path / "a", compiler, "one") == ("one", 1)
    assert compile_in(tmp_path / "b", compiler, "one") == ("one", 1)
    assert (tmp_path / "a/made.so").stat().st_ino != (tmp_path / "b/made.so").stat().st_ino
    assert compile_in(tmp_path / "b", compiler, "two") == ("two", 2)
    assert compile_in(tmp_path / "b", compiler, "two", "-O1") == ("two", 3)
    assert compile_in(tmp_path / "a", compiler, "two", "-O1") == ("two", 3)


def test_a_path_in_a_macro_is_part_of_what_is_made(compiler: Path, tmp_path: Path) -> None:
    for count, name in enumerate(("a", "b"), start=1):
        assert compile_in(tmp_path / name, compiler, "one", f'-DDRIVER="{tmp_path / name}"') == ("one", count)


def test_what_fails_is_not_kept(compiler: Path, tmp_path: Path) -> None:
    compiler.write_text("#!/bin/sh\necho no >&2\nexit 1\n")
    for _ in range(2):
        done = run_compiler([str(compiler), "-o", "x"], tmp_path / "x", [], cwd=tmp_path / "shared")
        assert (done.returncode, done.stderr) == (1, "no\n")
    assert not list((tmp_path / "shared").iterdir())
