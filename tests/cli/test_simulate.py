"""`edgedistill simulate` writes sessions that `inspect` can read."""

from __future__ import annotations

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
