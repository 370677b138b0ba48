"""Tests that need a device or minutes are skipped with the reason, never silently."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from edgedistill import staging

# The same examples in every run, and no limit of their time, so that a change is judged, not luck or a busy machine.
# --hypothesis-profile=default draws others.
settings.register_profile("steady", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")
    parser.addoption("--variants", action="store_true", help="also run further variants of what other tests cover")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    jetson = Path("/etc/nv_tegra_release").exists()
    lacking = {
        "gpu": None if shutil.which("nvidia-smi") or jetson else "no NVIDIA GPU on this machine",
        "tensorrt": None if find_spec("tensorrt") else "TensorRT is not installed",
        "jetson": None if jetson else "this machine is not a Jetson",
        "slow": None if config.getoption("--slow") else "takes minutes: pytest --slow",
        "variant": None if config.getoption("--variants") else "another test covers most of it: pytest --variants",
    }
    for item in items:
        for mark in item.iter_markers():
            if reason := lacking.get(mark.name):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keeps what is compiled away from the cache of the user who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder / "edgedistill"


@pytest.fixture(scope="session", autouse=True)
def unsynced() -> Iterator[None]:
    """Lets no test wait for a busy disk. A test that looks at the waiting brings it back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(staging, "_sync_whole_disk", lambda descriptor: True)
        patch.setattr(staging, "_sync", lambda descriptor: None)
        yield


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns an empty cache of compiled engines that only this test uses."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own-cache"))
    return tmp_path / "own-cache" / "edgedistill"


def group_of(nodeid: str) -> str:
    """Returns what one worker runs whole: a file, whose tests share fixtures, or tests/pipeline with its long build."""
    file = nodeid.partition("::")[0]
    return "pipeline" if file.startswith("tests/pipeline/") else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Returns a scheduler that deals out groups of tests."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return Groups(config, log)
