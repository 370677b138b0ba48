"""A bundle is adapted to another day of its array: what the day shows is learned, everything else stays."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from safetensors.numpy import load

from edgedistill.bench import QUICK, bench
from edgedistill.bundle import Bundle, open_bundle
from edgedistill.bundle.contents import read_decoder_spec, read_deviation_model, read_int8_model, read_spatial_model
from edgedistill.data.bins import file_sha256
from edgedistill.data.recording import open_recording
from edgedistill.data.session_loading import load_sessions
from edgedistill.data.simulation.nwb import simulate_to_nwb
from edgedistill.data.simulation.sessions import SimulationConfig
from edgedistill.errors import ConfigError, EdgeDistillError, OutputError, RecordingError
from edgedistill.numerics import Oracle
from edgedistill.pipeline import BuildResult, another_day
from edgedistill.pipeline.adaptation import AdaptOptions, AdaptResult, adapt_bundle
from edgedistill.pipeline.another_day import StretchOptions
from edgedistill.runtime import Decoder
from edgedistill.training.batches import compute_gap, training_session_from_bins

from ..planted_builds import plant_builds

LFP = "processing/ecephys/LFP/lfp"
STUDENT = ("student.safetensors", "student.int8.safetensors", "student.onnx", "student.int8.onnx", "ranges.json")
READOUT = ("readout.latent", "readout.lags", "readout.bias")


def adapt(
    home: Path, bundle: Path, out: Path, file: Path, follow_s: float | None = None, **stretch: Any
) -> AdaptResult:
    asked = StretchOptions(file, **stretch)
    return adapt_bundle(AdaptOptions(bundle, out, asked, follow_s, target=str(home / "host.toml")))


def day(home: Path, number: int) -> Path:
    return home / "data" / f"sim00_day{number:02d}.nwb"


def changed(day: Path, folder: Path, change: Callable[[h5py.File], None]) -> Path:
    """Returns a copy of a day in which something was changed."""
    path = Path(shutil.copy(day, folder / "changed.nwb"))
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def standardization(bundle: Bundle) -> tuple[tuple[float, ...], tuple[float, ...], bytes]:
    found = read_decoder_spec(bundle).normalization
    return found.mean, found.std, bundle.read("fill_in.safetensors")


@pytest.fixture(scope="module")
def own_day(home: Path, first: BuildResult, tmp_path_factory: pytest.TempPathFactory) -> AdaptResult:
    """Adapts the bundle to the training block of its own session, and lets its statistics follow."""
    (bins,) = load_sessions([day(home, 3)])
    size = read_decoder_spec(open_bundle(first.bundle)).shape.size
    stop = training_session_from_bins(bins, compute_gap([bins], size)).split.train.stop
    out = tmp_path_factory.mktemp("adapted") / "own.edge"
    return adapt(home, first.bundle, out, day(home, 3), follow_s=600.0, to_s=stop / 100)


@pytest.fixture(scope="module")
def labelled(home: Path, first: BuildResult, tmp_path_factory: pytest.TempPathFactory) -> AdaptResult:
    """Adapts the bundle to the second day and its labels."""
    return adapt(home, first.bundle, tmp_path_factory.mktemp("adapted") / "labels.edge", day(home, 2), labels=True)


@pytest.fixture(scope="module")
def lame_day(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the second day with its first channel dead. The last one is dead on every day."""

    def kill(file: h5py.File) -> None:
        file[f"{LFP}/data"][:, 0] = 0

    return changed(day(home, 2), tmp_path_factory.mktemp("lame"), kill)


@pytest.fixture(scope="module")
def whole(home: Path, first: BuildResult, lame_day: Path, tmp_path_factory: pytest.TempPathFactory) -> AdaptResult:
    """Adapts the bundle to all of the day with a dead channel, without labels."""
    return adapt(home, first.bundle, tmp_path_factory.mktemp("adapted") / "whole.edge", lame_day)


def test_the_training_block_of_its_own_session_gives_the_same_again(first: BuildResult, own_day: AdaptResult) -> None:
    old, new = open_bundle(first.bundle), open_bundle(own_day.bundle)
    assert standardization(new) == standardization(old)
    for name in (*STUDENT, "reference.npz", "deviation.safetensors", "subjects/ridge.safetensors"):
        assert new.read(name) == old.read(name), name
    assert own_day.kept == ()
    assert own_day.before_r2 == pytest.approx(own_day.metrics["int8_r2"], abs=2e-3)
    assert not own_day.warnings


