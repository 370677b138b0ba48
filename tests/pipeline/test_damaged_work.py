"""A build whose work folder was damaged makes again what is damaged, and ends with the bits of an undisturbed one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import h5py
import pytest

from edgedistill import pipeline as stages
from edgedistill.bundle import open_bundle
from edgedistill.errors import RecordingError
from edgedistill.pipeline import BuildResult, holdout_files
from edgedistill.pipeline.assembled import Ingredients

from .test_stage_record import flip, link
from .tiny_builds import CALIBRATED, LINEAR, READS, STUDENTS, TEACHER, options, ran

COMPARED = (
    "student.safetensors",
    "student.int8.safetensors",
    "holdout.npz",
    "reference.npz",
    "subjects/ridge.safetensors",
)


def damage_in_turn(folders: list[Path]) -> None:
    """Damages every file of kept stages in one of five ways, each in turn."""
    for number, folder in enumerate(folders):
        path = max((p for p in folder.iterdir() if p.name != "record.json"), key=lambda p: p.stat().st_size)
        if number % 5 == 0:
            flip(path, path.stat().st_size // 2)
        elif number % 5 == 1:
            os.truncate(path, path.stat().st_size - 1)
        elif number % 5 == 2:
            path.unlink()
        elif number % 5 == 3:
            link(path)
        else:
            (folder / "added.npz").write_bytes(b"")


def test_a_damaged_stage_is_made_again_with_the_same_bits(
    home: Path, first: BuildResult, first_work: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folders = sorted(path for path in first_work.iterdir() if path.is_dir())
    damage_in_turn(folders)
    result = stages.build(options(home, tmp_path / "x.zip", work=first_work))
    assert ran(result) == READS | STUDENTS | TEACHER | CALIBRATED | LINEAR
    named = {stage.name: stage.damage for stage in result.stages if stage.damage is not None}
    assert set(named) == ran(result)
    assert len([line for line in caplog.messages if "is damaged and made again" in line]) == len(folders)
    mine, its = open_bundle(result.bundle), open_bundle(first.bundle)
    for name in COMPARED:
        assert mine.read(name) == its.read(name), name
    assert result.metrics == first.metrics
    assert ran(stages.build(options(home, tmp_path / "y.zip", work=first_work))) == set()


def test_a_session_that_changed_before_the_bundle_is_written_is_refused_by_name(
    home: Path, first: BuildResult, first_work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holdout has raw frames of the file, and the manifest names the file by its hash."""
    shutil.copytree(home / "data", tmp_path / "data")
    write = holdout_files.raw_stretch

    def change_and_write(*given: object) -> object:
        path = tmp_path / "data" / "sim00_day03.nwb"
        times = path.stat()
        with h5py.File(path, "a") as file:
            found: list[h5py.Dataset] = []
            file.visititems(lambda _, held: found.append(held) if isinstance(held, h5py.Dataset) else None)
            max(found, key=lambda held: held.size)[-1] = 0
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        return write(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(holdout_files, "raw_stretch", change_and_write)
    asked = options(home, tmp_path / "x.edge", work=first_work, data=(tmp_path / "data",))
    with pytest.raises(RecordingError, match=r"sim00_day03\.nwb: the session changed while it was used"):
        stages.build(asked)
    assert not asked.out.exists()


@pytest.mark.variant
def test_a_search_whose_files_were_damaged_ends_with_the_same_trials(
    home: Path, first_work: Path, tmp_path: Path, ingredients: list[Ingredients], caplog: pytest.LogCaptureFixture
) -> None:
    """A trial is trained again alone; where the study is damaged, the whole search is made again."""
    pytest.importorskip("optuna")
    asked = options(home, tmp_path / "x.edge", work=first_work, trials=3)
    undisturbed = stages.build(asked)
    (deployed,), (distilled,) = (first_work.glob(f"search-{name}-*") for name in ("deployed", "distilled"))
    weights = {path: path.read_bytes() for path in first_work.glob("search-*/trial-*/model.safetensors")}
    path = min(deployed.glob("trial-*/model.safetensors"))
    flip(path, -1)
    study = distilled / "study.json"
    study.write_text(study.read_text().replace("finished", "diverged", 1))
    seen: set[str] = set()
    again = stages.build(asked, lambda name, *_: seen.add(name))
    assert {name for name in seen if "trial" in name} == {
        f"deployed, trial {int(path.parent.name.removeprefix('trial-')) + 1} of 3",
        *(f"distilled, trial {number} of 3" for number in (1, 2, 3)),
    }
    assert again.training == undisturbed.training
    assert {path: path.read_bytes() for path in weights} == weights
    assert len([line for line in caplog.messages if "is damaged and made again" in line]) == 2
