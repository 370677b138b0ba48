"""Makes a whole session for the data tests, as an NWB file and as bins."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgedistill.data.session import SessionBins

from . import nwb_files as make
from .binning import read_bins


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make.whole_session(tmp_path_factory.mktemp("whole") / "whole.nwb")


@pytest.fixture(scope="session")
def bins(whole: Path) -> SessionBins:
    return read_bins(whole)
