"""Every command has help with an example and a place in the documents, and reports failures in words and exit codes."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import click
import pytest

from edgedistill.cli import main

from .calling import call, parameters_of, refused
from .fake_pipeline import FakePipeline

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = (
    *("simulate", "convert", "inspect", "pretrain", "distill", "runs", "embed", "calibrate"),
    *("build", "compile", "sign", "verify", "run", "stream", "adapt", "bench", "report", "targets", "cache", "doctor"),
)


def test_the_commands_are_those_of_the_contract() -> None:
    assert tuple(main.commands) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = call(command, "--help")
    assert result.exit_code == 0
    assert "Example" in result.output
    assert f"edgedistill {command}" in result.output
    assert "--json" in result.output
    for parameter in parameters_of(command):
        assert not isinstance(parameter, click.Option) or parameter.help


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_stands_in_the_documents(command: str) -> None:
    documents = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    assert any(f"edgedistill {command}" in document.read_text(encoding="utf-8") for document in documents)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_the_module_of_its_name(command: str) -> None:
    function = main.commands[command].callback
    assert function is not None
    assert function.__module__ == f"edgedistill.cli.{command}"


def test_the_list_of_commands_cuts_no_sentence() -> None:
    listed = call("--help").output.partition("Commands:")[2]
    assert "bench" in listed
    assert "..." not in listed


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_an_option_is_a_sentence_that_shows_its_default(command: str) -> None:
    for option in parameters_of(command):
        if isinstance(option, click.Option):
            text = option.help or ""
            sentence = text.partition("  [default: ")[0]
            assert sentence[:1].isupper(), option.name
            assert sentence.endswith("."), option.name
            has_default = isinstance(option.default, (str, int, float)) and not option.is_flag
            assert option.show_default or "[default: " in text or not has_default, option.name


def test_neither_help_nor_a_wrong_word_imports_anything_heavy() -> None:
    code = (
        "import sys; from edgedistill.cli import main\n"
        "for words in (['--help'], ['build', '--help'], ['targets']):\n"
        "    main(words, standalone_mode=False)\n"
        "heavy = {'torch', 'pynwb', 'h5py', 'onnx', 'onnxruntime', 'matplotlib', 'sklearn'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("biuld",), ("'biuld'", "did you mean 'build'")),
        (("convert", "makinn"), ("'makinn'", "did you mean 'makin'")),
        (("bench", "x.edge", "--stepps", "3"), ("--stepps", "--steps")),
        (("bench", "x.edge", "--steps", "0"), ("--steps",)),
        (("bench",), ("BUNDLE",)),
        (("build", "--target", "jetson", "--data", "a", "--zip", "--out", "d.zip"), ("--zip", "d.zip", "NAME.edge")),
        (("distill", "a", "--teacher", "t", "--out", "s", "--alignment", "cosin"), ("cosine",)),
    ],
)
def test_misuse_is_exit_2(words: tuple[str, ...], says: tuple[str, ...]) -> None:
    refused(*words, says=says, code=2)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x"), "the disk is full"),
        (OSError(errno.EROFS, "Read-only file system", "x"), "the disk is mounted read-only"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "not allowed"),
        (KeyboardInterrupt(), "interrupted"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), "pip install 'edgedistill[train]'"),
    ],
)
def test_what_the_system_refuses_is_told_in_words(
    stages: FakePipeline, monkeypatch: pytest.MonkeyPatch, error: BaseException, says: str
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(stages, "pretrain", fails)
    refused("pretrain", "a", "--out", "t", says=(says,))


def test_a_defect_of_ours_is_not_dressed_up(stages: FakePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ValueError("a defect")

    monkeypatch.setattr(stages, "pretrain", fails)
    with pytest.raises(ValueError, match="a defect"):
        call("pretrain", "a", "--out", "t")


@pytest.mark.parametrize(("words", "stdout", "code"), [("--json", "/dev/full", 1), ("", "/dev/full", 1), ("", "&-", 0)])
def test_stdout_that_is_full_or_closed_ends_in_a_message_at_worst(words: str, stdout: str, code: int) -> None:
    shell = f"{sys.executable} -m edgedistill targets {words} >{stdout}"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert ("No space left on device" in done.stderr) == (code == 1)
