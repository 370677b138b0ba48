"""A bundle from a stranger is data: nothing in it runs, no name in it is a path, and nothing outside it is changed."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import edgedistill
from edgedistill.bundle import Bundle, open_bundle, ship
from edgedistill.bundle.build_record import build_folder
from edgedistill.compile.c.library import compile_c_library, model_sources
from edgedistill.compile.engines import compile_spike_student
from edgedistill.errors import BundleError, ConfigError, EngineError
from edgedistill.pipeline.adaptation import AdaptOptions, check_options
from edgedistill.pipeline.another_day import StretchOptions
from edgedistill.runtime import Decoder
from edgedistill.runtime.build_choice import choose_target
from edgedistill.target import Target, load_own_target, load_target

from .bundles import CHANNELS, SHAPE, write_test_bundle
from .cli.calling import call
from .compile.engines import compile_quickly, quick_host, write_engine_bundle
from .planted_builds import plant_builds
from .runtime.streams import same

FRAMES = (60 * np.random.default_rng(0).normal(size=(500, CHANNELS))).astype("<f4")


@pytest.fixture(scope="module")
def module_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps what these tests compile in one cache of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("module-cache")))
        yield


@pytest.fixture(scope="module")
def planted(module_cache: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Path]:
    """Returns a bundle with planted builds, and the file that appears when one of them is loaded.

    This user has compiled it before, so that the tests need not wait for a compiler.
    """
    folder = tmp_path_factory.mktemp("planted")
    bundle = write_test_bundle(folder / "decoder.edge", engine="c")
    compile_c_library(bundle, quick_host())
    compile_spike_student(bundle, quick_host())
    return bundle, plant_builds(bundle, folder)


def quick_target(name: str) -> Target:
    """Returns a target, that of this machine with less optimization."""
    return quick_host() if name == "host" else load_target(name)


# ---------------------------------------------------------------- programs in a bundle


def test_the_planted_library_would_leave_its_mark(planted: tuple[Bundle, Path]) -> None:
    bundle, mark = planted
    ctypes.CDLL(str(bundle.path / "build/host/libed_test.so"))
    assert mark.exists()
    mark.unlink()


QUICK = ("--steps", "5", "--closed-loop", "0", "--against", "onnxruntime-int8")
COMMANDS = {
    "inspect": ("inspect",),
    "run": ("run", "-"),
    "run in C": ("run", "-", "--engine", "c"),
    "run for CUDA": ("run", "-", "--engine", "cuda"),
    "run for TensorRT": ("run", "-", "--engine", "tensorrt"),
    "run a graph": ("run", "-", "--engine", "onnxruntime"),
    "bench": ("bench", *QUICK),
    "bench for CUDA": ("bench", *QUICK, "--engine", "cuda"),
    "compile for a GPU": ("compile", "--target", "jetson"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_loads_what_lies_in_a_bundle(planted: tuple[Bundle, Path], name: str) -> None:
    bundle, mark = planted
    command, *options = COMMANDS[name]
    done = call(command, bundle.path, *options, stdin=FRAMES.tobytes())
    assert done.exit_code in (0, 1, 3), done.output
    assert (done.exit_code == 0) == ("CUDA" not in name and "TensorRT" not in name and "GPU" not in name), done.output
    assert not mark.exists()


def test_python_loads_what_this_user_compiled_and_nothing_else(planted: tuple[Bundle, Path]) -> None:
    bundle, mark = planted
    found, expected = (Decoder.open(bundle.path, engine).push(FRAMES) for engine in ("c", "oracle"))
    assert same(found, expected)
    for engine in ("cuda", "tensorrt"):
        with pytest.raises(EngineError):
            Decoder(bundle, engine)
    assert not mark.exists()


def test_libraries_of_engines_are_loaded_in_one_place() -> None:
    """So what holds for `run` and `bench` holds for `adapt`, `stream`, `report` and Python as well."""
    package = Path(edgedistill.__file__).parent
    loading = {str(path.relative_to(package)) for path in package.rglob("*.py") if "CDLL(" in path.read_text()}
    of_the_system = {"machine/gpu.py", "machine/jetson.py", "measure/sensors.py", "staging.py", "live/real_time.py"}
    of_the_system |= {"training/freed_memory.py"}
    assert loading - of_the_system == {"runtime/c_abi.py"}


def test_a_planted_library_is_not_kept_by_compile_and_its_page_holds_no_program(
    planted: tuple[Bundle, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgedistill.cli.compile.load_target", quick_target)
    bundle, mark = planted
    copy = open_bundle(shutil.copytree(bundle.path, tmp_path / "copy.edge", symlinks=True))
    planted_library = (copy.path / "build/host/libed_test.so").read_bytes()
    done = call("compile", copy.path)
    assert done.exit_code == 0
    assert (copy.path / "build/host/libed_test.so").read_bytes() != planted_library
    measured = call("bench", copy.path, *QUICK, "--out", tmp_path / "bench.json")
    assert measured.exit_code in (0, 3)
    assert call("report", tmp_path / "bench.json", "--out", tmp_path / "page.html").exit_code == 0
    assert not mark.exists()


def test_a_build_in_the_cache_that_others_could_write_is_made_again(
    planted: tuple[Bundle, Path],
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The planted build lies in the right place of the cache, with every hash right, and its folder is open to all."""
    compile_quickly(monkeypatch)
    bundle, mark = planted
    folder = build_folder(bundle, "host")
    shutil.copytree(bundle.path / "build/host", folder)
    folder.chmod(0o777)
    assert same(Decoder(bundle, "c").push(FRAMES), Decoder(bundle, "oracle").push(FRAMES))
    assert "may not be this user's own work" in caplog.text
    assert not mark.exists()


