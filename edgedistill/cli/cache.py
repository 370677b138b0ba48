"""Defines `edgedistill cache`, which shows what is kept on disk to save time, and removes what is old."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from time import time

import click

from edgedistill.cli.output import cache_option, echo, json_option, print_json, print_table
from edgedistill.kept_folders import KeptFolder, list_compiled, list_stages, remove_unused
from edgedistill.user_cache import find_cache


@click.command(
    epilog="""\b
Examples:
  edgedistill cache
  edgedistill cache decoder.edge.work
  edgedistill cache decoder.edge.work --prune 30

What is removed is made again when it is needed: an engine in seconds, a stage in as long as it took to train.""",
)
@click.argument("work", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--prune",
    type=click.FloatRange(min=0),
    metavar="DAYS",
    help="Remove what was not used for so many days; 0 removes all.  [default: nothing is removed]",
)
@cache_option
@json_option
def cache(work: tuple[Path, ...], prune: float | None, as_json: bool) -> None:
    """Show what is kept on disk to save time, and remove what is old.

    These are the engines that were compiled on this machine, and the stages in each work folder WORK that is named.
    Nothing else is removed.
    """
    place = find_cache()
    kept = [*list_compiled(place), *(stage for folder in work for stage in list_stages(folder))]
    removed = [] if prune is None else remove_unused(kept, prune, time())
    if as_json:
        print_json({"cache": str(place), "kept": [_to_json(folder, folder in removed) for folder in kept]})
        return
    columns = ("kind", "folder", "MB", "last used")
    left = [folder for folder in kept if folder not in removed]
    print_table(f"Kept, engines in {place}", columns, [_to_row(folder) for folder in left])
    echo(f"{_megabytes(left):.1f} MB are kept")
    if prune is not None:
        echo(f"{_megabytes(removed):.1f} MB in {len(removed)} folders were removed")


def _to_json(folder: KeptFolder, removed: bool) -> dict[str, object]:
    used = _to_time(folder).isoformat(timespec="seconds")
    facts = {"path": str(folder.path), "kind": folder.kind, "bytes": folder.bytes}
    return {**facts, "last_used": used, "removed": removed}


def _to_row(folder: KeptFolder) -> tuple[object, ...]:
    return folder.kind, folder.path.name, f"{folder.bytes / 1e6:.1f}", f"{_to_time(folder):%Y-%m-%d}"


def _to_time(folder: KeptFolder) -> datetime:
    return datetime.fromtimestamp(folder.last_used, timezone.utc)


def _megabytes(folders: list[KeptFolder]) -> float:
    return sum(folder.bytes for folder in folders) / 1e6
