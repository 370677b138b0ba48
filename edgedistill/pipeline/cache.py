"""Keeps the results of stages on disk, each in a folder whose name ends in a hash of the stage's inputs.

A stage works in `NAME-HASH.partial`. That folder survives when the program is killed, so that the stage finds its
checkpoint again. When the stage is done, the folder is renamed to `NAME-HASH`. A folder with that name is therefore
complete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from edgedistill.errors import EdgeDistillError
from edgedistill.files import move_whole, output_error
from edgedistill.pipeline.code_digest import installed_code_digest


@dataclass(frozen=True)
class Stage:
    """Describes one stage of a run: how long it took, and whether its result was already on disk."""

    name: str
    seconds: float
    cached: bool


@dataclass
class Cache:
    """Keeps stages in the folder `root`, and lists in `stages` those of this run in order."""

    root: Path
    stages: list[Stage] = field(default_factory=list)

    def stage(self, name: str, inputs: object, make: Callable[[Path], None]) -> Path:
        """Returns the folder of stage `name`, and calls `make` to fill it unless it exists already.

        The folder is found by the name, the `inputs` (JSON), and the code of the module that defines `make` with all
        modules that it imports. Raises OutputError where the folder cannot be written.
        """
        seconds = self.start_clock()
        folder = self.root / f"{name}-{stage_key(name, inputs, make.__module__)[:16]}"
        cached = folder.is_dir()
        if not cached:
            partial, fresh = folder.with_name(folder.name + ".partial"), not self.root.exists()
            try:
                partial.mkdir(parents=True, exist_ok=True)
                make(partial)
                move_whole(partial, folder)
            except OSError as error:
                raise self._output_error(name, error) from error
            finally:
                with suppress(OSError):  # a stage that wrote nothing leaves no folder behind
                    partial.rmdir()
                    if fresh:
                        self.root.rmdir()
        self.note(name, seconds(), cached)
        return folder

    def open_folder(self, name: str, inputs: object, module: str) -> Path:
        """Returns a folder that a stage keeps and a later run may add to. It is made unless it exists.

        It is found as that of a stage is, with the code behind `module`. Raises OutputError.
        """
        folder = self.root / f"{name}-{stage_key(name, inputs, module)[:16]}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._output_error(name, error) from error
        return folder

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Lists what the `with` block does as a stage whose result is not kept."""
        seconds = self.start_clock()
        yield
        self.note(name, seconds())

    def start_clock(self) -> Callable[[], float]:
        """Returns a function that returns the seconds since now, without those of stages that were listed since."""
        start, before = monotonic(), len(self.stages)
        return lambda: monotonic() - start - sum(stage.seconds for stage in self.stages[before:])

    def note(self, name: str, seconds: float, cached: bool = False) -> None:
        """Lists a stage that took so many `seconds`, by a clock of `start_clock`."""
        self.stages.append(Stage(name, seconds, cached))

    def _output_error(self, name: str, error: OSError) -> EdgeDistillError:
        next_step = f"df -h {self.root.parent}, or choose another folder with --work"
        return output_error(self.root, f"stage '{name}'", error, next_step)


def stage_key(name: str, inputs: object, module: str) -> str:
    """Returns the SHA-256 of a stage's name, its inputs (JSON) and the code behind `module`."""
    parts = [name, inputs, installed_code_digest(module)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
