"""A session is kept in one file, is read back bit for bit, and takes no memory by its length."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from edgedistill.data.bins import SessionBins
from edgedistill.data.session_store import load_session_bins, save_session_bins
from edgedistill.errors import OutputError, RecordingError

from .binning import read_bins


@pytest.mark.parametrize("need", [("lfp", "units", "behavior"), ("units",)])
def test_a_cached_session_is_read_back_bit_for_bit(whole: Path, tmp_path: Path, need: tuple[str, ...]) -> None:
    bins = read_bins(whole, need=need)
    save_session_bins(bins, tmp_path / "deep" / "bins.safetensors")
    again = load_session_bins(tmp_path / "deep" / "bins.safetensors")
    for field in fields(SessionBins):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(bins, field.name))
    assert again.frontend == bins.frontend
    assert again.electrodes == bins.electrodes
    assert len(bins.electrodes) == len(bins.channel_ids)
    assert set(bins.series) == {*need, "lfp"}  # the LFP gives the clock
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["bins.safetensors"]


def test_a_damaged_cache_is_refused_and_a_failed_write_is_reported(bins: SessionBins, tmp_path: Path) -> None:
    path = tmp_path / "bins.safetensors"
    save_session_bins(bins, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RecordingError, match="not a cached session"):
        load_session_bins(path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        save_session_bins(bins, tmp_path / "file" / "bins.safetensors")


def test_a_kept_session_cannot_be_changed(bins: SessionBins, tmp_path: Path) -> None:
    save_session_bins(bins, tmp_path / "bins.safetensors")
    again = load_session_bins(tmp_path / "bins.safetensors")
    assert again.lfp is not None
    with pytest.raises(ValueError, match="read-only"):
        again.lfp[0] = 0


def test_a_kept_session_is_a_file_that_others_read(bins: SessionBins, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    save_session_bins(bins, tmp_path / "bins.safetensors")
    found = load_file(tmp_path / "bins.safetensors")
    assert bins.lfp is not None
    np.testing.assert_array_equal(found["lfp"], bins.lfp)
    np.testing.assert_array_equal(found["bad"], bins.bad)
