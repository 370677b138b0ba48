"""`edgedistill adapt` passes on what the user asked for, and prints what was learned, scored and judged."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from edgedistill.data.candidates import SeriesNames
from edgedistill.errors import DeviceError
from edgedistill.pipeline import adaptation
from edgedistill.pipeline.adaptation import AdaptOptions, AdaptResult
from edgedistill.pipeline.another_day import NOTHING_FOLLOWS, StretchOptions
from edgedistill.pipeline.written_bundle import WrittenBundle
from edgedistill.target import Gate

from .calling import answer, call, refused

FOUND = AdaptResult(
    bundle=Path("friday.edge"),
    target="host",
    session="friday",
    used_s=(0.0, 120.0),
    kept=("7",),
    before_r2=0.25,
    metrics={"deployed_r2": 0.501, "int8_r2": 0.5},
    unscored=None,
    written=WrittenBundle((Gate("int8_r2_drop", 0.001, 0.005, True),), None, {}, {}),
    read={"session": "friday"},
    notes=("a note",),
    warnings=("a warning",),
    seconds=3.2,
)


@dataclass
class Adaptation:
    """Stands in for the adaptation: records the options and returns a result."""

    result: AdaptResult
    asked: AdaptOptions | None = None

    def __call__(self, options: AdaptOptions) -> AdaptResult:
        self.asked = options
        return self.result


@pytest.fixture
def adaptation_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    def prepare(**changes: Any) -> Adaptation:
        stand_in = Adaptation(replace(FOUND, **changes))
        monkeypatch.setattr(adaptation, "adapt_bundle", stand_in)
        return stand_in

    return prepare


def test_every_option_arrives(adaptation_of: Any) -> None:
    stand_in = adaptation_of()
    words = ("--labels", "--from", 10, "--to", 130, "--follow", 300, "--target", "host", "--lfp", "m1")
    assert call("adapt", "a.edge", "b.nwb", "--out", "c.edge", *words, "--behavior", "hand").exit_code == 0
    stretch = StretchOptions(Path("b.nwb"), SeriesNames(lfp="m1", behavior="hand"), True, 10.0, 130.0)
    assert stand_in.asked == AdaptOptions(Path("a.edge"), Path("c.edge"), stretch, 300.0, "host")
    call("adapt", "a.edge", "b.nwb", "--out", "c.edge")
    assert stand_in.asked == AdaptOptions(Path("a.edge"), Path("c.edge"), StretchOptions(Path("b.nwb")), None, None)


def test_a_person_reads_what_the_day_is_worth(adaptation_of: Any) -> None:
    adaptation_of()
    result = call("adapt", "a.edge", "b.nwb", "--out", "c.edge")
    assert "0 to 120 s after the first frame" in result.stdout
    assert "0.501, in INT8 0.500" in result.stdout
    assert "0.250" in result.stdout
    assert "friday.edge  for host, in 3.2 s" in result.stdout
    assert "next: edgedistill bench friday.edge" in result.stdout
    assert "note: a note" in result.stderr
    assert "warning: a warning" in result.stderr


def test_a_day_without_score_says_why(adaptation_of: Any) -> None:
    adaptation_of(unscored=NOTHING_FOLLOWS, before_r2=None, metrics={"deployed_r2": None, "int8_r2": None})
    result = call("adapt", "a.edge", "b.nwb", "--out", "c.edge")
    assert NOTHING_FOLLOWS in result.stdout
    assert "R² before" not in result.stdout
    assert answer("adapt", "a.edge", "b.nwb", "--out", "c.edge")["unscored"] == NOTHING_FOLLOWS


def test_a_missed_gate_and_a_missing_compiler_are_told(adaptation_of: Any) -> None:
    lacking = DeviceError("there is no CUDA driver on this machine", next_step="edgedistill compile friday.edge")
    compiled = type("Compiled", (), {"lacking": lacking})()
    gates = (Gate("int8_r2_drop", 0.1, 0.005, False),)
    adaptation_of(written=WrittenBundle(gates, compiled, {}, {}))
    result = call("adapt", "a.edge", "b.nwb", "--out", "c.edge")
    assert result.exit_code == 3
    assert "not compiled here: there is no CUDA driver" in result.stdout
    assert "next: edgedistill compile friday.edge" in result.stdout
    found = answer("adapt", "a.edge", "b.nwb", "--out", "c.edge", code=3)
    assert found["not_compiled"] == "there is no CUDA driver on this machine"


def test_a_stretch_that_ends_before_it_begins_is_misuse() -> None:
    refused("adapt", "a.edge", "b.nwb", "--out", "c.edge", "--from", 60, "--to", 60, says=("ends before",), code=2)


def test_what_is_no_bundle_is_refused(bundle: Path, session: Path, tmp_path: Path) -> None:
    refused("adapt", session, session, "--out", tmp_path / "x.edge", says=("not an edgedistill bundle",))
    refused("adapt", bundle, session, "--out", tmp_path / "x.zip", says=("an adapted bundle is a folder",))
