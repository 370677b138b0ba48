"""`edgedistill calibrate` finds ranges for a student with NWB files, and refuses bad options before it reads any."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from edgedistill.cli import main
from edgedistill.config import StudentSize
from edgedistill.data.bins import file_sha256
from edgedistill.data.session_loading import load_sessions
from edgedistill.data.simulation.nwb import simulate_to_nwb
from edgedistill.data.simulation.sessions import SimulationConfig
from edgedistill.models.files import hash_checkpoint, load_student, save_student, save_teacher
from edgedistill.models.teacher import PatchAutoencoder
from edgedistill.numerics import part_names
from edgedistill.pipeline import calibration
from edgedistill.quantization.calibration.ranges import read_ranges, shape_from_size
from edgedistill.training.batches import compute_gap, training_session_from_bins
from edgedistill.training.distill import make_student

from ..training.sessions import TEACHER

SIZE = StudentSize(d=8, layers=1, heads=2, window=20, ff=8, taps=2, dilation=2, lags=2)
RECIPE = 'name = "small"\ndescription = "few windows"\nmethod = "mse"\nwindows = 8\nwindow_bins = 64\n'


def call(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["calibrate", *map(str, args)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def answer(*args: object) -> dict[str, Any]:
    found = json.loads(call(*args, "--json").stdout)
    assert isinstance(found, dict)
    return found


def refused(*args: object, says: tuple[str, ...]) -> None:
    stderr = call(*args, code=1).stderr
    for word in says:
        assert word in stderr


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with two days of one array, a student of the first day, and a recipe."""
    folder = tmp_path_factory.mktemp("calibrate")
    config = SimulationConfig(sessions=2, minutes=2.2, channels=4, units=10, population=40, rate_hz=500)
    list(simulate_to_nwb(config, folder / "data"))
    (folder / "other").mkdir()
    bins = load_sessions([folder / "data" / "sim00_day01.nwb"])
    sessions = [training_session_from_bins(b, compute_gap(bins, SIZE)) for b in bins]
    student = make_student(sessions, "lfp", SIZE, TEACHER.predictor_d, 0)
    save_student(student, folder / "run", {"row": "distilled", "standardization": {}})
    (folder / "small.toml").write_text(RECIPE)
    return folder


def day(home: Path, number: int) -> Path:
    return home / "data" / f"sim00_day{number:02d}.nwb"


