"""Writes and reads the log of a training: one JSON object a line, in the folder of its checkpoint.

Numbers of steps and evaluations go in as they come. `LOG` grows by whole lines, so that a person or a script can follow
a training of days. A run that goes on from a checkpoint takes back what came after that checkpoint, and a line that a
crash has torn. This module needs no torch.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edgedistill import ranks
from edgedistill.config import TrainingConfig
from edgedistill.files import atomic_write_bytes, output_error
from edgedistill.limits import MOST_RESULT_BYTES, read_plain

LOG = "training.jsonl"
EVERY = 10  # steps from one line to the next
WHAT = "the log of the training"


@dataclass
class Interval:
    """Adds up the steps since the last line."""

    losses: float = 0.0
    norms: float = 0.0
    seconds: float = 0.0
    steps: int = 0


class RunLog:
    """Appends to the log of one training. Only the main process of several has one."""

    def __init__(self, path: Path, config: TrainingConfig, step: int) -> None:
        """Opens the log of a run that stands at `step`. Raises OutputError."""
        self.path, self.config, self.since = path, config, Interval()
        kept = [line for line in read_lines(path) if line.get("step", 0) <= step and "end" not in line] if step else []
        text = "".join(to_line(line) for line in kept).encode()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            changed = path.read_bytes() != text if path.exists() else bool(text)
        except OSError as error:
            raise output_error(path, WHAT, error) from error
        if changed:
            atomic_write_bytes(path, text, WHAT)
        self.append({"begin": step, "steps": config.steps, "processes": ranks.size(), "time": now()})

    def note_step(self, loss: float, norm: float, seconds: float) -> None:
        """Takes the loss, the norm of the gradient before it is clipped, and the duration of a step."""
        one = self.since
        one.losses, one.norms = one.losses + loss, one.norms + norm
        one.seconds, one.steps = one.seconds + seconds, one.steps + 1

    def write_step(self, step: int, rate: float, evaluation: Mapping[str, float] | None = None) -> None:
        """Writes a line every `EVERY` steps and at an `evaluation`, with means over the steps since the last line."""
        one = self.since
        if not one.steps or (evaluation is None and step % EVERY):
            return
        windows = one.steps * self.config.bins_per_step / self.config.segment_bins
        line: dict[str, object] = {
            "step": step,
            "loss": one.losses / one.steps,
            "gradient_norm": one.norms / one.steps,
            "learning_rate": rate,
            "windows_per_s": windows / one.seconds if one.seconds > 0 else None,
            **(evaluation or {}),
            "time": now(),
        }
        self.since = Interval()
        self.append(line)

    def append(self, line: Mapping[str, object]) -> None:
        """Appends a line with one write. Raises OutputError."""
        try:
            with self.path.open("ab") as file:
                file.write(to_line(line).encode())
        except OSError as error:
            raise output_error(self.path, WHAT, error) from error


def now() -> str:
    """Returns the time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def to_line(line: Mapping[str, object]) -> str:
    """Returns one line of a log. A number that is not finite is null."""
    plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
    return json.dumps(plain, allow_nan=False) + "\n"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a log, without those that are torn. A file that does not exist has none.

    Raises OSError for what is no plain file, or too large for a log.
    """
    if not path.exists():
        return []
    found = []
    for text in read_plain(path, MOST_RESULT_BYTES).splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict):
            found.append(line)
    return found


# ---------------------------------------------------------------- what runs have reached


@dataclass(frozen=True)
class RunSummary:
    """Says what one training has reached. What its log does not say is None."""

    run: str  # its folder, below the one that was searched
    finished: bool
    step: int
    steps: int | None  # that it may take
    processes: int | None  # that trained last
    loss: float | None
    gradient_norm: float | None
    windows_per_s: float | None
    validation_loss: float | None  # the lowest
    best_step: int | None  # at which it was the lowest
    validation_r2: float | None  # at the last evaluation that had one
    written: str | None  # the time of the last line


def list_runs(folder: Path) -> list[RunSummary]:
    """Returns the trainings below a folder, by name."""
    return [summarize_run(path.parent, folder) for path in sorted(folder.rglob(LOG))]


def summarize_run(folder: Path, root: Path) -> RunSummary:
    """Returns what the training in `folder` has reached."""
    lines = read_lines(folder / LOG)
    known = [line for line in lines if is_number(line.get("validation_loss"))]
    best = min(known, key=lambda line: float(line["validation_loss"]), default={})
    return RunSummary(
        run=str(folder.relative_to(root)),
        finished=any("end" in line for line in lines),
        step=int(last(lines, "step") or 0),
        steps=last(lines, "steps"),
        processes=last(lines, "processes"),
        loss=last(lines, "loss"),
        gradient_norm=last(lines, "gradient_norm"),
        windows_per_s=last(lines, "windows_per_s"),
        validation_loss=best.get("validation_loss"),
        best_step=best.get("step"),
        validation_r2=last(lines, "validation_r2"),
        written=next((line["time"] for line in reversed(lines) if isinstance(line.get("time"), str)), None),
    )


def last(lines: Sequence[Mapping[str, Any]], key: str) -> Any:
    """Returns the last number under a key, or None."""
    return next((line[key] for line in reversed(lines) if is_number(line.get(key))), None)


def is_number(value: object) -> bool:
    """Returns whether a value of a log is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