def test_what_follows_the_stretch_is_scored_and_judged(own_day: AdaptResult) -> None:
    bundle = open_bundle(own_day.bundle)
    gates = {gate.name: gate for gate in own_day.gates}
    assert own_day.unscored is None
    assert gates["int8_r2_drop"].value == pytest.approx(
        own_day.metrics["deployed_r2"] - own_day.metrics["int8_r2"]  # type: ignore[operator]
    )
    assert bundle.manifest.metrics == own_day.metrics
    with np.load(io.BytesIO(bundle.read("holdout.npz"))) as held:
        scored = int(held["first_bin"] + held["score_from"])
        assert scored > own_day.used_s[1] * 100 + 1000  # the filters forget the stretch first
        assert np.isfinite(held["kinematics"][held["score_from"] :]).all()
        config = read_decoder_spec(bundle).front_end
        with open_recording(own_day.read["file"]) as recording:  # type: ignore[arg-type]
            frames = recording.lfp.read(config.edge(int(held["first_bin"])), recording.lfp.frames)  # type: ignore[union-attr]
        assert np.array_equal(held["frames"], frames[: len(held["frames"])])


def test_statistics_that_follow_are_part_of_the_settings(
    home: Path, first: BuildResult, own_day: AdaptResult, tmp_path: Path
) -> None:
    assert read_decoder_spec(open_bundle(own_day.bundle)).front_end.follow_s == 600
    assert read_decoder_spec(open_bundle(first.bundle)).front_end.follow_s == 0
    with pytest.raises(ConfigError, match="follow the signal this fast"):
        adapt(home, first.bundle, tmp_path / "x.edge", day(home, 2), follow_s=2.0)


def test_a_whole_day_without_labels_changes_the_statistics_alone(
    first: BuildResult, lame_day: Path, whole: AdaptResult
) -> None:
    old, new = open_bundle(first.bundle), open_bundle(whole.bundle)
    for name in (*STUDENT, "reference.npz", "deviation.safetensors", "subjects/ridge.safetensors"):
        assert new.read(name) == old.read(name), name
    assert not [name for name in new.names if name.startswith("subjects/spike")]
    assert set(new.manifest.graphs) == {name for name in old.manifest.graphs if not name.startswith("subjects/")}
    before, after = read_decoder_spec(old).normalization, read_decoder_spec(new).normalization
    assert [a == b for a, b in zip(after.std, before.std, strict=True)] == [True, False, False, True]
    known = read_spatial_model(new, read_decoder_spec(new).front_end).known
    assert known.tolist() == [True, True, True, False]
    assert whole.kept == ("0",)
    assert "1 of 4 channels show too little in the stretch" in whole.warnings[-1]
    session, provenance = new.manifest.session, new.manifest.provenance
    assert session is not None
    assert provenance is not None
    assert session.id == "sim00-day02"
    assert provenance.sessions["sim00-day02"] == file_sha256(lame_day)
    assert provenance.others["adapted_from"] == {
        "name": "first",
        "sha256": old.sha256,
        "session": "sim00-day03",
        "from_s": 0.0,
        "to_s": 132.0,
        "labels": False,
        "kept_channels": ["0"],
    }


def test_a_day_that_was_used_to_its_end_has_no_score(whole: AdaptResult) -> None:
    bundle = open_bundle(whole.bundle)
    with np.load(io.BytesIO(bundle.read("holdout.npz"))) as held:
        assert np.isnan(held["kinematics"]).all()
    gates = {gate.name: gate for gate in whole.gates}
    assert (gates["int8_r2_drop"].ok, gates["int8_r2_drop"].reason) == (None, whole.unscored)
    assert whole.unscored == another_day.NOTHING_FOLLOWS
    assert gates["step_p99_us"].ok is not None
    assert (whole.before_r2, whole.metrics) == (None, {"deployed_r2": None, "int8_r2": None})
    result = bench(bundle, replace(QUICK, steps=10))
    assert all(subject.fit.r2 is None for subject in result.subjects)
    reasons = {one.name: one.reason for one in result.absent}
    assert "built without models on spikes" in reasons["spike-student"]


