"""Tests what goes wrong with a CUDA engine: each fault has its code, and nothing is left behind on the device."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ..numerics.students import ODD, SMALL, random_bins, random_model
from .c_builds import Info, Output, aligned, pointer
from .cuda_emulation import KERNELS
from .cuda_engines import CUBIN, Build, Fake, build_cuda, build_library, emulated_driver
from .tensorrt_fakes import Device, load

DRIVER, CHIP, MEMORY, FILE, DEVICE = -11, -12, -13, -14, -15
MODEL = '-DED_MODEL_HEADER="model_test.h"'
size_t = ctypes.c_size_t


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    folder = tmp_path_factory.mktemp("cuda")
    return build_cuda(folder, random_model(SMALL), emulated_driver(folder))


@pytest.fixture
def fake(build: Build) -> Iterator[Fake]:
    """Returns the driver, and checks that nothing is left before and after a test that closes what it opens."""
    found = build.fake()
    assert found.left == (0, 0)
    found.calls()
    yield found
    found.heal()
    assert found.left == (0, 0)


@pytest.fixture
def device(build: Build, fake: Fake) -> Iterator[Device]:
    """Opens a decoder that has decoded some bins."""
    opened = build.opened()
    opened.run(random_bins(SMALL, 12))
    yield opened
    opened.close()


def code_of_open(library: Path, folder: Path | str) -> int:
    """Returns the code of ed_open, and closes what it opens."""
    c, decoder = load(library), ctypes.c_void_p()
    code = int(c.ed_open(os.fsencode(folder), ctypes.byref(decoder)))
    assert (decoder.value is None) == (code != 0)
    c.ed_close(decoder)
    return code


# ---------------------------------------------------------------- opening


MEANINGS = {
    **dict.fromkeys((3, 4, 34, 36, 46, 100, 101, 102, 304, 802, 803, 804, 805), DRIVER),
    **dict.fromkeys((200, 209, 218, 222), CHIP),
    2: MEMORY,
    **dict.fromkeys((301, 500), FILE),
    **dict.fromkeys((1, 201, 214, 700, 702, 719, 999), DEVICE),
}


@pytest.mark.parametrize("result", MEANINGS)
def test_each_result_of_the_driver_has_its_code(build: Build, fake: Fake, result: int) -> None:
    fake.fail("cuModuleLoadData", 1, result)
    assert code_of_open(build.library, build.folder) == MEANINGS[result]


def test_nothing_is_left_when_any_call_of_opening_fails(build: Build, fake: Fake) -> None:
    assert code_of_open(build.library, build.folder) == 0
    calls = fake.calls()
    calls = calls[: calls.index("cuGraphExecDestroy") - 1]  # the calls that follow are those of ed_close
    ignored = ("cuCtxPopCurrent_v2", "cuGraphDestroy")  # the engine cannot do better
    places = [(name, calls[: i + 1].count(name)) for i, name in enumerate(calls) if name not in ignored]
    assert len(places) > 30
    for name, count in places:
        for result in (2, 1, 719):  # out of memory; a refusal; the end of the context
            fake.fail(name, count, result)
            expected = MEMORY if result == 2 else DRIVER if name == "cuInit" else DEVICE
            expected = DEVICE if name == "cuCtxPushCurrent_v2" else expected
            assert code_of_open(build.library, build.folder) == expected, (name, count, result)
            assert fake.left == (0, 0), (name, count, result)
    fake.heal()
    assert code_of_open(build.library, build.folder) == 0


def test_a_missing_driver_and_a_library_that_is_none(build: Build, tmp_path: Path) -> None:
    for file in build.folder.glob("model_*"):
        shutil.copy(file, tmp_path)
    assert code_of_open(build_library(tmp_path, "libcuda-not-here.so.1", (MODEL,)), build.folder) == DRIVER
    subprocess.run(["gcc", "-shared", "-x", "c", "/dev/null", "-o", tmp_path / "empty.so"], check=True)
    shutil.copy(tmp_path / "libed.so", tmp_path / "first.so")  # the loader loads a path once
    assert code_of_open(build_library(tmp_path, tmp_path / "empty.so", (MODEL,)), build.folder) == DRIVER


def test_a_kernel_that_is_missing_or_damaged(build: Build, fake: Fake, tmp_path: Path) -> None:
    whole = (build.folder / CUBIN).read_bytes()
    assert code_of_open(build.library, tmp_path) == FILE  # no such file
    assert code_of_open(build.library, tmp_path / "nowhere") == FILE
    assert code_of_open(build.library, "x" * 5000) == FILE
    (tmp_path / CUBIN).mkdir()
    assert code_of_open(build.library, tmp_path) == FILE
    (tmp_path / CUBIN).rmdir()
    for size in (0, 1, 63, 64, 500, len(whole) // 2, len(whole) - 1):
        (tmp_path / CUBIN).write_bytes(whole[:size])
        assert code_of_open(build.library, tmp_path) == FILE, size
    for junk in (b"\0" * 5000, b"\x7fELF" + b"\xff" * 5000, b"// PTX\n.version 8.0\n" * 50):
        (tmp_path / CUBIN).write_bytes(junk)
        assert code_of_open(build.library, tmp_path) == FILE
    (tmp_path / CUBIN).write_bytes(whole)
    assert code_of_open(build.library, tmp_path) == 0
    (tmp_path / CUBIN).chmod(0)
    assert code_of_open(build.library, tmp_path) == (0 if os.geteuid() == 0 else FILE)


def test_the_kernel_of_another_bundle(build: Build, fake: Fake, tmp_path: Path) -> None:
    for name, model in (("shape", random_model(ODD)), ("weights", random_model(SMALL, seed=1))):
        folder = tmp_path / name
        folder.mkdir()
        other = build_cuda(folder, model, build.driver, manifest_sha256="ab" * 32)
        assert code_of_open(other.library, folder) == 0
        assert code_of_open(other.library, build.folder) == FILE
        assert code_of_open(build.library, folder) == FILE


def test_a_file_with_other_kernels(build: Build, fake: Fake, tmp_path: Path) -> None:
    subprocess.run(["gcc", "-shared", "-x", "c", "/dev/null", "-o", tmp_path / CUBIN], check=True)
    assert code_of_open(build.library, tmp_path) == FILE


def test_machine_code_of_nvcc_counts_as_complete(build: Build, fake: Fake, tmp_path: Path) -> None:
    """A cubin of nvcc passes the check for complete files; then the emulated driver refuses it."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not Path(nvcc).exists():
        pytest.skip("no nvcc")
    include = [f"-I{folder}" for folder in (build.folder, *(KERNELS / name for name in ("include", "c", "cuda")))]
    source = KERNELS / "cuda/student_step.cu"
    command = [nvcc, "-std=c++17", "-arch=sm_90", *include, MODEL, "-cubin", source, "-o", tmp_path / CUBIN]
    subprocess.run(command, check=True, capture_output=True)
    assert code_of_open(build.library, tmp_path) == CHIP
    whole = (tmp_path / CUBIN).read_bytes()
    (tmp_path / CUBIN).write_bytes(whole[:-1])
    assert code_of_open(build.library, tmp_path) == FILE


