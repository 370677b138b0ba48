"""Sessions in the layouts and with the accidents of public reports give the bins of their tidy twin, or are refused.

Each test names the report. What is read must be equal to a millionth of a deviation outside the awkward stretch, and a
ridge must decode as well. What cannot be used is refused at once, with file, series, finding and next step.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pynwb import NWBFile
from pynwb.behavior import Position, SpatialSeries
from pynwb.ecephys import ElectricalSeries
from pynwb.misc import Units
from scipy.signal import butter, sosfilt

from edgedistill.data.bins import SessionBins, bins_from_recording
from edgedistill.data.coverage import BEFORE, GAP, INVALID, NO_BEHAVIOR, SETTLING
from edgedistill.data.recording import open_recording
from edgedistill.errors import RecordingError
from edgedistill.frontend import settling_bins
from edgedistill.training import baselines

from .reach_session import CHANNELS, RATE, SECONDS, ReachSession, read, ridge_r2, save

REACH = ReachSession()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> SessionBins:
    return read(REACH.write(tmp_path_factory.mktemp("plain") / "plain.nwb"))


def require_equal(found: SessionBins, twin: SessionBins, bins: slice | np.ndarray = slice(None)) -> None:
    """Compares LFP, counts and behavior of the same bins of two sessions."""
    assert found.lfp is not None
    assert twin.lfp is not None
    deviation = twin.lfp.std(axis=0)
    assert (np.abs(found.lfp[bins] - twin.lfp[bins]) / deviation).max() < 1e-6
    np.testing.assert_array_equal(found.counts[bins], twin.counts[bins])
    np.testing.assert_allclose(found.behavior[bins], twin.behavior[bins], rtol=0, atol=1e-6 * twin.behavior.std())


def require_same_ridge(found: SessionBins, twin: SessionBins, within: float = 0.02) -> None:
    """Compares the R² of ridges that are fitted and scored on the same bins of two sessions."""
    bins = min(found.bins, twin.bins)
    known = np.isfinite(found.behavior[:bins]).all(axis=1, keepdims=True)
    behavior = np.concatenate([np.where(known, twin.behavior[:bins], np.nan), twin.behavior[bins:]])
    twin = replace(twin, behavior=behavior.astype(np.float32))
    assert ridge_r2(found) == pytest.approx(ridge_r2(twin), abs=within)


@pytest.fixture(autouse=True)
def one_ridge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits one ridge and not one for each number of lags."""
    monkeypatch.setattr(baselines, "RIDGE_LAGS", (10,))


def refusal(path: Path, *says: str, **names: str) -> None:
    with pytest.raises(RecordingError) as raised:
        read(path, **names)
    message = str(raised.value)
    for part in (path.name, *says):
        assert part in message, message
    assert raised.value.next_step


def test_a_tidy_session_is_kept_whole(plain: SessionBins) -> None:
    assert plain.left_out_s == {}
    assert plain.session_s == SECONDS
    assert plain.valid is None
    assert ridge_r2(plain) > 0.4


# ---------------------------------------------------------------- which series


