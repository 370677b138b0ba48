"""Bins keep the clock of the LFP, and every kind of bad session says what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pynwb import NWBFile

from edgedistill.data.bin_clock import compute_edges
from edgedistill.data.bins import SessionBins, _count_spikes, bins_from_recording, fit_normalization
from edgedistill.data.recording import open_recording
from edgedistill.errors import RecordingError
from edgedistill.frontend import FrontEnd, FrontEndConfig

from . import nwb_files as make
from .binning import read_bins


def test_a_session_has_all_parts_on_one_clock(bins: SessionBins) -> None:
    assert bins.bins == 12500
    assert bins.lfp is not None
    assert bins.counts is not None
    assert bins.behavior is not None
    assert bins.lfp.shape == (12500, 3)
    assert bins.counts.shape == (12500, 4)
    assert bins.behavior.shape == (12500, 2)
    assert bins.output_names == ("cursor_vel_x", "cursor_vel_y")
    assert len(bins.sha256) == 64


def test_the_lfp_bins_equal_those_of_the_front_end(bins: SessionBins) -> None:
    front_end = FrontEnd(FrontEndConfig(rate=Fraction(250), channels=3))
    want = front_end.push((make.lfp_volts() * np.float32(1e6)).astype(np.float32))
    assert bins.lfp is not None
    np.testing.assert_allclose(bins.lfp, want.values, rtol=1e-5, atol=1e-4)


def test_spikes_and_behavior_follow_the_start_and_rate_of_the_lfp(tmp_path: Path) -> None:
    rate = Fraction(390625, 512)
    nwb = make.new_nwb()
    make.add_lfp(nwb, make.lfp_volts(float(rate), 1), rate=float(rate), starting_time=7.25)
    before, after = np.nextafter(7.25 + 0.29, 0), 7.25 + 0.29
    make.add_units(nwb, [np.array([7.0, before, after, after + 0.01, 131.0]), np.array([])])
    t = np.arange(0, 140, 0.004)
    make.add_behavior(nwb, np.stack([np.abs(t - 70), 2 * np.abs(t - 70)], axis=1), rate=250.0)
    bins = read_bins(make.write(nwb, tmp_path / "a.nwb"))
    assert bins.start_s == 7.25
    assert bins.counts is not None
    assert bins.behavior is not None
    assert np.flatnonzero(bins.counts[:, 0]).tolist() == [28, 29, 30, 12375]
    assert bins.counts[:, 1].sum() == 0
    middles = 7.25 + (np.arange(bins.bins) + 0.5) / 100  # a velocity at 250 Hz is averaged over the bin
    want = np.abs(middles - 70)
    np.testing.assert_allclose(bins.behavior, np.stack([want, 2 * want], axis=1), rtol=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 1299), min_size=1, max_size=50))
def test_a_spike_on_an_edge_belongs_to_the_bin_that_begins_there(
    tmp_path_factory: pytest.TempPathFactory, at: list[int]
) -> None:
    counts = _count_spikes((np.sort(np.array([k / 100 for k in at])),), compute_edges(0.0, 1300))
    np.testing.assert_array_equal(counts[:, 0], np.bincount(at, minlength=1300))


def test_counts_are_clipped_at_255_and_bins_end_with_the_shortest_part(tmp_path: Path) -> None:
    nwb = make.new_nwb()
    make.add_lfp(nwb, make.lfp_volts(seconds=130))
    make.add_units(nwb, [np.full(300, 3.003), np.linspace(0, 129, 900)])
    make.add_behavior(nwb, make.velocity(seconds=122))
    bins = read_bins(make.write(nwb, tmp_path / "a.nwb"))
    assert bins.counts is not None
    assert bins.counts[300, 0] == 255
    assert bins.bins == 12200
    assert bins.behavior is not None
    assert np.isfinite(bins.behavior).all()


def test_units_alone_are_enough_to_pretrain(tmp_path: Path) -> None:
    nwb = make.new_nwb()
    make.add_units(nwb)
    path = make.write(nwb, tmp_path / "a.nwb")
    bins = read_bins(path, need=("units",), also=("lfp", "behavior"))
    assert bins.lfp is None
    assert bins.frontend is None
    assert bins.start_s == 0
    assert bins.bins == pytest.approx(12500, abs=100)
    with pytest.raises(RecordingError, match="no LFP and no behavior"):
        read_bins(path)


def test_optional_parts_that_cannot_be_used_are_left_out_without_an_error(tmp_path: Path) -> None:
    """The file holds band power in place of LFP and one value a trial in place of behavior, but its units are good."""
    nwb = make.new_nwb()
    make.add_units(nwb)
    make.add_lfp(nwb, make.lfp_volts(50.0), rate=50.0)
    make.add_behavior(nwb, make.velocity()[::500], rate=0.2)
    bins = read_bins(make.write(nwb, tmp_path / "a.nwb"), need=("units",), also=("lfp", "behavior"))
    assert bins.lfp is None
    assert bins.behavior is None
    assert bins.counts is not None


def test_without_lfp_bins_begin_with_the_recording_when_it_starts_late(tmp_path: Path) -> None:
    nwb = make.new_nwb()
    make.add_units(nwb, [np.linspace(1.7e9, 1.7e9 + 130, 2000)])
    bins = read_bins(make.write(nwb, tmp_path / "a.nwb"), need=("units",))
    assert bins.start_s == 1.7e9
    assert bins.bins == 13000


def test_units_keep_the_clock_of_an_lfp_that_is_not_loaded(tmp_path: Path) -> None:
    nwb = make.new_nwb()
    make.add_lfp(nwb, make.lfp_volts(), starting_time=0.5)
    make.add_units(nwb, seconds=126)
    bins = read_bins(make.write(nwb, tmp_path / "a.nwb"), need=("units",))
    assert bins.lfp is None
    assert (bins.start_s, bins.bins) == (0.5, 12500)


def test_stretches_of_nan_and_dead_channels_are_marked_as_bad(tmp_path: Path) -> None:
    data = make.lfp_volts()
    data[5000:10000] = np.nan
    data[:, 1] = 0
    nwb = make.new_nwb()
    make.add_lfp(nwb, data)
    bins = read_bins(make.write(nwb, tmp_path / "a.nwb"), need=("lfp",))
    assert bins.bad is not None
    assert bins.lfp is not None
    assert bins.bad[2000:4000].all()
    assert bins.bad[200:, 1].all()
    assert not bins.bad[200:1900, [0, 2]].any()
    assert np.isfinite(bins.lfp).all()
    mean, std = fit_normalization(bins, slice(2000, 12500))
    assert std[1] == 0
    assert mean[1] == 0
    assert (std[[0, 2]] > 1).all()


# ---------------------------------------------------------------- bad sessions


def dead(nwb: NWBFile) -> None:
    make.add_lfp(nwb, make.lfp_volts() * 0)


def all_nan(nwb: NWBFile) -> None:
    make.add_lfp(nwb, make.lfp_volts() * np.nan)


def slow(nwb: NWBFile) -> None:
    make.add_lfp(nwb, make.lfp_volts(100), rate=100.0)


def short(nwb: NWBFile) -> None:
    make.add_lfp(nwb, make.lfp_volts(seconds=100))


def empty(nwb: NWBFile) -> None:
    make.add_lfp(nwb, np.zeros((0, 3)))


def apart(nwb: NWBFile) -> None:
    make.add_lfp(nwb, make.lfp_volts())
    make.add_behavior(nwb, starting_time=1000.0)


def in_samples(nwb: NWBFile) -> None:
    make.add_lfp(nwb, make.lfp_volts())
    make.add_units(nwb, [np.arange(0, 125 * 30000, 1000.0)])


def silent(nwb: NWBFile) -> None:
    make.add_lfp(nwb, make.lfp_volts())
    make.add_units(nwb, [np.array([])])


def untracked(nwb: NWBFile) -> None:
    make.add_lfp(nwb, make.lfp_volts())
    make.add_behavior(nwb, make.velocity() * np.nan)


@pytest.mark.parametrize(
    ("spoil", "need", "words"),
    [
        (dead, ("lfp",), "all channels"),
        (all_nan, ("lfp",), "all channels"),
        (slow, ("lfp",), "sampling rate"),
        (short, ("lfp",), "two minutes"),
        (empty, ("lfp",), "two minutes"),
        (apart, ("lfp", "behavior"), "unequal clocks"),
        (in_samples, ("lfp", "units"), "numbers of samples"),
        (silent, ("units",), "no spikes"),
        (untracked, ("lfp", "behavior"), "too few values"),
        (short, ("units",), "no units"),
        (short, ("lfp", "behavior"), "no behavior"),
    ],
)
def test_a_bad_session_is_refused_and_its_file_is_named(
    tmp_path: Path, spoil: Callable[[NWBFile], None], need: tuple[str, ...], words: str
) -> None:
    nwb = make.new_nwb()
    spoil(nwb)
    path = make.write(nwb, tmp_path / "bad.nwb")
    with pytest.raises(RecordingError, match=words) as caught:
        read_bins(path, need=need)
    assert "bad.nwb" in str(caught.value)


def test_too_little_behavior_is_left_out_with_a_note_where_it_is_optional(tmp_path: Path) -> None:
    lost = make.velocity()
    lost[500:] = np.nan
    path = make.whole_session(tmp_path / "a.nwb", data=lost)
    with open_recording(path) as recording:
        bins = bins_from_recording(recording, need=("units",), also=("behavior",))
    assert bins.behavior is None
    assert any("behavior is not read" in note and "too few values" in note for note in bins.notes)
    with open_recording(path) as recording, pytest.raises(RecordingError, match="too few values"):
        bins_from_recording(recording)


@pytest.mark.parametrize(
    ("behavior", "words"),
    [
        ({"timestamps": np.arange(12500) / 100 + 1.7e9}, "unequal clocks"),  # since 1970
        ({"data": make.velocity(10_000), "timestamps": np.arange(1_250_000) / 10}, "may be in milliseconds"),
        ({"rate": 1000.0}, "less than two minutes of behavior"),
    ],
)
def test_behavior_on_another_clock_is_not_blamed_on_the_units(
    tmp_path: Path, behavior: dict[str, Any], words: str
) -> None:
    path = make.whole_session(tmp_path / "a.nwb", **behavior)
    with open_recording(path) as recording, pytest.raises(RecordingError) as caught:
        bins_from_recording(recording)
    assert words in str(caught.value)
    assert "behavior" in str(caught.value.got)
