"""Times of a session are read on every Python, and a time zone that the machine does not know is told."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import NoReturn
from zoneinfo import ZoneInfoNotFoundError

import h5py
import pytest

from edgedistill.convert import convert_flint, convert_makin, nwb_parts
from edgedistill.convert.nwb_parts import parse_start

from .published import write_flint, write_makin


class OldDatetime(datetime):
    """Reads ISO 8601 as Python 3.10 does."""

    @classmethod
    def fromisoformat(cls, text: str) -> datetime:  # type: ignore[override]
        if text.endswith("Z"):
            raise ValueError(text)
        return datetime.fromisoformat(text)


def test_a_time_in_utc_may_end_in_z(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nwb_parts, "datetime", OldDatetime)
    start = parse_start("2016-04-07T10:30:00Z", "America/Chicago")
    assert start is not None
    assert (start.utcoffset(), start.hour) == (timedelta(0), 10)
    made = write_makin(tmp_path, seconds=1)
    with h5py.File(made.broadband, "r+") as file:
        file["session_start_time"] = "2016-04-07T17:42:27Z"
    found = convert_makin(made.mat, made.broadband, tmp_path / "out.nwb")
    assert found.session_start == "2016-04-07T17:42:27+00:00"


def test_an_unknown_time_zone_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(zone: str) -> NoReturn:
        raise ZoneInfoNotFoundError(zone)

    monkeypatch.setattr(nwb_parts, "ZoneInfo", unknown)
    made, mat = write_makin(tmp_path, seconds=1), tmp_path / "Flint_2012_e2.mat"
    write_flint(mat, trials=2)
    out = tmp_path / "out.nwb"
    for found, zone in (
        (convert_makin(made.mat, made.broadband, out), "America/Los_Angeles"),
        (convert_flint(mat, out)[0], "America/Chicago"),
    ):
        assert found.session_start.endswith("+00:00")
        assert any(f"time zone {zone}" in note for note in found.notes), found.notes
    (named,) = convert_flint(mat, out, session_start="2010-06-01T10:00:00+00:00")
    assert not any("time zone" in note for note in named.notes)
