"""`edgedistill convert` writes sessions that `inspect` can read, and says what it found on the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..convert.published import write_flint, write_makin
from .calling import answer, call, refused


def test_a_session_of_makin_is_ready_for_every_command(tmp_path: Path) -> None:
    made, out = write_makin(tmp_path, seconds=122, channels=2, rate=2000.3), tmp_path / "out.nwb"
    (file,) = answer("convert", "makin", made.mat, made.broadband, "--out", out)["files"]
    assert (file["path"], file["bytes"]) == (str(out), out.stat().st_size)
    assert (file["lfp"]["channels"], file["lfp"]["gaps"], file["units"]) == (2, 0, 7)
    found = answer("inspect", out)
    assert all(command["ready"] for command in found["commands"].values()), found["commands"]
    assert found["problems"] == []
    assert [found["lfp"]["series"]] == file["lfp"]["series"]
    assert found["behavior"]["series"] == file["behavior"][0]["series"]
    assert found["lfp"]["rate_hz"] == pytest.approx(file["lfp"]["rate_hz"], rel=1e-9)


def test_a_session_of_makin_with_a_gap_is_ready_for_every_command(tmp_path: Path) -> None:
    made, out = write_makin(tmp_path, seconds=244, channels=2, rate=2000.3, step_after=244_000), tmp_path / "out.nwb"
    (file,) = answer("convert", "makin", made.mat, made.broadband, "--out", out)["files"]
    assert (file["lfp"]["gaps"], len(file["lfp"]["series"])) == (1, 2)
    found = answer("inspect", out)
    assert all(command["ready"] for command in found["commands"].values()), found["commands"]
    assert found["problems"] == []


def test_a_recording_of_flint_with_pauses_is_ready_for_every_command(tmp_path: Path) -> None:
    write_flint(tmp_path / "Flint_2012_e2.mat", trials=20, seconds=12.0)
    (file,) = answer("convert", "flint", tmp_path / "Flint_2012_e2.mat", "--out", tmp_path / "out.nwb")["files"]
    assert file["lfp"]["gaps"] == 19
    found = answer("inspect", tmp_path / "out.nwb")
    assert all(command["ready"] for command in found["commands"].values()), found["commands"]
    assert found["problems"] == []


def test_a_gap_and_the_true_rate_are_printed(tmp_path: Path) -> None:
    made = write_makin(tmp_path, step_after=30_000)
    printed = call("convert", "makin", made.mat, made.broadband, "--out", tmp_path / "out.nwb").output
    assert "note: a gap in the broadband from" in printed
    assert "24414.33333 Hz by the timestamps, +11.1 ppm" in printed
    assert "11 of" not in printed
    assert "1 of 0.400 s together" in printed


def test_flint_becomes_one_file_a_recording(tmp_path: Path) -> None:
    write_flint(tmp_path / "Flint_2012_e2.mat", recordings=2)
    out = tmp_path / "sessions"
    files = answer("convert", "flint", tmp_path / "Flint_2012_e2.mat", "--out", out)["files"]
    assert [Path(file["path"]).name for file in files] == ["Flint_2012_e2_s1.nwb", "Flint_2012_e2_s2.nwb"]
    assert [file["lfp"]["gaps"] for file in files] == [2, 2]
    printed = call("convert", "flint", tmp_path / "Flint_2012_e2.mat", "--out", out).output
    assert "note: HandPos is in cm" in printed


def test_wrong_input_is_exit_1_with_what_was_found(tmp_path: Path) -> None:
    made, out = write_makin(tmp_path, seconds=1), tmp_path / "out.nwb"
    refused("convert", "makin", made.broadband, made.mat, "--out", out, says=("an NWB 1 file", "wrong order"))
    refused("convert", "flint", made.mat, "--out", out, says=("a MATLAB 7.3 file", "convert flint"))
    refused("convert", "makin", tmp_path / "none.mat", made.broadband, "--out", out, says=("none.mat", "No such file"))
    refused(
        *("convert", "makin", made.mat, made.broadband, "--out", out, "--session-start", "yesterday"),
        says=("--session-start", "yesterday"),
    )