# ---------------------------------------------------------------- names in a manifest

PATHS = ("decoder.edge/evil.toml", "../decoder.edge/evil", "/etc/passwd", "host.toml", "", "host/", "./host", "evil")
EVIL = """
name = "host"
description = "x"
engine = "c"
status = "available"
deadline_ms = 10
[compiler]
command = "gcc"
debian_package = "gcc"
flags = ["-wrapper", "/bin/sh,-c,echo > ran"]
"""


@pytest.mark.parametrize("target", [*PATHS, None])
def test_a_target_named_by_a_bundle_is_never_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path, target: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    bundle = write_engine_bundle(tmp_path / "decoder.edge", "slow", engine="cuda", target=target)
    (bundle.path / "evil.toml").write_text(EVIL)
    (tmp_path / "evil.toml").write_text(EVIL)
    (tmp_path / "host.toml").write_text(EVIL)
    with pytest.raises(ConfigError, match="names a target that this edgedistill does not have"):
        load_own_target(bundle.manifest.target)
    assert choose_target(bundle, "cuda", "cuda") == "cuda"
    for words in (("compile",), ("bench", "--steps", "5"), ("run", "-")):
        assert call(words[0], "decoder.edge", *words[1:], stdin=b"").exit_code == 1
    if target is not None:
        options = AdaptOptions(bundle.path, tmp_path / "new.edge", StretchOptions(tmp_path / "day.nwb"))
        with pytest.raises(ConfigError, match="names a target"):
            check_options(options, bundle)
    assert not (tmp_path / "ran").exists()
    assert not list(own_cache.rglob("build.json"))


HOSTILE = 'x"; */ ??/" \\\n#include "/etc/passwd"\nint evil; /* ${HOME} `id` %n'


def test_names_are_no_code_in_the_sources_that_are_compiled(tmp_path: Path, own_cache: Path) -> None:
    outputs = [{"name": HOSTILE, "unit": HOSTILE} for _ in range(SHAPE.outputs)]
    bundle = write_engine_bundle(tmp_path / "a.edge", "slow", HOSTILE, channel_ids=[HOSTILE] * 3, outputs=outputs)
    for text in model_sources(bundle, "scalar").values():
        lines = text.decode().splitlines()
        assert not [line for line in lines if line.startswith("#include") and "passwd" in line]
        assert not [line for line in lines if line.strip().startswith("int evil")]
        assert b"??/" not in text
    engine = compile_c_library(bundle, quick_host())
    assert engine.folder.parent == build_folder(bundle, "host").parent
    info = Decoder(bundle, "c")._stream.info  # type: ignore[union-attr]
    assert (info.name.decode(), info.output_units[1].decode(), info.channel_ids[2].decode()) == (HOSTILE,) * 3


