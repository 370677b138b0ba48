"""Bins keep the clock of the LFP, blocks do not leak, and every kind of bad session says what is wrong."""

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

from edgedistill.data.bins import (
    MIN_BINS,
    SessionBins,
    bins_from_recording,
    fit_normalization,
    load_session_bins,
    load_sessions,
    save_session_bins,
    split_bins,
)
from edgedistill.data.recording import open_recording
from edgedistill.errors import OutputError, RecordingError
from edgedistill.frontend import FrontEnd, FrontEndConfig, settling_bins

from . import nwb_files as make


def session_bins(path: Path, **settings: Any) -> SessionBins:
    with open_recording(path) as recording:
        return bins_from_recording(recording, **settings)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make.whole_session(tmp_path_factory.mktemp("whole") / "whole.nwb")


@pytest.fixture(scope="session")
def bins(whole: Path) -> SessionBins:
    return session_bins(whole)


# ---------------------------------------------------------------- bins


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


def test_lfp_bins_are_those_of_the_front_end(bins: SessionBins) -> None:
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
    make.add_behavior(nwb, np.stack([t, 2 * t], axis=1), rate=250.0)
    bins = session_bins(make.write(nwb, tmp_path / "a.nwb"))
    assert bins.start_s == 7.25
    assert bins.counts is not None
    assert bins.behavior is not None
    assert np.flatnonzero(bins.counts[:, 0]).tolist() == [28, 29, 30, 12375]
    assert bins.counts[:, 1].sum() == 0
    ends = 7.25 + np.arange(1, bins.bins + 1) / 100
    np.testing.assert_allclose(bins.behavior, np.stack([ends, 2 * ends], axis=1), rtol=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 1299), min_size=1, max_size=50))
def test_a_spike_on_an_edge_opens_the_next_bin(tmp_path_factory: pytest.TempPathFactory, at: list[int]) -> None:
    from edgedistill.data.bins import _count_spikes, _edges_s

    counts = _count_spikes((np.sort(np.array([k / 100 for k in at])),), _edges_s(0.0, 1300))
    np.testing.assert_array_equal(counts[:, 0], np.bincount(at, minlength=1300))


def test_many_spikes_are_clipped_and_the_end_is_cut_to_what_all_parts_cover(tmp_path: Path) -> None:
    nwb = make.new_nwb()
    make.add_lfp(nwb, make.lfp_volts(seconds=130))
    make.add_units(nwb, [np.full(300, 3.003), np.linspace(0, 129, 900)])
    make.add_behavior(nwb, make.velocity(seconds=122))
    bins = session_bins(make.write(nwb, tmp_path / "a.nwb"))
    assert bins.counts is not None
    assert bins.counts[300, 0] == 255
    assert bins.bins == 12200
    assert bins.behavior is not None
    assert np.isfinite(bins.behavior).all()


def test_units_alone_are_enough_to_pretrain(tmp_path: Path) -> None:
    nwb = make.new_nwb()
    make.add_units(nwb)
    path = make.write(nwb, tmp_path / "a.nwb")
    bins = session_bins(path, need=("units",), also=("lfp", "behavior"))
    assert bins.lfp is None
    assert bins.frontend is None
    assert bins.start_s == 0
    assert bins.bins == pytest.approx(12500, abs=100)
    with pytest.raises(RecordingError, match="no LFP and no behavior"):
        session_bins(path)


def test_what_a_command_can_do_without_does_not_stop_it(tmp_path: Path) -> None:
    """Band power where LFP could be, one value a trial where behavior could be: units are still there."""
    nwb = make.new_nwb()
    make.add_units(nwb)
    make.add_lfp(nwb, make.lfp_volts(50.0), rate=50.0)
    make.add_behavior(nwb, make.velocity()[::500], rate=0.2)
    bins = session_bins(make.write(nwb, tmp_path / "a.nwb"), need=("units",), also=("lfp", "behavior"))
    assert bins.lfp is None
    assert bins.behavior is None
    assert bins.counts is not None


