"""`compile` puts a library and its sources into a bundle, whole or not at all. All targets give the same bits."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edgedistill.assets import asset_folder
from edgedistill.bundle import Bundle, open_bundle
from edgedistill.bundle.build_record import ABI_VERSION, build_folder
from edgedistill.cli import main
from edgedistill.compile.c import library
from edgedistill.compile.c.library import compile_c_library
from edgedistill.compile.c.toolchain import find_toolchain
from edgedistill.compile.engines import compile_bundle
from edgedistill.errors import ConfigError, EngineError, OutputError
from edgedistill.runtime import Decoder
from edgedistill.runtime.c_abi import OUTPUT
from edgedistill.runtime.c_state import read_student, state_dtype
from edgedistill.target import Target, load_target

from ...runtime.streams import ARRAYS, frames_of
from ..engines import SHAPES, copy_builds, quick_host, target_with, write_engine_bundle

ALLOWED = {"memcpy", "memmove", "memset", "sqrt", "sqrtf"}  # all functions of a C library that a model may call
PROGRAM = Path(__file__).with_name("uneven_chunks.c")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("c-library")
    bundle = write_engine_bundle(folder / "original.edge", "slow", seed=7)  # no other test compiles it
    assert compile_bundle(bundle, quick_host(), force=True).compiled
    return bundle


@pytest.fixture
def bundle(original: Bundle, tmp_path: Path, session_cache: Path, own_cache: Path) -> Bundle:
    """Returns a copy of the compiled bundle that a test may change, with a cache of its own that holds its build."""
    copy_builds(original, session_cache, own_cache)
    return open_bundle(shutil.copytree(original.path, tmp_path / "copy.edge"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ---------------------------------------------------------------- the folder of a build


def test_the_folder_holds_the_library_its_sources_and_their_record(original: Bundle) -> None:
    folder = original.path / "build" / "host"
    record, files = json.loads((folder / "build.json").read_text()), contents(folder)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items() if name != "build.json"}
    assert record["files"] == digests
    assert record["manifest"] == original.sha256
    assert (record["target"], record["abi"], record["library"]) == ("host", ABI_VERSION, "libed_slow_1.so")
    needs = record["fingerprint"]
    assert needs["architecture"]
    assert "-ffp-contract=off" in needs["flags"]
    assert needs["compiler"] == find_toolchain(quick_host()).version
    assert record["sizes"]["library"] == len(files["libed_slow_1.so"])
    assert {"include/edgedistill.h", "c/ed_api.c", "c/ed_engine.c", "model/model_slow_1.h", "README"} <= files.keys()
    assert len(files["README"].splitlines()) == 3
    assert record["sizes"]["state"] == Decoder(original, "c")._stream.info.state_bytes  # type: ignore[union-attr]
    assert [path.name for path in folder.parent.iterdir()] == ["host"]
    assert contents(build_folder(original, "host")) == files
    open_bundle(original.path)  # the files that compiling adds do not damage the bundle


def test_the_same_bundle_gives_the_same_bytes(original: Bundle, bundle: Bundle) -> None:
    compile_bundle(bundle, quick_host(), force=True)
    assert contents(bundle.path / "build") == contents(original.path / "build")


def test_a_build_that_is_there_already_is_not_compiled_again(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = build_folder(bundle, "host")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.setattr(library, "_compile", lambda *_: pytest.fail("compiled again"))
    engine = compile_c_library(bundle, quick_host())
    assert not engine.compiled
    assert engine.library == folder / "libed_slow_1.so"
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("damage", ["changed", "missing", "build.json", "flags", "bundle", "kernels"])
def test_a_build_that_differs_from_what_would_be_made_is_made_again(
    bundle: Bundle, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, target = build_folder(bundle, "host"), quick_host()
    asked: list[str] = []
    compile_ = library._compile
    monkeypatch.setattr(library, "_compile", lambda *inputs: asked.append("") or compile_(*inputs))
    if damage == "changed":
        (folder / "c" / "ed_math.h").write_text("other")
    elif damage == "missing":
        (folder / "libed_slow_1.so").unlink()
    elif damage == "build.json":
        (folder / "build.json").write_text("{")
    elif damage == "flags":
        target = target_with("host", flags=("-O0", "-g0"), ops="scalar")
    elif damage == "bundle":
        bundle = _replace(bundle)
    else:
        sources = library.kernel_sources
        monkeypatch.setattr(library, "kernel_sources", lambda: sources() | {"c/new.h": b""})
    engine = compile_c_library(bundle, target)
    assert (engine.compiled, len(asked)) == (True, 1)
    frames = frames_of("slow", 300)
    found, expected = Decoder(bundle, "c").push(frames), Decoder(bundle, "oracle").push(frames)
    assert [o.kinematics.tobytes() for o in found] == [o.kinematics.tobytes() for o in expected]


def _replace(bundle: Bundle) -> Bundle:
    """Writes another bundle to the same place, and keeps the build of the first in it."""
    kept = bundle.path.with_name("kept")
    (bundle.path / "build").rename(kept)
    new = write_engine_bundle(bundle.path, "slow", seed=5)
    kept.rename(new.path / "build")
    return new


@pytest.mark.parametrize("flag", ["-mno-such-flag", "-Wpadded"])
def test_a_failed_compilation_leaves_the_earlier_build(bundle: Bundle, flag: str) -> None:
    before, kept = contents(bundle.path), build_folder(bundle, "host")
    built = contents(kept)
    with pytest.raises(EngineError, match="failed") as caught:
        compile_bundle(bundle, target_with("host", flags=("-Werror", flag)))
    assert flag in str(caught.value.expected)
    assert (contents(bundle.path), contents(kept)) == (before, built)
    assert [path.name for path in (bundle.path / "build").iterdir()] == ["host"]
    assert [path.name for path in kept.parent.iterdir()] == ["host"]


def test_a_zip_is_compiled_and_gets_no_copy(tmp_path: Path, own_cache: Path) -> None:
    zipped = write_engine_bundle(tmp_path / "a.edge.zip", "slow")
    engine = compile_bundle(zipped, quick_host())
    assert engine.folder == build_folder(zipped, "host")
    assert own_cache in engine.folder.parents
    assert len(Decoder(zipped, "c").push(frames_of("slow", 300))) > 0


def test_a_place_that_cannot_be_written_to_is_reported(tmp_path: Path) -> None:
    bundle = write_engine_bundle(tmp_path / "a.edge", "slow")
    (bundle.path / "build").write_text("a file in the way")
    with pytest.raises(OutputError, match="a link or a file is in its way"):
        compile_bundle(bundle, quick_host())


def test_targets_without_a_compiler_are_refused(original: Bundle) -> None:
    with pytest.raises(ConfigError, match="jetson"):
        compile_c_library(original, load_target("jetson"))
    missing = replace(quick_host(), compiler=replace(quick_host().compiler, command="of-dreams-gcc"))  # type: ignore
    with pytest.raises(EngineError, match="apt install"):
        compile_c_library(original, missing)


# ---------------------------------------------------------------- the content of the library


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("host", "fast"),
        ("cortex-m7", "fast"),
        *(pytest.param(name, "fast", marks=pytest.mark.variant) for name in ("aarch64", "cortex-m55")),
        *(
            pytest.param(name, "slow", marks=pytest.mark.variant)
            for name in ("host", "aarch64", "cortex-m7", "cortex-m55")
        ),
    ],
)
def test_no_symbol_allocates_prints_or_is_missing(tmp_path: Path, name: str, kind: str) -> None:
    """The sources also compile without a warning with each target's compiler."""
    target = target_with(name, library="static")
    assert target.compiler is not None
    target = replace(target, compiler=replace(target.compiler, flags=(*target.compiler.flags, "-Werror")))
    engine = compile_c_library(write_engine_bundle(tmp_path / "a.edge", kind), target)
    toolchain = find_toolchain(target)
    listed = toolchain.run(engine.folder, toolchain.tool("nm"), "-f", "sysv", engine.library.name).splitlines()
    symbols = [[cell.strip() for cell in line.split("|")] for line in listed if line.count("|") == 6]
    external = {symbol[0] for symbol in symbols if symbol[2] in "TRDBV"}
    assert f"ed_model_{engine.record.model}" in external
    assert all(name.startswith("ed_") for name in external)
    wanted = {symbol[0] for symbol in symbols if symbol[2] in "Uw"} - external
    # Functions named __aeabi_ belong to the compiler.
    assert {name for name in wanted if not name.startswith("__aeabi_")} <= ALLOWED
    mutable = [symbol for symbol in symbols if symbol[6].startswith((".data", ".bss")) and ".rel.ro" not in symbol[6]]
    assert not [symbol[0] for symbol in mutable if not symbol[0].startswith((".", "$"))]


