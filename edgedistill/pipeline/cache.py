"""Stages kept on disk: a folder a stage, named by the hash of what went in.

A stage works in `NAME-HASH.partial`, which survives a kill, so that its checkpoint is found again; when it is
done the folder is renamed to `NAME-HASH`. What is there is whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from edgedistill import __version__
from edgedistill.errors import OutputError

CODE = ("config.py", "frontend", "data", "models", "training", "quantization", "numerics")


@dataclass(frozen=True)
class Stage:
    """One stage of a run: how long it took, or that it was kept."""

    name: str
    seconds: float
    cached: bool


@dataclass
class Cache:
    """Stages under `root`; `stages` lists those of this run in order."""

    root: Path
    stages: list[Stage] = field(default_factory=list)

    def stage(self, name: str, inputs: object, make: Callable[[Path], None]) -> Path:
        """The folder of stage `name` for `inputs` (JSON); `make` fills it unless it is there already."""
        start = monotonic()
        key = hashlib.sha256(json.dumps([name, inputs, code_sha256()], sort_keys=True).encode()).hexdigest()
        folder = self.root / f"{name}-{key[:16]}"
        cached = folder.is_dir()
        if not cached:
            partial, fresh = folder.with_name(folder.name + ".partial"), not self.root.exists()
            try:
                partial.mkdir(parents=True, exist_ok=True)
                make(partial)
                partial.rename(folder)
            except OSError as error:
                raise OutputError(
                    f"stage '{name}' could not be kept in {self.root}",
                    got=error.strerror or str(error),
                    causes=["the disk is full", "the folder is read-only"],
                    next_step=f"df -h {self.root.parent}, or choose another folder with --work",
                ) from error
            finally:
                with suppress(OSError):  # a stage that could not begin leaves nothing behind
                    partial.rmdir()
                    if fresh:
                        self.root.rmdir()
        self.stages.append(Stage(name, monotonic() - start, cached))
        return folder

    def note(self, name: str, start: float) -> None:
        """Records a stage that is never kept."""
        self.stages.append(Stage(name, monotonic() - start, False))


def code_sha256() -> str:
    """Of the code the stages run: other code may give other results."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256(__version__.encode())
    for part in CODE:
        path = package / part
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()
