"""A program is asked in English, and one that gives no answer is no error."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgedistill.machine import programs
from edgedistill.machine.programs import ask_program


def script(folder: Path, body: str) -> str:
    path = folder / "tool"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_the_lines_of_an_answer_come_from_the_stream_that_was_asked_for(tmp_path: Path) -> None:
    tool = script(tmp_path, "printf 'one\\ntwo\\n\\n'; echo $1 >&2")
    assert ask_program(tool) == ["one", "two"]
    assert ask_program(tool, "three", on_stderr=True) == ["three"]


def test_a_program_is_asked_in_english(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert ask_program(script(tmp_path, "echo $LC_ALL")) == ["C"]


@pytest.mark.parametrize("body", ["echo 'license expired'; exit 1", "printf '\\377'", "exec sleep 5", ":"])
def test_a_program_without_an_answer_gives_no_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    monkeypatch.setattr(programs, "TIMEOUT_S", 0.5 if "sleep" in body else 20)
    assert ask_program(script(tmp_path, body)) == []


def test_a_program_that_is_missing_or_cannot_be_run_gives_no_lines(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no program")
    assert ask_program(str(tmp_path / "absent")) == ask_program(str(tmp_path / "text")) == []
