"""Provides a Jetson and a bundle to compile on it, for every test of this folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edgedistill.bundle import Bundle, open_bundle
from edgedistill.compile.tensorrt import trials
from edgedistill.measure.score import score_kinematics

from .jetsons import Jetson, become_jetson, write_jetson_bundle


@pytest.fixture(scope="package")
def written(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundles")
    bundle = write_jetson_bundle(folder / "decoder.edge")
    r2 = _r2_of_oracle(bundle)
    return write_jetson_bundle(folder / "decoder.edge", metrics={"deployed_r2": r2, "int8_r2": r2})


@pytest.fixture
def bundle(written: Bundle, tmp_path: Path) -> Bundle:
    shutil.copytree(written.path, tmp_path / "decoder.edge", ignore=shutil.ignore_patterns("build"))
    return open_bundle(tmp_path / "decoder.edge")


@pytest.fixture
def jetson(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bundle: Bundle, own_cache: Path) -> Jetson:
    return become_jetson(monkeypatch, tmp_path, bundle)


def _r2_of_oracle(bundle: Bundle) -> float:
    evidence = trials.evidence_of(bundle)
    r2 = score_kinematics(evidence.decoded, evidence.kinematics[evidence.score_from :], "").r2
    assert r2 is not None
    return r2
