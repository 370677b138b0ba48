"""Three short sessions to a bundle, whole: kept stages, other days, what is refused before the training."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.numpy import load

from edgedistill import pipeline as stages
from edgedistill.bench import QUICK, bench
from edgedistill.bundle import open_bundle
from edgedistill.bundle.spike_student import spike_view
from edgedistill.data.bins import file_sha256
from edgedistill.data.simulated_nwb import simulate_to_nwb
from edgedistill.data.simulation import SimulationConfig
from edgedistill.errors import ConfigError, DeviceError, EdgeDistillError, EngineError, OutputError, RecordingError
from edgedistill.models.files import load_student, save_student
from edgedistill.numerics import Int8Model, Oracle
from edgedistill.pipeline import BuildOptions, BuildResult, assembled, graph_checks
from edgedistill.pipeline.assembled import Ingredients
from edgedistill.pipeline.calibration import CalibrationOptions, calibrate_run
from edgedistill.quantization.calibration.ranges import Ranges, read_ranges
from edgedistill.quantization.calibration.recipe import DEFAULT_RECIPE
from edgedistill.runtime import Decoder
from edgedistill.training import baselines
from edgedistill.training.losses import DISTILLED, DISTILLED_WITH_BEHAVIOR, Objective

SIZES = {"student": "window = 20\ntaps = 2\ndilation = 2\nlags = 2\n"}
PATCHES = "patch = 8\nspan = 2\npredictor_layers = 1\npredictor_d = 8\nmask_share = 0.3\n"
DAYS = ("sim00-day01", "sim00-day02", "sim00-day03")
Folder = Path


def write_preset(path: Path, d: int = 8) -> Path:
    """Models of a few hundred weights."""
    text = 'name = "tiny"\n'
    for model in ("student", "teacher", "patch_student"):
        width = d if model == "student" else 8
        text += f"[{model}]\nd = {width}\nlayers = 1\nheads = 2\nff = 8\n" + SIZES.get(model, PATCHES)
    for training in ("teacher_training", "training"):
        text += f"[{training}]\nbins_per_step = 256\nsegment_bins = 128\nburn_in = 16\nsteps = 40\n"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folder]:
    """Sessions of three days, a preset, one setting of each linear baseline."""
    folder = tmp_path_factory.mktemp("build")
    small = SimulationConfig(sessions=3, minutes=2.2, channels=4, units=10, population=40, rate_hz=500)
    list(simulate_to_nwb(small, folder / "data"))
    write_preset(folder / "tiny.toml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "RIDGE_LAGS", (5,))
        patch.setattr(baselines, "KALMAN_LAGS", (0,))
        patch.setattr(baselines, "KALMAN_ORDERS", (1,))
        patch.setattr(assembled, "QUICK", replace(QUICK, steps=10))
        patch.setattr(graph_checks, "CHECKED_BINS", 200)
        yield folder


def options(home: Folder, out: Path, **changes: Any) -> BuildOptions:
    given = BuildOptions("host", (home / "data",), out, str(home / "tiny.toml"), steps=6, work=home / "work")
    return replace(given, **changes)


@pytest.fixture(scope="module")
def first(home: Folder) -> BuildResult:
    """The build all others find their stages kept by."""
    return stages.build(options(home, home / "first.edge"))


@pytest.fixture(scope="module")
def taught(home: Folder) -> Folder:
    """A teacher and students of the first two days."""
    days = [home / "data" / f"sim00_day{day:02d}.nwb" for day in (1, 2)]
    settings: dict[str, Any] = {"preset": str(home / "tiny.toml"), "steps": 6}
    stages.pretrain(days, home / "teacher", **settings)
    stages.distill(days, home / "teacher", home / "student", supervised=True, **settings)
    return home


def ran(result: BuildResult) -> set[str]:
    """Stages that were run and could have been kept."""
    never_kept = {"teacher latents", "linear baselines", "bundle", "quantize", "quantize-spike-student"}
    return {stage.name for stage in result.stages if not stage.cached} - never_kept


READS = {"read-sim00_day01", "read-sim00_day02", "read-sim00_day03"}
STUDENTS = {"spike-student", "distilled", "deployed"}
CALIBRATED = {"calibrate", "calibrate-spike-student"}
TEACHER = {"teacher", "teacher-readout"}


def test_a_build_makes_a_bundle_that_decodes(home: Folder, first: BuildResult) -> None:
    assert ran(first) == READS | STUDENTS | CALIBRATED | TEACHER
    bundle = open_bundle(first.bundle)
    assert bundle.manifest["session"]["id"] == DAYS[-1]
    assert bundle.manifest["metrics"] == first.metrics
    assert [row.name for row in first.table if row.r2 is not None] == [
        *("teacher_r2", "spike_student_r2", "ridge_spike_r2", "deployed_r2"),
        *("int8_r2", "distilled_r2", "ridge_lfp_r2", "kalman_lfp_r2"),
    ]
    gates = {gate.name: gate for gate in first.gates}
    assert gates["int8_r2_drop"].value == first.metrics["deployed_r2"] - first.metrics["int8_r2"]  # type: ignore[operator]
    assert {gate.name for gate in first.gates} == {gate["name"] for gate in bundle.manifest["gates"]}
    assert not [path.name for path in home.iterdir() if path.name.startswith(".")]


def test_the_bundle_streams_what_the_build_reported(first: BuildResult) -> None:
    subjects = {s.name: s.fit.r2 for s in bench(open_bundle(first.bundle), QUICK).subjects}
    near = 2e-3  # of the INT8 graph, which is of the near class
    for subject, metric, apart in (
        ("lfp-student-fp32", "deployed_r2", 1e-3),
        ("spike-student", "spike_student_r2", 1e-3),
        ("lfp-student-int8", "int8_r2", near),
    ):
        expected, found = first.metrics[metric], subjects[subject]
        assert expected is not None
        assert found is not None
        assert abs(found - expected) < apart, subject


def test_the_bundle_holds_the_teacher_as_it_would_have_to_run(first: BuildResult) -> None:
    bundle = open_bundle(first.bundle)
    names = ("lfp-student-int8", "spike-teacher", "spike-teacher-published")
    rows = {s.name: s for s in bench(bundle, replace(QUICK, subjects=names, steps=5)).subjects}
    assert rows["spike-teacher"].fit.r2 is not None
    assert rows["spike-teacher-published"].fit.r2 is None
    assert rows["spike-teacher-published"].params > 5e6
    assert len(bundle.read("subjects/spike-teacher-published.onnx")) < 200_000
    assert rows["spike-teacher-published"].latency.p50 > 100 * rows["lfp-student-int8"].latency.p50


def check_raw_frames(bundle: Path) -> None:
    """From raw frames and the front end's state, the decoder comes to what the holdout's bins decode to."""
    opened, decoder, by_bins = open_bundle(bundle), Decoder.open(bundle), Decoder.open(bundle)
    with np.load(io.BytesIO(opened.read("holdout.npz"))) as holdout:
        decoder.import_state({name: holdout[name] for name in holdout if name.startswith("fe_")})
        outputs = decoder.push(holdout["frames"][:1500])
        assert outputs[0].bin == holdout["first_bin"]
        assert len(holdout["frames"]) // 5 == len(holdout["bins"])
        assert len(holdout["bins"]) == len(holdout["counts"]) == len(holdout["kinematics"])
        for output, bin_ in zip(outputs, holdout["bins"], strict=False):
            np.testing.assert_allclose(output.kinematics, by_bins.step(bin_), rtol=0, atol=1e-2)


def test_raw_frames_and_bins_of_the_holdout_agree(first: BuildResult) -> None:
    check_raw_frames(first.bundle)


def test_the_oracle_in_the_bundle_gives_the_bits_of_the_reference(first: BuildResult) -> None:
    bundle, decoder = open_bundle(first.bundle), Decoder.open(first.bundle, "oracle")
    with np.load(io.BytesIO(bundle.read("reference.npz"))) as held:
        start = {name.replace("start_", "state_"): held[name] for name in held if name.startswith("start_")}
        assert start["state_live"] == 19  # a full ring, wrapped
        decoder.import_state(start)
        found = np.stack([decoder.step(bin_) for bin_ in held["bins"]])
        assert (found == held["kinematics"]).all()
        state = decoder.export_state()
        for name in (name for name in held if name.startswith("state_")):
            assert (state[name] == held[name]).all(), name
        model = Int8Model(decoder.shape, load(bundle.read("student.int8.safetensors")))
        oracle = Oracle(model)
        oracle.import_state({name.removeprefix("state_"): array for name, array in start.items()})
        for name, integers in oracle.trace(held["bins"]).items():
            assert (held[f"int_{name}" if integers.dtype == np.int8 else name] == integers).all(), name


def test_the_c_engine_of_the_bundle_decodes_as_the_oracle_does(first: BuildResult) -> None:
    bundle = open_bundle(first.bundle)
    by_default, oracle = Decoder(bundle), Decoder(bundle, "oracle")
    assert by_default.info.engine == "c"
    with np.load(io.BytesIO(bundle.read("holdout.npz"))) as holdout:
        frames = holdout["frames"][:2000]
    for found, expected in zip(by_default.push(frames), oracle.push(frames), strict=True):
        assert (found.bin, found.end_frame, found.flags) == (expected.bin, expected.end_frame, expected.flags)
        assert (found.kinematics == expected.kinematics).all()
    engines = {s.name: s.engine for s in bench(bundle, QUICK).subjects}
    assert (engines["lfp-student-int8"], engines["onnxruntime-int8"]) == ("c", "onnxruntime")
    assert engines["spike-student-int8"] == "c"


def test_the_spike_student_is_compiled_like_the_decoder(first: BuildResult) -> None:
    view = spike_view(open_bundle(first.bundle))
    compiled, oracle = Decoder(view, "c"), Decoder(view, "oracle")
    counts = np.random.default_rng(0).normal(size=(60, len(compiled.info.channel_ids))).astype(np.float32)
    for bin_ in counts:
        assert (compiled.step(bin_) == oracle.step(bin_)).all()


@pytest.mark.skipif(not shutil.which("arm-none-eabi-gcc"), reason="no arm-none-eabi-gcc: Debian's gcc-arm-none-eabi")
def test_a_build_for_a_microcontroller_is_judged_on_its_memory(
    home: Folder, first: BuildResult, tmp_path: Path
) -> None:
    result = stages.build(options(home, tmp_path / "x.edge", target="cortex-m7"))
    gates = {gate.name: gate for gate in result.gates}
    assert gates["flash_bytes"].ok
    assert gates["ram_bytes"].ok
    assert "step_p99_us" not in gates  # this machine's time is not the device's
    assert list((result.bundle / "build" / "cortex-m7").glob("*.a"))


def test_a_build_for_a_gpu_ends_well_without_one(
    home: Folder, first: BuildResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Complete but for what the device must do: its engine, its time, and the command that sees to it."""

    def find() -> None:
        raise DeviceError("there is no CUDA driver on this machine")

    monkeypatch.setattr("edgedistill.compile.cuda.chip.find_gpu", find)
    monkeypatch.setattr("edgedistill.runtime.cuda_engine.find_gpu", find)
    result = stages.build(options(home, tmp_path / "x.edge", target="cuda"))
    gates = {gate.name: gate for gate in result.gates}
    assert gates["int8_r2_drop"].ok is not None
    assert (gates["step_p99_us"].ok, gates["step_p99_us"].value) == (None, None)
    assert "prepared, not compiled" in str(gates["step_p99_us"].reason)
    told = result.to_json()
    assert told["not_compiled"] == "there is no CUDA driver on this machine"
    assert str(told["next_step"]).startswith(f"edgedistill compile {result.bundle} --target cuda")
    bundle = open_bundle(result.bundle)
    assert bundle.manifest["engine"] == "cuda"
    folder = result.bundle / "build" / "cuda"
    assert json.loads((folder / "build.json").read_text())["manifest"] == bundle.sha256
    assert (folder / "cuda" / "student_step.cu").is_file()
    assert list((folder / "model").glob("*_weights.h"))


