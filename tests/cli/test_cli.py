"""The command line: JSON alone on stdout, errors in words, exit codes, every command in help and README."""

from __future__ import annotations

import errno
import importlib
import io
import json
import subprocess
import sys
import types
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import h5py
import numpy as np
import pytest
from click.testing import CliRunner, Result

from edgedistill.cli import main
from edgedistill.cli.output import training_progress
from edgedistill.quantization.calibration.recipe import DEFAULT_RECIPE
from edgedistill.target import Gate

from ..bundles import CHANNELS, write_test_bundle
from ..data.nwb_files import add_lfp, add_units, lfp_volts, new_nwb, whole_session, write

README = Path(__file__).resolve().parents[2] / "README.md"
COMMANDS = (
    *("simulate", "inspect", "pretrain", "distill", "calibrate"),
    *("build", "compile", "run", "bench", "report", "targets", "doctor"),
)


def call(*args: object, stdin: bytes | None = None) -> Result:
    result = CliRunner().invoke(main, [str(arg) for arg in args], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def answer(*args: object, code: int = 0, stdin: bytes | None = None) -> dict[str, Any]:
    """The JSON of a command; stdout must hold nothing else."""
    result = call(*args, "--json", stdin=stdin)
    assert result.exit_code == code, result.output
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_test_bundle(tmp_path_factory.mktemp("cli") / "test.edge").path


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole_session(tmp_path_factory.mktemp("cli") / "s1.nwb")


# ---------------------------------------------------------------- every command


def test_the_commands_are_those_of_the_contract() -> None:
    assert tuple(main.commands) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = call(command, "--help")
    assert result.exit_code == 0
    assert "Example" in result.output
    assert f"edgedistill {command}" in result.output
    assert "--json" in result.output
    for parameter in main.commands[command].params:
        assert not isinstance(parameter, click.Option) or parameter.help


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_stands_in_the_readme(command: str) -> None:
    assert f"edgedistill {command}" in README.read_text(encoding="utf-8")


def test_neither_help_nor_a_wrong_word_imports_anything_heavy() -> None:
    code = (
        "import sys; from edgedistill.cli import main\n"
        "for words in (['--help'], ['build', '--help'], ['targets']):\n"
        "    main(words, standalone_mode=False)\n"
        "heavy = {'torch', 'pynwb', 'h5py', 'onnx', 'onnxruntime', 'matplotlib', 'sklearn'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- what the commands say


def test_targets_and_doctor() -> None:
    listed = {target["name"]: target for target in answer("targets")["targets"]}
    assert (listed["host"]["available"], listed["jetson-thor"]["available"]) == (True, True)
    assert "jetson-orin-nano" in call("targets").output
    told = call("targets", "jetson-orin-nano").output
    for part in ("TensorRT plan", "sm_87", "6.1 to", "512 MB", "VDD_IN", "int8_r2_drop at most 0.005", "nvpmodel"):
        assert part in told
    assert answer("targets", "jetson-orin-nano") == listed["jetson-orin-nano"]
    refused("targets", "jetson-thro", says=("did you mean 'jetson-thor'",))
    checks = answer("doctor")
    assert {"healthy", "checks"} == set(checks)
    assert {"name", "ok", "found", "needed_for", "fix", "required"} == set(checks["checks"][0])
    assert "torch" in call("doctor").output


def test_simulated_sessions_can_be_inspected(tmp_path: Path) -> None:
    options = ("--sessions", 1, "--minutes", 0.2, "--channels", 4, "--units", 3, "--rate", 500)
    made = answer("simulate", "--out", tmp_path / "new", *options)
    (file,) = made["files"]
    assert Path(file["path"]).stat().st_size == file["bytes"]
    found = answer("inspect", file["path"])
    assert (found["kind"], found["lfp"]["channels"], found["units"]["count"]) == ("session", 4, 3)
    folder = answer("inspect", tmp_path / "new")
    assert (folder["kind"], [s["session_id"] for s in folder["sessions"]]) == (
        "folder",
        [found["session_id"]],
    )
    assert "500 Hz" in call("inspect", file["path"]).output


def test_a_bundle_can_be_inspected(bundle: Path) -> None:
    found = answer("inspect", bundle)
    assert (found["kind"], found["rate"], found["target"]) == ("bundle", "250/1", "host")
    assert found["outputs"][0] == {"name": "cursor_vel_x", "unit": "cm/s"}
    assert "student.onnx" in found["files"]
    text = call("inspect", bundle).output
    assert "cursor_vel_x (cm/s)" in text
    assert "deployed_r2" in text


def test_run_writes_csv_and_nwb_and_says_what_was_flagged(bundle: Path, session: Path, tmp_path: Path) -> None:
    for name in ("out.csv", "out.nwb"):
        facts = answer("run", bundle, session, "--out", tmp_path / name)
        assert (facts["bins"], facts["out"]) == (12_500, str(tmp_path / name))
        assert set(facts["flags"]) == {"warmup", "masked", "gap", "invalid"}
        assert "predictions" not in facts
    assert (tmp_path / "out.csv").read_text().count("\n") == 12_501
    assert answer("inspect", tmp_path / "out.nwb")["session_id"] == "s1"


def test_a_stream_prints_what_the_file_of_the_same_frames_gives(bundle: Path) -> None:
    frames = (60 * np.random.default_rng(0).normal(size=(500, CHANNELS))).astype("<f4")
    frames[100:150, 1] = np.nan
    printed = call("run", bundle, "-", stdin=frames.tobytes())
    assert printed.exit_code == 0
    header, *lines = printed.stdout.splitlines()
    assert header.startswith("bin,end_frame,time_s,flags,bad_channels,cursor_vel_x (cm/s)")
    assert len(lines) == 200
    columns = answer("run", bundle, "-", stdin=frames.tobytes())["predictions"]
    assert [line.split(",")[0] for line in lines] == [str(bin) for bin in columns["bin"]]
    decoded = np.array([line.split(",")[5:] for line in lines], np.float32)
    assert np.array_equal(decoded, np.array(columns["kinematics"], np.float32))
    assert 1 in columns["bad_channels"]


@pytest.fixture
def busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest of a few steps says nothing on a machine that runs tests: no gate is set on it."""
    module = importlib.import_module("edgedistill.bench.comparison")  # the package's own `bench` is the function
    monkeypatch.setattr(module, "not_of_this_machine", lambda *_: "the machine is busy")


@pytest.mark.usefixtures("busy_machine")
def test_bench_prints_every_subject_and_the_machines_own_noise(bundle: Path, session: Path) -> None:
    found = answer("bench", bundle, "--steps", 20, "--closed-loop", 0)
    assert set(found) == {
        *(
            "device",
            "bundle",
            "subjects",
            "absent",
            "ratios",
            "clock",
            "empty_paced",
            "frames_paced",
            "gates",
            "harness",
        ),
        *("trace", "layers", "calibration", "robustness", "system", "command", "created"),
    }
    text = call("bench", bundle, "--data", session, "--steps", 20, "--closed-loop", 0.1, "--system")
    assert text.exit_code == 0, text.output
    for word in (
        "lfp-student-fp32",
        "spike-student",
        "empty step",
        "not measured",
        "Gates",
        "emptied",
        "radio_pj_per_bit",
    ):
        assert word in text.output


@pytest.mark.usefixtures("busy_machine")
def test_a_bench_becomes_a_page(bundle: Path, tmp_path: Path) -> None:
    result, page = tmp_path / "one.json", tmp_path / "deep" / "page.html"
    quick = ("--steps", 5, "--closed-loop", 0, "--against", "spike-student-int8")
    answer("bench", bundle, *quick, "--assume", "radio_pj_per_bit=100", "--out", result)
    held = json.loads(result.read_text())
    assert [row["name"] for row in held["subjects"]] == ["lfp-student-fp32", "lfp-student-int8", "spike-student-int8"]
    assert held["system"]["assumptions"]["radio_pj_per_bit"]["source"] == "given"
    found = answer("report", result, "--out", page)
    assert found["bytes"] == page.stat().st_size
    assert "spike-student-int8" in page.read_text()
    assert [path.name for path in page.parent.iterdir()] == ["page.html"]
    refused("report", result, "--out", page / "below.html", says=("below.html", "cannot be written"))


def test_what_cannot_be_reported_or_measured_is_refused(bundle: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    (tmp_path / "odd.json").write_text("{}")
    (tmp_path / "cut.json").write_text('{"device": ')
    refused("report", tmp_path / "odd.json", "--out", page, says=("odd.json", "edgedistill bench"))
    refused("report", tmp_path / "cut.json", "--out", page, says=("cut.json", "not a result"))
    refused("report", tmp_path / "none.json", "--out", page, says=("none.json", "no such file"))
    refused("bench", bundle, "--against", "torch-eagr", says=("torch-eagr", "torch-eager"))
    refused("bench", bundle, "--assume", "radio=1", says=("radio", "radio_pj_per_bit"))
    assert call("bench", bundle, "--assume", "radio_pj_per_bit").exit_code == 2
    assert not page.exists()


def test_a_missed_gate_of_a_bench_is_exit_3(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missed = (Gate("step_p99_us_max", 12.0, 10.0, False),)
    monkeypatch.setattr("edgedistill.target.Target.judge", lambda *_: missed)
    assert answer("bench", bundle, "--steps", 2, "--closed-loop", 0, code=3)["gates"][0]["ok"] is False


def test_progress_goes_to_a_terminal_only_and_holds_loss_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    with training_progress() as report:
        assert report is None
    screen.isatty = lambda: True  # type: ignore[method-assign]
    with training_progress() as report:
        assert report is not None
        report("teacher", 1, 10, 0.75, 1e-3)
        report("teacher", 4, 10, 0.5, 2e-3)
        report("sessions", 1, 2, float("nan"), float("nan"))
    for word in ("teacher", "4/10", "loss 0.5", "lr 2.0e-03", "1/2", "0:"):
        assert word in screen.getvalue()
    assert "nan" not in screen.getvalue()


# ---------------------------------------------------------------- training, with stages that do nothing


@dataclass(frozen=True)
class Stage:
    name: str
    seconds: float
    cached: bool


@dataclass(frozen=True)
class Row:
    name: str
    r2: float | None
    causal: bool
    note: str


class FakeBuild(types.ModuleType):
    """`edgedistill.pipeline` by its contract: remembers what it was asked for."""

    asked: dict[str, Any]
    ok: bool | None = True

    def BuildOptions(self, **options: Any) -> dict[str, Any]:  # noqa: N802
        return options

    def build(self, options: dict[str, Any], progress: object) -> Any:
        self.asked = options
        gates = (Gate("deployed_r2_min", 0.4, 0.3, self.ok),)
        facts = {
            "bundle": str(options["out"]),
            "target": options["target"],
            "stages": [asdict(Stage("pretrain", 1.5, False))],
            "metrics": {"teacher_r2": 0.8, "int8_r2": float("nan")},
            "gates": [asdict(gate) for gate in gates],
        }
        return types.SimpleNamespace(
            bundle=options["out"],
            target=options["target"],
            stages=(Stage("pretrain", 1.5, False),),
            gates=gates,
            table=(Row("spike teacher", 0.8, False, "sees the future"), Row("ridge", None, True, "")),
            lacking=None,
            shipped=None,
            next_step="edgedistill bench x",
            to_json=lambda: facts,
        )

    def pretrain(self, data: object, out: Path, **settings: Any) -> dict[str, Any]:
        self.asked = {"data": data, "out": out, **settings}
        return {"out": str(out), "sessions": 2, "validation_loss": 0.5, "probe_r2": None}

    def distill(self, data: object, teacher: Path, out: Path, **settings: Any) -> dict[str, Any]:
        self.asked = {"data": data, "teacher": teacher, "out": out, **settings}
        return {"out": str(out)}


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> FakeBuild:
    import edgedistill

    fake = FakeBuild("edgedistill.pipeline")
    monkeypatch.setitem(sys.modules, "edgedistill.pipeline", fake)
    monkeypatch.setattr(edgedistill, "build", fake, raising=False)
    return fake


def test_build_hands_over_its_options(stages: FakeBuild) -> None:
    found = answer(
        *("build", "--target", "host", "--data", "a.nwb", "b.nwb", "--out", "x.edge", "--data", "more"),
        *("--preset", "nano", "--session", "s2", "--steps", 5, "--seed", 3, "--baselines"),
    )
    assert found["metrics"]["int8_r2"] is None
    assert stages.asked == {
        "target": "host",
        "data": (Path("a.nwb"), Path("more"), Path("b.nwb")),
        "out": Path("x.edge"),
        "preset": "nano",
        "session": "s2",
        "baselines": True,
        "steps": 5,
        "seed": 3,
        "teacher": None,
        "student": None,
        "adapt": "stats",
        "probe": False,
        "behavior": None,
        "line_hz": 60.0,
        "work": None,
        "recipe": DEFAULT_RECIPE,
        "ranges": None,
        "ship": False,
    }


@pytest.mark.parametrize(("ok", "code"), [(True, 0), (None, 0), (False, 3)])
def test_a_missed_gate_is_exit_3_after_all_was_printed(stages: FakeBuild, ok: bool | None, code: int) -> None:
    stages.ok = ok
    words = ("build", "--target", "host", "--data", "a", "--out", "x.edge")
    assert answer(*words, code=code)["gates"][0]["ok"] is ok
    printed = call(*words)
    assert printed.exit_code == code
    assert "spike teacher" in printed.output
    assert {True: "met", None: "not measured", False: "MISSED"}[ok] in printed.output


def test_pretrain_and_distill_hand_over_their_options(stages: FakeBuild) -> None:
    assert answer("pretrain", "a", "b", "--out", "t", "--preset", "nano")["probe_r2"] is None
    assert stages.asked["data"] == (Path("a"), Path("b"))
    assert (stages.asked["preset"], stages.asked["steps"], stages.asked["progress"]) == ("nano", None, None)
    answer("distill", "a", "--teacher", "t", "--out", "s", "--supervised", "--alignment", "mse")
    assert (stages.asked["supervised"], stages.asked["alignment"]) == (True, "mse")
    assert (stages.asked["behavior"], stages.asked["line_hz"]) == (None, 60)
    answer("distill", "a", "--teacher", "t", "--out", "s", "--behavior", "hand_vel", "--line-hz", 50)
    assert (stages.asked["behavior"], stages.asked["line_hz"]) == ("hand_vel", 50)
    assert "validation_loss" in call("pretrain", "a", "--out", "t").output


# ---------------------------------------------------------------- bad input


def refused(*args: object, says: tuple[str, ...], code: int = 1, stdin: bytes | None = None) -> None:
    """One clear message on stderr, the same as JSON on stdout, and no trace."""
    result = call(*args, stdin=stdin)
    assert result.exit_code == code
    for word in says:
        assert word in result.stderr
    assert "Traceback" not in result.output
    error = answer(*args, code=code, stdin=stdin)["error"]
    assert error["exit_code"] == code
    assert error["what"]


def test_files_that_are_no_session(bundle: Path, session: Path, tmp_path: Path) -> None:
    text, short, foreign = tmp_path / "text.nwb", tmp_path / "short.nwb", tmp_path / "plain.nwb"
    text.write_text("version https://git-lfs.github.com/spec/v1")
    short.write_bytes(session.read_bytes()[: session.stat().st_size // 2])
    with h5py.File(foreign, "w") as file:
        file["x"] = 1
    for path, says in ((text, "not an NWB file"), (short, "truncated"), (foreign, "not NWB 2")):
        refused("inspect", path, says=(path.name, says))
        refused("run", bundle, path, "--out", tmp_path / "out.csv", says=(path.name, says))
        refused("bench", bundle, "--data", path, says=(path.name, says))
    refused("run", bundle, tmp_path / "none.nwb", says=("none.nwb", "No such file"))
    assert not (tmp_path / "out.csv").exists()


def test_sessions_that_lack_a_part(bundle: Path, tmp_path: Path) -> None:
    spikes, field = new_nwb(), new_nwb()
    add_units(spikes)
    add_lfp(field, lfp_volts())
    spikes_only, lfp_only = write(spikes, tmp_path / "spikes.nwb"), write(field, tmp_path / "lfp.nwb")
    refused("run", bundle, spikes_only, says=("spikes.nwb", "no LFP", "4 units"))
    refused("bench", bundle, "--data", lfp_only, says=("lfp.nwb", "no behavior"))
    assert answer("run", bundle, lfp_only)["bins"] == 12_500  # an LFP-only file is all that running needs


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--preset", "edeg", "--target", "host"), ("unknown preset 'edeg'", "did you mean 'edge'")),
        (("--target", "hots"), ("unknown target 'hots'", "did you mean 'host'")),
    ],
)
def test_names_that_do_not_exist(stages: FakeBuild, words: tuple[str, ...], says: tuple[str, ...]) -> None:
    refused("build", *words, "--data", "a", "--out", "x.edge", says=says)


def test_an_unknown_key_in_a_preset_of_ones_own(stages: FakeBuild, tmp_path: Path) -> None:
    preset = tmp_path / "mine.toml"
    preset.write_text('nmae = "mine"\n')
    refused("pretrain", "a", "--out", "t", "--preset", preset, says=("mine.toml", "nmae", "did you mean 'name'"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("biuld",), ("'biuld'", "did you mean 'build'")),
        (("bench", "x.edge", "--stepps", "3"), ("--stepps", "--steps")),
        (("bench", "x.edge", "--steps", "0"), ("--steps",)),
        (("bench",), ("BUNDLE",)),
        (("build", "--target", "jetson", "--data", "a", "--zip", "--out", "d.zip"), ("--zip", "d.zip", "NAME.edge")),
        (("distill", "a", "--teacher", "t", "--out", "s", "--alignment", "cosin"), ("cosine",)),
    ],
)
def test_misuse_is_exit_2(words: tuple[str, ...], says: tuple[str, ...]) -> None:
    refused(*words, says=says, code=2)


def test_a_bundle_with_one_byte_changed_is_refused_by_the_name_of_the_file(tmp_path: Path) -> None:
    bundle = write_test_bundle(tmp_path / "damaged.edge").path
    data = bytearray((bundle / "student.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "student.onnx").write_bytes(data)
    for words in (("inspect", bundle), ("bench", bundle), ("run", bundle, "-")):
        refused(*words, says=("damaged.edge", "student.onnx", "was changed"), stdin=b"")


def test_what_is_not_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    refused("bench", tmp_path / "folder", says=("folder", "not an edgedistill bundle"))
    refused("inspect", tmp_path / "none.edge", says=("none.edge", "no such file"))


def test_outputs_that_cannot_be_written(bundle: Path, session: Path, tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    refused("run", bundle, session, "--out", tmp_path / "none" / "x.csv", says=("x.csv", "cannot be written"))
    refused("run", bundle, session, "--out", tmp_path / "x.txt", says=("x.txt", ".csv or .nwb"))
    refused("simulate", "--out", in_the_way / "sub", "--sessions", 1, says=("could not be written",))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x"), "the disk is full"),
        (OSError(errno.EROFS, "Read-only file system", "x"), "the disk is read-only"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "not allowed"),
        (KeyboardInterrupt(), "interrupted"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), "pip install 'edgedistill[train]'"),
    ],
)
def test_what_the_system_refuses_is_told_in_words(
    stages: FakeBuild, monkeypatch: pytest.MonkeyPatch, error: BaseException, says: str
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(stages, "pretrain", fails)
    refused("pretrain", "a", "--out", "t", says=(says,))


def test_a_defect_of_ours_is_not_dressed_up(stages: FakeBuild, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ValueError("a defect")

    monkeypatch.setattr(stages, "pretrain", fails)
    with pytest.raises(ValueError, match="a defect"):
        call("pretrain", "a", "--out", "t")


def test_a_reader_that_has_enough_ends_the_stream_quietly(bundle: Path) -> None:
    frames = np.zeros((200_000, CHANNELS), "<f4").tobytes()
    code = "from edgedistill.cli import main; main()"
    words = [sys.executable, "-c", code, "run", str(bundle), "-"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdin is not None
        assert run.stdout is not None
        assert run.stderr is not None
        run.stdin.write(frames[:100_000])
        run.stdin.flush()
        assert run.stdout.readline().startswith(b"bin,")
        run.stdout.close()
        try:
            run.stdin.write(frames)
            run.stdin.close()
        except BrokenPipeError:
            pass
        assert run.stderr.read() == b""
        assert run.wait(timeout=60) == 1
