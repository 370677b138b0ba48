"""Errors that can be found before the training are raised before it, and name what is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgedistill import pipeline as stages
from edgedistill.data.candidates import SeriesNames
from edgedistill.data.simulation.nwb import simulate_to_nwb
from edgedistill.data.simulation.sessions import SimulationConfig
from edgedistill.errors import ConfigError, EdgeDistillError, EngineError, OutputError, RecordingError
from edgedistill.pipeline import DistillOptions, PretrainOptions
from edgedistill.pipeline.early_checks import require_writable
from edgedistill.training.pretrain import train_teacher

from .tiny_builds import options, refused


def test_a_student_that_the_gpu_cannot_run_is_refused_before_the_training(home: Path, tmp_path: Path) -> None:
    preset = tmp_path / "wide.toml"
    preset.write_text((home / "tiny.toml").read_text().replace("window = 20", "window = 3000"))
    with pytest.raises(EngineError, match="window is too large"):
        stages.build(options(home, tmp_path / "x.edge", target="cuda", preset=str(preset)))
    recipe = tmp_path / "kept.toml"
    recipe.write_text('name = "kept"\ndescription = "d"\nmethod = "minmax"\nkeep = ["embed"]\n')
    with pytest.raises(EngineError, match="in INT8"):
        stages.build(options(home, tmp_path / "x.edge", target="cuda", recipe=str(recipe)))


@pytest.mark.usefixtures("untrained")
def test_wrong_names_are_told_before_the_training(home: Path, tmp_path: Path) -> None:
    refused(home, tmp_path, RecordingError, "did you mean 'sim00-day02'", session="sim00-day2")
    refused(home, tmp_path, ConfigError, "did you mean 'nano'", preset="nan0")
    refused(home, tmp_path, ConfigError, "did you mean 'host'", target="hosst")
    refused(home, tmp_path, EdgeDistillError, "holds no student", student=tmp_path / "nothing")
    refused(home, tmp_path, EdgeDistillError, "holds no teacher", teacher=tmp_path / "nothing")
    assert not (tmp_path / "x.edge").exists()


@pytest.mark.usefixtures("untrained")
def test_a_missing_compiler_is_told_before_the_training(home: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text(
        'name = "mine"\ndescription = "mine"\nengine = "c"\nstatus = "available"\ndeadline_ms = 10\n'
        '[compiler]\ncommand = "no-such-gcc"\ndebian_package = "gcc-of-mine"\n'
    )
    refused(home, tmp_path, EdgeDistillError, "gcc-of-mine", target=str(mine))


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("blocked", ["file", "folder", "below a file", "read-only"])
def test_a_blocked_out_is_told_before_the_training(
    home: Path, tmp_path: Path, blocked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "mine"
    if blocked == "folder":
        out.mkdir()
    if blocked != "read-only":
        (out / "notes" if blocked == "folder" else out).write_text("mine")
    if blocked == "read-only":  # simulated, because root may write anywhere

        def mkdir(path: str, *_: object, dir_fd: int | None = None) -> None:
            if dir_fd is not None:
                raise PermissionError(13, "Permission denied", path)

        monkeypatch.setattr(os, "mkdir", mkdir)
    before = sorted(tmp_path.rglob("*"))
    refused(home, tmp_path, OutputError, "mine|cannot write", out=out / "x" if blocked == "below a file" else out)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("untrained")
def test_a_model_cannot_replace_a_file(home: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    preset = str(home / "tiny.toml")
    with pytest.raises(OutputError, match="there is a file here"):
        stages.pretrain(PretrainOptions((home / "data",), tmp_path / "out", preset))
    with pytest.raises(OutputError, match="there is a file here"):
        stages.distill(DistillOptions((home / "data",), home / "teacher", tmp_path / "out", preset))


@pytest.mark.usefixtures("untrained")
def test_a_broken_session_is_named(home: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    whole = (home / "data" / "sim00_day01.nwb").read_bytes()
    (data / "broken.nwb").write_bytes(whole[: len(whole) // 2])
    refused(home, tmp_path, RecordingError, r"broken\.nwb", data=(data,), work=tmp_path / "work")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]  # neither a bundle nor an empty folder of a stage


@pytest.mark.usefixtures("untrained")
def test_a_student_of_another_array_or_behavior_is_refused(pretrained: Path, tmp_path: Path) -> None:
    other = SimulationConfig(sessions=1, minutes=2.2, seed=1, channels=5, units=10, population=40, rate_hz=500)
    list(simulate_to_nwb(other, tmp_path / "data"))
    student = {"student": pretrained / "student"}
    refused(
        pretrained, tmp_path, RecordingError, "array the student has not seen", data=(tmp_path / "data",), **student
    )
    cursor = SeriesNames(behavior="cursor_pos")
    refused(pretrained, tmp_path, EdgeDistillError, "decodes another behavior", names=cursor, **student)


@pytest.mark.usefixtures("untrained")
def test_a_teacher_of_other_sessions_is_refused(pretrained: Path, tmp_path: Path) -> None:
    refused(pretrained, tmp_path, EdgeDistillError, "sim00-day03", teacher=pretrained / "teacher")


@pytest.mark.usefixtures("untrained")
def test_a_student_that_cannot_be_fine_tuned_as_asked_is_refused(pretrained: Path, tmp_path: Path) -> None:
    """The new day's labels may not be used, and no day of the student is among the data."""
    days = [pretrained / "data" / f"sim00_day{day:02d}.nwb" for day in (1, 2, 3)]
    preset = str(pretrained / "tiny.toml")
    with pytest.MonkeyPatch.context() as trained:
        trained.setattr("edgedistill.pipeline.teacher.train_teacher", train_teacher)
        stages.pretrain(PretrainOptions(tuple(days), tmp_path / "teacher", preset, steps=1))
    asked = {"student": pretrained / "student", "teacher": tmp_path / "teacher", "recipe": "qat"}
    refused(pretrained, tmp_path, EdgeDistillError, "none of its sessions is here", data=(days[2],), **asked)
    narrow = tmp_path / "narrow.toml"
    text = (pretrained / "tiny.toml").read_text()
    narrow.write_text(text.replace("predictor_d = 8", "predictor_d = 4", 1))  # of the teacher, which stands first
    with pytest.MonkeyPatch.context() as trained:
        trained.setattr("edgedistill.pipeline.teacher.train_teacher", train_teacher)
        stages.pretrain(PretrainOptions(tuple(days), tmp_path / "narrow", str(narrow), steps=1))
    refused(pretrained, tmp_path, EdgeDistillError, "another teacher", **{**asked, "teacher": tmp_path / "narrow"})


@pytest.mark.usefixtures("untrained")
def test_an_unknown_way_to_adapt_is_refused(home: Path, tmp_path: Path) -> None:
    refused(home, tmp_path, ConfigError, "did you mean 'stats'", adapt="stat")


@pytest.mark.usefixtures("untrained")
def test_a_pipe_in_the_place_of_a_result_is_told_before_the_training(home: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused(home, tmp_path, OutputError, "a device, a pipe or a socket", out=tmp_path / "pipe")
    victim = tmp_path / "victim"
    (tmp_path / ".x.edge.probe").symlink_to(victim)  # a name that a check could try to write to
    require_writable(tmp_path / "x.edge")
    assert not victim.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".x.edge.probe", "pipe"]