def test_without_lfp_a_late_start_is_not_filled_with_silence(tmp_path: Path) -> None:
    nwb = make.new_nwb()
    make.add_units(nwb, [np.linspace(1.7e9, 1.7e9 + 130, 2000)])
    bins = session_bins(make.write(nwb, tmp_path / "a.nwb"), need=("units",))
    assert bins.start_s == 1.7e9
    assert bins.bins == 13000


def test_units_keep_the_clock_of_an_lfp_that_is_not_loaded(tmp_path: Path) -> None:
    nwb = make.new_nwb()
    make.add_lfp(nwb, make.lfp_volts(), starting_time=2.0)
    make.add_units(nwb, seconds=128)
    bins = session_bins(make.write(nwb, tmp_path / "a.nwb"), need=("units",))
    assert bins.lfp is None
    assert (bins.start_s, bins.bins) == (2.0, 12500)


def test_nan_stretches_and_dead_channels_are_masked(tmp_path: Path) -> None:
    data = make.lfp_volts()
    data[5000:10000] = np.nan
    data[:, 1] = 0
    nwb = make.new_nwb()
    make.add_lfp(nwb, data)
    bins = session_bins(make.write(nwb, tmp_path / "a.nwb"), need=("lfp",))
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
        (in_samples, ("lfp", "units"), "unequal clocks"),
        (silent, ("units",), "no spikes"),
        (untracked, ("lfp", "behavior"), "too few values"),
        (short, ("units",), "no units"),
        (short, ("lfp", "behavior"), "no behavior"),
    ],
)
def test_a_bad_session_is_refused_by_name(
    tmp_path: Path, spoil: Callable[[NWBFile], None], need: tuple[str, ...], words: str
) -> None:
    nwb = make.new_nwb()
    spoil(nwb)
    path = make.write(nwb, tmp_path / "bad.nwb")
    with pytest.raises(RecordingError, match=words) as caught:
        session_bins(path, need=need)
    assert "bad.nwb" in str(caught.value)


# ---------------------------------------------------------------- several sessions


def test_sessions_are_sorted_by_start_and_equal_ids_told_apart(tmp_path: Path) -> None:
    make.whole_session(tmp_path / "a.nwb", day=2)
    make.whole_session(tmp_path / "b.nwb", day=1)
    make.whole_session(tmp_path / "c.nwb", session_id="third", day=3)
    sessions = load_sessions([tmp_path], ("units", "behavior"))
    assert [session.session_id for session in sessions] == ["b", "a", "third"]


def test_equal_names_in_two_folders_are_told_apart(tmp_path: Path) -> None:
    for day, folder in ((1, "monday"), (2, "tuesday")):
        (tmp_path / folder).mkdir()
        make.whole_session(tmp_path / folder / "recording.nwb", session_id=None, day=day)
    first, second = load_sessions([tmp_path], ("units",))
    assert first.session_id.endswith("monday/recording")
    assert second.session_id.endswith("tuesday/recording")


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"gone\.nwb: there is no such file"):
        load_sessions([tmp_path / "gone.nwb"])


def test_sessions_with_different_behavior_are_refused(tmp_path: Path) -> None:
    make.whole_session(tmp_path / "a.nwb")
    make.whole_session(tmp_path / "b.nwb", name="hand_vel")
    with pytest.raises(RecordingError, match="differ in their behavior") as caught:
        load_sessions([tmp_path], ("behavior",))
    for words in ("a.nwb", "b.nwb", "hand_vel_x", "cursor_vel_x"):
        assert words in str(caught.value)
    make.whole_session(tmp_path / "b.nwb", unit="m/s")
    with pytest.raises(RecordingError, match="differ in their behavior"):
        load_sessions([tmp_path], ("behavior",))
    assert len(load_sessions([tmp_path], ("units",))) == 2


# ---------------------------------------------------------------- splits and statistics


