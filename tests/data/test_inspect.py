"""The report on a file says what it holds, what each command lacks, and what looks odd."""

from __future__ import annotations

import json
from pathlib import Path

from edgedistill.data.inspect import NEEDS, describe

from . import nwb_files as make


def test_the_report_says_what_is_there_and_what_is_missing(whole: Path, tmp_path: Path) -> None:
    report = describe(whole)
    assert all(not lacks for lacks in report.missing.values())
    assert json.loads(json.dumps(report.to_json()))["lfp"]["rate"] == "250/1"
    assert set(report.to_json()["commands"]) == set(NEEDS)  # type: ignore[call-overload]
    assert "cursor_vel_x (cm/s)" in report.to_text()
    assert "s kept (the samples of the LFP were not looked at)\n" in report.to_text()

    nwb = make.new_nwb(session_id=None)
    data = make.lfp_volts(seconds=30)
    data[:, 1] = 0
    make.add_lfp(nwb, data, conversion=1e-6)
    make.add_behavior(nwb, name="force", unit="N")
    report = describe(make.write(nwb, tmp_path / "short.nwb"))
    assert report.session_id == "short"
    assert not report.missing["run"]
    assert report.missing["calibrate"] == ("two minutes of LFP",)
    assert report.missing["distill"] == (
        "units (spike times)",
        "two minutes of LFP",
    )
    assert report.missing["probe"] == report.missing["bench"] == ("behavior",)
    notes = " ".join(report.notes)
    assert "without signal" in notes
    assert "conversion" in notes
    assert "processing/behavior/force" in notes
    assert "needs units" in report.to_text()
