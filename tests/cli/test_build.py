"""`edgedistill build` passes its options on, prints the result, and suggests the right name for a misspelt one."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgedistill.data.candidates import SeriesNames
from edgedistill.data.opening.catalogue import ReadingOptions
from edgedistill.quantization.calibration.recipe import DEFAULT_RECIPE

from .calling import answer, call, refused
from .fake_pipeline import FakePipeline


def test_build_hands_over_its_options(stages: FakePipeline) -> None:
    found = answer(
        *("build", "--target", "host", "--data", "a.nwb", "b.nwb", "--out", "x.edge", "--data", "more"),
        *("--preset", "nano", "--session", "s2", "--steps", 5, "--seed", 3, "--baselines", "--label-minutes", 0.5),
        *("--trials", 20, "--jobs", 2),
    )
    assert found["metrics"]["int8_r2"] is None
    assert stages.asked == {
        "target": "host",
        "data": (Path("a.nwb"), Path("more"), Path("b.nwb")),
        "out": Path("x.edge"),
        "preset": "nano",
        "session": "s2",
        "baselines": True,
        "spikes": False,
        "steps": 5,
        "seed": 3,
        "teacher": None,
        "student": None,
        "adapt": "stats",
        "probe": False,
        "names": SeriesNames(),
        "line_hz": 60.0,
        "work": None,
        "recipe": DEFAULT_RECIPE,
        "ranges": None,
        "follow_s": 0.0,
        "alignment": None,
        "ship": False,
        "bands": "preset",
        "smooth": "kalman",
        "label_minutes": 0.5,
        "trials": 20,
        "sign": None,
        "reading": ReadingOptions(jobs=2, skip_bad=False),
    }


@pytest.mark.parametrize(("ok", "code"), [(True, 0), (None, 0), (False, 3)])
def test_a_missed_gate_is_exit_3_after_all_was_printed(stages: FakePipeline, ok: bool | None, code: int) -> None:
    stages.ok = ok
    words = ("build", "--target", "host", "--data", "a", "--out", "x.edge")
    assert answer(*words, code=code)["gates"][0]["ok"] is ok
    printed = call(*words)
    assert printed.exit_code == code
    assert "spike teacher" in printed.output
    assert {True: "met", None: "not measured", False: "MISSED"}[ok] in printed.output
    notes = ("left out: student.int8.onnx: its R² differs", "note: the deviations are those of the behavior")
    assert tuple(printed.stderr.splitlines()) == notes  # with --json, stdout is nothing but JSON


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--preset", "edeg", "--target", "host"), ("unknown preset 'edeg'", "did you mean 'edge'")),
        (("--target", "hots"), ("unknown target 'hots'", "did you mean 'host'")),
    ],
)
def test_names_that_do_not_exist(stages: FakePipeline, words: tuple[str, ...], says: tuple[str, ...]) -> None:
    refused("build", *words, "--data", "a", "--out", "x.edge", says=says)
