"""Defines the errors of edgedistill.

An error says what failed, what was found and expected, likely causes, and the command to run next. The library raises
these errors. Only the command line prints them and exits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class EdgeDistillError(Exception):
    """Reports a failure that the user can do something about.

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
        super().__init__(self._message())

    def rename(self, before: str, after: str) -> None:
        """Writes a path as `after` wherever the message names it as `before`."""
        self.what = self.what.replace(before, after)
        self.got, self.expected = (
            str(fact).replace(before, after) if before in str(fact) else fact for fact in (self.got, self.expected)
        )
        self.causes = tuple(cause.replace(before, after) for cause in self.causes)
        self.next_step = self.next_step and self.next_step.replace(before, after)
        self.args = (self._message(),)

    def _message(self) -> str:
        facts = [("found:", self.got), ("expected:", self.expected)]
        facts += [("maybe:", cause) for cause in self.causes] + [("next:", self.next_step)]
        lines = [f"  {label:<9} {hang_lines(str(fact), 12)}" for label, fact in facts if fact is not None]
        return "\n".join([hang_lines(self.what, 12), *lines])


class ConfigError(EdgeDistillError):
    """Reports an unknown preset, target, recipe, option or key, or a value that is out of range."""


class RecordingError(EdgeDistillError):
    """Reports a session file that cannot be read, or that lacks what the command needs."""


class BundleError(EdgeDistillError):
    """Reports a bundle that is damaged, incomplete or newer than this version reads, or not by edgedistill."""


class SignatureError(BundleError):
    """Reports a bundle that nobody signed, that another key signed, or whose content is not what was signed."""


class EngineError(EdgeDistillError):
    """Reports an engine that is missing here or cannot be made here, or an array of the wrong shape."""


class DeviceError(EngineError):
    """Reports a missing driver, GPU or compiler, so that the command has to be run on the device instead."""


class NotCompiled(EngineError):
    """Reports that nothing was compiled on this machine for this bundle yet, or only other engines were."""


class StalePlan(EngineError):
    """Reports a TensorRT plan that no longer fits this device or this bundle. It is rebuilt only on request."""


class OutputError(EdgeDistillError):
    """Reports a result that could not be written, as the folder is read-only, the disk full or a file in the way."""


def hang_lines(text: str, width: int) -> str:
    """Returns a text whose further lines are indented, so that a name with a line of its own passes for no other."""
    return text.replace("\n", "\n" + " " * width)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns the `known` names as a hint, the most similar one first: "did you mean 'edge'? known: edge, nano"."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"{hint}known: {', '.join(names)}"