def with_spike_band(path: Path, *, lf: bool, ap_name: str = "ElectricalSeriesAP") -> Path:
    """Writes a wide band high-passed at 300 Hz in acquisition and, if asked for, the slow one beside it."""
    nwb, rate = REACH.nwb(), 5000
    noise = np.random.default_rng(2).standard_normal((10 * rate, CHANNELS)) * 50
    high = sosfilt(butter(3, 300, "highpass", fs=rate, output="sos"), noise, axis=0)
    spikes = np.tile(high, (SECONDS // 10, 1)).astype(np.int16)
    region = nwb.create_electrode_table_region(list(range(CHANNELS)), "all")
    told = "Acquisition traces."
    facts: dict[str, object] = {"rate": float(rate), "conversion": 1e-6, "description": told}
    nwb.add_acquisition(ElectricalSeries(name=ap_name, data=spikes, electrodes=region, **facts))
    if lf:
        slow = REACH.series(nwb, "ElectricalSeriesLF", electrodes=region, description=told)
        nwb.add_acquisition(slow)
    REACH.add_units(nwb)
    REACH.add_velocity(nwb)
    return save(nwb, path)


@pytest.mark.parametrize("ap_name", ["ElectricalSeriesAP", "ElectricalSeries"])  # the second says nothing of its band
def test_the_slow_band_is_read_beside_the_spike_band(tmp_path: Path, plain: SessionBins, ap_name: str) -> None:
    """SpikeGLX as converters write it: DANDI:001275, DANDI:000149, catalystneuro/neuroconv #957."""
    found = read(with_spike_band(tmp_path / "s.nwb", lf=True, ap_name=ap_name))
    assert found.series["lfp"] == "acquisition/ElectricalSeriesLF"
    require_equal(found, plain)


def test_a_spike_band_alone_is_refused_unless_it_is_named(tmp_path: Path) -> None:
    path = with_spike_band(tmp_path / "s.nwb", lf=False, ap_name="raw")
    refusal(path, "acquisition/raw", "--lfp")
    assert read(path, lfp="raw").series["lfp"] == "acquisition/raw"


def segmented(path: Path) -> Path:
    """Writes two arrays in two segments each, with a pause of 4 s between the segments."""
    nwb = REACH.nwb()
    for row in range(CHANNELS):
        nwb.add_electrode(location="PMd", group=nwb.electrode_groups["m1"], enforce_unique_id=False, id=100 + row)
    for array, rows in (("M1", range(CHANNELS)), ("PMd", range(CHANNELS, 2 * CHANNELS))):
        for number, (first, last) in enumerate(((0, 60), (64, SECONDS)), 1):
            data = (REACH.lfp_uv[first * RATE : last * RATE] * (1e-6 if array == "M1" else 2e-6)).astype(np.float32)
            region = nwb.create_electrode_table_region(list(rows), array)
            REACH.add_lfp(nwb, f"{array}_{number}", data=data, starting_time=float(first), electrodes=region)
    REACH.add_units(nwb)
    REACH.add_velocity(nwb)
    return save(nwb, path)


def test_arrays_are_chosen_by_name_and_their_segments_put_together(tmp_path: Path, plain: SessionBins) -> None:
    """DANDI:000121, DANDI:000070; catalystneuro/neuroconv #18."""
    path = segmented(tmp_path / "s.nwb")
    refusal(path, "M1", "PMd", "--lfp")
    found = read(path, lfp="M1")
    assert "M1_1" in found.series["lfp"]
    assert "M1_2" in found.series["lfp"]
    require_equal(found, plain, slice(0, 6000))
    assert found.left_out_s[GAP] == pytest.approx(4.0)
    assert found.valid is not None
    assert not found.valid[6000:6400].any()
    later = slice(14_000, None)  # by then the high-pass has forgotten what it missed
    assert found.lfp is not None
    assert plain.lfp is not None
    assert np.abs(found.lfp[later] - plain.lfp[later]).max() < 1e-3 * plain.lfp.std()
    require_same_ridge(found, plain)
    other = read(path, lfp="PMd")
    assert other.lfp is not None
    np.testing.assert_allclose(other.lfp[:6000], 2 * found.lfp[:6000], rtol=1e-4, atol=1e-3)


# ---------------------------------------------------------------- clocks


@pytest.mark.parametrize("kind", ["wandering", "packets"])
def test_a_clock_that_wanders_makes_no_pauses(tmp_path: Path, plain: SessionBins, kind: str) -> None:
    """SpikeInterface/spikeinterface #4654, billkarsh/SpikeGLX #24; labstreaminglayer/App-WearableSensing #4."""
    frame = np.arange(SECONDS * RATE)
    if kind == "wandering":
        times = frame / RATE + 0.002 * np.sin(np.pi * frame / len(frame))
    else:
        times = 9 * (frame // 9 + 1) / RATE + frame % 9 * 1e-5
    nwb = REACH.nwb()
    REACH.add_lfp(nwb, timestamps=times)
    REACH.add_units(nwb)
    REACH.add_velocity(nwb)
    found = read(save(nwb, tmp_path / "s.nwb"))
    bins = slice(0, min(found.bins, plain.bins))
    assert found.lfp is not None
    assert plain.lfp is not None
    assert np.abs(found.lfp[bins] - plain.lfp[bins]).max() < 1e-6 * plain.lfp.std()
    assert found.notes
    assert not any("pause" in note or "gap" in note for note in found.notes)
    assert GAP not in found.left_out_s
    require_same_ridge(found, plain)


def test_a_constant_drift_is_named_and_taken_as_the_rate(tmp_path: Path, plain: SessionBins) -> None:
    frame = np.arange(SECONDS * RATE)
    nwb = REACH.nwb()
    REACH.add_lfp(nwb, timestamps=frame / (RATE * (1 + 30e-6)))
    REACH.add_units(nwb)
    REACH.add_velocity(nwb)
    found = read(save(nwb, tmp_path / "s.nwb"))
    assert found.frontend is not None
    assert float(found.frontend.rate) == pytest.approx(RATE * (1 + 30e-6), rel=1e-8)
    assert any("30" in note and "ppm" in note for note in found.notes)


# ---------------------------------------------------------------- what is not there or not valid


def test_a_channel_that_the_table_marks_as_bad_spoils_no_other(tmp_path: Path) -> None:
    """neuromodulation/py_neuromodulation #78, DANDI:000638."""
    reach, t = ReachSession(), np.arange(SECONDS * RATE) / RATE
    reach.lfp_uv[:, 3] = 3000 * np.sin(2 * np.pi * 60.03 * t)
    nwb = reach.nwb(isBadChannel=[row == 3 for row in range(CHANNELS)])
    reach.add_lfp(nwb)
    reach.add_units(nwb)
    reach.add_velocity(nwb)
    found = read(save(nwb, tmp_path / "s.nwb"))
    others = [0, 1, 2, 4, 5]
    tidy = ReachSession()
    tidy.lfp_uv[:, 3] = np.nan  # a channel that is known to be lost
    twin = read(tidy.write(tmp_path / "twin.nwb"))
    assert found.lfp is not None
    assert twin.lfp is not None
    assert found.bad is not None
    assert found.bad[:, 3].all()
    assert not found.bad[:, others].any()
    assert np.abs(found.lfp - twin.lfp)[:, others].max() < 1e-6 * twin.lfp[:, others].std()
    require_same_ridge(found, twin)


@pytest.mark.parametrize("stored", ["NaN", "timestamps"])
def test_bins_that_a_lost_packet_still_disturbs_are_left_out(tmp_path: Path, stored: str) -> None:
    """catalystneuro/neuroconv #1791, fieldtrip/fieldtrip #1128, open-ephys/plugin-GUI #465."""
    reach = ReachSession()
    reach.lfp_uv += np.linspace(-2000, 2000, CHANNELS)
    twin = read(reach.write(tmp_path / "whole.nwb"))
    lost = slice(130 * RATE, 130 * RATE + 50)
    if stored == "NaN":
        reach.lfp_uv[lost] = np.nan
        path = reach.write(tmp_path / "cut.nwb")
    else:
        times_s = np.delete(np.arange(len(reach.lfp_uv)) / RATE, lost)
        reach.lfp_uv = np.delete(reach.lfp_uv, lost, axis=0)
        nwb = reach.nwb()
        reach.add_lfp(nwb, timestamps=times_s)
        reach.add_units(nwb)
        reach.add_velocity(nwb)
        path = save(nwb, tmp_path / "cut.nwb")
    found = read(path)
    require_equal(found, twin, slice(0, 13_000))
    assert found.frontend is not None
    settles = found.frontend.settled_bins - found.frontend.clean_after_loss(5) - 1
    left_out = np.zeros(found.bins, np.bool_)
    left_out[13_000 : 13_005 + settles] = True
    assert found.valid is not None
    assert np.array_equal(~found.valid, left_out)
    assert found.left_out_s[GAP] == pytest.approx(0.05)
    assert found.left_out_s[SETTLING] == pytest.approx(settles / 100)
    assert found.lfp is not None
    assert twin.lfp is not None
    deviation = twin.lfp[2000:].std(axis=0)
    assert (np.abs(found.lfp - twin.lfp) / deviation)[found.valid].max() < 0.2
    require_same_ridge(found, twin, within=0.05)


def test_a_long_gap_costs_the_settling_time_of_the_filters(tmp_path: Path, plain: SessionBins) -> None:
    reach = ReachSession()
    reach.lfp_uv[80 * RATE : 85 * RATE] = np.nan
    found = read(reach.write(tmp_path / "cut.nwb"))
    assert found.frontend is not None
    assert found.left_out_s[GAP] == pytest.approx(5)
    assert found.left_out_s[SETTLING] == pytest.approx((settling_bins(found.frontend) - 1) / 100)
    require_equal(found, plain, slice(0, 8000))


def test_invalid_times_count_in_no_statistic(tmp_path: Path, plain: SessionBins) -> None:
    """AllenInstitute/AllenSDK #946, #998; LorenFrankLab/spyglass #1336; DANDI:000021."""
    reach, t = ReachSession(), np.arange(SECONDS * RATE) / RATE
    inside = (t >= 40) & (t < 60)
    noise = np.random.default_rng(8)
    reach.lfp_uv[inside] += 2000 * np.sin(2 * np.pi * 7 * t[inside])[:, None] * noise.standard_normal(CHANNELS)
    reach.velocity[4000:6000] = noise.standard_normal((2000, 2)) * 200
    tags = ["stimulation test"]
    path = reach.write(
        tmp_path / "s.nwb", lambda nwb: nwb.add_invalid_time_interval(start_time=40.0, stop_time=60.0, tags=tags)
    )
    found = read(path)
    require_equal(found, plain, slice(0, 3999))
    assert found.valid is not None
    assert not found.valid[4000:6000].any()
    assert found.left_out_s[INVALID] == pytest.approx(20.0)
    assert np.isnan(found.behavior[4000:6000]).all()
    require_same_ridge(found, plain)


def test_behavior_between_trials_is_missing_and_counted(tmp_path: Path, plain: SessionBins) -> None:
    reach = ReachSession()
    pause = reach.times_s % 5 > 4
    reach.velocity[pause] = np.nan
    found = read(reach.write(tmp_path / "s.nwb"))
    assert found.left_out_s[NO_BEHAVIOR] == pytest.approx(pause.sum() / 100, abs=1.0)
    known = np.isfinite(found.behavior).all(axis=1)
    np.testing.assert_array_equal(found.behavior[known], plain.behavior[known])
    assert found.valid is None  # the LFP of these bins is whole


def test_counts_of_units_that_were_not_observed_are_unknown(tmp_path: Path, plain: SessionBins) -> None:
    nwb = REACH.nwb()
    REACH.add_lfp(nwb)
    REACH.add_velocity(nwb)
    for unit, times in enumerate(REACH.spikes):
        seen = [[0.0, 60.0], [100.0, float(SECONDS)]] if unit == 2 else [[0.0, float(SECONDS)]]
        kept = times[(times < 60) | (times >= 100)] if unit == 2 else times
        nwb.add_unit(spike_times=kept, obs_intervals=seen)
    found = read(save(nwb, tmp_path / "s.nwb"))
    assert found.observed is not None
    assert not found.observed[6000:10_000, 2].any()
    assert found.observed[:, [0, 1, 3]].all()
    assert found.observed[:6000, 2].all()


# ---------------------------------------------------------------- behavior


def with_behavior(path: Path, *series: SpatialSeries) -> Path:
    nwb = REACH.nwb()
    REACH.add_lfp(nwb)
    REACH.add_units(nwb)
    position = Position(name="position")
    nwb.create_processing_module("behavior", "tracking").add(position)
    for one in series:
        position.add_spatial_series(one)
    return save(nwb, path)


def spatial(name: str, data: np.ndarray, **settings: object) -> SpatialSeries:
    facts: dict[str, object] = {"unit": "cm", "reference_frame": "room"}
    if "timestamps" not in settings:
        facts["rate"] = 100.0
    return SpatialSeries(name=name, data=data, **(facts | settings))


def test_epochs_of_one_tracker_are_put_together(tmp_path: Path) -> None:
    """DANDI:001280, LorenFrankLab/spyglass #613."""
    series, place = [], REACH.position
    for led in (0, 1):
        for epoch, (first, last) in enumerate(((0, 70), (75, SECONDS)), 1):
            rows = slice(first * 100, last * 100)
            name = f"led_{led}_series_{epoch}"
            told = "xloc, yloc"
            series.append(spatial(name, place[rows] + led, timestamps=REACH.times_s[rows], description=told))
    found = read(with_behavior(tmp_path / "s.nwb", *series))
    twin = read(with_behavior(tmp_path / "twin.nwb", spatial("led_0", place, description="xloc, yloc")))
    assert 4.9 < found.left_out_s[NO_BEHAVIOR] < 5.2
    known = np.isfinite(found.behavior).all(axis=1)
    assert known[:6990].all()
    assert known[7510:-10].all()
    inner = known.copy()
    inner[6980:7520] = False
    np.testing.assert_allclose(found.behavior[inner], twin.behavior[inner], atol=1e-5)
    require_same_ridge(found, twin)


@pytest.mark.filterwarnings("ignore:SpatialSeries .* not compliant", "ignore:Shape of data")
def test_columns_that_are_clocks_are_no_movement(tmp_path: Path) -> None:
    """DANDI:000629."""
    place, count = REACH.position, np.arange(len(REACH.position), dtype=float)
    columns = np.c_[count, count * 1e7 + 1.6e18, count, count * 0, place, place + 1]
    told = "HWframeCount, HWTimestamp, video_frame_ind, non_repeat_timestamp_labels, xloc, yloc, xloc2, yloc2"
    found = read(with_behavior(tmp_path / "s.nwb", spatial("series_0", columns, description=told)))
    twin = read(with_behavior(tmp_path / "twin.nwb", spatial("series_0", place, description="xloc, yloc")))
    assert found.output_names == twin.output_names
    np.testing.assert_allclose(found.behavior[:-2], twin.behavior[:-2], atol=1e-5)
    assert any("hwframe_count" in note for note in found.notes)
    nameless = with_behavior(tmp_path / "n.nwb", spatial("series_0", columns))
    refusal(nameless, "series_0", "--behavior")


# ---------------------------------------------------------------- spikes


def test_spike_times_that_start_again_are_refused(tmp_path: Path) -> None:
    """NeurodataWithoutBorders/nwbinspector #394 (DANDI:000003), #405."""
    nwb = REACH.nwb()
    REACH.add_lfp(nwb)
    REACH.add_velocity(nwb)
    for times in REACH.spikes:
        nwb.add_unit(spike_times=np.concatenate([times[times < 80], times[times >= 80] - 80]))
    refusal(save(nwb, tmp_path / "s.nwb"), "units", "backwards")


def test_units_in_a_processing_module_are_read(tmp_path: Path, plain: SessionBins) -> None:
    """DANDI:001275, DANDI:000897; the option write_as="processing" of catalystneuro/neuroconv."""
    nwb = REACH.nwb()
    REACH.add_lfp(nwb)
    REACH.add_velocity(nwb)
    units = Units(name="units", description="Autogenerated by neuroconv.")
    for times in REACH.spikes:
        units.add_unit(spike_times=times)
    nwb.processing["ecephys"].add(units)
    found = read(save(nwb, tmp_path / "s.nwb"))
    assert found.series["units"] == "processing/ecephys/units"
    require_equal(found, plain)


# ---------------------------------------------------------------- every second is accounted for


@pytest.mark.parametrize("seed", range(6))
def test_kept_and_left_out_seconds_add_up(tmp_path: Path, seed: int) -> None:
    """Random gaps, segments, invalid times, intervals of observation and starts of the parts."""
    rng = np.random.default_rng(seed)
    reach = ReachSession(200)
    start = float(np.round(rng.uniform(0, 6), 3))
    cuts = np.sort(rng.choice(np.arange(20, 180), 2, replace=False)) * RATE
    pause = round(float(rng.uniform(0.5, 8)), 3)
    nwb = reach.nwb()
    edges, later = [0, *cuts, 190 * RATE], start
    for number, (first, last) in enumerate(itertools.pairwise(edges), 1):
        data = (reach.lfp_uv[first:last] * 1e-6).astype(np.float32)
        region = nwb.create_electrode_table_region(list(range(CHANNELS)), "all")
        reach.add_lfp(nwb, f"lfp_{number}", data=data, starting_time=later + first / RATE, electrodes=region)
        later += pause
    reach.velocity[rng.random(len(reach.velocity)) < 0.01] = np.nan
    reach.add_velocity(nwb)
    for times in reach.spikes:
        nwb.add_unit(spike_times=times[times < 190], obs_intervals=[[0.0, 50.0], [50.0 + rng.random(), 195.0]])
    begin = float(rng.uniform(0, 150))
    nwb.add_invalid_time_interval(start_time=begin, stop_time=begin + float(rng.uniform(0.1, 15)))
    found = read(save(nwb, tmp_path / "s.nwb"))
    assert found.coverage.kept_s + sum(found.left_out_s.values()) == pytest.approx(found.session_s, abs=1e-6)
    assert found.session_s == pytest.approx(max(200.0, later - pause + 190), abs=1e-6)
    assert found.left_out_s.get(BEFORE, 0.0) == pytest.approx(start, abs=1e-6)
    assert found.left_out_s[GAP] == pytest.approx(2 * pause, abs=0.05)
    usable = np.ones(found.bins, np.bool_) if found.valid is None else found.valid
    whole = usable & np.isfinite(found.behavior).all(axis=1)
    assert found.coverage.kept_s == pytest.approx(whole.sum() / 100, abs=1e-6)


def test_invalid_rows_over_ordinary_data_cost_only_themselves(tmp_path: Path) -> None:
    def mark(nwb: NWBFile) -> None:
        for start in range(20, 140, 10):
            nwb.add_invalid_time_interval(start_time=float(start), stop_time=start + 0.5)

    found = read(REACH.write(tmp_path / "s.nwb", mark))
    assert found.left_out_s == pytest.approx({INVALID: 6.0})


def test_an_optional_behavior_does_not_shorten_the_session(tmp_path: Path) -> None:
    """A command that can do without behavior reads the session to its end, and knows no behavior there."""
    reach = ReachSession()
    reach.velocity = reach.velocity[: 60 * 100]
    with open_recording(reach.write(tmp_path / "s.nwb")) as recording:
        found = bins_from_recording(recording, need=("units",), also=("lfp", "behavior"))
    assert found.bins == SECONDS * 100
    assert np.isfinite(found.behavior[:6000]).all()
    assert np.isnan(found.behavior[6000:]).all()
    assert found.left_out_s == {}