def test_labels_change_the_read_out_and_nothing_else_of_the_student(first: BuildResult, labelled: AdaptResult) -> None:
    old, new = open_bundle(first.bundle), open_bundle(labelled.bundle)
    for name in ("student.safetensors", "student.int8.safetensors"):
        before, after = load(old.read(name)), load(new.read(name))
        assert before.keys() == after.keys()
        for tensor, values in before.items():
            same = np.array_equal(values, after[tensor])
            assert same != tensor.startswith(READOUT), tensor
    assert json.loads(new.read("ranges.json")) == json.loads(old.read("ranges.json"))
    shape = read_decoder_spec(new).shape
    assert not np.array_equal(
        read_deviation_model(new, shape.channels, shape.outputs).at_rest,
        read_deviation_model(old, shape.channels, shape.outputs).at_rest,
    )  # calibrated again
    assert new.read("subjects/ridge.safetensors") != old.read("subjects/ridge.safetensors")
    assert all(verdict.usable for verdict in new.manifest.graphs.values())
    assert labelled.metrics["int8_r2"] is not None


def test_a_new_read_out_has_its_own_reference(labelled: AdaptResult) -> None:
    bundle = open_bundle(labelled.bundle)
    with np.load(io.BytesIO(bundle.read("reference.npz"))) as held:
        oracle = Oracle(read_int8_model(bundle, read_decoder_spec(bundle).shape))
        oracle.import_state({name.removeprefix("start_"): held[name] for name in held if name.startswith("start_")})
        assert np.array_equal(oracle.run(held["bins"]), held["kinematics"])


def test_a_new_read_out_is_the_better_one_where_the_old_one_is_spoilt(
    home: Path, first: BuildResult, tmp_path: Path
) -> None:
    """A read-out of turned behavior is undone by labels."""

    def turn(file: h5py.File) -> None:
        velocity = file["processing/behavior/Velocity/cursor_vel/data"]
        velocity[...] = 7 - 3 * velocity[()]

    result = adapt(home, first.bundle, tmp_path / "x.edge", changed(day(home, 2), tmp_path, turn), labels=True)
    assert result.before_r2 is not None
    assert result.metrics["int8_r2"] is not None
    assert result.metrics["int8_r2"] > result.before_r2 + 0.01


@pytest.mark.parametrize("adapted", ["whole", "own_day"])
def test_the_compiled_engine_decodes_as_the_oracle_does(request: pytest.FixtureRequest, adapted: str) -> None:
    """The one has a channel that is filled in as before, the other statistics that follow."""
    result = request.getfixturevalue(adapted)
    bundle = open_bundle(result.bundle)
    compiled, oracle = Decoder(bundle), Decoder(bundle, "oracle")
    assert compiled.info.engine == "c"
    with open_recording(result.read["file"]) as recording:
        frames = recording.lfp.read(0, 5 * (compiled.info.warmup_bins + 300))  # type: ignore[union-attr]
    for found, expected in zip(compiled.push(frames), oracle.push(frames), strict=True):
        assert found.flags == expected.flags
        assert found.bad_channels == expected.bad_channels
        assert np.array_equal(found.kinematics, expected.kinematics)


@pytest.mark.variant
def test_an_adapted_bundle_is_adapted_again(home: Path, first: BuildResult, whole: AdaptResult, tmp_path: Path) -> None:
    (bins,) = load_sessions([day(home, 3)])
    size = read_decoder_spec(open_bundle(first.bundle)).shape.size
    stop = training_session_from_bins(bins, compute_gap([bins], size)).split.train.stop
    again = open_bundle(adapt(home, whole.bundle, tmp_path / "x.edge", day(home, 3), to_s=stop / 100).bundle)
    old = open_bundle(first.bundle)
    assert standardization(again)[:2] == standardization(old)[:2]
    assert again.manifest.provenance is not None
    assert set(again.manifest.provenance.sessions) == {
        *("sim00-day01", "sim00-day02", "sim00-day03"),
        "sim00-day02 of first",  # the file of that name which the student was trained on
    }
    assert again.manifest.provenance.others["adapted_from"]["session"] == "sim00-day02"  # type: ignore[index]


def test_channels_in_another_order_are_those_of_the_bundle(
    home: Path, first: BuildResult, lame_day: Path, whole: AdaptResult, tmp_path: Path
) -> None:
    def reverse(file: h5py.File) -> None:
        for name in ("data", "electrodes"):
            stored = file[f"{LFP}/{name}"]
            stored[...] = stored[()][..., ::-1]

    result = adapt(home, first.bundle, tmp_path / "x.edge", changed(lame_day, tmp_path, reverse))
    assert standardization(open_bundle(result.bundle)) == standardization(open_bundle(whole.bundle))
    assert any("put in the order of the bundle" in warning for warning in result.warnings)
    ours, its = (open_bundle(one.bundle).read("holdout.npz") for one in (result, whole))
    assert ours == its


