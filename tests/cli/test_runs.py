"""`edgedistill runs` lists every training below a folder, with what its log says."""

from __future__ import annotations

from pathlib import Path

from edgedistill.training.run_log import LOG

from .calling import answer, call, refused

BEGUN = '{"begin": 0, "steps": 40, "processes": 2, "time": "2026-01-01T00:00:00+00:00"}\n'
STEP = '{"step": 10, "loss": 2.5, "gradient_norm": 0.5, "windows_per_s": 8.0, "validation_loss": 3.0, '
STEP += '"validation_r2": 0.25, "time": "2026-01-01T00:01:00+00:00"}\n'


def test_runs_lists_finished_and_unfinished_trainings(tmp_path: Path) -> None:
    for name, text in {"b.partial": BEGUN + STEP + '{"step": 20, "lo', "a": BEGUN + STEP + '{"end": 10}\n'}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / LOG).write_text(text)
    done, going = answer("runs", tmp_path)["runs"]
    assert (done["run"], done["finished"]) == ("a", True)
    assert (going["run"], going["finished"]) == ("b.partial", False)
    for one in (done, going):
        assert (one["step"], one["steps"], one["processes"]) == (10, 40, 2)
        assert (one["loss"], one["validation_loss"], one["best_step"], one["validation_r2"]) == (2.5, 3.0, 10, 0.25)
        assert one["written"] == "2026-01-01T00:01:00+00:00"
    table = call("runs", tmp_path).output
    assert "unfinished" in table
    assert "b.partial" in table


def test_a_folder_without_trainings_and_one_that_is_none(tmp_path: Path) -> None:
    refused("runs", tmp_path, says=("no training below", ".work"))
    refused("runs", tmp_path / "none", says=("not a folder",))