# ---------------------------------------------------------------- a device that fails while it decodes


def answers(device: Device) -> set[int]:
    """Returns the codes of all functions that return int."""
    c, d, n = device.c, device.decoder, ctypes.byref(size_t())
    x, one = pointer(aligned(1 << 16)), size_t(1)
    doubles = pointer(np.ones(SMALL.channels))
    return {
        c.ed_push(d, x, one, x, one, n),
        c.ed_push_i16(d, x, one, x, one, n),
        c.ed_gap(d, one),
        c.ed_gap_outputs(d, one, x, one, n),
        c.ed_step(d, x, x),
        c.ed_set_normalization(d, x, x),
        c.ed_set_gain(d, doubles, doubles),
        c.ed_latent(d, x, size_t(SMALL.d)),
        c.ed_state_export(d, x, size_t(device.info.export_bytes)),
        c.ed_state_import(d, x, size_t(device.info.export_bytes)),
    }


def require_ended(device: Device) -> None:
    assert answers(device) == {DEVICE}
    device.reset()
    assert device.c.ed_outputs_for(device.decoder, size_t(1000)) == 0
    assert answers(device) == {DEVICE}
    device.c.ed_info_get.restype = ctypes.POINTER(Info)
    assert device.c.ed_info_get(device.decoder).contents.channels == SMALL.channels


@pytest.mark.parametrize("result", [719, 1, 2])
@pytest.mark.parametrize("function", ["cuGraphLaunch", "cuStreamSynchronize", "cuCtxPushCurrent_v2"])
def test_a_step_that_fails_ends_the_decoder(
    device: Device, build: Build, fake: Fake, function: str, result: int
) -> None:
    bin_, kinematics = random_bins(SMALL, 1)[0], np.full(SMALL.outputs, 7, np.float32)
    fake.fail(function, 1, result)
    code = device.c.ed_step(device.decoder, pointer(bin_), pointer(kinematics))
    assert code == (MEMORY if result == 2 and function != "cuCtxPushCurrent_v2" else DEVICE)
    assert (kinematics == 7).all()
    require_ended(device)
    if result != 719:  # the context lives, and so do other decoders
        assert code_of_open(build.library, build.folder) == 0