def test_a_student_that_the_gpu_cannot_run_is_refused_before_the_training(home: Folder, tmp_path: Path) -> None:
    preset = tmp_path / "wide.toml"
    preset.write_text((home / "tiny.toml").read_text().replace("window = 20", "window = 3000"))
    with pytest.raises(EngineError, match="window is too large"):
        stages.build(options(home, tmp_path / "x.edge", target="cuda", preset=str(preset)))
    recipe = tmp_path / "kept.toml"
    recipe.write_text('name = "kept"\ndescription = "d"\nmethod = "minmax"\nkeep = ["embed"]\n')
    with pytest.raises(EngineError, match="in INT8"):
        stages.build(options(home, tmp_path / "x.edge", target="cuda", recipe=str(recipe)))


def test_a_zip_decodes_on_onnxruntime(home: Folder, first: BuildResult, tmp_path: Path) -> None:
    result = stages.build(options(home, tmp_path / "x.zip"))
    assert Decoder.open(result.bundle).info.engine == "onnxruntime"


def test_the_ranges_in_the_bundle_say_where_they_come_from(first: BuildResult, home: Folder) -> None:
    bundle = open_bundle(first.bundle)
    ranges = Ranges.from_json(json.loads(bundle.read("ranges.json")))
    assert ranges.recipe.name == bundle.manifest["recipe"] == DEFAULT_RECIPE
    assert ranges.sessions == {DAYS[-1]: file_sha256(home / "data" / "sim00_day03.nwb")}
    assert ranges.windows
    spikes = Ranges.from_json(json.loads(bundle.read("subjects/spike-student/ranges.json")))
    assert spikes.checkpoint_sha256 != ranges.checkpoint_sha256


