"""Spike times are found wherever a table lies, and times that would give wrong counts are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hdmf.common import DynamicTable, VectorData, VectorIndex
from hypothesis import given
from hypothesis import strategies as st
from pynwb import NWBFile
from pynwb.misc import Units as UnitsTable

from edgedistill.data.bins import bins_from_recording
from edgedistill.data.recording import SeriesNames, Units, open_recording
from edgedistill.data.units.observed_times import merge_intervals
from edgedistill.data.units.spike_clock import require_spikes_inside
from edgedistill.data.units.spike_times import HARMLESS_S, clean_spike_times
from edgedistill.errors import RecordingError

from .. import nwb_files as make

RISING = [np.arange(1, 100) * 0.5 + 0.1, np.arange(1, 120) * 0.4 + 0.1]


def table_of(spikes: list[np.ndarray], name: str = "units", **more: Any) -> UnitsTable:
    table = UnitsTable(name=name, description="test")
    for row, times in enumerate(spikes):
        table.add_unit(spike_times=times, **{key: values[row] for key, values in more.items()})
    return table


def add_to(nwb: NWBFile, where: str, node: Any) -> None:
    if where == "processing":
        (nwb.processing.get("ecephys") or nwb.create_processing_module("ecephys", "test")).add(node)
    else:
        getattr(nwb, f"add_{where}")(node)


def read_units(nwb: NWBFile, path: Path, named: str | None = None) -> Units | None:
    with open_recording(make.write(nwb, path), SeriesNames(units=named)) as recording:
        return recording.units


def read_spikes(spikes: list[np.ndarray], path: Path) -> Units:
    nwb = make.new_nwb()
    make.add_units(nwb, spikes)
    units = read_units(nwb, path)
    assert units is not None
    return units


@pytest.mark.parametrize(
    ("where", "path"),
    [
        ("processing", "processing/ecephys/units"),
        ("acquisition", "acquisition/units"),
        ("analysis", "analysis/units"),
        ("scratch", "scratch/units"),
    ],
)
def test_units_are_found_wherever_they_lie(tmp_path: Path, where: str, path: str) -> None:
    nwb = make.new_nwb()
    add_to(nwb, where, table_of(RISING))
    units = read_units(nwb, tmp_path / "a.nwb")
    assert units is not None
    assert units.series == path
    assert [(c.series, c.read) for c in units.candidates] == [(path, True)]
    for got, stored in zip(units, RISING, strict=True):
        np.testing.assert_array_equal(got, stored)


def test_a_plain_table_with_spike_times_counts_as_units(tmp_path: Path) -> None:
    data = VectorData(name="spike_times", description="test", data=np.concatenate(RISING))
    index = VectorIndex(name="spike_times_index", data=np.cumsum([len(r) for r in RISING]), target=data)
    nwb = make.new_nwb()
    add_to(nwb, "processing", DynamicTable(name="sorted", description="test", columns=[data, index]))
    units = read_units(nwb, tmp_path / "a.nwb")
    assert units is not None
    assert [len(unit) for unit in units] == [99, 119]


def test_the_table_of_the_file_comes_first_and_a_name_chooses_another(tmp_path: Path) -> None:
    nwb = make.new_nwb()
    make.add_units(nwb, RISING)
    add_to(nwb, "processing", table_of(RISING[:1], "curated"))
    path = tmp_path / "a.nwb"
    units = read_units(nwb, path)
    assert units is not None
    assert {c.series: (c.read, c.why) for c in units.candidates} == {
        "units": (True, "the units table of the file"),
        "processing/ecephys/curated": (False, "units is read instead"),
    }
    with open_recording(path, SeriesNames(units="curated")) as recording:
        assert recording.units is not None
        assert recording.units.series == "processing/ecephys/curated"
        assert len(recording.units) == 1
    with open_recording(path, SeriesNames(units="curatd")) as recording, pytest.raises(RecordingError) as caught:
        _ = recording.units
    assert "did you mean 'curated'" in str(caught.value)


def test_two_equal_tables_are_an_error_with_the_option_for_each(tmp_path: Path) -> None:
    nwb = make.new_nwb()
    add_to(nwb, "processing", table_of(RISING, "sorter_a"))
    add_to(nwb, "processing", table_of(RISING, "sorter_b"))
    with pytest.raises(RecordingError) as caught:
        read_units(nwb, tmp_path / "a.nwb")
    assert "--units processing/ecephys/sorter_a or --units processing/ecephys/sorter_b" in str(caught.value)
    with open_recording(tmp_path / "a.nwb", SeriesNames(units="sorter_b")) as recording:
        assert recording.units is not None
        assert recording.units.series == "processing/ecephys/sorter_b"


def test_a_table_without_spike_times_is_passed_over_and_said(tmp_path: Path) -> None:
    nwb = make.new_nwb()
    nwb.add_unit_column("snr", "signal over noise")
    nwb.add_unit(snr=3.0)
    add_to(nwb, "processing", table_of(RISING, "sorted"))
    path = tmp_path / "a.nwb"
    units = read_units(nwb, path)
    assert units is not None
    assert units.series == "processing/ecephys/sorted"
    assert "no column spike_times, only snr" in units.candidates[0].why
    with open_recording(path, SeriesNames(units="units")) as recording, pytest.raises(RecordingError, match="only snr"):
        _ = recording.units


def test_the_error_for_missing_units_names_the_table_that_lacks_spike_times(tmp_path: Path) -> None:
    nwb = make.new_nwb()
    nwb.add_unit_column("snr", "signal over noise")
    nwb.add_unit(snr=3.0)
    with (
        open_recording(make.write(nwb, tmp_path / "a.nwb")) as recording,
        pytest.raises(RecordingError, match="units has no column spike_times"),
    ):
        recording.require(("units",))


def test_a_clock_that_was_reset_is_refused_with_unit_index_and_times(tmp_path: Path) -> None:
    reset = np.array([1.5, 2.5, 160.25, 0.125, 3.0])
    with pytest.raises(RecordingError) as caught:
        read_spikes([RISING[0], reset, reset], tmp_path / "a.nwb")
    message = str(caught.value)
    assert "unit 1 (row 1)" in message
    assert "0.125000 s at index 3 after 160.250000 s at index 2" in message
    assert "1 other units" in message
    assert caught.value.causes[0].startswith("a clock that was reset")
    assert "edgedistill inspect" in str(caught.value.next_step)


def test_times_that_start_again_with_every_trial_are_called_relative(tmp_path: Path) -> None:
    trials = np.tile([0.2, 0.7, 1.9], 8)
    with pytest.raises(RecordingError, match="7 such steps") as caught:
        read_spikes([trials], tmp_path / "a.nwb")
    assert caught.value.causes[0].startswith("times relative to trials")


def test_disorder_below_a_millisecond_is_sorted_and_said(tmp_path: Path) -> None:
    units = read_spikes([np.array([1.0, 2.0005, 2.0, 3.1]), RISING[0]], tmp_path / "a.nwb")
    np.testing.assert_array_equal(units.spike_times[0], [1.0, 2.0, 2.0005, 3.1])
    assert "1 units are out of order by at most 0.5 ms" in units.notes[0]


@given(st.lists(st.integers(0, 4000), max_size=30))
def test_times_are_sorted_only_where_none_lies_a_millisecond_before_an_earlier_one(ticks: list[int]) -> None:
    unit = np.array(ticks, dtype=np.float64) / 2000  # half milliseconds
    falls = [max(unit[:at]) - time for at, time in enumerate(unit) if at]
    if max(falls, default=0) > HARMLESS_S:
        with pytest.raises(RecordingError, match="backwards"):
            clean_spike_times([unit], ["unit 0"], "a.nwb: units", Path("a.nwb"))
    else:
        (ordered,), notes = clean_spike_times([unit], ["unit 0"], "a.nwb: units", Path("a.nwb"))
        np.testing.assert_array_equal(ordered, np.sort(unit))
        assert bool(notes) == bool((np.diff(unit) < 0).any())


def test_times_that_are_no_number_or_negative_are_counted(tmp_path: Path) -> None:
    units = read_spikes([np.array([-0.5, 1.0, np.nan, 2.5, 2.5])], tmp_path / "a.nwb")
    np.testing.assert_array_equal(units.spike_times[0], [-0.5, 1.0, 2.5, 2.5])
    assert "1 of 5 spike times are no number" in units.notes[0]
    assert "1 of 5 spike times lie before 0 s, the first at -0.500" in units.notes[1]


def test_times_at_whole_numbers_only_are_samples(tmp_path: Path) -> None:
    samples = np.arange(1, 400) * 12345.0
    with pytest.raises(RecordingError, match="numbers of samples") as caught:
        read_spikes([samples], tmp_path / "a.nwb")
    assert "the last at 4925655" in str(caught.value)
    read_spikes([np.array([1.0, 2.0, 3.0])], tmp_path / "few.nwb")


def test_a_table_without_index_is_refused(tmp_path: Path) -> None:
    nwb = make.new_nwb()
    make.add_units(nwb, RISING)
    path = make.write(nwb, tmp_path / "a.nwb")
    with h5py.File(path, "a") as file:
        units = file["units"]
        attributes = dict(units["id"].attrs)
        del units["spike_times_index"], units["id"]
        units["id"] = np.arange(218)
        units["id"].attrs.update(attributes)
    with open_recording(path) as recording:
        with pytest.raises(RecordingError) as caught:
            _ = recording.units
        assert "units that cannot be used" in recording.describe_contents()
    message = str(caught.value)
    assert "no spike_times_index" in message
    assert "one spike a unit" in message
    assert "add_unit" in message


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ([99, 50], "falls to 50 at row 1, after 99"),
        ([99, 300], "row 1 ends at 300 of 218 times"),
        ([99, 200], "so 18 of 218 times belong to no unit"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(tmp_path: Path, ends: list[int], words: str) -> None:
    nwb = make.new_nwb()
    make.add_units(nwb, RISING)
    path = make.write(nwb, tmp_path / "a.nwb")
    with h5py.File(path, "a") as file:
        stored = file["units/spike_times_index"]
        attributes = dict(stored.attrs)
        del file["units/spike_times_index"]
        file["units/spike_times_index"] = np.array(ends)
        file["units/spike_times_index"].attrs.update(attributes)
    with open_recording(path) as recording, pytest.raises(RecordingError) as caught:
        _ = recording.units
    assert words in str(caught.value)
    assert "units/spike_times_index" in str(caught.value)


def read_observed(intervals: list[list[list[float]]], path: Path) -> Units:
    nwb = make.new_nwb()
    for times, held in zip(RISING, intervals, strict=True):
        nwb.add_unit(spike_times=times, obs_intervals=np.array(held, dtype=np.float64).reshape(-1, 2))
    units = read_units(nwb, path)
    assert units is not None
    return units


def test_observed_intervals_are_sorted_merged_and_held_against_the_spikes(tmp_path: Path) -> None:
    units = read_observed([[[10, 20], [0, 5], [4, 6]], [[0, 100]]], tmp_path / "a.nwb")
    assert units.observed is not None
    np.testing.assert_array_equal(units.observed[0], [[0, 6], [10, 20]])
    np.testing.assert_array_equal(units.observed[1], [[0, 100]])
    outside = sum(1 for t in RISING[0] if not (t < 6 or 10 <= t <= 20))
    assert units.notes == (
        f"{outside} of 218 spikes lie outside obs_intervals, the times in which their units were observed",
    )


def test_a_unit_that_was_never_observed_is_named(tmp_path: Path) -> None:
    units = read_observed([[[0, 100]], []], tmp_path / "a.nwb")
    assert units.observed is not None
    assert units.observed[1].shape == (0, 2)
    assert "never observed by obs_intervals: unit 1 (row 1)" in units.notes


def test_intervals_that_are_empty_for_all_units_say_nothing(tmp_path: Path) -> None:
    nwb = make.new_nwb()
    make.add_units(nwb, RISING)
    path = make.write(nwb, tmp_path / "a.nwb")
    with h5py.File(path, "a") as file:
        table = file["units"]
        table["obs_intervals"] = np.empty((0, 2))
        table["obs_intervals_index"] = np.zeros(2, dtype=np.uint8)
        table["obs_intervals"].attrs.update(dict(table["spike_times"].attrs))
        table["obs_intervals_index"].attrs.update(dict(table["spike_times_index"].attrs))
        table["obs_intervals_index"].attrs["target"] = table["obs_intervals"].ref
        for name in ("obs_intervals", "obs_intervals_index"):
            table[name].attrs["object_id"] = f"test-{name}"
        table.attrs["colnames"] = ["spike_times", "obs_intervals"]
    with open_recording(path) as recording:
        assert recording.units is not None
        assert recording.units.observed is None
        assert "empty for all 2 units" in recording.units.notes[0]


def test_an_interval_that_ends_before_it_begins_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"unit 1 \(row 1\) ends before it begins") as caught:
        read_observed([[[0, 100]], [[0, 5], [9, 7]]], tmp_path / "a.nwb")
    assert "9.000 to 7.000 s" in str(caught.value)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)), max_size=12))
def test_merged_intervals_cover_the_same_times_and_are_apart(pairs: list[tuple[int, int]]) -> None:
    stored = np.array([(start, start + length) for start, length in pairs], dtype=np.float64).reshape(-1, 2)
    merged = merge_intervals(stored)
    at = np.arange(0, 70, 0.5)

    def covered(intervals: np.ndarray) -> np.ndarray:
        return np.array([any(start <= t < stop for start, stop in intervals) for t in at], dtype=bool)

    np.testing.assert_array_equal(covered(merged), covered(stored))
    assert (merged[1:, 0] > merged[:-1, 1]).all()


def units_of(*spikes: Any) -> Units:
    times = tuple(np.asarray(unit, dtype=np.float64) for unit in spikes)
    return Units(Path("a.nwb"), "units", times, names=tuple(f"unit {k} (row {k})" for k in range(len(times))))


def test_one_percent_of_the_spikes_may_lie_outside_the_recording() -> None:
    inside = np.linspace(0.5, 199.5, 1980)
    assert require_spikes_inside(units_of(inside), (0.0, 200.0)) == ()
    few = units_of(inside, np.linspace(201, 210, 20))
    assert require_spikes_inside(few, (0.0, 200.0)) == ("20 of 2000 spikes lie outside the LFP (0.000 to 200.000 s)",)
    with pytest.raises(RecordingError) as caught:
        require_spikes_inside(units_of(inside, np.linspace(201, 210, 21)), (0.0, 200.0), "the behavior")
    message = str(caught.value)
    assert "lie outside the behavior" in message
    assert "21 of 2001 spikes" in message
    assert "21 of them of unit 1 (row 1)" in message
    assert "the last at 210.000 s" in message


@pytest.mark.parametrize(
    ("factor", "shift", "cause"),
    [
        (1e3, 0, "milliseconds"),
        (1e6, 0, "microseconds"),
        (30000, 0, "in samples, about 29"),
        (1, 500, "starting_time"),
        (1, 1.7e9, "1970"),
        (1.5, 0, "two recordings"),
    ],
)
def test_the_cause_is_told_by_where_the_spikes_lie(factor: float, shift: float, cause: str) -> None:
    spikes = np.linspace(0.5, 199.5, 2000) * factor + shift
    with pytest.raises(RecordingError) as caught:
        require_spikes_inside(units_of(spikes), (0.0, 200.0))
    assert cause in caught.value.causes[0]


def test_spikes_within_a_few_seconds_of_a_long_recording_are_relative_to_trials() -> None:
    with pytest.raises(RecordingError, match="do not run through the recording") as caught:
        require_spikes_inside(units_of(np.linspace(0, 3, 900)), (0.0, 200.0))
    assert "trials" in caught.value.causes[0]


def test_a_session_with_spikes_outside_is_refused_before_it_is_binned(tmp_path: Path) -> None:
    from edgedistill.data.bins import bins_from_recording

    nwb = make.new_nwb()
    make.add_lfp(nwb, make.lfp_volts())
    make.add_units(nwb, seconds=140)
    with (
        open_recording(make.write(nwb, tmp_path / "a.nwb")) as recording,
        pytest.raises(RecordingError, match="lie outside the recording"),
    ):
        bins_from_recording(recording, need=("lfp", "units"))


def test_a_table_of_which_the_index_is_gone_is_refused_with_the_lengths_of_its_columns(tmp_path: Path) -> None:
    nwb = make.new_nwb()
    make.add_units(nwb, RISING)
    path = make.write(nwb, tmp_path / "a.nwb")
    with h5py.File(path, "a") as file:
        del file["units/spike_times_index"]
    with open_recording(path) as recording, pytest.raises(RecordingError) as caught:
        recording.require(["units"])
    assert "id 2, spike_times 218; there is no spike_times_index" in str(caught.value)


def test_an_index_of_two_dimensions_is_refused(tmp_path: Path) -> None:
    nwb = make.new_nwb()
    make.add_units(nwb, RISING)
    path = make.write(nwb, tmp_path / "a.nwb")
    with h5py.File(path, "a") as file:
        stored = file["units/spike_times_index"]
        values, attributes = stored[:].reshape(-1, 1), dict(stored.attrs)
        del file["units/spike_times_index"]
        file["units/spike_times_index"] = values
        file["units/spike_times_index"].attrs.update(attributes)
    with open_recording(path) as recording, pytest.raises(RecordingError, match=r"found: +shape \(2, 1\)"):
        _ = recording.units


def test_units_that_are_marked_as_noise_are_read_and_told(tmp_path: Path) -> None:
    nwb = make.new_nwb()
    nwb.add_unit_column("quality", "as judged by eye")
    for times, quality in zip(RISING, ("good", "Noise"), strict=True):
        nwb.add_unit(spike_times=times, quality=quality)
    units = read_units(nwb, tmp_path / "a.nwb")
    assert units is not None
    assert len(units) == 2
    assert units.notes == ("1 of 2 units are marked as noise in the column quality; they are read too",)


def test_a_session_in_which_no_unit_was_observed_is_refused_by_its_reason(tmp_path: Path) -> None:
    nwb = make.new_nwb()
    make.add_lfp(nwb, make.lfp_volts())
    make.add_behavior(nwb)
    for times in RISING:
        nwb.add_unit(spike_times=times * 2.5, obs_intervals=np.array([[0.0, 0.5]]))  # hours, or trials
    with open_recording(make.write(nwb, tmp_path / "a.nwb")) as recording, pytest.raises(RecordingError) as caught:
        bins_from_recording(recording)
    assert "almost nothing of the session" in str(caught.value)
    assert "no unit was observed 1" in str(caught.value)
