"""Tests gpu_suite.sh and all it runs over an emulated GPU, so that every path works before a real one is at hand.

Times mean nothing here, and no result of an emulated GPU may get among those of devices. What PyTorch computes beside
our kernels is compared with the student it stands for, on the CPU.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgedistill.config import StudentShape, load_preset
from edgedistill.numerics import quantize

from ..compile.cuda.emulated_gpu import EmulatedGpu, cuda_headers

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
sys.path.append(str(ROOT))

from benchmarks.gpu import kernel_checks  # noqa: E402
from benchmarks.gpu.kernels import choose_exit_status  # noqa: E402
from benchmarks.gpu.tables import format_markdown, judge_gates  # noqa: E402

DRIVER = Path(__file__).parent / "benchmark_driver.cpp"
# Every tool gets the same command, which the first one runs.
SANITIZER = """#!/bin/sh
tool=$2
shift 6
[ "$tool" != memcheck ] || "$@" >/dev/null || exit 86
echo "========= ERROR SUMMARY: 0 errors"
"""
TINY = {"d": 8, "layers": 1, "heads": 2, "window": 5, "ff": 16}
SIZES = ("--quick", "--small", "--steps", "60", "--channels", "5")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> EmulatedGpu:
    """Makes a machine whose driver has what the benchmarks call, and whose compute-sanitizer only runs programs."""
    folder = tmp_path_factory.mktemp("machine")
    found = EmulatedGpu(folder)
    options = ("-std=c++17", "-O1", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", *cuda_headers())
    subprocess.run(["g++", *options, str(DRIVER), "-o", str(folder / "lib" / "libcuda.so.1"), "-ldl"], check=True)
    (folder / "bin" / "compute-sanitizer").write_text(SANITIZER)
    (folder / "bin" / "compute-sanitizer").chmod(0o755)
    found.env |= {"PYTHON": sys.executable, "PYTHONWARNINGS": "ignore"}
    return found


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes a preset whose step is emulated in a millisecond."""
    lines = (ROOT / "edgedistill" / "presets" / "nano.toml").read_text().splitlines()
    student = lines.index("[student]")
    for at in range(student, lines.index("[teacher]")):
        key = lines[at].split("=")[0].strip()
        lines[at] = f"{key} = {TINY[key]}" if key in TINY else lines[at]
    path = tmp_path_factory.mktemp("preset") / "tiny.toml"
    path.write_text("\n".join(lines))
    return path


def suite(machine: EmulatedGpu, *words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(BENCHMARKS / "gpu_suite.sh"), *map(str, words)]
    return subprocess.run(
        command, env=machine.env | env, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False
    )


# ---------------------------------------------------------------- the suite


