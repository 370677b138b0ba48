"""Defines the errors of edgedistill.

An error says what failed, what was found and expected, likely causes, and the command to run next. The library raises
these errors. Only the command line prints them and exits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class EdgeDistillError(Exception):
    """A failure that the user can do something about.

    `str(error)` is the whole message with one fact a line: `what` failed, what was found (`got`) and `expected`, the
    likely `causes` with the likeliest first, and the `next_step`, usually a command. Facts that are None are left out.
    """

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
    """A preset, target, recipe, option or key is unknown, or a value is out of range."""


class RecordingError(EdgeDistillError):
    """A session file cannot be read, or it lacks what the command needs."""


class BundleError(EdgeDistillError):
    """A bundle is damaged or incomplete, was not written by edgedistill, or is newer than this version reads."""


class EngineError(EdgeDistillError):
    """An engine is missing on this machine, cannot be made here, or was fed an array of the wrong shape."""


class DeviceError(EngineError):
    """A driver, a GPU or a compiler is missing on this machine, so the command has to run on the device instead."""


class NotCompiled(EngineError):
    """Nothing was compiled for this bundle and target yet, or only other engines were."""


class OnlyPrepared(EngineError):
    """The sources of a GPU engine lie ready in the bundle, but the device has not compiled them yet."""


class StalePlan(EngineError):
    """A TensorRT plan does not fit this device or this bundle any more. It is never rebuilt without being asked."""


class OutputError(EdgeDistillError):
    """A result could not be written: the folder is read-only, the disk is full, or a file is in the way."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns the `known` names as a hint, the most similar one first: "did you mean 'edge'? known: edge, nano"."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"{hint}known: {', '.join(names)}"