def test_int8_weights_and_state_are_a_quarter(first: BuildResult) -> None:
    bundle = open_bundle(first.bundle)
    assert {"student.onnx", "student.fp16.onnx", "student.int8.onnx", "student.int8.plugin.onnx"} <= set(bundle.names)
    sizes = bundle.manifest["int8"]
    assert 0 < sizes["weight_bytes"] < len(bundle.read("student.safetensors"))
    engines = {name: Decoder(bundle, name) for name in ("onnxruntime", "oracle")}
    whole, eight = (sum(a.nbytes for n, a in d.export_state().items() if "ring" in n) for d in engines.values())
    assert whole == 4 * eight
    assert eight <= sizes["state_bytes"]


def test_ranges_of_a_file_need_their_own_student(taught: Folder, first: BuildResult, tmp_path: Path) -> None:
    day = (taught / "data" / "sim00_day02.nwb",)
    calibrate_run(CalibrationOptions(taught / "student", day, tmp_path / "ranges.json", "minmax"))
    given = {"ranges": tmp_path / "ranges.json", "student": taught / "student"}
    result = stages.build(options(taught, tmp_path / "x.edge", **given))
    bundle = open_bundle(result.bundle)
    assert bundle.manifest["recipe"] == "minmax"
    written = Ranges.from_json(json.loads(bundle.read("ranges.json")))
    assert written.values == read_ranges(tmp_path / "ranges.json").values
    assert not written.recipe.refit_readout  # no label of another day was used
    refused(taught, tmp_path, EdgeDistillError, "no --student", ranges=tmp_path / "ranges.json")
    other = load_student(taught / "student")[0]
    with torch.no_grad():
        other.norm_out.mul_(2)
    save_student(other, tmp_path / "other", load_student(taught / "student")[1])
    refused(taught, tmp_path, EdgeDistillError, "made for another student", **{**given, "student": tmp_path / "other"})


