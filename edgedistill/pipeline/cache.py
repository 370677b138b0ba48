"""Keeps the results of stages on disk, each in a folder whose name ends in a hash of the stage's inputs.

A stage works in `NAME-HASH.partial`. That folder survives when the program is killed, so that the stage finds its
checkpoint again. When the stage is done, a record of its files is added and the folder is renamed to `NAME-HASH`. The
record is compared with the files whenever the stage is used again. A stage that is damaged is made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep

from edgedistill import ranks
from edgedistill.errors import EdgeDistillError
from edgedistill.files import move_whole, output_error, remove
from edgedistill.kept_folders import RECORD, note_use
from edgedistill.pipeline.code_digest import installed_code_digest
from edgedistill.pipeline.library_versions import installed_versions
from edgedistill.pipeline.stage_record import (
    begin_record,
    belongs_to,
    find_damage,
    remove_leftovers,
    write_record,
)

logger = logging.getLogger(__name__)

SEEN_WITHIN_S = 90  # after which a folder on a file server is not late but missing


@dataclass(frozen=True)
class Stage:
    """Describes one stage of a run: how long it took, and whether its result was already on disk."""

    name: str
    seconds: float
    cached: bool
    damage: str | None = None  # why it was made again although it was there


@dataclass
class Cache:
    """Keeps stages in the folder `root`, and lists in `stages` those of this run in order."""

    root: Path
    stages: list[Stage] = field(default_factory=list)

    def stage(self, name: str, inputs: object, make: Callable[[Path], None]) -> Path:
        """Returns the folder of stage `name`, and calls `make` to fill it unless it exists already and is whole.

        The folder is found by the name, the `inputs` (JSON), the code of the module that defines `make` with all
        modules that it imports, and the versions of the libraries that these import. Of several processes (`ranks`)
        only the main one does this. Raises OutputError where the folder cannot be written.
        """
        return wait_until_seen(ranks.lead(lambda: self._find_or_make(name, inputs, make)))

    def shared_stage(self, name: str, inputs: object, make: Callable[[Path], None]) -> Path:
        """Does what `stage` does, with a `make` that all processes of a training call, such as a training itself.

        The main process alone may write to the folder.
        """
        return wait_until_seen(self._find_or_make(name, inputs, make))

    def _find_or_make(self, name: str, inputs: object, make: Callable[[Path], None]) -> Path:
        seconds, key = self.start_clock(), stage_key(name, inputs, make.__module__)
        folder, cached, damage = ranks.lead(lambda: self._find(name, key))
        if not cached:
            self._make(name, key, folder, make)
        self.note(name, seconds(), cached, damage)
        return folder

    def _find(self, name: str, key: str) -> tuple[Path, bool, str | None]:
        """Returns the folder of a stage, whether it is there and whole, and what is damaged in it."""
        folder = self._folder(name, key)
        damage = find_damage(folder, key) if os.path.lexists(folder) else None
        cached = damage is None and folder.is_dir()
        if damage is not None:
            warn_of_damage(folder, damage)
        if cached:
            note_use(folder)
        return folder, cached, damage

    def _make(self, name: str, key: str, folder: Path, make: Callable[[Path], None]) -> None:
        partial, fresh = folder.with_name(folder.name + ".partial"), not self.root.exists()

        def begin() -> None:
            remove(folder)
            open_own_folder(partial, key)

        def end() -> None:
            write_record(partial, key)
            move_whole(partial, folder)

        try:
            ranks.lead(begin)
            make(wait_until_seen(partial))
            ranks.lead(end)
        except OSError as error:
            raise self._output_error(name, error) from error
        finally:
            if ranks.is_main():
                with suppress(OSError):  # a stage that wrote nothing leaves no folder behind
                    close_own_folder(partial)
                    if fresh:
                        self.root.rmdir()

    def open_folder(self, name: str, inputs: object, module: str) -> tuple[Path, str]:
        """Returns a folder that a stage keeps and a later run may add to, and its key. It is made unless it exists.

        It is found as that of a stage is, with the code behind `module`. What is in it is for the stage to check.
        Raises OutputError.
        """
        key = stage_key(name, inputs, module)
        folder = self._folder(name, key)
        try:
            open_own_folder(folder, key)
        except OSError as error:
            raise self._output_error(name, error) from error
        note_use(folder)
        return folder, key

    def _folder(self, name: str, key: str) -> Path:
        return self.root / f"{name}-{key[:16]}"

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

    def note(self, name: str, seconds: float, cached: bool = False, damage: str | None = None) -> None:
        """Lists a stage that took so many `seconds`, by a clock of `start_clock`."""
        self.stages.append(Stage(name, seconds, cached, damage))

    def _output_error(self, name: str, error: OSError) -> EdgeDistillError:
        next_step = f"df -h {self.root.parent}, or choose another folder with --work"
        return output_error(self.root, f"stage '{name}'", error, next_step)


def wait_until_seen(folder: Path) -> Path:
    """Returns a folder that the main process has made. A file server may show it a little later to the others.

    Raises EdgeDistillError where it does not, and where somebody has removed the folder since.
    """
    for _ in range(SEEN_WITHIN_S):
        if folder.is_dir():
            return folder
        if ranks.is_main():
            raise EdgeDistillError(
                f"{folder} was removed while it was used",
                causes=("another program or person has tidied up the work folder",),
                next_step="run the same command again, which makes it anew",
            )
        sleep(1)
    raise EdgeDistillError(
        f"{folder} was made by one process of this training, and another one does not see it",
        causes=("the processes run on machines that share no file system",),
        next_step="choose a place that all machines share, for --out and for --work",
    )


def stage_key(name: str, inputs: object, module: str) -> str:
    """Returns the SHA-256 of a stage's name, its inputs (JSON), the code behind `module`, and its libraries."""
    parts = [name, inputs, installed_code_digest(module), installed_versions(module)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def warn_of_damage(folder: Path, damage: str) -> None:
    """Logs the line that says why something that was kept is made again."""
    logger.warning("%s is damaged and made again: %s", folder, damage)


def open_own_folder(folder: Path, key: str) -> None:
    """Makes a folder for the stage with this key. What lies there already is kept if it is of the same stage.

    Raises OSError and OutputError.
    """
    if os.path.lexists(folder) and not belongs_to(folder, key):
        if (
            folder.is_symlink()
            or not folder.is_dir()
            or any(not path.name.startswith(".") for path in folder.iterdir())
        ):
            warn_of_damage(folder, "what lies there is not of this stage")
        remove(folder)
    if not folder.is_dir():
        folder.mkdir(parents=True)
        begin_record(folder, key)
    remove_leftovers(folder)


def close_own_folder(folder: Path) -> None:
    """Removes a folder in which a stage has made nothing. Raises OSError for any other folder."""
    if [path.name for path in folder.iterdir()] == [RECORD]:
        (folder / RECORD).unlink()
    folder.rmdir()
