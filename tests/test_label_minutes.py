"""The curve over minutes of labels is put together from its rows, and drawn as one line for each decoder."""

from __future__ import annotations

from argparse import ArgumentTypeError
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.accuracy.gates import judge_gates
from benchmarks.accuracy.label_minutes import (
    ALL,
    DECODERS,
    draw_together,
    list_gates,
    name_row,
    parse_amount,
    shorten,
    write_figure,
)
from edgedistill.config import load_preset

SVG = "{http://www.w3.org/2000/svg}"


def seed(offset: float) -> dict:
    """Returns the rows of one seed. A decoder is 0.1 below the one before it, and all labels bring 0.2."""
    return {
        name_row(decoder, minutes): {"r2": {"day": offset + gain - 0.1 * i}, "minutes": used}
        for i, decoder in enumerate(DECODERS)
        for minutes, gain, used in ((1.0, 0.0, 1.0), (ALL, 0.2, 4.6))
    }


def test_points_are_means_over_seeds_and_differences_are_paired() -> None:
    curves = draw_together([seed(0.5), seed(0.7)], [1.0, ALL])
    deployed, ridge = curves["deployed student"], curves["lagged ridge"]
    assert [point["mean"] for point in deployed] == pytest.approx([0.6, 0.8])
    assert [point["minutes"] for point in ridge] == pytest.approx([1.0, 4.6])
    assert ridge[0]["deployed_over_it"]["mean"] == pytest.approx(0.4)
    assert ridge[0]["deployed_over_it"]["ci95"] == pytest.approx(0, abs=1e-9)
    assert ridge[0]["std"] > 0.1


def test_the_picture_has_a_line_and_a_mark_for_each_amount_of_each_decoder(tmp_path: Path) -> None:
    path = tmp_path / "curve.svg"
    write_figure(draw_together([seed(0.5), seed(0.7)], [1.0, ALL]), path)
    root = ElementTree.parse(path).getroot()
    words = [text.text for text in root.iter(f"{SVG}text")]
    assert {*DECODERS, "R² on the test block"} <= set(words)
    for i, decoder in enumerate(DECODERS):
        assert [line.get("class") for line in root.iter(f"{SVG}polyline")].count(f"l{i}") == 2  # one in the legend
        hints = [hint.text or "" for mark in root for hint in mark.iter(f"{SVG}title") if mark is not hint]
        assert sum(hint.startswith(f"{decoder}, ") for hint in hints) == 2
    style = root.find(f"{SVG}style")
    assert style is not None
    assert "--s0" in (style.text or "")


def test_the_gates_ask_what_a_teacher_brings_with_one_minute_of_labels() -> None:
    gates = {gate["name"]: gate["ok"] for gate in judge_gates([seed(0.5), seed(0.7)], list_gates(), {}, None)}
    assert gates.pop("deployed student, 1 min of labels over lagged ridge, 1 min of labels") is True
    assert gates.pop("student that ships, 1 min of labels over lagged ridge, 1 min of labels") is False
    assert len(gates) == 2
    without = {row: found for row, found in seed(0.5).items() if "1 min" not in row}
    assert {gate["ok"] for gate in judge_gates([without], list_gates(), {}, None)} == {None}


def test_an_amount_is_all_or_minutes_above_0() -> None:
    assert [parse_amount(text) for text in ("0.5", "4", "all")] == [0.5, 4.0, ALL]
    for odd in ("0", "-1", "nan", "none"):
        with pytest.raises(ArgumentTypeError):
            parse_amount(odd)


def test_a_shortened_preset_keeps_all_but_its_steps() -> None:
    preset = load_preset("nano")
    short = shorten(preset, 3)
    assert (short.training.steps, short.teacher_training.steps) == (3, 3)
    assert short.student == preset.student
    assert shorten(preset, 10**6) == preset
