"""`cache` shows engines and stages that are kept, and with `--prune` removes those that were not used for long."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgedistill.bundle.build_record import BUILD_JSON, read_record
from edgedistill.errors import EngineError
from edgedistill.user_cache import use_cache

from .calling import answer, call, refused

KEY = "0123456789abcdef"


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """Returns a cache with two bundles and a work folder with two stages, of which one each was not used for long."""
    cache, work = tmp_path / "cache", tmp_path / "a.work"
    for folder, file in (
        (cache / (2 * KEY), "build.json"),
        (cache / (2 * KEY[::-1]), "build.json"),
        (work / f"teacher-{KEY}", "record.json"),
        (work / f"deployed-{KEY}.partial", "record.json"),
    ):
        folder.mkdir(parents=True)
        (folder / file).write_bytes(bytes(2_000_000))
    cache.chmod(0o700)
    for folder in (cache / (2 * KEY), work / f"teacher-{KEY}"):
        os.utime(folder, (1e9, 1e9))
    return cache, work


def test_engines_and_stages_are_shown_with_their_size_and_last_use(places: tuple[Path, Path]) -> None:
    cache, work = places
    found = answer("cache", "--cache", cache)
    assert found["cache"] == str(cache)
    assert [(one["kind"], one["bytes"], one["removed"]) for one in found["kept"]] == [
        ("compiled engine", 2_000_000, False)
    ] * 2
    found = answer("cache", work, "--cache", cache)
    assert {one["path"]: one["kind"] for one in found["kept"][2:]} == {
        str(work / f"teacher-{KEY}"): "stage",
        str(work / f"deployed-{KEY}.partial"): "unfinished stage",
    }
    assert found["kept"][-1]["last_used"] == "2001-09-09T01:46:40+00:00"
    shown = call("cache", work, "--cache", cache).stdout
    assert "2001-09-09" in shown
    assert "8.0 MB are kept" in shown


def test_prune_removes_what_is_old(places: tuple[Path, Path]) -> None:
    cache, work = places
    found = answer("cache", work, "--cache", cache, "--prune", 30)
    assert {Path(one["path"]).name for one in found["kept"] if one["removed"]} == {2 * KEY, f"teacher-{KEY}"}
    assert {path.name for path in (*cache.iterdir(), *work.iterdir())} == {2 * KEY[::-1], f"deployed-{KEY}.partial"}
    shown = call("cache", work, "--cache", cache, "--prune", 0).stdout
    assert "4.0 MB in 2 folders were removed" in shown
    assert not [*cache.iterdir(), *work.iterdir()]


def test_a_folder_that_keeps_nothing_is_refused(tmp_path: Path) -> None:
    refused("cache", tmp_path / "sessions", "--cache", tmp_path / "cache", "--prune", 0, says=("no stages are kept",))


def test_an_engine_that_is_used_counts_as_used(tmp_path: Path) -> None:
    with use_cache(tmp_path / "cache"):
        folder = tmp_path / "cache" / (2 * KEY) / "host"
        folder.mkdir(parents=True)
        (folder / BUILD_JSON).write_text("{}")
        os.utime(folder.parent, (1e9, 1e9))
        with pytest.raises(EngineError):
            read_record(folder)
    assert folder.parent.stat().st_mtime > 1e9
