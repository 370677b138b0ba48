"""`edgedistill simulate` writes sessions that `inspect` can read."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from .calling import answer, call


def test_simulated_sessions_can_be_inspected(tmp_path: Path) -> None:
    options = ("--sessions", 1, "--minutes", 0.2, "--channels", 4, "--units", 3, "--rate", 500)
    made = answer("simulate", "--out", tmp_path / "new", *options)
    (file,) = made["files"]
    assert Path(file["path"]).stat().st_size == file["bytes"]
    found = answer("inspect", file["path"])
    assert (found["kind"], found["lfp"]["channels"], found["units"]["count"]) == ("session", 4, 3)
    folder = answer("inspect", tmp_path / "new")
    assert (folder["kind"], [s["session_id"] for s in folder["sessions"]]) == (
        "folder",
        [found["session_id"]],
    )
    assert "500 Hz" in call("inspect", file["path"]).output


def test_days_apart_and_aging_reach_the_files(tmp_path: Path) -> None:
    options = ("--sessions", 2, "--minutes", 0.05, "--channels", 4, "--units", 3, "--days-apart", 30, "--aging", 0)
    made = answer("simulate", "--out", tmp_path, *options)
    assert (made["days_apart"], made["aging"]) == (30, 0)
    first, second = (answer("inspect", file["path"]) for file in made["files"])
    starts = [datetime.fromisoformat(found["session_start"]) for found in (first, second)]
    assert (starts[1] - starts[0]).days == 30


def test_a_variant_reaches_the_files(tmp_path: Path) -> None:
    options = ("--sessions", 1, "--minutes", 0.05, "--channels", 4, "--units", 3)
    made = answer("simulate", "--out", tmp_path, "--variant", "pursuit", *options)
    (file,) = made["files"]
    assert (made["variant"], Path(file["path"]).name) == ("pursuit", "pursuit00_day01.nwb")
    assert answer("inspect", file["path"])["session_id"] == "pursuit00-day01"
    assert call("simulate", "--out", tmp_path, "--variant", "pursuits").exit_code == 2