def test_ranges_are_written_with_their_provenance_and_shown(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "ranges.json"
    words = (home / "run", day(home, 1), "--recipe", home / "small.toml", "--out", out)
    found = answer(*words)
    ranges = read_ranges(out, SIZE)
    student = load_student(home / "run")[0]
    ranges.require_for(hash_checkpoint(student))
    assert ranges.sessions == found["sessions"] == {"sim00-day01": file_sha256(day(home, 1))}
    assert (found["recipe"], found["windows_asked"], len(found["windows"])) == ("small", 8, 8)
    assert found["table"] == list(ranges.table)
    assert (found["student"], found["sensitivity"], found["figure"]) == (None, None, None)
    printed = call(*words).stdout
    for word in ("layers.0.hidden", "clipped", "dB", "windows", "8, 64 bins each, from sim00-day01", "few windows"):
        assert word in printed
    assert read_ranges(out, SIZE).values == ranges.values  # the same seed gives the same ranges
    assert answer(*words, "--seed", 1)["windows"] != found["windows"]


def test_fewer_windows_than_asked_for_are_told(home: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "many.toml"
    recipe.write_text(RECIPE.replace("windows = 8", "windows = 999"))
    printed = call(home / "run", day(home, 1), "--recipe", recipe, "--out", tmp_path / "r.json").stdout
    assert "of 999 asked for" in printed


def test_an_artefact_is_told_with_session_bin_and_value(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "hit.nwb"
    shutil.copy(day(home, 1), path)
    recipe = tmp_path / "many.toml"
    recipe.write_text(RECIPE.replace("windows = 8", "windows = 999"))
    clean = answer(home / "run", day(home, 1), "--recipe", recipe, "--out", tmp_path / "clean.json")
    with h5py.File(path, "r+") as file:
        series: list[h5py.Dataset] = []
        file.visititems(lambda name, node: series.append(node) if name.endswith("data") and node.ndim == 2 else None)
        lfp = next(node for node in series if node.shape[1] == 4)
        first = clean["windows"][5]["first_bin"]
        lfp[first * 5 : first * 5 + 50, 1] = np.iinfo(np.int16).max if lfp.dtype == np.int16 else 1000 * lfp[:, 1].std()
    found = answer(home / "run", path, "--recipe", recipe, "--out", tmp_path / "hit.json")
    artefacts = [one for one in found["left_out"] if one["value"] is not None]
    assert artefacts[0]["session"] == "sim00-day01"
    assert artefacts[0]["value"] > 100
    text = call(home / "run", path, "--recipe", recipe, "--out", tmp_path / "hit.json").stdout
    assert "Windows left out" in text
    assert "artefact" in text


def test_another_day_of_a_known_array_is_read_with_fresh_statistics(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "ranges.json"
    found = answer(home / "run", home / "data", "--recipe", home / "small.toml", "--out", out)
    assert set(found["sessions"]) == {"sim00-day01", "sim00-day02"}
    assert {window["session"] for window in found["windows"]} == set(found["sessions"])
    assert found["checkpoint_sha256"] == hash_checkpoint(load_student(home / "run")[0])


def test_an_array_the_student_does_not_know_is_refused(home: Path, tmp_path: Path) -> None:
    config = SimulationConfig(sessions=1, minutes=2.2, channels=5, units=5, population=20, rate_hz=500)
    list(simulate_to_nwb(config, tmp_path / "data"))
    words = (home / "run", tmp_path / "data", "--recipe", home / "small.toml", "--out", tmp_path / "r.json")
    refused(*words, says=("sim00-day01", "array the student has not seen", "5 channels"))
    assert not (tmp_path / "r.json").exists()


def test_mistakes_are_told_before_anything_heavy_happens(home: Path, tmp_path: Path) -> None:
    nowhere = (tmp_path / "none", tmp_path / "none.nwb", "--out", tmp_path / "r.json")
    (tmp_path / "mine.toml").write_text(RECIPE + "mehtod = 3\n")
    refused(*nowhere, "--recipe", "persentile", says=("unknown recipe 'persentile'", "did you mean 'percentile'"))
    refused(*nowhere, "--recipe", tmp_path / "mine.toml", says=("mehtod", "did you mean 'method'"))
    refused(*nowhere, "--recipe", "qat", says=("'qat'", "--teacher"))
    (tmp_path / "folder.json").mkdir()
    for out in ("day.nwb", "ranges", "folder.json"):
        refused(*nowhere[:2], "--out", tmp_path / out, says=(out, "ends in .json"))
    refused(*nowhere, "--figure", "a.png", says=("--figure", "--sensitivity"))
    refused(*nowhere, "--sensitivity", "--figure", "a.doc", says=("a.doc", ".png"))
    refused(*nowhere, says=("none holds no student", "edgedistill distill"))
    (tmp_path / "keep.toml").write_text(RECIPE + 'keep = ["layers.0.atention"]\n')
    keep = ("--recipe", tmp_path / "keep.toml", "--out", tmp_path / "r.json")
    refused(home / "run", tmp_path / "none.nwb", *keep, says=("layers.0.atention",))
    inside = home / "run" / "model.json"
    refused(home / "run", day(home, 1), "--out", inside, says=("model.json", "an input of the command"))


def test_misspelt_recipes_do_not_import_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from edgedistill.cli import main\n"
        "from click.testing import CliRunner\n"
        "done = CliRunner().invoke(main, ['calibrate', 'a', 'b', '--out', 'c.json', '--recipe', 'msee'])\n"
        "assert done.exit_code == 1 and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240, cwd=tmp_path)


# ---------------------------------------------------------------- fine-tuning and ranking


def test_a_recipe_that_fine_tunes_writes_the_student_its_ranges_are_of(home: Path, tmp_path: Path) -> None:
    recipe, out = tmp_path / "tuned.toml", tmp_path / "ranges.json"
    recipe.write_text(RECIPE + "[finetune]\nsteps = 2\n")
    torch.manual_seed(0)
    bins = load_sessions([day(home, 1)], need=("units",))
    assert bins[0].counts is not None
    teacher = PatchAutoencoder(TEACHER, {"sim00-day01": bins[0].counts.shape[1]}, counts=True)
    save_teacher(teacher, tmp_path / "teacher", {})
    words = (home / "run", day(home, 1), "--recipe", recipe, "--teacher", tmp_path / "teacher", "--out", out)
    found = answer(*words)
    assert found["student"] == str(tmp_path / "ranges.student")
    student, facts = load_student(tmp_path / "ranges.student")
    ranges = read_ranges(out, SIZE)
    ranges.require_for(hash_checkpoint(student))
    assert facts["finetuned_from"] == hash_checkpoint(load_student(home / "run")[0])
    assert (facts["row"], list(facts["readouts"])) == ("distilled", ["sim00-day01"])
    assert [row["name"] for row in ranges.table] == list(ranges.values)
    assert all(row["noise_db"] > 5 for row in ranges.table)
    assert answer(*words)["table"] == found["table"]  # the kept stage is not run again
    save_teacher(
        PatchAutoencoder(replace(TEACHER, predictor_d=4), teacher.channels, counts=True), tmp_path / "teacher", {}
    )
    refused(*words, says=("another teacher", "4 numbers", "12 numbers"))


def test_the_ranking_of_parts_is_shown_and_drawn(home: Path, tmp_path: Path) -> None:
    words = (home / "run", day(home, 1), "--recipe", home / "small.toml", "--sensitivity")
    found = answer(*words, "--out", tmp_path / "ranges.json")
    lost = [one["r2_drop"] for one in found["sensitivity"]]
    assert lost == sorted(lost, reverse=True)
    assert {one["part"] for one in found["sensitivity"]} == set(part_names(shape_from_size(SIZE)))
    assert found["figure"] == str(tmp_path / "ranges.png")
    assert (tmp_path / "ranges.png").read_bytes().startswith(b"\x89PNG")
    text = call(*words, "--out", tmp_path / "ranges.json", "--figure", tmp_path / "a.svg").stdout
    assert "R² lost" in text
    assert (tmp_path / "a.svg").exists()


def test_the_chart_of_a_ranking(tmp_path: Path) -> None:
    calibration.draw_ranking((("layers.0.qkv", 0.01), ("embed", 0.0), ("readout", -0.001)), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