def test_the_suite_checks_times_and_writes_on_an_emulated_gpu(machine: EmulatedGpu, tiny: Path, tmp_path: Path) -> None:
    done = suite(
        machine,
        tmp_path / "out",
        *SIZES,
        "--no-compile",
        "--presets",
        tiny,
        "--work",
        tmp_path / "work",
        "--blocks",
        "128",
    )
    assert done.returncode in (0, 2), done.stdout + done.stderr  # right; times of an emulation judge nothing
    result = json.loads((tmp_path / "out" / "emulated-gpu" / "kernels.json").read_text())
    assert done.returncode == choose_exit_status(result["gates"])
    assert result["complete"]
    assert result["device"]["chip"] == "sm_87"
    right = [gate for gate in result["gates"] if gate["kind"] == "right"]
    assert [gate["ok"] for gate in right] == [True] * 7  # two kernels, a student in two forms, three tools
    assert all(part["cases"] and part["compared"] for part in result["numerics"].values())
    named = {
        "step": "tiny, from Python, L2 flushed",
        "core": "tiny, on the device, warm",
        "append": "tiny, back to back",
        "blocks": "tiny, 128 threads, back to back",
    }
    four_bits = {"step": "tiny-four-bits, warm", "blocks": "tiny-four-bits, 128 threads, back to back"}
    subjects = [*named.items(), *four_bits.items(), ("kernel", "tiny-four-bits, back to back")]
    assert all(result[what][subject]["p99"] > 0 for what, subject in subjects)
    assert result["floor"]["graph of an empty node, warm"]["p50"] >= 0
    assert all(result["roofline"][form]["weights"]["bytes"] > 0 for form in ("tiny", "tiny-four-bits"))
    assert len(result["missing"]) == 10  # PyTorch sees no GPU here
    assert "| `tiny`, `ed_step` |" in done.stdout
    assert "| `tiny`, 128 threads, back to back |" in done.stdout
    assert "| `tiny-four-bits`, `ed_student_step` on the device, back to back |" in done.stdout
    assert "tiny: step over empty graph + roofline" in done.stdout
    again = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.tables", str(tmp_path / "out" / "emulated-gpu" / "kernels.json")],
        env=machine.env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert again.stdout == done.stdout


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_session_builds_compiles_and_measures_energy_on_an_emulated_gpu(
    machine: EmulatedGpu, tiny: Path, tmp_path: Path
) -> None:
    env = {
        "SUITE_OPTIONS": f"{' '.join(SIZES)} --no-compile --blocks 128 --presets {tiny}",
        "SESSION_PRESETS": str(tiny),
        "SESSION_STEPS": "4",
        "SESSION_MINUTES": "3",
        "SESSION_ENERGY": "0.1",
        "SESSION_LIMIT": "3000",
    }
    command = ["bash", str(BENCHMARKS / "gpu_session.sh"), str(tmp_path)]
    done = subprocess.run(
        command, env=machine.env | env, cwd=ROOT, capture_output=True, text=True, timeout=3000, check=False
    )
    session = json.loads((tmp_path / "session.json").read_text())
    ended = {part["part"]: part["status"] for part in session["parts"]}
    assert list(ended) == ["suite", "simulate", "build-tiny", "compile", "bench", "build-tiny-again"], done.stderr
    assert ended["suite"] in (0, 2)  # right; times of an emulation judge nothing
    assert all(status in (0, 3) for name, status in ended.items() if name != "suite"), done.stderr
    rows = {row["name"]: row for row in json.loads((tmp_path / "bench.json").read_text())["subjects"]}
    assert rows["lfp-student-int8"]["energy_source"] == "NVML: GPU board"
    assert rows["lfp-student-int8"]["energy_interval_mj"] is not None
    again = json.loads((tmp_path / "build-tiny-again.out").read_text())
    trained = {"teacher", "teacher-readout", "spike-student", "distilled", "deployed", "linear-baselines", "calibrate"}
    assert trained <= {stage["name"] for stage in again["stages"] if stage["cached"]}


def test_an_emulated_gpu_is_kept_out_of_the_results(machine: EmulatedGpu, tiny: Path) -> None:
    done = machine.python("-m", "benchmarks.gpu.kernels", *SIZES, "--presets", tiny)
    assert done.returncode == 1
    assert "--out" in done.stderr
    assert not (BENCHMARKS / "results" / "emulated-gpu").exists()


@pytest.mark.variant
def test_a_launch_that_fails_ends_the_suite_with_what_the_driver_said(
    machine: EmulatedGpu, tiny: Path, tmp_path: Path
) -> None:
    # engines make the first launches, how many depends on what was compiled before; they report errors in other words
    done = suite(machine, tmp_path, *SIZES, "--presets", tiny, ED_FAKE_CUDA="cuLaunchKernel:30:719")
    assert done.returncode == 1
    assert "cuLaunchKernel answers 719" in done.stderr
    assert "nvidia-smi" in done.stderr


def test_without_a_driver_the_suite_says_what_is_missing(machine: EmulatedGpu) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has a driver")
    done = suite(machine, LD_LIBRARY_PATH="")
    assert done.returncode == 3
    assert "there is no CUDA driver on this machine" in done.stderr


def test_without_its_packages_the_suite_names_the_command(machine: EmulatedGpu, tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys._base_executable} -S -I "$@"\n')  # type: ignore[attr-defined]
    bare.chmod(0o755)
    done = suite(machine, PYTHON=str(bare))
    assert done.returncode == 3
    assert f"{bare} -m pip install numpy scipy safetensors" in done.stderr


# ---------------------------------------------------------------- its judgement


