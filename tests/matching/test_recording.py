"""A recording is compared with the bundle before it is decoded, and read in the order of the bundle."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgedistill.bundle import Bundle
from edgedistill.data.bin_clock import find_clock
from edgedistill.data.bins import file_sha256
from edgedistill.data.lfp.lfp import Gap
from edgedistill.data.recording import SeriesNames, open_recording
from edgedistill.decoding import Predictions, decode_file, decode_matched
from edgedistill.errors import RecordingError
from edgedistill.frontend import bin_edges
from edgedistill.matching import MatchedRecording, match_recording
from edgedistill.runtime import Decoder, Flag

from ..data import nwb_files as make
from .days import LABELS, SERIES, bundle_of, signal_uv, write_day


def warnings_of(bundle: Bundle, path: Path, **names: str) -> tuple[str, ...]:
    with open_recording(path, SeriesNames(**names)) as recording:
        return match_recording(bundle, recording).warnings


def decode(bundle: Bundle, path: Path) -> Predictions:
    with open_recording(path) as recording:
        return decode_file(Decoder(bundle), recording)


def refused(bundle: Bundle, path: Path, says: str) -> None:
    with open_recording(path) as recording, pytest.raises(RecordingError, match=says) as told:
        match_recording(bundle, recording)
    assert str(path) in str(told.value)
    assert "edgedistill" in str(told.value.next_step)


def test_the_session_of_the_bundle_gets_no_warning(bundle: Bundle, first_day: Path) -> None:
    predictions = decode(bundle, first_day)
    assert (predictions.warnings, predictions.series) == ((), SERIES)


def test_other_columns_are_put_in_order_and_decode_to_the_same_bits(
    bundle: Bundle, first_day: Path, tmp_path: Path
) -> None:
    there, here = decode(bundle, first_day), decode(bundle, write_day(tmp_path / "p.nwb", order=(2, 0, 1)))
    assert here.kinematics.tobytes() == there.kinematics.tobytes()
    (warning,) = here.warnings
    assert "in the order of the bundle by their labels: its channel 1 is column 2" in warning


def test_columns_in_another_order_are_refused_without_labels(bundle: Bundle, tmp_path: Path) -> None:
    path = write_day(tmp_path / "p.nwb", order=(0, 2, 1), labels=None)
    refused(bundle, path, r"(?s)channel 2 \('1'\).*\(0, 800\).*\(0, 400\)")


def test_ids_put_columns_in_order_to_the_same_bits(first_day: Path, tmp_path: Path) -> None:
    plain = write_day(tmp_path / "a.nwb", labels=None, places=None)
    bundle = bundle_of(plain, tmp_path / "a.edge")
    there = decode(bundle, plain)
    here = decode(bundle, write_day(tmp_path / "p.nwb", order=(1, 2, 0), ids=(1, 2, 0), labels=None, places=None))
    assert here.kinematics.tobytes() == there.kinematics.tobytes()
    assert any("by their electrode ids" in warning for warning in here.warnings)


def test_other_ids_are_a_warning(first_day: Path, tmp_path: Path) -> None:
    bundle = bundle_of(write_day(tmp_path / "a.nwb", labels=None), tmp_path / "a.edge")
    (warning,) = warnings_of(bundle, write_day(tmp_path / "b.nwb", ids=(7, 8, 9), labels=None))
    assert "3 of 3 channels have another id" in warning


def test_a_measured_rate_is_accepted_and_times_follow_it(bundle: Bundle, first_day: Path, tmp_path: Path) -> None:
    there, here = decode(bundle, first_day), decode(bundle, write_day(tmp_path / "m.nwb", rate=250 * (1 + 13.8e-6)))
    assert here.kinematics.tobytes() == there.kinematics.tobytes()
    (warning,) = here.warnings
    assert "13.8 ppm above" in warning
    assert there.times_s[-1] == pytest.approx(20, abs=1e-12)
    assert here.times_s[-1] == pytest.approx(20 / (1 + 13.8e-6), abs=1e-9)
    assert here.bins_per_s == pytest.approx(100 * (1 + 13.8e-6), rel=1e-12)


@pytest.mark.parametrize(("ppm", "says"), [(250, "off by 250 ppm"), (-300, "300 ppm"), (1e6, "500 Hz\n")])
def test_a_rate_further_off_is_refused(bundle: Bundle, tmp_path: Path, ppm: float, says: str) -> None:
    refused(bundle, write_day(tmp_path / "r.nwb", rate=250 * (1 + ppm * 1e-6)), f"(?s){says}.*250 Hz, at most 200 ppm")


def test_a_lost_gain_is_a_warning_and_a_lost_unit_an_error(bundle: Bundle, tmp_path: Path) -> None:
    (warning,) = warnings_of(bundle, write_day(tmp_path / "g.nwb", volts=4e-6))
    assert re.search(r"the amplitude is 4(\.0\d)? times that of the bundle", warning)
    refused(bundle, write_day(tmp_path / "v.nwb", volts=1.0), r"(?s)e\+06 times.*conversion")


def test_a_minute_that_is_not_like_the_session_is_no_warning_in_that_very_file(
    tmp_path: Path,
) -> None:
    frames = signal_uv(300)
    frames[10_000:-10_000] *= 0.1
    bundle = bundle_of(write_day(tmp_path / "a.nwb", frames), tmp_path / "a.edge")
    assert warnings_of(bundle, tmp_path / "a.nwb") == ()
    again = write_day(tmp_path / "b.nwb", frames, comments="written again")
    assert any("amplitude" in warning for warning in warnings_of(bundle, again))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"after": timedelta(days=3), "session_id": "s2"}, "session 's2' was recorded 3 days after .* session 's1'"),
        ({"after": timedelta(hours=-2)}, "2.0 hours before the bundle's session 's1'"),
        ({"session_id": "s2"}, "session 's2' was not the bundle's session 's1'"),
    ],
)
def test_another_day_is_one_warning(bundle: Bundle, tmp_path: Path, change: dict[str, Any], says: str) -> None:
    (warning,) = warnings_of(bundle, write_day(tmp_path / "d.nwb", **change))
    assert re.search(says, warning)
    assert "the statistics of 's1' are used" in warning
    assert "edgedistill adapt" in warning


def test_a_session_that_the_build_named_otherwise_is_no_other_day(first_day: Path, tmp_path: Path) -> None:
    with open_recording(first_day) as recording:
        start = recording.session_start
    renamed = bundle_of(
        first_day,
        tmp_path / "a.edge",
        session={"id": "monday/first", "subject": None, "start": start},
        provenance={"sessions": {"monday/first": file_sha256(first_day)}},
    )
    assert warnings_of(renamed, first_day) == ()


def test_channels_that_the_file_marks_as_bad_are_masked_and_said(bundle: Bundle, tmp_path: Path) -> None:
    frames = signal_uv()
    frames[:, 1] = 3000 * np.sin(np.arange(len(frames)) * 2 * np.pi * 60 / 250)
    path = write_day(tmp_path / "b.nwb", frames, bad=(False, True, False), order=(1, 0, 2))
    predictions = decode(bundle, path)
    assert set(predictions.bad_channels[5:].tolist()) == {1}
    assert all(Flag.MASKED in output.flags for output in predictions.outputs[5:])
    masked = [warning for warning in predictions.warnings if "masked" in warning]
    assert len(masked) == 1
    assert masked[0].startswith("1 channel that the file marks as bad is masked: elec2 (")
    assert not any("amplitude" in warning for warning in predictions.warnings)


def test_a_bad_channel_that_the_bundle_does_not_use_is_not_said(first_day: Path, tmp_path: Path) -> None:
    path = write_day(tmp_path / "b.nwb", bad=(False, True, False))
    silent = bundle_of(path, tmp_path / "b.edge", normalization={"mean": [0.0] * 3, "std": [20.0, 0.0, 50.0]})
    assert warnings_of(silent, path) == ()


def test_an_older_bundle_is_compared_as_far_as_it_can_be(first_day: Path, tmp_path: Path) -> None:
    older = bundle_of(
        first_day, tmp_path / "old.edge", channels=None, session={"id": "s1", "subject": None}, provenance=None
    )
    (warning,) = warnings_of(older, first_day)
    assert "does not state the labels and positions of its channels or when its session began" in warning
    amplitude = warnings_of(older, write_day(tmp_path / "g.nwb", volts=4e-6))
    assert any("amplitude" in warning for warning in amplitude)


def test_the_series_of_the_bundle_is_read_unless_another_is_named(bundle: Bundle, tmp_path: Path) -> None:
    path = write_day(tmp_path / "two.nwb", names=("a_lfp_that_comes_first", "lfp"))
    for names, expected in (({}, "lfp"), ({"lfp": "a_lfp_that_comes_first"}, "a_lfp_that_comes_first")):
        with open_recording(path, SeriesNames(**names)) as recording:
            assert match_recording(bundle, recording).series == f"processing/ecephys/LFP/{expected}"


def with_series(first_day: Path, out: Path, series: str) -> Bundle:
    return bundle_of(first_day, out, provenance={"sessions": {}, "series": {"s1": {"lfp": series}}})


def test_a_series_of_that_name_elsewhere_is_read_and_without_one_the_rules_hold(
    first_day: Path, tmp_path: Path
) -> None:
    path = write_day(tmp_path / "two.nwb", names=("a_lfp", "lfp"))
    with open_recording(path) as recording:
        moved = with_series(first_day, tmp_path / "moved.edge", "acquisition/lfp")
        assert match_recording(moved, recording).series == SERIES
        gone = with_series(first_day, tmp_path / "gone.edge", "acquisition/gone")
        with pytest.raises(RecordingError, match="--lfp a_lfp"):
            match_recording(gone, recording)


def test_all_segments_of_the_bundles_array_are_read(first_day: Path, tmp_path: Path) -> None:
    folder = "processing/ecephys/LFP"
    names, starts = ("M1_1", "M1_2", "PMd_1", "PMd_2"), (0.0, 21.0, 0.0, 21.0)
    path = write_day(tmp_path / "pieces.nwb", names=names, starts=starts)
    for number, stated in enumerate((f"{folder}/PMd_1 + {folder}/PMd_2 + {folder}/PMd_3", f"{folder}/PMd_1")):
        bundle = with_series(first_day, tmp_path / f"{number}.edge", stated)
        with open_recording(path) as recording:
            matched = match_recording(bundle, recording)
            assert matched.series == f"{folder}/PMd_1 + {folder}/PMd_2"
            ends, bins_per_s = matched.find_bin_ends(np.array([4, 5, 5254]))
        assert (bins_per_s, ends[-1]) == (100, pytest.approx(0.03))


class Pieces:
    """An LFP in two segments with 10 lost frames between them, on a clock that was started again."""

    notes = ()

    rate, start_s, frames, channels, channel_ids, series = 250, 0.0, 1010, 3, ("0", "1", "2"), SERIES

    def read_blocks(self, _: int) -> Any:
        data = signal_uv(4)
        yield data[:500]
        yield Gap(10)
        yield data[500:]

    def times_at(self, frames: np.ndarray) -> np.ndarray:
        return frames / 250 + np.where(frames < 505, 0, 0.013)


def test_lost_frames_are_a_gap_and_times_follow_the_segments(bundle: Bundle, first_day: Path) -> None:
    with open_recording(first_day) as recording:
        matched = replace(match_recording(bundle, recording), lfp=Pieces())
        predictions = decode_matched(Decoder(bundle), matched)
    decoder, data = Decoder(bundle), signal_uv(4)
    wanted = [*decoder.push(data[:500]), *decoder.gap(10), *decoder.push(data[500:])]
    assert predictions.kinematics.tobytes() == np.array([o.kinematics for o in wanted]).tobytes()
    assert predictions.counts()["gap"] == 4
    assert predictions.bins_per_s is None
    edges, bins = np.array([o.end_frame for o in wanted]) + 1, np.arange(1, len(wanted) + 1)
    assert predictions.times_s == pytest.approx(bins / 100 + np.where(edges < 505, 0, 0.013), abs=1e-12)


def test_bins_end_when_a_build_says_on_a_clock_that_was_started_again(
    bundle: Bundle, first_day: Path, tmp_path: Path
) -> None:
    path = write_day(tmp_path / "two.nwb", signal_uv(130), names=("M1_1", "M1_2"), starts=(0.0, 131.0012))
    with open_recording(path, SeriesNames(lfp="M1")) as recording:
        matched = match_recording(bundle, recording)
        ends = bin_edges(matched.lfp.rate, 1, 20_000) - 1
        found, bins_per_s = matched.find_bin_ends(ends)
        built = find_clock(recording, matched.lfp, None, None).edges_s
    assert bins_per_s is None
    assert found[:3] == pytest.approx([0.01, 0.02, 0.03], abs=1e-9)
    assert found.tolist() == built[1 : len(found) + 1].tolist()


def test_blocks_are_put_in_order_one_at_a_time(bundle: Bundle, first_day: Path) -> None:
    with open_recording(first_day) as recording:
        found = match_recording(bundle, recording)
        masked = np.array([False, True, False])
        matched: MatchedRecording = replace(found, lfp=found.lfp.in_order((2, 0, 1)), masked=masked)
        blocks = list(matched.read_blocks(999))
        whole = found.lfp.read(0, found.frames)
    assert [len(block) for block in blocks[:-1]] == [999] * (len(blocks) - 1)
    assert np.concatenate(blocks)[:, [0, 2]].tobytes() == whole[:, [2, 1]].tobytes()
    assert np.isnan(np.concatenate(blocks)[:, 1]).all()
    assert len(LABELS) == found.lfp.channels


def test_a_recording_that_is_shorter_than_a_bin_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    nwb = make.new_nwb()
    make.add_lfp(nwb, make.lfp_volts(seconds=0.004))
    with (
        open_recording(make.write(nwb, tmp_path / "a.nwb")) as recording,
        pytest.raises(RecordingError, match="shorter than a bin"),
    ):
        match_recording(bundle, recording)


def test_a_recording_of_a_second_is_too_short_to_compare(bundle: Bundle, tmp_path: Path) -> None:
    (warning,) = warnings_of(bundle, write_day(tmp_path / "a.nwb", signal_uv(1)))
    assert "the recording is 1 s long" in warning
    assert "conversion" not in warning


@pytest.mark.parametrize("stop_s", [140.0, 60.5, 50.0])
def test_what_a_recording_marks_as_invalid_is_not_compared(bundle: Bundle, tmp_path: Path, stop_s: float) -> None:
    frames = signal_uv(200)
    frames[15_000:35_000] *= 100
    path = write_day(tmp_path / "a.nwb", frames, invalid_s=((60.0, stop_s),))
    if stop_s == 140:
        assert warnings_of(bundle, path) == ()
    else:  # a row that ends before it begins marks nothing, and decoding does not need the table
        refused(bundle, path, "the amplitude of")