def test_a_failure_within_a_push_keeps_the_outputs_before_it(device: Device, build: Build, fake: Fake) -> None:
    frames = (30 * np.random.default_rng(0).standard_normal((50, SMALL.channels))).astype(np.float32)
    outputs, wanted, made = (Output * 5)(), (Output * 5)(), size_t(77)
    other = build.opened()
    assert other.import_(device.export()) == 0
    assert other.c.ed_push(other.decoder, pointer(frames), size_t(50), wanted, size_t(5), ctypes.byref(made)) == 0
    other.close()
    fake.fail("cuGraphLaunch", 3)
    assert (
        device.c.ed_push(device.decoder, pointer(frames), size_t(50), outputs, size_t(5), ctypes.byref(made)) == DEVICE
    )
    assert made.value == 2
    assert bytes(outputs)[: 2 * ctypes.sizeof(Output)] == bytes(wanted)[: 2 * ctypes.sizeof(Output)]
    require_ended(device)


@pytest.mark.parametrize("call", ["gap", "export", "import", "reset"])
def test_every_function_reports_a_failure_of_the_device(device: Device, fake: Fake, call: str) -> None:
    state = device.export()
    fake.fail("cuStreamSynchronize")
    if call == "gap":
        assert device.c.ed_gap(device.decoder, size_t(100)) == DEVICE
    elif call == "export":
        size = size_t(device.info.export_bytes)
        assert device.c.ed_state_export(device.decoder, pointer(state), size) == DEVICE
    elif call == "import":
        assert device.import_(state) == DEVICE
    else:
        device.reset()
    require_ended(device)


def test_a_kernel_that_fails_on_the_device(build: Build, fake: Fake, tmp_path: Path) -> None:
    """What ends the context of one decoder ends those of the others as well, until all are closed."""
    decoders = [build.opened() for _ in range(2)]
    fake.fail("cuGraphLaunch", 1, 700)
    for decoder in decoders:
        with pytest.raises(AssertionError):
            decoder.run(random_bins(SMALL, 1))
        require_ended(decoder)
    assert code_of_open(build.library, build.folder) == DEVICE
    for decoder in decoders:
        decoder.close()
    assert fake.left == (0, 0)
    assert code_of_open(build.library, build.folder) == 0


def test_a_sentence_for_every_code_names_the_cure(build: Build) -> None:
    c = load(build.library)
    said = {code: c.ed_strerror(code).decode() for code in range(-16, -10)}
    assert "doctor" in said[DRIVER]
    assert all("compile" in said[code] for code in (CHIP, FILE, -16))
    assert "ed_close" in said[DEVICE]
    assert "close" in said[MEMORY]


# ---------------------------------------------------------------- memory


PROGRAM = """
#include <stdio.h>
#include <stdlib.h>
#include "edgedistill.h"
int main(int count, char **words) {
    ed_decoder *decoder = 0;
    float bin[64] = {0}, kinematics[16];
    int error = ed_open(words[1], &decoder);
    for (int i = 0; i < 20 && !error; i++) error = ed_step(decoder, bin, kinematics);
    void *state = aligned_alloc(64, 1 << 20);
    if (!error) error = ed_state_export(decoder, state, ed_info_get(decoder)->export_bytes);
    if (!error) error = ed_state_import(decoder, state, ed_info_get(decoder)->export_bytes);
    free(state);
    if (decoder) ed_close(decoder);
    return printf("%d\\n", error) < 0 || count != 2;
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory, build: Build) -> tuple[Path, Build]:
    """Compiles a C program over library, driver and kernel, all with sanitizers."""
    folder = tmp_path_factory.mktemp("sanitized")
    sanitize = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    driver = emulated_driver(folder, ("-O0", *sanitize))
    made = build_cuda(folder, build.model, driver, sanitize=True)
    (folder / "main.c").write_text(PROGRAM)
    command = ["gcc", *sanitize, f"-I{KERNELS}/include", "main.c", "libed.so", f"-Wl,-rpath,{folder}", "-o", "program"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode and "sanitize" in done.stderr + "asan":
        pytest.skip(f"no sanitizers here: {done.stderr[:200]}")
    return folder / "program", replace(made)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("", 0),
        ("cuInit:1:100", DRIVER),
        ("cuModuleLoadData:1:209", CHIP),
        ("cuMemAlloc_v2:1:2", MEMORY),
        ("cuMemHostAlloc:1:2", MEMORY),
        ("cuStreamEndCapture:1:901", DEVICE),
        ("cuGraphInstantiateWithFlags:1:2", MEMORY),
        ("cuGraphLaunch:9:719", DEVICE),
        ("cuStreamSynchronize:13:700", DEVICE),
    ],
)
def test_sanitizers_find_no_leak_and_no_foreign_access(program: tuple[Path, Build], fault: str, code: int) -> None:
    binary, build = program
    environment: dict[str, Any] = {**os.environ, "ED_FAKE_CUDA": fault, "ASAN_OPTIONS": "detect_leaks=1"}
    done = subprocess.run([binary, build.folder], env=environment, capture_output=True, text=True, check=False)
    if "LeakSanitizer has encountered a fatal error" in done.stderr:
        pytest.skip("LeakSanitizer cannot run here, under a tracer for one")
    assert done.stdout == f"{code}\n", done.stderr[-3000:]
    assert done.returncode == 0, done.stderr[-3000:]