@pytest.mark.parametrize(
    "model",
    [
        {"dilation": (2**32 + 2) // 6},  # the size of the lagged bins would wrap around to a few bytes
        {"dilation": 2**40},
    ],
)
def test_a_shape_whose_arrays_would_overflow_in_c_is_refused(tmp_path: Path, model: dict[str, int]) -> None:
    bundle = write_engine_bundle(tmp_path / "a.edge", "slow")
    shape = {**bundle.manifest.decoder["model"], **model}  # type: ignore[dict-item]
    large = write_engine_bundle(tmp_path / "b.edge", "slow", model=shape)
    with pytest.raises(BundleError, match="no device can run a student of this shape"):
        model_sources(large, "scalar")


@pytest.mark.parametrize("setting", [{"flat_s": 1e9}, {"recover_s": 1e12}, {"bridged_s": 1e8}, {"saturated_ms": 2**34}])
def test_a_front_end_whose_counters_would_overflow_in_c_is_refused(tmp_path: Path, setting: dict[str, float]) -> None:
    bundle = write_engine_bundle(tmp_path / "a.edge", "slow")
    front_end = {**bundle.manifest.decoder["frontend"], **setting}  # type: ignore[dict-item]
    large = write_engine_bundle(tmp_path / "b.edge", "slow", frontend=front_end)
    with pytest.raises(BundleError, match=f"the front end cannot have this {next(iter(setting))}"):
        model_sources(large, "scalar")


FASTEST = {"rate": "10000000/1", "intermediate_hz": 1e7, "highpass_hz": 1e5, "lowpass_hz": 1e6, "line_hz": 0}


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        ("slow", {"rate": f"{10**20 + 1}/{10**17}"}),  # C counts frames and bins with both numbers of the fraction
        ("fast", {**FASTEST, "bin_ms": 1000}),  # 400 MB for the samples of a bin
    ],
)
def test_a_front_end_whose_arrays_would_overflow_in_c_is_refused(
    tmp_path: Path, kind: str, setting: dict[str, object]
) -> None:
    bundle = write_engine_bundle(tmp_path / "a.edge", kind)
    front_end = {**bundle.manifest.decoder["frontend"], **setting}  # type: ignore[dict-item]
    large = write_engine_bundle(tmp_path / "b.edge", kind, frontend=front_end)
    with pytest.raises(EngineError, match="too large for C"):
        model_sources(large, "scalar")


# ---------------------------------------------------------------- links in a bundle


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    (tmp_path / "victim/host").mkdir(parents=True)
    (tmp_path / "victim/host/precious.txt").write_text("the only copy")
    return tmp_path / "victim"


def intact(victim: Path) -> bool:
    return [str(path.relative_to(victim)) for path in sorted(victim.rglob("*"))] == ["host", "host/precious.txt"]


def test_compile_writes_nothing_through_a_link(
    planted: tuple[Bundle, Path], victim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgedistill.cli.compile.load_target", quick_target)
    bundle = open_bundle(shutil.copytree(planted[0].path, tmp_path / "a.edge", ignore=shutil.ignore_patterns("build")))
    (bundle.path / "build").symlink_to(victim)
    done = call("compile", bundle.path)
    assert done.exit_code == 1
    assert "'build/host' is not written, because a link or a file is in its way" in done.stderr
    assert intact(victim)
    sources = call("compile", bundle.path, "--target", "jetson")  # only the sources are prepared on this machine
    assert sources.exit_code == 1
    assert intact(victim)
    (bundle.path / "build").unlink()
    (bundle.path / "build").mkdir()
    (bundle.path / "build/host").symlink_to(victim / "host")
    assert call("compile", bundle.path).exit_code == 0
    assert not (bundle.path / "build/host").is_symlink()
    assert intact(victim)


def test_a_zip_takes_nothing_along_that_a_link_leads_to(tmp_path: Path, victim: Path) -> None:
    bundle = write_engine_bundle(tmp_path / "a.edge", "slow")
    (bundle.path / "build").mkdir()
    (bundle.path / "build/README").symlink_to(victim / "host/precious.txt")
    with pytest.raises(BundleError, match=r"'build/README' is not packed"):
        ship(bundle)
    assert not (tmp_path / "a.edge.zip").exists()


@pytest.mark.timeout(240)  # a pipe would wait for ever
def test_links_and_pipes_in_a_build_that_nobody_reads_do_no_harm(planted: tuple[Bundle, Path], tmp_path: Path) -> None:
    bundle = open_bundle(shutil.copytree(planted[0].path, tmp_path / "a.edge", symlinks=True))
    for name in ("build.json", "README"):
        (bundle.path / "build/host" / name).unlink(missing_ok=True)
        os.mkfifo(bundle.path / "build/host" / name)
    (bundle.path / "build/cuda/build.json").unlink()
    (bundle.path / "build/cuda/build.json").symlink_to("/dev/zero")
    assert call("run", bundle.path, "-", stdin=FRAMES.tobytes()).exit_code == 0
