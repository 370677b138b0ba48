"""Channels are put in the bundle's order where names tell it, and refused where a place contradicts the order."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedistill.bundle.manifest import Channel
from edgedistill.data.lfp.electrodes import Electrode
from edgedistill.errors import RecordingError
from edgedistill.matching.channels import find_order

N = 6
Order = Sequence[int]


def channels(*, labels: bool = True, places: bool = True) -> list[Channel]:
    return [Channel(str(i), f"elec{i}" if labels else None, (0.0, 400.0 * i) if places else None) for i in range(N)]


def electrodes(order: Order, *, labels: bool = True, places: bool = True, ids: Order = range(N)) -> list[Electrode]:
    """Electrodes whose labels and places stand in `order`, and whose ids are those of the rows."""
    return [
        Electrode(str(id), f"elec{i}" if labels else None, (0.0, 400.0 * i) if places else None)
        for id, i in zip(ids, order, strict=True)
    ]


@given(st.permutations(range(N)))
def test_labels_put_the_columns_in_order(order: list[int]) -> None:
    found = find_order(channels(), electrodes(order), "file")
    assert [order[column] for column in found.columns] == list(range(N))
    assert found.as_stored == (order == list(range(N)))
    assert len(found.warnings) == (not found.as_stored)
    assert all("by their labels" in warning for warning in found.warnings)


@given(st.permutations(range(N)))
def test_ids_put_the_columns_in_order_where_there_are_no_labels(order: list[int]) -> None:
    found = find_order(channels(labels=False), electrodes(order, labels=False, ids=order), "file")
    assert [order[column] for column in found.columns] == list(range(N))
    assert all("by their electrode ids" in warning for warning in found.warnings)


@pytest.mark.parametrize("labels", [(False, False), (True, False), (False, True)])
def test_positions_in_another_order_are_refused_where_labels_do_not_tell(labels: tuple[bool, bool]) -> None:
    here = electrodes((0, 1, 4, 3, 2, 5), labels=labels[1])
    with pytest.raises(
        RecordingError, match=r"(?s)channel 3 \('2'\).*\(0, 1600\).*\(0, 800\), as in the bundle"
    ) as told:
        find_order(channels(labels=labels[0]), here, "day.nwb, lfp")
    assert told.value.what.startswith("day.nwb, lfp")
    assert told.value.next_step is not None


def test_ids_that_contradict_the_positions_are_refused() -> None:
    with pytest.raises(RecordingError, match="position"):
        find_order(channels(labels=False), electrodes(range(N), labels=False, ids=(1, 0, 2, 3, 4, 5)), "file")


def test_labels_go_before_positions_and_this_is_said() -> None:
    here = [Electrode(str(i), f"elec{i}", (0.0, 400.0 * (N - 1 - i))) for i in range(N)]
    found = find_order(channels(), here, "file")
    assert found.as_stored
    (warning,) = found.warnings
    assert "positions are in another order" in warning


def test_some_labels_that_stand_elsewhere_are_refused() -> None:
    here = electrodes((1, 0, 2, 3, 4, 5), places=False)
    here[5] = Electrode("5", None)
    with pytest.raises(RecordingError, match=r"(?s)label 'elec1'.*label 'elec0'"):
        find_order(channels(), here, "file")


def test_some_labels_that_agree_are_a_warning() -> None:
    here = electrodes(range(N))
    here[5] = Electrode("5", None, (0.0, 2000.0))
    found = find_order(channels(), here, "file")
    assert found.as_stored
    (warning,) = found.warnings
    assert "only 5 of 6 channels have a label" in warning


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"id": "96"}, "another id than in the bundle.*channel 2 has the id '96', in the bundle the id '1'"),
        ({"label": "other"}, "another label.*channel 2 has the label 'other'"),
        ({"position": (7.0, 7.0)}, r"another position.*channel 2 has the position \(7, 7\)"),
    ],
)
def test_other_names_and_places_are_warnings(change: dict, says: str) -> None:
    labels = "label" in change
    here = electrodes(range(N), labels=labels)
    here[1] = Electrode(**{"id": "1", "label": here[1].label, "position": here[1].position} | change)
    found = find_order(channels(labels=labels), here, "file")
    assert found.as_stored
    (warning,) = found.warnings
    assert re.search(says, warning)


@pytest.mark.parametrize("place", [(0.0, float("nan")), (0.0, 0.0), (1.0, 2.0, 3.0)])
def test_positions_that_are_unknown_or_all_the_same_say_nothing(place: tuple[float, ...]) -> None:
    here = [Electrode(str(i), None, place) for i in range(N)]
    there = [Channel(str(i), None, (0.0, 0.0)) for i in range(N)]
    assert find_order(there, here, "file").warnings == ()
    assert find_order(channels(labels=False, places=False), here, "file").warnings == ()