@given(n=st.integers(1, 400_000), gap=st.integers(0, 5000))
def test_blocks_are_contiguous_apart_and_long_enough(n: int, gap: int) -> None:
    try:
        split = split_bins(n, gap)
    except RecordingError:
        assert n < max(MIN_BINS, 5010 + 2 * gap)
        return
    assert split.train.start == 0
    assert split.validation.start - split.train.stop == gap
    assert split.test.start - split.validation.stop == gap
    assert split.test.stop == n >= MIN_BINS
    assert min(b.stop - b.start for b in (split.train, split.validation, split.test)) >= 500


def test_statistics_come_from_good_bins_of_the_block_alone(bins: SessionBins) -> None:
    from dataclasses import replace

    assert bins.lfp is not None
    assert bins.bad is not None
    assert bins.frontend is not None
    block = slice(0, 9000)
    lfp, bad = bins.lfp.copy(), bins.bad.copy()
    bad[7000:8000, 1] = True
    lfp[9000:] += 1e6
    lfp[7000:8000, 1] = 1e6
    mean, std = fit_normalization(replace(bins, lfp=lfp, bad=bad), block)
    settled = settling_bins(bins.frontend)
    good = np.r_[settled:7000, 8000:9000]
    np.testing.assert_allclose(mean[1], bins.lfp[good, 1].mean(), atol=1e-9)
    np.testing.assert_allclose(std[1], bins.lfp[good, 1].std())
    np.testing.assert_allclose(std[0], bins.lfp[settled:9000, 0].std())


def test_one_artefact_does_not_move_the_statistics_and_ordinary_data_keep_every_bit(bins: SessionBins) -> None:
    from dataclasses import replace

    assert bins.lfp is not None
    assert bins.bad is not None
    assert bins.frontend is not None
    block, settled = slice(0, 9000), settling_bins(bins.frontend)
    mean, std = fit_normalization(bins, block)
    good = ~bins.bad[settled:9000]
    plain = np.where(good, bins.lfp[settled:9000], 0).sum(0) / good.sum(0)
    np.testing.assert_array_equal(mean, plain)
    lfp = bins.lfp.copy()
    lfp[5000:5010, 1] += 1000 * std[1]  # 100 ms, then what rings through the high-pass
    lfp[5010:5400, 1] -= 100 * std[1] * np.exp(-np.arange(390) / 100)
    moved, wider = fit_normalization(replace(bins, lfp=lfp), block)
    np.testing.assert_array_equal(np.delete(wider, 1), np.delete(std, 1))
    assert abs(wider[1] / std[1] - 1) < 0.05
    assert abs(moved[1] - mean[1]) < 0.05 * std[1]


def test_a_channel_of_frequent_bursts_keeps_its_deviation(bins: SessionBins) -> None:
    from dataclasses import replace

    assert bins.lfp is not None
    lfp = bins.lfp.copy()
    lfp[::20, 1] *= 100
    assert fit_normalization(replace(bins, lfp=lfp), slice(0, 9000))[1][1] > 10 * lfp[1::20, 1].std()


# ---------------------------------------------------------------- cache


@pytest.mark.parametrize("need", [("lfp", "units", "behavior"), ("units",)])
def test_the_cache_gives_back_every_bit(whole: Path, tmp_path: Path, need: tuple[str, ...]) -> None:
    from dataclasses import fields

    bins = session_bins(whole, need=need)
    save_session_bins(bins, tmp_path / "deep" / "bins.npz")
    again = load_session_bins(tmp_path / "deep" / "bins.npz")
    for field in fields(SessionBins):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(bins, field.name))
    assert again.frontend == bins.frontend
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["bins.npz"]


def test_a_damaged_cache_is_refused_and_a_file_in_the_way_reported(bins: SessionBins, tmp_path: Path) -> None:
    path = tmp_path / "bins.npz"
    save_session_bins(bins, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RecordingError, match="not a cached session"):
        load_session_bins(path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        save_session_bins(bins, tmp_path / "file" / "bins.npz")