def test_firmware_is_an_archive_whose_memory_is_judged_by_gates(tmp_path: Path) -> None:
    target = target_with("cortex-m7")
    engine = compile_c_library(write_engine_bundle(tmp_path / "a.edge", "slow"), target)
    assert engine.library.name == "libed_slow_1.a"
    sizes = engine.record.sizes
    assert 0 < sizes["state"] <= sizes["ram"] < sizes["state"] + 4096
    assert 0 < sizes["flash"] < sizes["library"]
    assert "Memory Configuration" in (engine.folder / "program.map").read_text()
    assert [(gate.name, gate.ok) for gate in engine.gates] == [("flash_bytes", True), ("ram_bytes", True)]
    tight = replace(target, gates={"flash_bytes_max": 10.0, "ram_bytes_max": 1e9})
    again = compile_c_library(open_bundle(tmp_path / "a.edge"), tight)
    assert not again.compiled
    assert [gate.ok for gate in again.gates] == [False, True]


def run_program(target: Target, folder: Path, bundles: list[Bundle], frames: np.ndarray) -> bytes:
    """Runs `uneven_chunks.c` with the sources of all bundles and the model of the last, here or in an emulator."""
    assert target.compiler is not None
    emulator = target.compiler.run
    if emulator and shutil.which(emulator[0]) is None:
        pytest.skip(f"{emulator[0]} is not installed: apt install qemu-user")
    toolchain, objects = find_toolchain(target), []
    for bundle in bundles:  # compiled from the sources in the folder, as in a firmware project
        engine = compile_c_library(bundle, target)
        define, here = f'-DED_MODEL_HEADER="model_{engine.record.model}.h"', engine.folder
        objects.append(str(folder / f"{engine.record.model}.o"))
        toolchain.compile(here, "c/ed_engine.c", objects[-1], ("-Iinclude", "-Ic", "-Imodel", define))
    main_ = (str(PROGRAM), f"-DMODEL=ed_model_{engine.record.model}", "-Iinclude", "-Ic", "c/ed_api.c")
    toolchain.run(
        engine.folder, toolchain.compiler.command, *toolchain.flags, *main_, *objects, "-o", str(folder / "p")
    )
    command = [*emulator, str(folder / "p")]
    done = subprocess.run(command, input=frames.tobytes(), capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.mark.parametrize("name", ["host", "aarch64"])
def test_a_program_in_c_gives_the_bits_of_the_oracle(tmp_path: Path, name: str) -> None:
    """Two models are in one program. The outputs of the second and every integer of its state are compared."""
    bundles = [write_engine_bundle(tmp_path / f"{kind}.edge", kind) for kind in ("slow", "fast")]
    frames = frames_of("fast", 5000)
    compiler = load_target(name).compiler
    assert compiler is not None
    answer = run_program(target_with(name, flags=(*compiler.flags, "-O0")), tmp_path, bundles, frames)
    oracle, dtype = Decoder(bundles[1], "oracle"), state_dtype(SHAPES["fast"], ARRAYS["fast"], smoothing_states=2)
    expected = oracle.push(frames)
    found = np.frombuffer(answer[: -dtype.itemsize], OUTPUT)
    assert len(found) == len(expected) > 400
    for row, output in zip(found, expected, strict=True):
        facts = (output.bin, output.end_frame, output.flags, output.bad_channels)
        assert tuple(row[field] for field in ("bin", "end_frame", "flags", "bad_channels")) == facts
        assert row["kinematics"][: len(output.kinematics)].tobytes() == output.kinematics.tobytes()
    state, own = np.frombuffer(answer[-dtype.itemsize :], dtype)[0], oracle.export_state()
    for field, array in read_student(SHAPES["fast"], state).items():
        assert np.array_equal(array, own[f"state_{field}"]), field
    assert state["seen"] == own["seen"]
    assert state["smoothing"].tobytes() == own["smoothing_state"].tobytes()


# ---------------------------------------------------------------- the command


def test_the_command_reports_what_it_made(bundle: Bundle, tmp_path: Path) -> None:
    shutil.rmtree(bundle.path / "build")
    own = tmp_path / "own.toml"
    text = Path(str(asset_folder("targets") / "host.toml")).read_text()
    own.write_text(text.replace('name = "host"', 'name = "mine"').replace("-mtune=native", "-O0"))
    result = CliRunner().invoke(main, ["compile", str(bundle.path), "--target", str(own), "--json"])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert (printed["target"], printed["compiled"], printed["gates"]) == ("mine", True, [])
    assert Path(printed["library"]).is_file()
    assert printed["library_bytes"] > printed["state_bytes"] > 0
    assert printed["flash_bytes"] is None
    again = CliRunner().invoke(main, ["compile", str(bundle.path), "--target", str(own)])
    assert again.exit_code == 0
    assert "in the cache already" in again.stdout
    own.write_text(own.read_text().replace("[gates]", "[gates]\nlibrary_bytes_max = 1"))
    missed = CliRunner().invoke(main, ["compile", str(bundle.path), "--target", str(own)])
    assert missed.exit_code == 3
    assert "MISSED" in missed.stdout
