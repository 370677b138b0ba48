"""The recordings of Flint and others, 2012, come out of the conversion with their values, pauses and units."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pynwb import NWBHDF5IO, validate
from scipy.io import loadmat, savemat

from edgedistill.convert import convert_flint
from edgedistill.data.recording import open_recording
from edgedistill.errors import OutputError, RecordingError

from .published import FlintTrialData, write_flint, write_makin


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("flint")


@pytest.fixture(scope="module")
def trials(folder: Path) -> list[FlintTrialData]:
    (only,) = write_flint(folder / "Flint_2012_e2.mat")
    return only


@pytest.fixture(scope="module")
def converted(folder: Path, trials: list[FlintTrialData]) -> Path:
    (found,) = convert_flint(folder / "Flint_2012_e2.mat", folder / "out.nwb")
    return found.path


def test_the_lfp_of_all_trials_is_one_series_whose_times_step_at_pauses(
    trials: list[FlintTrialData], converted: Path
) -> None:
    with NWBHDF5IO(str(converted), "r") as file:
        series = file.read().processing["ecephys"]["LFP"]["lfp"]
        expected = np.concatenate([np.stack(trial.lfp[:3], axis=1) for trial in trials])
        np.testing.assert_allclose(series.data[:] * series.conversion * 1e6, expected, rtol=1e-5, atol=1e-4)
        times = np.concatenate([trial.time[0] + np.arange(len(trial.lfp[0])) / 2000 for trial in trials])
        np.testing.assert_allclose(series.timestamps[:], times, atol=1e-12)
        steps = np.diff(series.timestamps[:])
        assert np.count_nonzero(steps > 0.001) == len(trials) - 1
        assert steps.max() == pytest.approx(0.73 + 0.0005)


def test_edgedistill_reads_the_hands_velocity_and_every_unit(trials: list[FlintTrialData], converted: Path) -> None:
    with open_recording(converted) as recording:
        units, behavior = recording.units, recording.behavior
        assert units is not None
        assert behavior is not None
        assert (behavior.names, set(behavior.units)) == (("hand_vel_x", "hand_vel_y"), {"cm/s"})
        np.testing.assert_allclose(behavior.values, np.concatenate([trial.velocity[:, :2] for trial in trials]))
        for k, unit in enumerate(units):
            np.testing.assert_allclose(unit, np.sort(np.concatenate([trial.spikes[k] for trial in trials])))
        assert recording.subject_id == "monkey C"
        assert recording.session_start.startswith("2010-07-19")


def test_trials_conditions_and_observed_times_are_kept(trials: list[FlintTrialData], converted: Path) -> None:
    with NWBHDF5IO(str(converted), "r") as file:
        nwb = file.read()
        spans = np.array([(trial.time[0], trial.time[-1] + 0.01) for trial in trials])
        np.testing.assert_allclose(nwb.trials.to_dataframe()[["start_time", "stop_time"]], spans)
        assert set(nwb.trials["condition"][:]) == {"good"}
        for row in range(len(nwb.units)):
            np.testing.assert_allclose(nwb.units["obs_intervals"][row], spans)
        position = nwb.processing["behavior"]["Position"]["hand_pos"]
        np.testing.assert_allclose(position.data[:], np.concatenate([trial.hand[:, :2] for trial in trials]))
        assert position.unit == "centimeters"
        assert nwb.units["electrodes"][3].empty  # the last neuron has no LFP


@pytest.mark.parametrize(("pause_s", "end_s"), [(0.73, 7.01), (0.0, 7.0)])
def test_a_spike_far_from_its_trial_stretches_no_trial_and_is_told(
    tmp_path: Path, pause_s: float, end_s: float
) -> None:
    path = tmp_path / "Flint_2012_e2.mat"
    write_flint(path, pause_s=pause_s, neurons=8)
    subject = loadmat(path)["Subject"]
    neurons = subject[0, 0]["Trial"][0, 0]["Neuron"]
    far = neurons[0, 0]["Spike"].copy()
    far[-2:] = [[7.01], [1006.9]]  # one in the moment after the trial, and one far from all
    neurons[0, 0]["Spike"] = far
    savemat(path, {"Subject": subject})
    (found,) = convert_flint(path, tmp_path / "out.nwb")
    assert any(note.startswith("1 spikes lie outside all trials") for note in found.notes)
    with open_recording(found.path) as recording:
        assert recording.units is not None
        assert max(map(np.max, recording.units)) == 1006.9
    with NWBHDF5IO(str(found.path), "r") as file:
        observed = np.asarray(file.read().units["obs_intervals"][0])
    starts = 5 + np.arange(3) * (2 + pause_s)
    stops = starts + 2
    stops[0] = end_s
    np.testing.assert_allclose(observed, np.stack([starts, stops], axis=1))


def test_the_file_is_valid_nwb(converted: Path) -> None:
    with NWBHDF5IO(str(converted), "r") as io:
        assert not validate(io=io)


def test_several_recordings_become_one_file_each(tmp_path: Path) -> None:
    write_flint(tmp_path / "Flint_2012_e3.mat", recordings=2, trials=2)
    found = convert_flint(tmp_path / "Flint_2012_e3.mat", tmp_path / "sessions")
    assert [file.path.name for file in found] == ["Flint_2012_e3_s1.nwb", "Flint_2012_e3_s2.nwb"]
    assert [file.session_id for file in found] == ["flint_2012_e3_s1", "flint_2012_e3_s2"]
    assert sorted(path.name for path in (tmp_path / "sessions").iterdir()) == [file.path.name for file in found]
    with pytest.raises(OutputError, match="one file cannot hold 2 recordings"):
        convert_flint(tmp_path / "Flint_2012_e3.mat", tmp_path / "one.nwb")


def test_trials_without_a_pause_are_one_regular_series(tmp_path: Path) -> None:
    write_flint(tmp_path / "Flint_2012_e2.mat", pause_s=0.0)
    (found,) = convert_flint(tmp_path / "Flint_2012_e2.mat", tmp_path / "out.nwb")
    assert found.lfp.gaps == 0
    with open_recording(found.path) as recording:
        assert recording.lfp is not None
        assert (float(recording.lfp.rate), recording.lfp.frames) == (2000.0, 3 * 4000)
        assert found.lfp.series == (recording.lfp.series,)
        assert recording.behavior is not None
        assert recording.behavior.series == found.behavior[-1]["series"]


def test_the_unit_of_the_hand_is_told_from_its_size_or_named(tmp_path: Path) -> None:
    write_flint(tmp_path / "Flint_2012_e2.mat", in_metres=True)
    (found,) = convert_flint(tmp_path / "Flint_2012_e2.mat", tmp_path / "out.nwb")
    assert found.behavior[-1]["unit"] == "m/s"
    assert any("HandPos is in m: its span is 0.17" in note for note in found.notes)
    (named,) = convert_flint(tmp_path / "Flint_2012_e2.mat", tmp_path / "out.nwb", hand_unit="cm", lfp_unit="mV")
    assert named.behavior[-1]["unit"] == "cm/s"
    assert not any("its span" in note or "deviation" in note for note in named.notes)


def test_an_unknown_day_is_told(tmp_path: Path) -> None:
    write_flint(tmp_path / "Flint_2012_e1.mat", trials=2)
    (found,) = convert_flint(tmp_path / "Flint_2012_e1.mat", tmp_path / "out.nwb")
    assert any("not published" in note for note in found.notes)
    (dated,) = convert_flint(tmp_path / "Flint_2012_e1.mat", tmp_path / "out.nwb", session_start="2010-06-01")
    assert dated.session_start == "2010-06-01T00:00:00-05:00"
    assert not any("not published" in note for note in dated.notes)


def test_a_velocity_of_another_unit_is_told(tmp_path: Path) -> None:
    path = tmp_path / "Flint_2012_e2.mat"
    write_flint(path, trials=2)
    subject = loadmat(path)["Subject"]
    for row in subject[0, 0]["Trial"].ravel():
        row["HandVel"] = row["HandVel"] * 10
    savemat(path, {"Subject": subject})
    (found,) = convert_flint(path, tmp_path / "out.nwb")
    assert any("HandVel is 10 times the derivative" in note for note in found.notes)


# ---------------------------------------------------------------- refusals


def refused(path: Path, *says: str) -> None:
    out = path.with_name("out.nwb")
    with pytest.raises(RecordingError) as caught:
        convert_flint(path, out)
    for words in says:
        assert words in str(caught.value), str(caught.value)
    assert not out.exists()


@pytest.mark.parametrize("field", ["Time", "HandPos", "HandVel", "Neuron"])
def test_a_missing_field_is_named_with_what_is_there(tmp_path: Path, field: str) -> None:
    write_flint(tmp_path / "e.mat", leave_out=field)
    refused(tmp_path / "e.mat", "Subject(1).Trial", f"no field {field}", "Condition")


def test_times_that_begin_anew_in_each_trial_are_refused(tmp_path: Path) -> None:
    write_flint(tmp_path / "e.mat", clock_begins_anew=True)
    refused(tmp_path / "e.mat", "overlap", "begin anew")


def test_a_recording_without_lfp_is_refused(tmp_path: Path) -> None:
    write_flint(tmp_path / "e.mat", with_lfp=0)
    refused(tmp_path / "e.mat", "no neuron has an LFP")


def test_an_lfp_of_another_length_than_the_hand_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "e.mat"
    write_flint(path)
    subject = loadmat(path)["Subject"]
    neurons = subject[0, 0]["Trial"][1, 0]["Neuron"]
    for neuron in neurons.ravel():
        neuron["LFP"] = neuron["LFP"][:-500]
    savemat(path, {"Subject": subject})
    refused(path, "Subject(1).Trial(2)", "3500", "4000")


def test_spikes_on_another_clock_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "e.mat"
    write_flint(path)
    subject = loadmat(path)["Subject"]
    for row in subject[0, 0]["Trial"].ravel()[1:]:
        for neuron in row["Neuron"].ravel():
            neuron["Spike"] = neuron["Spike"] - row["Time"][0, 0]
    savemat(path, {"Subject": subject})
    refused(path, "96 of 144 spikes lie outside their trials")


def test_a_file_of_the_other_data_set_is_told(tmp_path: Path) -> None:
    made = write_makin(tmp_path, seconds=1)
    refused(made.mat, "a MATLAB 7.3 file", "a MATLAB 5 file", "the other data set")


def test_another_matlab_file_is_told(tmp_path: Path) -> None:
    savemat(tmp_path / "e.mat", {"data": np.zeros(3)})
    refused(tmp_path / "e.mat", "no variable 'Subject'", "it holds data")


def test_a_file_that_was_cut_off_is_told(tmp_path: Path) -> None:
    path = tmp_path / "e.mat"
    write_flint(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(path, "cut off")
