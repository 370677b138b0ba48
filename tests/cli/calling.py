"""Calls the command line in this process, as a person or a script would."""

from __future__ import annotations

import json
from typing import Any

import click
from click.testing import CliRunner, Result

from edgedistill.cli import main


def parameters_of(command: str) -> list[click.Parameter]:
    """The arguments and options of a command, with those of the commands inside it."""
    outer = main.commands[command]
    inner = outer.commands.values() if isinstance(outer, click.Group) else ()
    return list({p.name: p for one in (outer, *inner) for p in one.params}.values())


def call(*args: object, stdin: bytes | None = None) -> Result:
    result = CliRunner().invoke(main, [str(arg) for arg in args], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def answer(*args: object, code: int = 0, stdin: bytes | None = None) -> dict[str, Any]:
    """Returns the JSON of a command. Checks that stdout contains nothing else."""
    result = call(*args, "--json", stdin=stdin)
    assert result.exit_code == code, result.output
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def refused(*args: object, says: tuple[str, ...], code: int = 1, stdin: bytes | None = None) -> None:
    """Checks that a command fails with one clear message on stderr, the same as JSON on stdout, and no traceback."""
    result = call(*args, stdin=stdin)
    assert result.exit_code == code
    for word in says:
        assert word in result.stderr
    assert "Traceback" not in result.output
    error = answer(*args, code=code, stdin=stdin)["error"]
    assert error["exit_code"] == code
    assert error["what"]
