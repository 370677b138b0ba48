"""A build appears in the cache whole or not at all, and is found again by the hash of its sources."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from time import sleep

import pytest

from edgedistill.bundle import Bundle, open_bundle
from edgedistill.bundle.build_record import BuildRecord, Fingerprint, build_folder, check_files, read_record
from edgedistill.compile import build_folder as module
from edgedistill.compile.build_folder import (
    BuildSpec,
    build_if_missing,
    build_spec,
    copy_to_bundle,
    remove_results,
    size_gates,
)
from edgedistill.errors import EngineError, OutputError
from edgedistill.target import load_target

from .engines import write_engine_bundle

HOST = load_target("host")
FINGERPRINT = Fingerprint("x86_64", "scalar", (), "gcc 12", ("-O3",), "", {"chip": "sm_87"})
SOURCES = {"c/one.c": b"int one;", "README": b"read"}


@pytest.fixture
def bundle(tmp_path: Path, own_cache: Path) -> Bundle:
    return write_engine_bundle(tmp_path / "a.edge", "slow")


def spec_of(bundle: Bundle, fingerprint: Fingerprint = FINGERPRINT, **sources: bytes) -> BuildSpec:
    return build_spec(bundle, HOST, SOURCES | sources, fingerprint, ("gcc",), ".so")


def compile_sources(folder: Path, record: BuildRecord) -> BuildRecord:
    (folder / record.library).write_bytes((folder / "c/one.c").read_bytes() * 2)
    return replace(record, sizes={"library": 16}, notes=("engine by a test",))


def test_a_build_holds_its_sources_its_results_and_a_record_of_both(bundle: Bundle) -> None:
    engine = build_if_missing(spec_of(bundle), compile_sources)
    assert engine.compiled
    assert engine.library == build_folder(bundle, "host") / "libed_slow_1.so"
    assert read_record(engine.folder) == engine.record
    assert set(engine.record.files) == {"c/one.c", "README", "libed_slow_1.so"}
    check_files(engine.folder, engine.record)
    assert open_bundle(bundle.path).sha256 == bundle.sha256


def test_a_build_is_made_again_for_other_sources_flags_or_on_request_only(bundle: Bundle) -> None:
    build_if_missing(spec_of(bundle), compile_sources)
    assert not build_if_missing(spec_of(bundle), compile_sources).compiled
    assert build_if_missing(spec_of(bundle), compile_sources, force=True).compiled
    assert build_if_missing(spec_of(bundle, new=b""), compile_sources).compiled
    assert build_if_missing(spec_of(bundle, replace(FINGERPRINT, flags=("-O0",))), compile_sources).compiled


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (EngineError("the compiler failed"), EngineError),
        (OSError(28, "No space left on device"), OutputError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_build_that_fails_leaves_the_earlier_one(
    bundle: Bundle, error: BaseException, raised: type[BaseException]
) -> None:
    first = build_if_missing(spec_of(bundle), compile_sources)

    def fail(folder: Path, record: BuildRecord) -> BuildRecord:
        (folder / record.library).write_bytes(b"half")
        raise error

    with pytest.raises(raised):
        build_if_missing(spec_of(bundle), fail, force=True)
    assert read_record(first.folder) == first.record
    check_files(first.folder, first.record)
    assert [path.name for path in first.folder.parent.iterdir()] == ["host"]


def test_of_several_that_start_at_once_one_compiles(bundle: Bundle) -> None:
    spec, began = spec_of(bundle), []

    def compile_slowly(folder: Path, record: BuildRecord) -> BuildRecord:
        began.append(folder)
        sleep(0.2)
        return compile_sources(folder, record)

    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda _: build_if_missing(spec, compile_slowly), range(4)))
    assert len(began) == 1
    assert sorted(engine.compiled for engine in made) == [False, False, False, True]


def test_a_build_is_private_whatever_the_umask_is(bundle: Bundle) -> None:
    old = os.umask(0)
    try:
        engine = build_if_missing(spec_of(bundle), compile_sources)
    finally:
        os.umask(old)
    assert {
        path.stat().st_mode & 0o077 for path in (engine.folder.parent, engine.folder, *engine.folder.rglob("*"))
    } == {0}
    check_files(engine.folder, read_record(engine.folder))


def test_results_do_not_count_when_builds_are_compared(bundle: Bundle) -> None:
    spec = spec_of(bundle)
    engine = build_if_missing(spec, compile_sources).record
    assert engine != spec.record
    assert remove_results(engine) == remove_results(spec.record)
    fingerprint = replace(engine.fingerprint, device={"chip": "sm_87", "form": "int8"})
    with_form = replace(engine, fingerprint=fingerprint)
    assert remove_results(with_form) != remove_results(spec.record)
    assert remove_results(with_form, ("form",)) == remove_results(spec.record)


def test_only_sizes_that_are_known_are_judged(bundle: Bundle) -> None:
    target = replace(HOST, gates={"library_bytes_max": 10.0, "flash_bytes_max": 10.0})
    record = build_if_missing(spec_of(bundle), compile_sources).record
    assert [(gate.name, gate.ok) for gate in size_gates(target, record)] == [("library_bytes", False)]


@pytest.mark.parametrize("moment", ["before", "between", "removed"])
def test_a_bundle_that_was_replaced_gets_no_copy_of_another_ones_engine(
    bundle: Bundle, tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A build replaces the bundle while it is compiled: before its manifest is looked at again, or right after."""
    newer = write_engine_bundle(tmp_path / "b.edge", "slow", seed=1)
    real = module.read_file

    def replace_bundle() -> None:
        bundle.path.rename(tmp_path / "old.edge")
        newer.path.rename(bundle.path)
        if moment == "removed":
            shutil.rmtree(tmp_path / "old.edge")

    def read_then_replace(*arguments: object) -> bytes:
        found = real(*arguments)  # type: ignore[arg-type]
        replace_bundle()
        return found

    engine = build_if_missing(spec_of(bundle), compile_sources)
    if moment == "before":
        replace_bundle()
    else:
        monkeypatch.setattr(module, "read_file", read_then_replace)
    copy_to_bundle(engine, bundle)
    assert not (bundle.path / "build").exists()
    assert ("was replaced" in caplog.text) == (moment != "between")
    assert (tmp_path / "old.edge/build").exists() == (moment == "between")
