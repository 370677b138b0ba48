"""`edgedistill pretrain` and `edgedistill distill` pass their options on and print the result."""

from __future__ import annotations

from pathlib import Path

from edgedistill.config import Alignment
from edgedistill.data.candidates import SeriesNames

from .calling import answer, call, refused
from .fake_pipeline import FakePipeline


def test_pretrain_and_distill_hand_over_their_options(stages: FakePipeline) -> None:
    assert answer("pretrain", "a", "b", "--out", "t", "--preset", "nano")["probe_r2"] is None
    assert stages.asked["data"] == (Path("a"), Path("b"))
    assert (stages.asked["preset"], stages.asked["steps"], stages.asked["progress"]) == ("nano", None, None)
    answer("distill", "a", "--teacher", "t", "--out", "s", "--supervised", "--alignment", "mse")
    assert (stages.asked["supervised"], stages.asked["alignment"]) == (True, Alignment("mse"))
    answer("distill", "a", "--teacher", "t", "--out", "s", "--alignment", "subspace", "--centring", "standardized")
    assert stages.asked["alignment"] == Alignment("subspace", "standardized")
    assert stages.asked["label_minutes"] is None
    answer("distill", "a", "--teacher", "t", "--out", "s", "--supervised", "--label-minutes", 2)
    assert stages.asked["label_minutes"] == 2
    assert (stages.asked["names"], stages.asked["line_hz"]) == (SeriesNames(), 60)
    answer("distill", "a", "--teacher", "t", "--out", "s", "--behavior", "hand_vel", "--line-hz", 50)
    assert (stages.asked["names"], stages.asked["line_hz"]) == (SeriesNames(behavior="hand_vel"), 50)
    assert "validation_loss" in call("pretrain", "a", "--out", "t").output


def test_an_unknown_key_in_a_preset_of_ones_own(stages: FakePipeline, tmp_path: Path) -> None:
    preset = tmp_path / "mine.toml"
    preset.write_text('nmae = "mine"\n')
    refused("pretrain", "a", "--out", "t", "--preset", preset, says=("mine.toml", "nmae", "did you mean 'name'"))