def silence(file: h5py.File) -> None:
    file[f"{LFP}/data"][...] = 0


def forget_behavior(file: h5py.File) -> None:
    del file["processing/behavior"]


@pytest.mark.parametrize(
    ("change", "stretch", "says"),
    [
        (silence, {}, "all channels of .* are bad"),
        (forget_behavior, {"labels": True}, "no behavior"),
        (None, {"to_s": 35.0}, "the stretch is too short to learn from"),
        (None, {"from_s": 125.0}, "the stretch is too short to learn from"),
        (None, {"labels": True, "to_s": 50.0}, "no new read-out can be fitted and scored"),
        (None, {"labels": True, "names": "cursor_pos"}, "its behavior is not what the bundle decodes"),
    ],
)
def test_a_day_that_cannot_be_used_is_refused(
    home: Path,
    first: BuildResult,
    tmp_path: Path,
    change: Callable[[h5py.File], None] | None,
    stretch: dict[str, Any],
    says: str,
) -> None:
    file = day(home, 2) if change is None else changed(day(home, 2), tmp_path, change)
    if "names" in stretch:
        stretch = {**stretch, "names": another_day.SeriesNames(behavior=stretch["names"])}
    with pytest.raises(RecordingError, match=says):
        adapt(home, first.bundle, tmp_path / "x.edge", file, **stretch)
    assert not (tmp_path / "x.edge").exists()


@pytest.mark.parametrize(
    ("settings", "says"), [({"minutes": 0.5}, "fewer than 4.* s of data"), ({"channels": 5}, "not from the array")]
)
def test_a_short_recording_and_another_array_are_refused(
    home: Path, first: BuildResult, tmp_path: Path, settings: dict[str, Any], says: str
) -> None:
    small = {"sessions": 1, "minutes": 1.0, "channels": 4, "units": 10, "population": 40, "rate_hz": 500}
    (file,) = simulate_to_nwb(SimulationConfig(**{**small, **settings}), tmp_path / "data")
    with pytest.raises(RecordingError, match=says):
        adapt(home, first.bundle, tmp_path / "x.edge", file)


@pytest.mark.parametrize(("name", "says"), [("x.zip", "an adapted bundle is a folder"), ("", "the bundle itself")])
def test_a_place_that_cannot_take_the_bundle_is_refused(
    home: Path, first: BuildResult, tmp_path: Path, name: str, says: str
) -> None:
    with pytest.raises(OutputError, match=says):
        adapt(home, first.bundle, tmp_path / name if name else first.bundle, day(home, 2))


def test_a_target_that_is_not_known_is_refused(home: Path, first: BuildResult, tmp_path: Path) -> None:
    with pytest.raises(EdgeDistillError, match="unknown target 'mine'"):
        adapt_bundle(AdaptOptions(first.bundle, tmp_path / "x.edge", StretchOptions(day(home, 2)), target="mine"))


def test_a_missing_behavior_is_a_reason_and_no_error(home: Path, first: BuildResult, tmp_path: Path) -> None:
    result = adapt(home, first.bundle, tmp_path / "x.edge", changed(day(home, 2), tmp_path, forget_behavior), to_s=60.0)
    assert "holds no behavior" in str(result.unscored)


def test_a_library_that_was_planted_in_the_bundle_is_neither_loaded_nor_taken_over(
    home: Path, first: BuildResult, tmp_path: Path
) -> None:
    """The bundle is a stranger's. What is compiled, measured and written is made of its checked files alone."""
    bundle = open_bundle(shutil.copytree(first.bundle, tmp_path / "stranger.edge"))
    mark = plant_builds(bundle, tmp_path)
    result = adapt(home, bundle.path, tmp_path / "new.edge", day(home, 2), to_s=60.0)
    assert not mark.exists()
    planted = (tmp_path / "planted.so").read_bytes()
    assert planted not in [path.read_bytes() for path in result.bundle.rglob("*") if path.is_file()]
    uncovered = open_bundle(result.bundle).list_uncovered()
    assert uncovered
    assert all(name.startswith("build/host/") for name in uncovered)
    Decoder.open(result.bundle)
    assert not mark.exists()
