"""`edgedistill bench` and `edgedistill report` show figures on the screen, in a file and on a page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgedistill.target import Gate

from .calling import answer, call, refused


@pytest.mark.usefixtures("busy_machine")
def test_bench_prints_every_subject_and_the_machines_own_noise(bundle: Path, session: Path) -> None:
    found = answer("bench", bundle, "--steps", 20, "--closed-loop", 0)
    assert set(found) == {
        *(
            "device",
            "bundle",
            "series",
            "scored_s",
            "left_out_s",
            "warnings",
            "subjects",
            "absent",
            "ratios",
            "clock",
            "empty_paced",
            "frames_paced",
            "gates",
            "harness",
        ),
        *("trace", "layers", "calibration", "intervals", "robustness", "system", "command", "created"),
    }
    assert (found["series"], found["scored_s"], found["left_out_s"], found["warnings"]) == (None, None, None, [])
    text = call("bench", bundle, "--data", session, "--steps", 20, "--closed-loop", 0.1, "--system")
    assert text.exit_code == 0, text.output
    assert text.stderr.startswith("warning: the bundle does not state")
    assert "processing/ecephys/LFP/ElectricalSeries" in text.stdout
    assert "of 40 s kept; left out: warm-up" in text.stdout
    for word in (
        "lfp-student-fp32",
        "spike-student",
        "empty step",
        "not measured",
        "Gates",
        "emptied",
        "radio_pj_per_bit",
        "1 channels, bank, 4 draws",
        "90% interval",
    ):
        assert word in text.output


@pytest.mark.usefixtures("busy_machine")
def test_a_bench_becomes_a_page(bundle: Path, tmp_path: Path) -> None:
    result, page = tmp_path / "one.json", tmp_path / "deep" / "page.html"
    quick = ("--steps", 5, "--closed-loop", 0, "--against", "spike-student-int8")
    answer("bench", bundle, *quick, "--assume", "radio_pj_per_bit=100", "--out", result)
    held = json.loads(result.read_text())
    assert [row["name"] for row in held["subjects"]] == ["lfp-student-fp32", "lfp-student-int8", "spike-student-int8"]
    assert held["system"]["assumptions"]["radio_pj_per_bit"]["source"] == "given"
    found = answer("report", result, "--out", page)
    assert found["bytes"] == page.stat().st_size
    assert "spike-student-int8" in page.read_text()
    assert [path.name for path in page.parent.iterdir()] == ["page.html"]
    refused(
        "report",
        result,
        "--out",
        page / "below.html",
        says=("below.html", "could not be written", "a file is in the way"),
    )


def test_what_cannot_be_reported_or_measured_is_refused(bundle: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    (tmp_path / "odd.json").write_text("{}")
    (tmp_path / "cut.json").write_text('{"device": ')
    refused("report", tmp_path / "odd.json", "--out", page, says=("odd.json", "edgedistill bench"))
    refused("report", tmp_path / "cut.json", "--out", page, says=("cut.json", "not a result"))
    refused("report", tmp_path / "none.json", "--out", page, says=("none.json", "no such file"))
    refused("report", tmp_path / "odd.json", "--out", tmp_path / "odd.json", says=("odd.json", "an input"))
    refused("bench", bundle, "--data", page.parent / "odd.json", "--out", tmp_path / "odd.json", says=("an input",))
    refused("bench", bundle, "--against", "torch-eagr", says=("torch-eagr", "torch-eager"))
    refused("bench", bundle, "--assume", "radio=1", says=("radio", "radio_pj_per_bit"))
    assert call("bench", bundle, "--assume", "radio_pj_per_bit").exit_code == 2
    for option in ("--lfp", "--behavior"):
        refused("bench", bundle, option, "one", says=("--data",), code=2)
    assert not page.exists()


def test_a_missed_gate_of_a_bench_is_exit_3(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missed = (Gate("step_p99_us_max", 12.0, 10.0, False),)
    monkeypatch.setattr("edgedistill.target.Target.judge", lambda *_: missed)
    assert answer("bench", bundle, "--steps", 2, "--closed-loop", 0, code=3)["gates"][0]["ok"] is False