class OffByOne:
    """A device whose attention differs from the definition in one byte."""

    def __init__(self, core: kernel_checks.Core) -> None:
        self.context = core.compute_context()

    def array(self, values: np.ndarray) -> np.ndarray:
        return values

    def fetch(self, array: np.ndarray) -> np.ndarray:
        wrong = self.context.copy()
        wrong[0, 0] ^= 1
        return wrong

    def launch(self, kernel: str, grid: tuple[int, int], block: int, shared: int, *arguments: Any) -> None:
        assert kernel == "ed_attention_step"


def test_one_wrong_byte_is_found() -> None:
    core = kernel_checks.draw_core(3, 31, 16, (4, 30))
    assert kernel_checks.check_step(OffByOne(core), core, "x").differ == 1


def test_the_cases_cover_the_promised_sizes() -> None:
    assert set(kernel_checks.WINDOWS) == {1, 31, 129, 200, 2048}
    assert kernel_checks.list_states(200) == [(0, 0), (0, 199), (66, 199), (99, 99), (198, 198)]
    context = kernel_checks.draw_core(2, 31, 16, (4, 30)).compute_context()
    assert context.shape == (2, 16)
    assert 20 < np.abs(context.astype(int)).mean() < 100  # neither lost in rounding nor all at the edge
    assert (quantize(np.float32([1e9]), np.float32([1])) == 127).all()


def result_with(**changes: Any) -> dict[str, Any]:
    times = {"p50": 10.0, "p99": 12.0}
    how = ("", ", from Python")
    return {
        "device": {"name": "GPU", "chip": "sm_90", "driver_cuda": "13.0", "toolkit": "13.0"},
        "numerics": {"ed_append": {"differ": 0}},
        "sanitizer": {"memcheck": {"ok": None, "reason": "not installed"}},
        "floor": {
            f"{name}{part}": {"p50": 4.0, "p99": 5.0}
            for name in ("graph of an empty node", "graph of an empty kernel")
            for part in (", warm", ", L2 flushed")
        }
        | {"empty kernel, launched": times},
        "step": {f"edge{part}{cold}": times for part in how for cold in (", warm", ", L2 flushed")},
        **{what: {"edge, back to back": times} for what in ("kernel", "core", "append")},
        "roofline": {"edge": {"weights": {"bytes": 1000, "us": 6.0, "bytes_a_clock": 60.0, "computed_us": 5.0}}},
        "peers": {
            "edge, PyTorch eager, float32, warm": {"p50": 20.0, "p99": 30.0},
            "edge, PyTorch CUDA graph, float32, warm": {"p50": 70.0, "p99": 80.0},
            "edge, PyTorch CUDA graph, float16, warm": {"p50": 60.0, "p99": 80.0},
            "edge, PyTorch CUDA graph, float16, L2 flushed": {"p50": 90.0, "p99": 99.0},
        },
        "missing": {},
    } | changes


def test_gates_compare_with_the_floor_and_with_the_fastest_graph_of_pytorch() -> None:
    found = {gate["name"]: gate for gate in judge_gates(result_with())}
    floor = found["edge: step over empty graph + roofline"]
    assert (floor["value"], floor["ok"]) == (1.0, True)  # 10 / (4 + 6)
    peer = found["edge: fastest PyTorch CUDA graph over step"]
    assert (peer["value"], peer["ok"]) == (6.0, True)
    assert found["compute-sanitizer, memcheck"]["ok"] is None
    wrong = judge_gates(result_with(numerics={"ed_append": {"differ": 3}}))
    assert wrong[0]["ok"] is False
    assert wrong[0]["reason"] == "3 differ"
    missing = {"peers/edge, PyTorch CUDA graph, float32": "no PyTorch"}
    unmeasured = judge_gates(result_with(peers={}, missing=missing))[-1]
    assert (unmeasured["ok"], unmeasured["reason"]) == (None, "no PyTorch")


def test_a_step_slower_than_promised_ends_with_status_2_and_a_wrong_one_with_status_1() -> None:
    slow = result_with()
    slow["step"]["edge, warm"] = {"p50": 31.0, "p99": 40.0}  # the floor is 4 + 6, the limit three times that
    judged = judge_gates(slow)
    assert {gate["name"]: gate["ok"] for gate in judged}["edge: step over empty graph + roofline"] is False
    assert choose_exit_status(judged) == 2
    assert choose_exit_status(judge_gates(slow | {"numerics": {"ed_append": {"differ": 3}}})) == 1
    assert choose_exit_status(judge_gates(result_with())) == 0


