"""Tests the model's arithmetic by hand, and that every assumption counts and can be replaced."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgedistill.errors import ConfigError
from edgedistill.measure.system_budget import ASSUMPTIONS, BudgetRow, Load, estimate_system_budget, replace_assumptions

UTAH = Load(channels=96, outputs=2, macs=1_300_000, weight_bytes=1_100_000)
WITH_BANDS = replace(UTAH, highest_band_hz=300)


def rows(load: Load = UTAH, **changes: float) -> dict[tuple[str, str], BudgetRow]:
    return {(row.signal, row.decoded): row for row in estimate_system_budget(load, replace_assumptions(changes))}


def test_the_data_rates_are_those_of_the_field() -> None:
    """Expects 46 Mb/s of 96 channels with 16 bits at 30 kHz, and 1.5 Mb/s at 1 kHz."""
    found = rows()
    assert found["spikes, raw", "outside"].mbit_per_s == pytest.approx(46.08)
    assert found["LFP", "outside"].mbit_per_s == pytest.approx(1.536)
    assert found["LFP", "implant"].mbit_per_s == pytest.approx(0.0032)


def test_a_row_by_hand() -> None:
    row = rows()["spikes, detected", "implant"]
    assert row.acquisition_mw == pytest.approx(96 * 0.01135)
    assert row.processing_mw == pytest.approx(96 * 0.00053)
    assert row.radio_mw == pytest.approx(3200 * 5.8e-9)
    compute = (1.3e6 * 0.23 + 1.1e6 * 12.5) * 100 * 1e-9
    assert row.compute_mw == pytest.approx(compute)
    assert row.total_mw == pytest.approx(96 * 0.01188 + 3200 * 5.8e-9 + compute)


def test_the_same_network_costs_the_same_on_every_signal() -> None:
    found = [row for row in estimate_system_budget(UTAH) if row.decoded == "implant"]
    assert len({row.compute_mw for row in found}) == 1


def test_a_measured_power_replaces_the_estimate_and_says_where() -> None:
    row = rows(Load(96, 2, 1, 1, measured_mw=7.5, measured_on="a board"))["LFP", "implant"]
    assert row.compute_mw == 7.5
    assert row.compute_source == "measured on a board"


@pytest.mark.parametrize("name", ASSUMPTIONS)
def test_every_assumption_counts_and_can_be_replaced(name: str) -> None:
    changed = replace_assumptions({name: ASSUMPTIONS[name].value * 3})
    assert estimate_system_budget(WITH_BANDS, changed) != estimate_system_budget(WITH_BANDS)
    assert changed[name].source == "given"
    assert ASSUMPTIONS[name].source != "given"


def test_bands_need_a_rate_that_holds_them_and_the_slow_lfp_alone_needs_less() -> None:
    found = rows(WITH_BANDS)
    assert found["LFP", "outside"].mbit_per_s == pytest.approx(1.536)
    assert found["LFP below 50 Hz alone", "outside"].mbit_per_s == pytest.approx(96 * 200 * 16 / 1e6)
    assert ("LFP below 50 Hz alone", "outside") not in rows()
    assert set(found) - set(rows()) == {("LFP below 50 Hz alone", "outside")}
    with pytest.raises(ConfigError, match="does not hold the bands") as caught:
        rows(WITH_BANDS, lfp_rate_hz=500)
    assert "600" in str(caught.value.expected)
    assert rows(UTAH, lfp_rate_hz=500)


def test_unknown_and_impossible_assumptions_are_refused() -> None:
    with pytest.raises(ConfigError, match="lfp_front_end"):
        replace_assumptions({"lfp_front_end": 1.0})
    with pytest.raises(ConfigError, match="0 or more"):
        replace_assumptions({"mac_pj": -1.0})
