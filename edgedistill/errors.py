"""One error tree: what failed, what was found, what was expected, likely causes, the next command.

The library raises these; only the command line prints them and exits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class EdgeDistillError(Exception):
    """A failure the user can act on. `str()` is the whole message, one fact a line."""

    def __init__(
        self,
        what: str,
        *,
        got: object = None,
        expected: object = None,
        causes: Sequence[str] = (),
        next_step: str | None = None,
    ) -> None:
        self.what, self.got, self.expected = what, got, expected
        self.causes, self.next_step = tuple(causes), next_step
        lines = [what]
        if got is not None:
            lines.append(f"  found:    {got}")
        if expected is not None:
            lines.append(f"  expected: {expected}")
        lines.extend(f"  maybe:    {cause}" for cause in causes)
        if next_step is not None:
            lines.append(f"  next:     {next_step}")
        super().__init__("\n".join(lines))


class ConfigError(EdgeDistillError):
    """An unknown preset, target, key or a value out of range."""


class RecordingError(EdgeDistillError):
    """A session file that cannot be read or lacks what the command needs."""


class BundleError(EdgeDistillError):
    """A bundle that is damaged, foreign, incomplete or too new."""


class EngineError(EdgeDistillError):
    """An engine that is missing on this machine or was fed the wrong shape."""


class DeviceError(EngineError):
    """A driver, a GPU or a compiler for it that is not on this machine: what was asked for is done on the device."""


class NotCompiled(EngineError):
    """Nothing was compiled for this bundle and target yet, or only for other engines."""


class OnlyPrepared(EngineError):
    """The sources of a GPU engine lie ready, but the device has not compiled them yet."""


class StalePlan(EngineError):
    """A TensorRT plan that does not fit this device or this bundle any more. It is never made again unasked."""


class OutputError(EdgeDistillError):
    """A result that could not be written: read-only folder, full disk, file in the way."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`known` names as a sentence, the nearest first: "did you mean 'edge'? known: edge, nano"."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"{hint}known: {', '.join(names)}"