def test_a_recipe_that_fine_tunes_is_resumed_and_kept(home: Folder, first: BuildResult, tmp_path: Path) -> None:
    def kill(name: str, at: int, *_: object) -> None:
        if (name, at) == ("finetune", 3):
            raise Killed

    asked = options(home, tmp_path / "x.edge", recipe="qat")
    with pytest.raises(Killed):
        stages.build(asked, kill)
    result = stages.build(asked)
    assert ran(result) >= {"finetune", "finetune-spike-student"}
    assert result.metrics["int8_r2"] is not None
    bundle = open_bundle(result.bundle)
    assert bundle.read("student.safetensors") == open_bundle(first.bundle).read("student.safetensors")
    assert ran(stages.build(replace(asked, out=tmp_path / "y.edge"))) == set()


def test_a_kept_part_stays_float32_all_the_way(home: Folder, first: BuildResult, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('name = "mine"\ndescription = "mine"\nmethod = "minmax"\nkeep = ["layers.0.down", "readout"]\n')
    result = stages.build(options(home, tmp_path / "x.edge", recipe=str(recipe)))
    bundle = open_bundle(result.bundle)
    assert bundle.manifest["int8"]["kept_float32"] == ["layers.0.down", "readout"]
    refused(home, tmp_path, ConfigError, "did you mean 'mse'", recipe="mes")
    recipe.write_text(recipe.read_text().replace("0.down", "7.down"))
    refused(home, tmp_path, EdgeDistillError, r"layers\.7\.down", recipe=str(recipe))


def test_the_same_again_runs_nothing_and_gives_the_same(home: Folder, first: BuildResult) -> None:
    again = stages.build(options(home, home / "again.edge"))
    assert ran(again) == set()
    assert again.metrics == first.metrics
    for name in ("student.safetensors", "holdout.npz", "reference.npz"):
        assert open_bundle(again.bundle).read(name) == open_bundle(first.bundle).read(name), name


@pytest.fixture
def unwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked is which stages run: no bundle is made of them."""
    monkeypatch.setattr("edgedistill.pipeline.build.write_decoder_bundle", lambda made: ((), None))


BEHAVIOR_ALONE = {"spike-student", "deployed"}  # the distilled student sees no labels


@pytest.mark.usefixtures("unwritten")
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"line_hz": 61.0}, READS | {"distilled", "deployed", "calibrate"}),
        ({"behavior": "cursor_pos"}, READS | BEHAVIOR_ALONE | CALIBRATED | {"teacher-readout"}),
        ({"session": "sim00-day01"}, CALIBRATED | {"teacher-readout"}),
        ({"seed": 1}, STUDENTS | CALIBRATED | TEACHER),
        ({"preset": "wide"}, STUDENTS | CALIBRATED),
        ({"recipe": "entropy"}, CALIBRATED),
    ],
    ids=["line frequency", "behavior", "session", "seed", "student size", "recipe"],
)
def test_a_change_runs_what_depends_on_it(
    home: Folder, first: BuildResult, tmp_path: Path, changes: dict[str, Any], expected: set[str]
) -> None:
    if "preset" in changes:
        changes = {"preset": str(write_preset(tmp_path / "wide.toml", d=12))}
    assert ran(stages.build(options(home, tmp_path / "other.edge", **changes))) == expected


@pytest.mark.usefixtures("unwritten")
def test_another_file_is_read_and_learned_from(home: Folder, first: BuildResult, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for path in sorted((home / "data").iterdir())[:2]:
        (data / path.name).write_bytes(path.read_bytes())
    result = stages.build(options(home, tmp_path / "x.edge", data=(data,)))
    assert ran(result) == STUDENTS | CALIBRATED | TEACHER


@pytest.mark.parametrize(("mode", "probe"), [("none", False), ("stats", False), ("tokenizer", False), ("stats", True)])
def test_another_day_for_a_given_student(
    taught: Folder, first: BuildResult, tmp_path: Path, mode: str, probe: bool
) -> None:
    out = tmp_path / "x.edge"
    result = stages.build(options(taught, out, student=taught / "student", adapt=mode, probe=probe))
    assert ran(result) <= {"calibrate"}
    manifest = open_bundle(out).manifest
    assert (manifest["session"]["id"], manifest["provenance"]["adapt"]) == (DAYS[2], mode)
    _, facts = load_student(taught / "student")
    old_mean = facts["normalization"][DAYS[1]][0]
    assert (manifest["normalization"]["mean"] == old_mean) == (mode == "none")
    expected, measured = result.metrics["deployed_r2"], bench(open_bundle(out), QUICK).subjects[0].fit.r2
    assert expected is not None
    assert measured is not None
    assert abs(measured - expected) < 1e-3
    check_raw_frames(out)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Ingredients]:
    """What bundles would have been made of."""
    found: list[Ingredients] = []
    monkeypatch.setattr("edgedistill.pipeline.build.write_decoder_bundle", lambda one: found.append(one) or ((), None))
    return found


def test_no_label_of_another_day_has_a_say_in_the_integers(
    taught: Folder, tmp_path: Path, made: list[Ingredients]
) -> None:
    recipe, data = tmp_path / "few.toml", tmp_path / "data"
    recipe.write_text('name = "few"\ndescription = "few"\nmethod = "minmax"\nwindows = 6\nwindow_bins = 64\n')
    shutil.copytree(taught / "data", data)
    with h5py.File(data / "sim00_day03.nwb", "r+") as file:
        velocity = file["processing/behavior/Velocity/cursor_vel/data"]
        velocity[...] = velocity[()][::-1]
    for folder in (taught / "data", data):
        changes = {"data": (folder,), "student": taught / "student", "recipe": str(recipe)}
        stages.build(options(taught, tmp_path / "x.edge", **changes))
    mine, its = (one.lfp.int8 for one in made)
    assert mine.quantized.score != its.quantized.score
    assert mine.ranges.windows == its.ranges.windows
    for name, tensor in mine.quantized.model.tensors.items():
        assert (tensor == its.quantized.model.tensors[name]).all(), name


def test_a_given_student_is_fine_tuned_by_what_it_was_taught(
    taught: Folder, tmp_path: Path, made: list[Ingredients], monkeypatch: pytest.MonkeyPatch
) -> None:
    objectives: list[Objective] = []

    def tuned(student: Any, ranges: Any, sessions: Any, modality: str, objective: Objective, *_: object) -> Any:
        objectives.append(objective)
        return student, {name: [2 * value for value in values] for name, values in ranges.items()}

    days = tuple(taught / "data" / f"sim00_day{day:02d}.nwb" for day in (1, 2))
    settings: dict[str, Any] = {"preset": str(taught / "tiny.toml"), "steps": 6, "alignment": "mse"}
    stages.distill(days, taught / "teacher", tmp_path / "student", **settings)
    monkeypatch.setattr("edgedistill.pipeline.quantized.finetune_student", tuned)
    asked = {"data": days, "student": tmp_path / "student", "recipe": "qat"}
    refused(taught, tmp_path, ConfigError, "needs its teacher", **asked)
    assert not objectives
    stages.build(options(taught, tmp_path / "x.edge", teacher=taught / "teacher", **asked))
    assert objectives == [replace(DISTILLED, alignment_kind="mse"), DISTILLED_WITH_BEHAVIOR]
    ranges = made[0].lfp.int8.ranges
    assert [row["range"] for row in ranges.table] == [max(values) for values in ranges.values.values()]


@pytest.mark.usefixtures("unwritten")
def test_a_given_teacher_is_used(taught: Folder, first: BuildResult, tmp_path: Path) -> None:
    days = tuple(taught / "data" / f"sim00_day{day:02d}.nwb" for day in (1, 2))
    result = stages.build(options(taught, tmp_path / "x.edge", data=days, teacher=taught / "teacher"))
    assert "teacher" not in {stage.name for stage in result.stages}
    assert result.metrics["teacher_r2"] is not None


class Killed(BaseException):
    """As Ctrl-C: nobody catches it."""


@pytest.mark.parametrize(("stage", "step"), [("teacher", 3), ("distilled", 6)])
def test_a_killed_build_goes_on(home: Folder, first: BuildResult, tmp_path: Path, stage: str, step: int) -> None:
    def kill(name: str, at: int, *_: object) -> None:
        if (name, at) == (stage, step):
            raise Killed

    seen: list[tuple[str, int]] = []
    for kept in (home / "work").glob("read-*"):
        shutil.copytree(kept, tmp_path / "work" / kept.name)
    asked = options(home, tmp_path / "x.edge", work=tmp_path / "work")
    with pytest.raises(Killed):
        stages.build(asked, kill)
    assert not asked.out.exists()
    (unfinished,) = (tmp_path / "work").glob("*.partial")
    assert (unfinished / "checkpoint.safetensors").exists()
    result = stages.build(asked, lambda name, at, *_: seen.append((name, at)))
    assert [at for name, at in seen if name == stage] == list(range(step + 1, 7))
    assert not list((tmp_path / "work").glob("*.partial"))
    assert result.metrics == first.metrics
    mine, its = open_bundle(asked.out), open_bundle(first.bundle)
    assert mine.read("student.safetensors") == its.read("student.safetensors")


# ---------------------------------------------------------------- refused before the training


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes as far as training a model fails."""

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a model was trained")

    monkeypatch.setattr("edgedistill.pipeline.trained.train_teacher", forbidden)
    monkeypatch.setattr("edgedistill.pipeline.trained.train_task", forbidden)


def refused(
    home: Folder,
    tmp_path: Path,
    error: type[Exception],
    says: str,
    run: Callable[..., object] = stages.build,
    **changes: Any,
) -> None:
    changes = {"out": tmp_path / "x.edge", **changes}
    with pytest.raises(error, match=says):
        run(options(home, **changes))


@pytest.mark.usefixtures("untrained")
def test_wrong_names_are_told_before_the_training(home: Folder, tmp_path: Path) -> None:
    refused(home, tmp_path, RecordingError, "did you mean 'sim00-day02'", session="sim00-day2")
    refused(home, tmp_path, ConfigError, "did you mean 'nano'", preset="nan0")
    refused(home, tmp_path, ConfigError, "did you mean 'host'", target="hosst")
    refused(home, tmp_path, EdgeDistillError, "holds no student", student=tmp_path / "nothing")
    refused(home, tmp_path, EdgeDistillError, "holds no teacher", teacher=tmp_path / "nothing")
    assert not (tmp_path / "x.edge").exists()


@pytest.mark.usefixtures("untrained")
def test_a_missing_compiler_is_told_before_the_training(home: Folder, tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text(
        'name = "mine"\ndescription = "mine"\nengine = "c"\nstatus = "available"\ndeadline_ms = 10\n'
        '[compiler]\ncommand = "no-such-gcc"\ndebian_package = "gcc-of-mine"\n'
    )
    refused(home, tmp_path, EdgeDistillError, "gcc-of-mine", target=str(mine))


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("blocked", ["file", "folder", "below a file", "read-only"])
def test_a_blocked_out_is_told_before_the_training(
    home: Folder, tmp_path: Path, blocked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "mine"
    if blocked == "folder":
        out.mkdir()
    if blocked != "read-only":
        (out / "notes" if blocked == "folder" else out).write_text("mine")
    if blocked == "read-only":  # root may write anywhere

        def touch(path: Path) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(Path, "touch", touch)
    before = sorted(tmp_path.rglob("*"))
    refused(home, tmp_path, OutputError, "mine|cannot write", out=out / "x" if blocked == "below a file" else out)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("untrained")
def test_a_model_cannot_replace_a_file(home: Folder, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    preset = str(home / "tiny.toml")
    with pytest.raises(OutputError, match="there is a file here"):
        stages.pretrain([home / "data"], tmp_path / "out", preset=preset)
    with pytest.raises(OutputError, match="there is a file here"):
        stages.distill([home / "data"], home / "teacher", tmp_path / "out", preset=preset)


@pytest.mark.usefixtures("untrained")
def test_a_broken_session_is_named(home: Folder, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    whole = (home / "data" / "sim00_day01.nwb").read_bytes()
    (data / "broken.nwb").write_bytes(whole[: len(whole) // 2])
    refused(home, tmp_path, RecordingError, r"broken\.nwb", data=(data,), work=tmp_path / "work")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]  # neither a bundle nor an empty stage


@pytest.mark.usefixtures("untrained")
def test_a_student_of_another_array_or_behavior_is_refused(taught: Folder, tmp_path: Path) -> None:
    other = SimulationConfig(sessions=1, minutes=2.2, seed=1, channels=5, units=10, population=40, rate_hz=500)
    list(simulate_to_nwb(other, tmp_path / "data"))
    student = {"student": taught / "student"}
    refused(taught, tmp_path, RecordingError, "array the student has not seen", data=(tmp_path / "data",), **student)
    refused(taught, tmp_path, EdgeDistillError, "decodes another behavior", behavior="cursor_pos", **student)


@pytest.mark.usefixtures("untrained")
def test_a_teacher_of_other_sessions_is_refused(taught: Folder, tmp_path: Path) -> None:
    refused(taught, tmp_path, EdgeDistillError, "sim00-day03", teacher=taught / "teacher")
