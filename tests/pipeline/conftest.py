"""Makes sessions, a first build and a pretrained student once for all tests of this folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cpu.small_builds import quick_measures, write_preset, write_quick_host
from edgedistill import pipeline as stages
from edgedistill.data.simulation.nwb import simulate_to_nwb
from edgedistill.data.simulation.sessions import SimulationConfig
from edgedistill.pipeline import BuildResult, DistillOptions, PretrainOptions
from edgedistill.pipeline.assembled import Ingredients
from edgedistill.pipeline.written_bundle import WrittenBundle

from .tiny_builds import options


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with quick_measures():
        yield


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with sessions of three days and a preset."""
    folder = tmp_path_factory.mktemp("build")
    small = SimulationConfig(sessions=3, minutes=2.2, channels=4, units=10, population=40, rate_hz=500)
    list(simulate_to_nwb(small, folder / "data"))
    write_preset(folder / "tiny.toml")
    write_quick_host(folder / "host.toml")
    return folder


@pytest.fixture(scope="session")
def first(home: Path) -> BuildResult:
    """Runs a build whose kept stages the other builds reuse."""
    with quick_measures():
        result = stages.build(options(home, home / "first.edge", work=home / "first.work"))
    shutil.copytree(home / "first.work", home / "work", dirs_exist_ok=True)
    return result


@pytest.fixture
def first_work(home: Path, first: BuildResult, tmp_path: Path) -> Path:
    """A folder with the stages of the first build alone, whatever other tests have built since."""
    return Path(shutil.copytree(home / "first.work", tmp_path / "work"))


@pytest.fixture(scope="session")
def pretrained(home: Path) -> Path:
    """Returns the same folder, with a teacher and a student of the first two days."""
    days = tuple(home / "data" / f"sim00_day{day:02d}.nwb" for day in (1, 2))
    settings: dict[str, Any] = {"preset": str(home / "tiny.toml"), "steps": 6}
    stages.pretrain(PretrainOptions(days, home / "teacher", **settings))
    stages.distill(DistillOptions(days, home / "teacher", home / "student", supervised=True, **settings))
    return home


@pytest.fixture
def unwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends builds before the bundle is written, for tests that only ask which stages run."""
    monkeypatch.setattr(
        "edgedistill.pipeline.assembled.write_decoder_bundle", lambda _, __: WrittenBundle((), None, {}, {})
    )


@pytest.fixture
def ingredients(monkeypatch: pytest.MonkeyPatch) -> list[Ingredients]:
    """Collects the ingredients of the bundles that builds would write. No bundle is written."""
    found: list[Ingredients] = []
    monkeypatch.setattr(
        "edgedistill.pipeline.assembled.write_decoder_bundle",
        lambda one, _: found.append(one) or WrittenBundle((), None, {}, {}),
    )
    return found


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test in which a build begins to train a model."""

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a model was trained")

    monkeypatch.setattr("edgedistill.pipeline.teacher.train_teacher", forbidden)
    monkeypatch.setattr("edgedistill.pipeline.students.train_task", forbidden)
