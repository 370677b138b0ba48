"""Provides the first day of an array and its bundle."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgedistill.bundle import Bundle

from .days import bundle_of, write_day


@pytest.fixture(scope="module")
def first_day(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_day(tmp_path_factory.mktemp("days") / "first.nwb")


@pytest.fixture(scope="module")
def bundle(first_day: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundle_of(first_day, tmp_path_factory.mktemp("days") / "first.edge")
