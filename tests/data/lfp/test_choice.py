"""The LFP is chosen by rules that are said for every series, and a user can choose another one by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pynwb import NWBFile
from scipy.signal import butter, sosfilt

from edgedistill.data.lfp.lfp import Lfp
from edgedistill.data.lfp.words import split_words
from edgedistill.data.recording import SeriesNames, open_recording
from edgedistill.errors import RecordingError

from .. import nwb_files as make

Names = list[tuple[str, dict[str, Any]]]


def read(nwb: NWBFile, path: Path, named: str | None = None) -> Lfp:
    with open_recording(make.write(nwb, path / "a.nwb"), SeriesNames(lfp=named)) as recording:
        assert recording.lfp is not None
        _ = recording.lfp.read(0, 10)
        return recording.lfp


def refuse(nwb: NWBFile, path: Path, named: str | None = None) -> str:
    with pytest.raises(RecordingError) as caught:
        read(nwb, path, named)
    return str(caught.value)


def with_series(*names: str, region: Any = None, **settings: Any) -> NWBFile:
    """Returns a file with series of the same three electrodes. A name may begin with `acquisition/`."""
    nwb = make.new_nwb()
    region = make.add_electrodes(nwb, 3)
    for name in names:
        where = "acquisition" if name.startswith("acquisition/") else "ecephys"
        make.add_lfp(
            nwb, make.lfp_volts(seconds=2), name=name.rpartition("/")[2], where=where, region=region, **settings
        )
    return nwb


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ElectricalSeriesAP", "electrical series ap"),
        ("ElectricalSeriesLF", "electrical series lf"),
        ("imec0.lf", "imec0 lf"),
        ("probeA_LFP_theta", "probe a lfp theta"),
        ("Low-pass filtered local field potential", "lowpass filtered lfp"),
        ("half_wave", "half wave"),
        ("LFPBand", "lfp band"),
    ],
)
def test_names_are_split_into_words(text: str, words: str) -> None:
    assert split_words(text) == words.split()


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("acquisition/ElectricalSeriesLF", "acquisition/ElectricalSeriesAP"),
        ("imec0.lf", "imec0.ap"),
        ("ecog", "spike_band"),
        ("lfp", "lfp_theta"),
        ("lfp", "ripple_band"),
        ("broadband", "gamma"),
        ("broadband", "lfp_envelope"),
        ("half", "ap"),
        ("lfp_theta", "mua"),
        ("lfp", "raw"),
        ("lfp", "acquisition/lfp_raw"),
        ("processed", "acquisition/everything"),
    ],
)
def test_the_name_decides(tmp_path: Path, better: str, worse: str) -> None:
    lfp = read(with_series(worse, better), tmp_path)
    assert lfp.series.endswith("/" + better.rpartition("/")[2])
    read_ones = {candidate.series: candidate.read for candidate in lfp.candidates}
    assert sorted(read_ones.values()) == [False, True]
    assert all(candidate.why for candidate in lfp.candidates)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"filtering": "Low-pass filter at 250 Hz"}, {"filtering": "High-pass filter at 300 Hz"}),
        ({"filtering": "0.1 - 250 Hz"}, {"filtering": "300-6000 Hz"}),
        ({"filtering": "0.5 to 300 Hz"}, {"filtering": "4-8 Hz"}),
        ({"filtering": "Highpass 0.1 Hz"}, {"filtering": "highpass 250 Hz"}),
        ({"description": "local field potential of M1"}, {"description": "action potentials"}),
        ({"description": "LFP"}, {"description": "theta of the LFP"}),
        ({"description": "wide band"}, {"description": "Acquisition traces for the ElectricalSeriesAP."}),
        ({"description": "LFP; zero-phase filters, no power line noise"}, {"description": "raw"}),
    ],
)
def test_filtering_and_description_decide_where_the_name_says_nothing(
    tmp_path: Path, better: dict[str, str], worse: dict[str, str]
) -> None:
    nwb = make.new_nwb()
    region = make.add_electrodes(nwb, 3)
    for name, settings in (("a", worse), ("b", better)):
        make.add_lfp(nwb, make.lfp_volts(seconds=2), name=name, where="ecephys", region=region, **settings)
    assert read(nwb, tmp_path).series == "processing/ecephys/b"


def test_a_slow_series_is_read_only_where_there_is_no_other(tmp_path: Path) -> None:
    nwb = with_series("power")
    make.add_lfp(nwb, make.lfp_volts(100, seconds=2), name="lfp", rate=100.0)
    lfp = read(nwb, tmp_path)
    assert lfp.series == "processing/ecephys/power"
    assert "100 Hz is below 200 Hz" in [candidate.why for candidate in lfp.candidates]


def test_two_arrays_are_listed_with_the_option_for_each(tmp_path: Path) -> None:
    nwb = make.new_nwb()
    make.add_lfp(nwb, make.lfp_volts(seconds=2), name="probe_a")
    make.add_lfp(nwb, make.lfp_volts(seconds=2), name="probe_b")
    message = refuse(nwb, tmp_path)
    assert "--lfp probe_a" in message
    assert "--lfp probe_b" in message
    assert "a.nwb" in message


@pytest.mark.parametrize("named", ["probe_b", "processing/ecephys/LFP/probe_b", "LFP/probe_b", "PROBE_B"])
def test_a_named_series_is_read(tmp_path: Path, named: str) -> None:
    nwb = make.new_nwb()
    make.add_lfp(nwb, make.lfp_volts(seconds=2), name="probe_a")
    make.add_lfp(nwb, make.lfp_volts(seconds=2), name="probe_b")
    lfp = read(nwb, tmp_path, named)
    assert lfp.series == "processing/ecephys/LFP/probe_b"
    assert {c.series: c.why for c in lfp.candidates}[lfp.series] == "named by --lfp"
    assert lfp.others == ("processing/ecephys/LFP/probe_a",)


def test_a_name_that_nothing_has_lists_the_series(tmp_path: Path) -> None:
    message = refuse(with_series("lfp"), tmp_path, "probe")
    assert "--lfp probe is not in this file" in message
    assert "processing/ecephys/lfp" in message


# ---------------------------------------------------------------- segments


def two_arrays(starts: tuple[float, float] = (0.0, 6.0), **second: Any) -> NWBFile:
    nwb = make.new_nwb()
    for array in ("M1", "PMd"):
        region = make.add_electrodes(nwb, 3)
        for segment, start in enumerate(starts, 1):
            settings = second if segment == 2 else {}
            data = np.full((1000, 3), segment, np.float32)
            make.add_lfp(
                nwb, data, name=f"{array}_{segment}", region=region, starting_time=start, conversion=1e-6, **settings
            )
    return nwb


def test_segments_of_one_array_are_chosen_by_their_common_stem(tmp_path: Path) -> None:
    message = refuse(two_arrays(), tmp_path)
    assert "--lfp M1 " in message
    assert "--lfp PMd " in message
    assert "2 segments" in message
    lfp = read(two_arrays(), tmp_path, "PMd")
    assert lfp.series == "processing/ecephys/LFP/PMd_1 + processing/ecephys/LFP/PMd_2"
    assert (lfp.gaps, lfp.frames, lfp.start_s, lfp.duration_s) == (((1000, 500),), 2500, 0, 10)
    assert any("2 segments" in note for note in lfp.notes)


def test_segments_are_read_in_the_order_of_time_with_a_gap_between(tmp_path: Path) -> None:
    with open_recording(make.write(two_arrays((6.0, 0.0)), tmp_path / "a.nwb"), SeriesNames(lfp="M1")) as recording:
        assert recording.lfp is not None
        values = recording.lfp.read(0, 2500)[:, 0]
    assert (values[:1000] == 2).all()
    assert np.isnan(values[1000:1500]).all()
    assert (values[1500:] == 1).all()


def test_one_segment_can_be_named_alone(tmp_path: Path) -> None:
    lfp = read(two_arrays(), tmp_path, "M1_2")
    assert (lfp.series, lfp.gaps, lfp.start_s) == ("processing/ecephys/LFP/M1_2", (), 6.0)


def test_segments_that_overlap_are_separate_arrays(tmp_path: Path) -> None:
    message = refuse(two_arrays((0.0, 3.9)), tmp_path)
    assert all(f"--lfp {name} " in message for name in ("M1_1", "M1_2", "PMd_1", "PMd_2"))


def test_segments_of_another_rate_are_separate_arrays(tmp_path: Path) -> None:
    assert "--lfp M1_2 " in refuse(two_arrays(rate=251.0), tmp_path)
    assert "--lfp M1 " in refuse(two_arrays(rate=250.01), tmp_path)


def test_segments_without_a_gap_are_one_stream(tmp_path: Path) -> None:
    lfp = read(two_arrays((0.0, 4.0)), tmp_path, "M1")
    assert (lfp.gaps, lfp.frames) == ((), 2000)
    assert (lfp.times_at(np.arange(2001)) == np.arange(2001) / 250).all()


def test_a_segment_between_two_frames_keeps_its_own_time(tmp_path: Path) -> None:
    lfp = read(two_arrays((0.0, 6.0013)), tmp_path, "M1")
    assert lfp.gaps == ((1000, 500),)
    times = lfp.times_at(np.arange(2501))
    np.testing.assert_allclose(times[:1000], np.arange(1000) / 250, atol=1e-9)
    np.testing.assert_allclose(times[1500:], 6.0013 + np.arange(1001) / 250, atol=1e-9)
    assert (np.diff(times) > 0).all()


def test_a_gap_inside_a_segment_does_not_hide_that_it_is_one(tmp_path: Path) -> None:
    nwb = make.new_nwb()
    region = make.add_electrodes(nwb, 3)
    times = np.arange(1000) / 250
    times[500:] += 0.4
    for number, start in enumerate((0.0, 6.0), 1):
        stamps = times + start if number == 1 else start + np.arange(1000) / 250
        make.add_lfp(nwb, make.lfp_volts(seconds=4), name=f"M1_{number}", region=region, timestamps=stamps)
    lfp = read(nwb, tmp_path)
    assert lfp.series == "processing/ecephys/LFP/M1_1 + processing/ecephys/LFP/M1_2"
    assert lfp.rate == 250


def test_the_rate_of_trials_is_that_inside_of_them(tmp_path: Path) -> None:
    nwb = make.new_nwb()
    region = make.add_electrodes(nwb, 3)
    times = np.concatenate([10 * trial + np.arange(1000) / 1000 for trial in range(10)])
    make.add_lfp(nwb, make.lfp_volts(1000, seconds=10), name="lfp", region=region, timestamps=times)
    make.add_lfp(nwb, make.lfp_volts(1000, seconds=2), name="ap_highpass", region=region, rate=1000.0)
    lfp = read(nwb, tmp_path)
    assert (lfp.series, lfp.rate) == ("processing/ecephys/LFP/lfp", 1000)


def test_the_spike_band_is_found_in_trials(tmp_path: Path) -> None:
    nwb = make.new_nwb()
    times = np.concatenate([40 * trial + np.arange(7500) / 2500 for trial in range(4)])
    make.add_lfp(nwb, voltages(2500, True), where="acquisition", name="raw", timestamps=times)
    assert "spike band" in refuse(nwb, tmp_path)


def test_timestamps_that_are_no_numbers_do_not_make_another_series_be_read(tmp_path: Path) -> None:
    nwb = make.new_nwb()
    region = make.add_electrodes(nwb, 3)
    times = np.arange(500) / 250
    times[250] = np.nan
    make.add_lfp(nwb, make.lfp_volts(seconds=2), name="lfp", region=region, timestamps=times)
    make.add_lfp(nwb, make.lfp_volts(seconds=2), name="ap", region=region)
    assert "not all numbers" in refuse(nwb, tmp_path)


# ---------------------------------------------------------------- the spike band


def voltages(rate: float, highpass: bool) -> np.ndarray:
    rng = np.random.default_rng(3)
    white = rng.standard_normal((int(12 * rate), 3)) * 1e-5
    walk = np.cumsum(rng.standard_normal(white.shape), axis=0) * 1e-6
    if not highpass:
        return (white + walk).astype(np.float32)
    return np.asarray(sosfilt(butter(3, 300, "highpass", fs=rate, output="sos"), white, axis=0), np.float32)


@pytest.mark.parametrize("rate", [2500.0, 30000.0])
def test_a_stream_that_is_the_spike_band_by_its_data_is_refused_unless_named(tmp_path: Path, rate: float) -> None:
    nwb = make.new_nwb()
    make.add_lfp(nwb, voltages(rate, True), where="acquisition", name="raw", rate=rate)
    message = refuse(nwb, tmp_path)
    assert "spike band" in message
    assert "--lfp acquisition/raw" in message
    nwb = make.new_nwb()
    make.add_lfp(nwb, voltages(rate, True), where="acquisition", name="raw", rate=rate)
    assert read(nwb, tmp_path, "raw").series == "acquisition/raw"


def test_another_candidate_is_read_in_place_of_the_spike_band(tmp_path: Path) -> None:
    nwb = make.new_nwb()
    region = make.add_electrodes(nwb, 3)
    for name, highpass in (("lfp_but_no", True), ("raw", False)):
        make.add_lfp(nwb, voltages(2500, highpass), where="ecephys", name=name, rate=2500.0, region=region)
    lfp = read(nwb, tmp_path)
    assert lfp.series == "processing/ecephys/raw"
    assert "spike band" in {c.series: c.why for c in lfp.candidates}["processing/ecephys/lfp_but_no"]


@pytest.mark.parametrize("kind", ["broadband", "white", "constant"])
def test_other_streams_are_not_taken_for_the_spike_band(tmp_path: Path, kind: str) -> None:
    data = voltages(2500, False) if kind == "broadband" else make.lfp_volts(2500, seconds=12)
    nwb = make.new_nwb()
    make.add_lfp(nwb, data * (kind != "constant"), name="lfp", rate=2500.0)
    assert read(nwb, tmp_path).rate == 2500


def test_a_band_that_is_all_there_is_gets_read_and_noted(tmp_path: Path) -> None:
    lfp = read(with_series("lfp_theta"), tmp_path)
    assert lfp.candidates[0].read
    assert "theta" in lfp.candidates[0].why
    assert any("theta" in note for note in lfp.notes)
    assert not read(with_series("lfp_theta"), tmp_path, "lfp_theta").notes


@pytest.mark.parametrize(("start", "segments"), [(1.9995, 2), (1.98, 1)])
def test_starts_that_were_rounded_to_a_millisecond_still_follow(tmp_path: Path, start: float, segments: int) -> None:
    nwb = make.new_nwb()
    region = make.add_electrodes(nwb, 3)
    for number, begin in enumerate((0.0, start)):
        make.add_lfp(
            nwb,
            make.lfp_volts(rate=10_000, seconds=2),
            name=f"lfp_{number}",
            region=region,
            rate=10_000.0,
            starting_time=begin,
        )
    if segments == 1:
        assert "several series" in refuse(nwb, tmp_path)
    else:
        assert read(nwb, tmp_path).frames == 40_000
