"""The log of a training says what it reached, and goes on after a crash as the training does."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from edgedistill.errors import OutputError
from edgedistill.training.losses import UNSUPERVISED
from edgedistill.training.run_log import LOG, RunLog, list_runs, read_lines

from .sessions import TRAINING
from .test_loop import Killed, run_student


def steps_of(path: Path) -> list[int]:
    return [line["step"] for line in read_lines(path) if "step" in line]


def test_a_training_that_was_killed_and_goes_on_logs_each_step_once(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "checkpoint.safetensors"
    with pytest.raises(Killed):
        run_student(UNSUPERVISED, TRAINING, checkpoint, 11)  # the last checkpoint is that of step 9
    log = checkpoint.with_name(LOG)
    assert steps_of(log) == [3, 6, 9, 10]
    with log.open("ab") as file:
        file.write(b'{"step": 11, "lo')
    (unfinished,) = list_runs(tmp_path)
    assert (unfinished.run, unfinished.finished, unfinished.step, unfinished.steps) == ("run", False, 10, 12)
    run_student(UNSUPERVISED, TRAINING, checkpoint)
    assert steps_of(log) == [3, 6, 9, 10, 12]
    lines = [json.loads(line) for line in log.read_text().splitlines()]  # none is torn
    assert [line["begin"] for line in lines if "begin" in line] == [0, 9]
    (run,) = list_runs(tmp_path)
    assert (run.finished, run.step, run.processes) == (True, 12, 1)
    evaluated = {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}
    assert run.validation_loss == min(evaluated.values()) == evaluated[run.best_step]
    assert all(line[key] > 0 for line in lines if "loss" in line for key in ("gradient_norm", "windows_per_s"))
    before = log.read_bytes()
    run_student(UNSUPERVISED, TRAINING, checkpoint)  # is over already
    assert log.read_bytes() == before


def test_the_loss_of_a_line_is_the_mean_since_the_last_one(tmp_path: Path) -> None:
    log = RunLog(tmp_path / LOG, TRAINING, 0)
    for step in range(1, 21):
        log.note_step(float(step), 2.0, 0.5)
        log.write_step(step, 1e-3)
    first, second = read_lines(tmp_path / LOG)[1:]
    assert (first["step"], first["loss"], first["gradient_norm"]) == (10, 5.5, 2.0)
    assert (second["step"], second["loss"]) == (20, 15.5)
    assert first["windows_per_s"] == TRAINING.bins_per_step / TRAINING.segment_bins / 0.5
    log.note_step(1.0, 1.0, 1.0)
    log.write_step(21, 1e-3, {"validation_loss": 0.5, "validation_r2": math.nan})
    assert read_lines(tmp_path / LOG)[-1]["validation_r2"] is None
    assert list_runs(tmp_path)[0].validation_r2 is None


def test_a_log_that_cannot_be_written_raises_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="the log of the training"):
        RunLog(tmp_path / "file" / LOG, TRAINING, 0)


def test_odd_logs_in_a_folder_from_someone_else_end_in_a_line_or_a_message(tmp_path: Path) -> None:
    odd = ('{"step": 1e999, "time": 5}', '{"step": NaN}', '{"loss": ' + "9" * 400 + "}", "[" * 99_999, '{"step": 3}')
    (tmp_path / "run").mkdir()
    log = tmp_path / "run" / LOG
    log.write_text("\n".join(odd))
    (run,) = list_runs(tmp_path)
    assert (run.step, run.loss, run.written) == (3, None, None)
    log.unlink()
    os.mkfifo(log)
    with pytest.raises(OSError, match="not a plain file"):
        list_runs(tmp_path)