def test_a_floor_that_is_lost_in_the_noise_judges_nothing() -> None:
    result = result_with()
    result["roofline"]["edge"]["weights"] |= {"us": None, "bytes_a_clock": None}
    gate = {gate["name"]: gate for gate in judge_gates(result)}["edge: step over empty graph + roofline"]
    assert (gate["value"], gate["ok"]) == (None, None)
    assert "lost in the noise" in gate["reason"]
    text = format_markdown(result | {"gates": judge_gates(result)})
    assert "read by one multiprocessor | not measured |" in text


def test_packed_four_bit_weights_are_compared_with_the_peers_of_their_preset() -> None:
    result = result_with()
    forms = ("edge", "edge-four-bits")
    for what in ("step", "kernel", "roofline"):
        result[what] |= {name.replace("edge", forms[1]): value for name, value in result[what].items()}
    result["step"]["edge-four-bits, from Python, warm"] = {"p50": 20.0, "p99": 21.0}
    judged = {gate["name"]: gate["value"] for gate in judge_gates(result)}
    assert [judged[f"{form}: fastest PyTorch CUDA graph over step"] for form in forms] == [6.0, 3.0]
    text = format_markdown(result | {"gates": judge_gates(result)})
    assert text.count("`ed_attention_step`") == text.count("PyTorch eager") == 1
    assert "| `edge-four-bits`, `ed_student_step` on the device, back to back | 10.00 |" in text
    missing = {"peers/edge, PyTorch CUDA graph, float32": "no PyTorch"}
    reasons = [gate.get("reason") for gate in judge_gates(result | {"peers": {}, "missing": missing})]
    assert reasons.count("no PyTorch") == 2


def test_the_table_shows_the_result() -> None:
    result = result_with()
    text = format_markdown(result | {"gates": judge_gates(result)})
    assert "| `edge`, `ed_step` | 10.00 | 12.00 | 10.00 | 1.00 × empty graph + roofline |" in text
    assert "| `edge`, PyTorch CUDA graph, float16 | 60.00 | 80.00 | 90.00 | 6.0 × `ed_step` from Python |" in text


# ---------------------------------------------------------------- its peers


def test_the_step_in_pytorch_equals_the_student() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch comes with the extra train")
    from benchmarks.gpu.peers import StudentStep, make_student_peers
    from edgedistill.models.student import Student

    size = replace(load_preset("nano").student, window=9)
    student = Student(size, {"s": 12}, {"s": "a"}, 8, 2).eval()
    shape = size.shape(12, 2)
    weights = {name: tensor.numpy() for name, tensor in student.fold("s").items()}
    rng = np.random.default_rng(0)
    readouts = {"readout.latent": (2, shape.d), "readout.lags": (2, (shape.lags + 1) * 12), "readout.bias": (2,)}
    weights |= {name: rng.normal(size=size).astype(np.float32) for name, size in readouts.items()}
    peer, state = StudentStep(shape, weights, "float32", "cpu"), student.make_fresh_state("s")
    recent = np.zeros((shape.lags + 1, 12), np.float32)
    with torch.inference_mode():
        for bin_ in rng.normal(size=(30, 12)).astype(np.float32):
            recent = np.concatenate([bin_[None], recent[:-1]])
            latent = student.step("s", torch.from_numpy(bin_), state).numpy()
            expected = weights["readout.latent"] @ latent + weights["readout.lags"] @ recent.ravel()
            peer.bin.copy_(torch.from_numpy(bin_))
            peer.step()
            found = peer.out.numpy()
            np.testing.assert_allclose(found, expected + weights["readout.bias"], rtol=1e-3, atol=1e-3)
    if not torch.cuda.is_available():
        peers = make_student_peers(StudentShape(*(12, 2, 8, 1, 2, 5, 16, 1, 1, 0)), weights)
        assert all(found.call is None and "sees no GPU" in str(found.reason) for found in peers.values())
