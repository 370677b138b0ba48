"""`edgedistill inspect` shows what a bundle holds, and refuses a path that is neither a session nor a bundle."""

from __future__ import annotations

from pathlib import Path

from ..bundles import write_test_bundle
from .calling import answer, call, refused


def test_a_bundle_can_be_inspected(bundle: Path) -> None:
    found = answer("inspect", bundle)
    assert (found["kind"], found["rate"], found["target"]) == ("bundle", "250/1", "host")
    assert found["outputs"][0] == {"name": "cursor_vel_x", "unit": "cm/s"}
    assert "student.onnx" in found["files"]
    text = call("inspect", bundle).output
    assert "cursor_vel_x (cm/s)" in text
    assert "deployed_r2" in text


def test_a_bundle_tells_what_its_deviations_rest_on(bundle: Path, tmp_path: Path) -> None:
    assert answer("inspect", bundle)["confidence"] is None
    assert "deviations" not in call("inspect", bundle).output
    for confidence, says in (
        ({"labelled_bins": 8035, "standard_error": 0.0081, "note": None}, "on 80.35 s that no training saw"),
        ({"labelled_bins": 8035, "standard_error": 0.0081, "note": None}, "90 % intervals cover 90 ± 0.8 %"),
        ({"labelled_bins": 900, "standard_error": None, "note": None}, "on 9 s that no training saw"),
        ({"labelled_bins": 120, "standard_error": None, "note": "too few labels"}, "not calibrated: too few labels"),
    ):
        told = write_test_bundle(tmp_path / "told.edge", confidence=confidence).path
        assert answer("inspect", told)["confidence"] == confidence
        assert says in call("inspect", told).output


def test_a_bundle_tells_what_its_student_sees_of_each_channel(bundle: Path, tmp_path: Path) -> None:
    assert answer("inspect", bundle)["frontend"]["bands"] == []
    assert "slow LFP below 50 Hz\n" in call("inspect", bundle).output
    banded = write_test_bundle(tmp_path / "bands.edge", bands=True).path
    facts = answer("inspect", banded)
    assert (facts["frontend"]["bands"], facts["frontend"]["band_ms"]) == ([[12, 30], [30, 60]], 100)
    assert (facts["model"]["channels"], facts["frontend"]["channels"]) == (9, 3)
    text = call("inspect", banded).output
    assert "3 channels at 250 Hz" in text
    assert "slow LFP below 50 Hz, and log power in 12-30, 30-60 Hz" in text


def test_a_bundle_tells_how_its_outputs_are_smoothed(bundle: Path, tmp_path: Path) -> None:
    assert (answer("inspect", bundle)["smoothing"], answer("inspect", bundle)["smoothing_delay_ms"]) == (None, None)
    kalman = {"kind": "kalman", "order": 2, "noise": 0.5, "validation_r2": 0.62, "raw_validation_r2": 0.571}
    for smoothing, says in (
        (kalman | {"note": None}, "kalman of order 2, R² on the validation block 0.571 before it and 0.620 after it"),
        (dict.fromkeys(kalman) | {"kind": "none", "note": "--smooth none"}, "none, because of: --smooth none"),
        (dict.fromkeys(kalman) | {"kind": "none", "note": None}, "none, which decoded the validation block best"),
    ):
        delay_ms = 21.5 if smoothing["kind"] == "kalman" else 0.0
        told = write_test_bundle(tmp_path / "told.edge", smoothing=smoothing, smoothing_delay_ms=delay_ms).path
        found, text = answer("inspect", told), call("inspect", told).output
        assert (found["smoothing"], found["smoothing_delay_ms"]) == (smoothing, delay_ms)
        assert says in text
        assert ("21.500 ms through the filter of the outputs" in text) == bool(delay_ms)


def test_a_bundle_has_no_series_to_name(bundle: Path) -> None:
    for option in ("--lfp", "--units", "--behavior"):
        refused("inspect", bundle, option, "one", says=("a bundle has none",), code=2)


def test_an_unreadable_file_of_a_folder_says_all_that_an_error_says(tmp_path: Path) -> None:
    (tmp_path / "empty.nwb").touch()
    (one,) = answer("inspect", tmp_path, code=1)["sessions"]
    alone = answer("inspect", tmp_path / "empty.nwb", code=1)["error"]
    assert one.pop("kind") == "unreadable"
    assert one.pop("path") == str(tmp_path / "empty.nwb")
    assert one == {key: value for key, value in alone.items() if key not in ("type", "exit_code")}


def test_a_list_and_a_pattern_are_shown_as_a_folder_is(tmp_path: Path) -> None:
    (tmp_path / "empty.nwb").touch()
    (tmp_path / "all.txt").write_text("empty.nwb\n")
    shown = answer("inspect", tmp_path, code=1)["sessions"]
    assert answer("inspect", tmp_path / "all.txt", code=1)["sessions"] == shown
    assert answer("inspect", tmp_path / "*.nwb", code=1)["sessions"] == shown


def test_what_is_not_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    refused("bench", tmp_path / "folder", says=("folder", "not an edgedistill bundle"))
    refused("inspect", tmp_path / "none.edge", says=("none.edge", "no such file"))
