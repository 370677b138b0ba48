"""The frame around every command: did-you-mean, errors as messages, exit codes.

0 done, 1 failed, 2 misuse, 3 a gate was missed. A failure goes to stderr in words; with --json it also goes
to stdout as {"error": {...}}, so that a script finds one JSON object there in every case.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from typing import Any

import click

from edgedistill import __version__
from edgedistill.cli.output import print_json
from edgedistill.errors import EdgeDistillError, EngineError, OutputError, did_you_mean

FAILED, MISUSED, GATE_MISSED = 1, 2, 3
JSON_WANTED = "edgedistill.json"
OUTPUT_ERRORS = {
    errno.ENOSPC: ("the disk is full", "free space, or choose a place on another disk"),
    errno.EDQUOT: ("your quota on this disk is used up", "free space, or choose a place on another disk"),
    errno.EROFS: ("the disk is read-only", "choose a place that can be written to"),
}


class CommandLine(click.Group):
    """The group of all commands; the one place where exceptions become messages."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the work, not of the alphabet."""
        return list(self.commands)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Note whether JSON is wanted before anything else can fail."""
        ctx.meta[JSON_WANTED] = "--json" in args
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but an unknown command is answered with the nearest known one by any click."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise click.UsageError(f"no command '{args[0]}'; {did_you_mean(args[0], self.commands)}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; every failure the user can act on ends as a message and an exit code."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            _as_json(ctx, "UsageError", MISUSED, what=error.format_message())
            raise
        except EdgeDistillError as error:
            _fail(ctx, error)
        except KeyboardInterrupt:
            _as_json(ctx, "Interrupted", FAILED, what="interrupted")
            click.echo("interrupted: nothing half-written was left; run the same command again to go on", err=True)
        except ModuleNotFoundError as error:
            if not error.name or error.name.startswith("edgedistill"):
                raise  # a defect of ours: the trace is what helps
            _fail(ctx, _missing_package(error.name))
        except OSError as error:
            if error.errno == errno.EPIPE:
                _drop_stdout()  # whoever read our output has enough
            else:
                _fail(ctx, _system_error(error))
        ctx.exit(FAILED)


def _fail(ctx: click.Context, error: EdgeDistillError) -> None:
    _as_json(
        ctx,
        type(error).__name__,
        FAILED,
        what=error.what,
        got=_text(error.got),
        expected=_text(error.expected),
        causes=list(error.causes),
        next_step=error.next_step,
    )
    click.echo(f"error: {error}", err=True)


def _as_json(ctx: click.Context, kind: str, code: int, **facts: object) -> None:
    if ctx.meta.get(JSON_WANTED):
        print_json({"error": {"type": kind, **facts, "exit_code": code}})


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _missing_package(name: str) -> EngineError:
    package = name.partition(".")[0]
    return EngineError(
        f"this command needs {package}, which is not installed here",
        causes=("edgedistill was installed without its extra, as on a device",),
        next_step="pip install 'edgedistill[train]'",
    )


def _system_error(error: OSError) -> EdgeDistillError:
    name = f"{error.filename}: " if error.filename else ""
    reason = error.strerror or str(error)
    if error.errno in OUTPUT_ERRORS:
        cause, remedy = OUTPUT_ERRORS[error.errno]
        return OutputError(f"{name}cannot be written", got=reason, causes=(cause,), next_step=remedy)
    if isinstance(error, PermissionError):
        return OutputError(f"{name}not allowed", got=reason, next_step="choose a place that you may use")
    return EdgeDistillError(f"{name}{reason}")


def _drop_stdout() -> None:
    """Else Python complains at its end that it cannot flush."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.command(
    cls=CommandLine,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Try it without data of your own:
  edgedistill simulate --out sessions
  edgedistill build --target host --preset nano --data sessions --out decoder.edge
  edgedistill bench decoder.edge

Exit codes: 0 done, 1 failed, 2 misuse, 3 a gate was missed.""",
)
@click.version_option(__version__, prog_name="edgedistill")
def main() -> None:
    """From NWB sessions to a causal LFP decoder that streams on the device.

    A transformer on spikes (the teacher) trains one on local field potentials (the student). What comes out
    is a bundle: raw LFP goes in sample by sample, kinematics come out every 10 ms, and no spike is needed.
    """
