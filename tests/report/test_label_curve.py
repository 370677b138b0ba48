"""Tests that a report tells what few labels gave, of one bundle and over several."""

from __future__ import annotations

from typing import Any

import pytest

from edgedistill.report import page_from_results
from edgedistill.report.label_curve import BEST_LINEAR, curves_from_results, list_label_rows

from .results import full_result

METRICS = {"int8_r2": 0.5, "distilled_r2": 0.4, "supervised_lfp_r2": None, "ridge_lfp_r2": 0.1, "kalman_lfp_r2": 0.2}


def result_with(minutes: float | None, session: str = "s1", **metrics: float) -> dict[str, Any]:
    """Returns a result of `bench` on a bundle that learned from so many minutes of labels."""
    bundle = {"name": "few", "session": {"id": session}, "label_minutes": minutes, "metrics": METRICS | metrics}
    return full_result() | {"bundle": bundle}


def test_rows_are_those_that_were_measured_and_the_best_linear_decoder() -> None:
    rows = list_label_rows(METRICS)
    assert list(rows.values()) == [0.5, 0.4, 0.2]
    assert rows[BEST_LINEAR] == 0.2
    assert list_label_rows({}) == {}


def test_a_curve_has_a_point_for_each_amount_of_labels_of_one_session() -> None:
    results = [result_with(2.0, int8_r2=0.6), result_with(0.5), result_with(0.5, int8_r2=0.7), result_with(None)]
    curves = curves_from_results([*results, result_with(4.0, "another")])
    assert list(curves) == ["s1"]
    points = curves["s1"]["LFP student in INT8"]
    assert [(point["minutes"], point["mean"]) for point in points] == [(0.5, pytest.approx(0.6)), (2.0, 0.6)]
    assert points[0]["seeds"] == [0.5, 0.7]


def test_the_page_of_a_bundle_with_few_labels_compares_the_decoders_that_had_them() -> None:
    page = page_from_results([result_with(1.0)], ["few"])
    assert "<h2>With 1 min of labels</h2>" in page
    assert f"<td>{BEST_LINEAR}</td><td>0.200</td>" in page
    assert "Behavior was learned from 1 min of labels" in page
    assert "R² against minutes of labels" not in page
    assert "min of labels" not in page_from_results([result_with(None)], ["all"])


@pytest.mark.parametrize("odd", [0, -1.0, float("nan"), float("inf"), 1e308, 10**400, True, "1", [1]])
def test_minutes_that_cannot_be_are_left_out(odd: Any) -> None:
    """A manifest may say anything."""
    page = page_from_results([result_with(odd), result_with(1.0), result_with(4.0)], ["odd", "one", "four"])
    assert "LFP student in INT8: 0.50 with 1 min of labels, 0.50 with 4 min of labels" in page
    assert page.count("Behavior was learned from") == page.count("<h2>With ") == 2


def test_the_page_of_several_such_bundles_draws_the_curve() -> None:
    page = page_from_results([result_with(1.0), result_with(4.0, int8_r2=0.65)], ["one", "four"])
    assert page.index("R² against minutes of labels") < page.index("<h1>")
    assert "LFP student in INT8: 0.50 with 1 min of labels, 0.65 with 4 min of labels" in page
