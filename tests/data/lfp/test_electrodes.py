"""Labels, positions and marks of bad channels are read from electrode tables, whatever their columns are called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgedistill.data.lfp.electrodes import (
    BAD_COLUMNS,
    GOOD_COLUMNS,
    QUALITY_COLUMNS,
    STATE_COLUMNS,
    find_bad_channels,
)
from edgedistill.data.recording import Lfp, open_recording

from .. import nwb_files as make


def read_with_columns(path: Path, columns: dict[str, list[Any]]) -> tuple[Lfp, tuple[str, ...]]:
    """Reads an LFP of four channels whose electrode table has these columns. The series names them in reverse order."""
    nwb = make.new_nwb()
    group = nwb.create_electrode_group("g", description="", location="M1", device=nwb.create_device("array"))
    for name in columns:
        if name not in ("x", "y", "z", "rel_x", "rel_y", "rel_z"):
            nwb.add_electrode_column(name, "test")
    for i in range(4):
        nwb.add_electrode(
            id=10 + i, location="M1", group=group, **{name: values[i] for name, values in columns.items()}
        )
    region = nwb.create_electrode_table_region([3, 2, 1, 0], "all")
    make.add_lfp(nwb, make.lfp_volts(channels=4, seconds=2), region=region)
    with open_recording(make.write(nwb, path / "a.nwb")) as recording:
        assert recording.lfp is not None
        return recording.lfp, recording.lfp.notes


@pytest.mark.parametrize("name", ["channel_name", "label", "electrode_label", "contactID", "ElectrodeName"])
def test_labels_follow_the_order_of_the_series(tmp_path: Path, name: str) -> None:
    lfp, _ = read_with_columns(tmp_path, {name: ["a", "b", "c", "d"]})
    assert lfp.channel_ids == ("13", "12", "11", "10")
    assert [electrode.label for electrode in lfp.electrodes] == ["d", "c", "b", "a"]


def test_labels_that_are_not_unique_are_none(tmp_path: Path) -> None:
    lfp, _ = read_with_columns(tmp_path, {"label": ["a", "a", "c", "d"], "channel_name": ["", "", "", ""]})
    assert [electrode.label for electrode in lfp.electrodes] == [None] * 4


def test_relative_positions_come_before_absolute_ones_and_nan_axes_are_left_out(tmp_path: Path) -> None:
    columns = {
        "x": [1.0, 2.0, 3.0, 4.0],
        "rel_x": [0.0] * 4,
        "rel_y": [0.0, 400.0, 800.0, 1200.0],
        "rel_z": [np.nan] * 4,
    }
    lfp, _ = read_with_columns(tmp_path, columns)
    assert [electrode.position for electrode in lfp.electrodes] == [(0, 1200), (0, 800), (0, 400), (0, 0)]


def test_equal_positions_are_none(tmp_path: Path) -> None:
    lfp, _ = read_with_columns(tmp_path, {"x": [1.0, 1.0, 3.0, 4.0], "y": [0.0] * 4, "z": [0.0] * 4})
    assert [electrode.position for electrode in lfp.electrodes] == [None] * 4


def test_a_bad_channel_of_the_table_is_named_with_its_reason(tmp_path: Path) -> None:
    lfp, notes = read_with_columns(tmp_path, {"isBadChannel": [False, True, False, False]})
    assert [electrode.bad for electrode in lfp.electrodes] == [
        *(None, None, "isBadChannel is True in the electrode table", None)
    ]
    assert "column isBadChannel of the electrode table marks 1 of 4 channels as bad" in notes


@pytest.mark.parametrize(
    "name",
    [
        *("bad", "is_bad", "bad_channel", "isBadChannel", "bad_channels", "Noisy", "dead", "badch", "channel_is_bad"),
        *("bad_electrodes", "reject_channel", "is_noise", "bad_mask"),
    ],
)
@pytest.mark.parametrize("values", [[0, 1], [False, True], [0.0, 1.0], ["no", "yes"], ["0", "1"], ["ok", "BAD "]])
def test_every_spelling_of_bad_is_understood(name: str, values: list[Any]) -> None:
    bad, _ = find_bad_channels({name: values}, 2)
    assert list(bad) == [1]


@pytest.mark.parametrize(
    "name", ["good", "is_good", "goodChannel", "valid", "usable", "valid_data", "in_brain", "good_mask"]
)
@pytest.mark.parametrize("values", [[1, 0], [True, False], ["True", "False"], ["good", "dead"]])
def test_every_spelling_of_good_is_understood(name: str, values: list[Any]) -> None:
    bad, _ = find_bad_channels({name: values}, 2)
    assert list(bad) == [1]


@pytest.mark.parametrize("name", ["quality", "status", "channel_quality", "electrodeStatus", "good_or_bad"])
def test_of_a_quality_only_words_that_mean_bad_count(name: str) -> None:
    bad, notes = find_bad_channels({name: ["good", "fair", "noise", "dead channel", "out", ""]}, 6)
    assert list(bad) == [2, 3, 4]
    assert len(notes) == 1


@pytest.mark.parametrize("name", ["quality", "status"])
@pytest.mark.parametrize(
    "text", ["low noise", "no artifact", "Not bad", "non-noisy", "without visible artifact", "not good", "un_shorted"]
)
def test_a_word_for_bad_after_a_negation_is_noted_and_not_used(name: str, text: str) -> None:
    bad, notes = find_bad_channels({name: ["good", text, "bad, no signal" if name == "quality" else "bad"]}, 3)
    assert list(bad) == [2]
    assert any(repr(text) in note and "not understood" in note for note in notes)


def test_a_phrase_after_a_negation_counts() -> None:
    assert list(find_bad_channels({"quality": ["good", "no signal (dead)", "low; noisy"]}, 3)[0]) == [1, 2]


@pytest.mark.parametrize("name", ["condition", "channel_state", "Status"])
def test_a_state_with_an_unknown_word_is_noted_and_not_used(name: str) -> None:
    bad, notes = find_bad_channels({name: ["open field", "awake", "rest"]}, 3)
    assert not bad
    assert notes == (f"column {name} of the electrode table holds 'open field', which was not understood",)
    assert find_bad_channels({name: ["awake", "rest, no stimulus", "good"]}, 3) == ({}, ())


@pytest.mark.parametrize("name", ["label", "channel_labels"])
def test_numbers_as_labels_are_noted_where_they_do_not_tell_channels_apart(name: str) -> None:
    for values in ([0, 1, 0, 3], [0.0, 1.0, float("nan"), 1.0], ["0", "1", "0", "3"]):
        bad, notes = find_bad_channels({name: values}, 4)
        assert not bad
        assert notes == (f"column {name} of the electrode table holds numbers without a meaning: not used",)
    for values in ([1, 2, 3, 4], ["a", "a", "b", "b"], [0, 0, 0, 0]):
        assert find_bad_channels({name: values}, 4) == ({}, ())


@pytest.mark.parametrize(
    ("name", "values"), [("quality", [1, 2, 3]), ("status", ["1", "3", "1"]), ("noise", [3.5, 0.0, 1.0])]
)
def test_amounts_and_grades_are_noted_and_not_used(name: str, values: list[Any]) -> None:
    bad, notes = find_bad_channels({name: values}, 3)
    assert not bad
    assert name in notes[0]
    assert "not used" in notes[0]


def test_words_for_good_and_bad_count_whatever_their_column_is_called() -> None:
    bad, _ = find_bad_channels({"channel_labels": ["good", "noise", "dead"], "side": ["out", "in", "out"]}, 3)
    assert bad == {
        1: "channel_labels is noise in the electrode table",
        2: "channel_labels is dead in the electrode table",
    }


@pytest.mark.filterwarnings("ignore:EnumData is experimental")
def test_words_of_an_enumeration_are_read_and_rows_of_several_values_are_not(tmp_path: Path) -> None:
    nwb = make.new_nwb()
    group = nwb.create_electrode_group("g", description="", location="M1", device=nwb.create_device("array"))
    nwb.add_electrode_column("status", "test", enum=True)
    nwb.add_electrode_column("bad", "segments in which it is bad", index=True)
    for status in ("good", "dead", "good"):
        nwb.add_electrode(location="M1", group=group, status=status, bad=[0.0])
    make.add_lfp(nwb, make.lfp_volts(seconds=2), region=nwb.create_electrode_table_region([0, 1, 2], "all"))
    with open_recording(make.write(nwb, tmp_path / "a.nwb")) as recording:
        assert recording.lfp is not None
        assert [electrode.bad is not None for electrode in recording.lfp.electrodes] == [False, True, False]


def test_channels_of_one_electrode_are_numbered_and_that_is_said(tmp_path: Path) -> None:
    nwb = make.new_nwb()
    make.add_electrodes(nwb, 3, first_id=10)
    make.add_lfp(nwb, make.lfp_volts(seconds=2), region=nwb.create_electrode_table_region([0, 1, 1], "all"))
    with open_recording(make.write(nwb, tmp_path / "a.nwb")) as recording:
        assert recording.lfp is not None
        assert recording.lfp.channel_ids == ("0", "1", "2")
        assert any("one electrode id" in note for note in recording.lfp.notes)


def test_a_column_that_would_leave_no_channel_is_noted_and_not_used() -> None:
    bad, notes = find_bad_channels({"bad": [True, True], "valid": [1, 0]}, 2)
    assert list(bad) == [1]
    assert any("all 2 channels" in note for note in notes)


def test_values_that_say_nothing_are_noted() -> None:
    bad, notes = find_bad_channels({"bad": ["maybe", "", float("nan"), "true"]}, 4)
    assert list(bad) == [3]
    assert any("'maybe'" in note for note in notes)


def test_other_columns_say_nothing_and_no_name_has_two_meanings() -> None:
    assert find_bad_channels({"imp": [0.0, 1.0], "badminton": [1, 0], "location": ["out", "M1"]}, 2) == ({}, ())
    every = [*BAD_COLUMNS, *GOOD_COLUMNS, *QUALITY_COLUMNS, *STATE_COLUMNS]
    assert len(set(every)) == len(every)
