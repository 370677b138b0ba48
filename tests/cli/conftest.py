"""Provides a bundle, a session, and a pipeline whose stages do nothing, for the tests of all commands.

torch and pynwb are imported by the fixtures that need them, because pytest reads this file before it collects anything.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from .fake_pipeline import FakePipeline


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from ..bundles import write_test_bundle

    return write_test_bundle(tmp_path_factory.mktemp("cli") / "test.edge").path


@pytest.fixture(scope="session")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from ..data.nwb_files import whole_session

    return whole_session(tmp_path_factory.mktemp("cli") / "s1.nwb", seconds=40)


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> FakePipeline:
    import edgedistill

    fake = FakePipeline("edgedistill.pipeline")
    monkeypatch.setitem(sys.modules, "edgedistill.pipeline", fake)
    monkeypatch.setattr(edgedistill, "pipeline", fake, raising=False)
    return fake


@pytest.fixture
def busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Marks the machine as busy, so that benches do not judge the longest step, which other tests delay."""
    module = importlib.import_module("edgedistill.bench.comparison")  # the package's attribute `bench` is the function
    monkeypatch.setattr(module, "explain_foreign_time", lambda *_: "the machine is busy")
