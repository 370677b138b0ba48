"""Runs every command: suggests the right name for a misspelt one, and turns errors into messages and exit codes.

The exit code is 0 for done, 1 for failed, 2 for misuse and 3 for a gate that was missed. A failure is described on
stderr in words. With --json it also goes to stdout as {"error": {...}}, so that a script finds one JSON object there in
every case. Of several processes that train together, the first that fails reports it for all.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from edgedistill import __version__, ranks
from edgedistill.cli.output import echo, error_to_json, print_json, show_log
from edgedistill.cli.stopping import Terminated, terminating
from edgedistill.errors import EdgeDistillError, EngineError, OutputError, did_you_mean
from edgedistill.files import CAUSES, USUAL_STEP, WRITING_ERRORS

FAILED, MISUSED, GATE_MISSED = 1, 2, 3
JSON_WANTED = "edgedistill.json"
SHARED = ("pretrain", "distill", "build")  # commands that several processes may run together


class Commands(click.Group):
    """Groups commands in the order in which a user needs them, and suggests the right name for a misspelt one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the commands in the order in which a user needs them, not in alphabetical order."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds a command as click does. Suggests the most similar name for an unknown one in all versions of click."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise click.UsageError(f"no command '{args[0]}'; {did_you_mean(args[0], self.commands)}", ctx)
        return super().resolve_command(ctx, args)


class CommandLine(Commands):
    """Groups all commands. This is the one place where exceptions become messages."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Notes whether --json is given, before anything else can fail."""
        _open_closed_streams()
        ctx.meta[JSON_WANTED] = "--json" in args
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds a command. Those that do not train are refused to several processes."""
        if ranks.are_launched() and args and args[0] in self.commands and args[0] not in SHARED:
            raise click.UsageError(f"'{args[0]}' runs in one process: start it without torchrun", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command. Every failure that the user can act on ends with a message and an exit code."""
        try:
            with terminating(), ranks.joined():
                return super().invoke(ctx)
        except ranks.Released:
            ctx.exit(0)
        except (click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if not ranks.claim_message():
                ctx.exit(MISUSED if isinstance(error, click.UsageError) else FAILED)
            self._report(ctx, error)
        except KeyboardInterrupt as error:
            if ranks.claim_message():
                _print_error_json(ctx, "Interrupted", FAILED, what="interrupted")
                echo("interrupted. Nothing half-written was left; run the same command again to go on.", err=True)
            if isinstance(error, Terminated):
                os.kill(os.getpid(), error.number)  # so that whoever sent it sees that it was heard
        ctx.exit(FAILED)

    def _report(self, ctx: click.Context, error: Exception) -> None:
        """Prints what failed, or raises the error again where only a traceback explains it."""
        try:
            raise ranks.explain(error) or error
        except click.UsageError as misuse:
            _print_error_json(ctx, "UsageError", MISUSED, what=misuse.format_message())
            raise
        except EdgeDistillError as failure:
            _fail(ctx, failure)
        except ModuleNotFoundError as missing:
            if not missing.name or missing.name.startswith("edgedistill"):
                raise  # a defect of edgedistill, which only the traceback explains
            _fail(ctx, _error_for_package(missing.name))
        except MemoryError as failure:
            _fail(ctx, _error_for_memory(failure))
        except OSError as failure:
            if failure.errno == errno.EPIPE:
                _drop_stdout()  # the program that reads the output, such as head, has ended
            else:
                _fail(ctx, _error_for_system(failure))


def _fail(ctx: click.Context, error: EdgeDistillError) -> None:
    with suppress(OSError):  # stdout itself may be what is full
        _print_error_json(ctx, type(error).__name__, FAILED, **error_to_json(error))
    echo(f"error: {error}", err=True)


def _print_error_json(ctx: click.Context, kind: str, code: int, **facts: object) -> None:
    if ctx.meta.get(JSON_WANTED):
        print_json({"error": {"type": kind, **facts, "exit_code": code}})


def _error_for_package(name: str) -> EngineError:
    package = name.partition(".")[0]
    return EngineError(
        f"this command needs {package}, which is not installed here",
        causes=("edgedistill was installed without its extra, as on a device",),
        next_step="pip install 'edgedistill[train]'",
    )


def _error_for_memory(error: MemoryError) -> EdgeDistillError:
    return EdgeDistillError(
        "this needs more memory than there is",
        got=str(error) or None,
        causes=("a recording or a model that is too large for this machine", "a file that claims more than it holds"),
        next_step="close other programs, or use a machine with more memory",
    )


def _error_for_system(error: OSError) -> EdgeDistillError:
    name = f"{error.filename}: " if error.filename else ""
    reason = error.strerror or str(error)
    if error.errno in WRITING_ERRORS:
        return OutputError(f"{name}cannot be written", got=reason, causes=(CAUSES[error.errno],), next_step=USUAL_STEP)
    if isinstance(error, PermissionError):
        return OutputError(f"{name}not allowed", got=reason, next_step="choose a place that you may use")
    return EdgeDistillError(f"{name}{reason}")


def _open_closed_streams() -> None:
    """Lets output go nowhere where the caller has closed stdout or stderr, so that nothing fails, and no file of ours
    takes their place.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115, it stays open


def _drop_stdout() -> None:
    """Discards the rest of stdout. Otherwise Python would complain at its end that it cannot flush stdout."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.command(
    cls=CommandLine,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
To try it without data of your own:
  edgedistill simulate --out sessions
  edgedistill build --target host --preset nano --data sessions --out decoder.edge
  edgedistill bench decoder.edge

The exit code is 0 for done, 1 for failed, 2 for misuse, and 3 for a gate that was missed.""",
)
@click.version_option(__version__, prog_name="edgedistill")
def main() -> None:
    """Turn NWB sessions into a causal LFP decoder that streams on a device.

    A transformer on spikes (the teacher) trains a transformer on local field potentials (the student). The result is a
    bundle: raw LFP goes in sample by sample, kinematics come out every 10 ms, and no spikes are needed.
    """
    show_log()
