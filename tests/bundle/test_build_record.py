"""The content of a build record decides whether a build is opened, and which type of error is raised if it is not.

Builds lie in the user's cache, which others must not be able to write to.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgedistill.assets import engine_code_digest
from edgedistill.bundle import Bundle
from edgedistill.bundle.build_record import (
    ABI_VERSION,
    FORMAT,
    BuildRecord,
    Fingerprint,
    build_folder,
    check_fits,
    read_loaded_files,
    read_record,
)
from edgedistill.bundle.contents import read_decoder_spec
from edgedistill.errors import EngineError, NotCompiled, StalePlan
from edgedistill.machine.processor import read_architecture
from edgedistill.runtime.build_choice import choose_build
from edgedistill.runtime.tensorrt_engine import open_tensorrt_engine

from ..compile.engines import write_engine_bundle


@pytest.fixture
def bundle(tmp_path: Path, own_cache: Path) -> Bundle:
    return write_engine_bundle(tmp_path / "a.edge", "slow")


def record_of(bundle: Bundle, **changes: object) -> BuildRecord:
    facts = Fingerprint(read_architecture(), "tensorrt", (), "CUDA 12.6", (), "0" * 64)
    record = BuildRecord(
        FORMAT, "jetson", "test", bundle.sha256, ABI_VERSION, "slow_1", "libed_slow_1.so", facts, {}, {}, "tensorrt"
    )
    return replace(record, **{"code": engine_code_digest(), **changes})  # type: ignore[arg-type]


def written(bundle: Bundle, target: str = "jetson", **changes: object) -> Path:
    """Writes a build into the cache that consists of nothing but its record."""
    folder = build_folder(bundle, target)
    folder.mkdir(0o700, parents=True)
    record_of(bundle, **changes).write(folder)
    return folder


def test_a_record_is_read_as_it_was_written(bundle: Bundle) -> None:
    folder = written(bundle, notes=("checked",))
    assert read_record(folder) == record_of(bundle, notes=("checked",))
    check_fits(folder, read_record(folder), bundle)


def test_a_folder_without_a_record_is_not_compiled(bundle: Bundle) -> None:
    with pytest.raises(NotCompiled):
        read_record(build_folder(bundle, "jetson"))


def test_builds_of_other_engines_only_are_not_compiled(bundle: Bundle) -> None:
    written(bundle, "cuda", engine="cuda")
    with pytest.raises(NotCompiled):
        choose_build(bundle, "jetson", "tensorrt", check_fits)


def test_what_does_not_fit_is_told_before_that_nothing_is_compiled(bundle: Bundle) -> None:
    written(bundle, "board", abi=99)
    with pytest.raises(EngineError, match="ABI 99"):
        choose_build(bundle, "jetson", "tensorrt", check_fits)


@pytest.mark.parametrize(
    ("changes", "mentions"),
    [
        ({"code": "0" * 64}, "compiled from other sources"),
        ({"engine": "c", "tools": {"sh": "/bin/sh 1 1"}}, "compiled by another 'sh'"),
        ({"library": "libed_slow_1.a"}, "firmware"),
    ],
)
def test_another_code_another_compiler_and_firmware_do_not_fit(
    bundle: Bundle, changes: dict[str, object], mentions: str
) -> None:
    folder = written(bundle, **changes)
    with pytest.raises(EngineError, match=mentions):
        check_fits(folder, read_record(folder), bundle)


@pytest.mark.parametrize("engine", ["cuda", "tensorrt"])
def test_an_update_of_a_compiler_stops_no_engine_that_is_not_made_again_by_itself(
    bundle: Bundle, engine: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = written(bundle, engine=engine, tools={"sh": "/bin/sh 1 1"})
    assert choose_build(bundle, "jetson", engine, check_fits)[0] == folder
    (line,) = caplog.messages
    assert "compiled by another 'sh', and is used as it is" in line


def test_a_compiler_that_is_gone_since_does_not_matter(bundle: Bundle) -> None:
    folder = written(bundle, tools={"gcc-of-dreams": "/nowhere 1 1"})
    check_fits(folder, read_record(folder), bundle)


def test_each_bundle_and_each_machine_has_a_folder_of_its_own(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_engine_bundle(tmp_path / "b.edge", "slow", seed=1)
    again = write_engine_bundle(tmp_path / "c.edge", "slow")
    folder = build_folder(bundle, "host")
    assert build_folder(again, "host") == folder != build_folder(other, "host")
    monkeypatch.setattr("edgedistill.bundle.build_record.read_system_file", lambda path: "another machine")
    assert build_folder(bundle, "host") != folder


# ---------------------------------------------------------------- who can have written it


def writable_file(folder: Path) -> None:
    (folder / "libed_slow_1.so").chmod(0o666)


def writable_folder(folder: Path) -> None:
    folder.chmod(0o777)


def link(folder: Path) -> None:
    (folder / "libed_slow_1.so").rename(folder / "elsewhere.so")
    (folder / "libed_slow_1.so").symlink_to("elsewhere.so")


def linked_folder(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to("elsewhere")


def second_name(folder: Path) -> None:
    os.link(folder / "libed_slow_1.so", folder / "elsewhere.so")


def pipe(folder: Path) -> None:
    (folder / "libed_slow_1.so").unlink()
    os.mkfifo(folder / "libed_slow_1.so", 0o600)


@pytest.mark.parametrize(
    ("harm", "mentions"),
    [
        (writable_file, "other users can write"),
        (writable_folder, "other users can write"),
        (link, "it is a link"),
        (linked_folder, "it is a link"),
        (second_name, "second name"),
        (pipe, "not a plain file"),
    ],
)
def test_what_others_may_have_written_is_not_read(
    bundle: Bundle, harm: Callable[[Path], object], mentions: str
) -> None:
    folder = written(bundle, files={"libed_slow_1.so": hashlib.sha256(b"library").hexdigest()})
    (folder / "libed_slow_1.so").write_bytes(b"library")
    for path in folder.iterdir():
        path.chmod(0o600)
    harm(folder)
    with pytest.raises(EngineError, match="not be this user's own work") as caught:
        read_loaded_files(folder, read_record(folder))
    assert mentions in str(caught.value.got)


def test_what_another_user_owns_is_not_read(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = written(bundle)
    monkeypatch.setattr("edgedistill.user_cache.find_cache", lambda: folder.parents[1])
    monkeypatch.setattr("edgedistill.user_cache.os.geteuid", lambda: os.getuid() + 1)
    with pytest.raises(EngineError, match="not be this user's own work") as caught:
        read_record(folder)
    assert "belongs to the user with number" in str(caught.value.got)


# ---------------------------------------------------------------- versions


@pytest.mark.parametrize(("format_", "age"), [(FORMAT - 1, "an older"), (FORMAT + 1, "a newer")])
def test_a_record_of_another_version_is_refused_before_its_keys_are(bundle: Bundle, format_: int, age: str) -> None:
    folder = written(bundle)
    text = {"format": format_, "created_by": "edgedistill 9", "unknown": 1}
    (folder / "build.json").write_text(json.dumps(text))
    with pytest.raises(EngineError, match=rf"'build\.json' was written by {age} edgedistill") as caught:
        read_record(folder)
    assert caught.value.got == f"format {format_}, edgedistill 9"


@pytest.mark.parametrize(
    ("leave", "kind", "command"),
    [
        (lambda bundle: None, NotCompiled, "--target jetson"),
        (lambda bundle: written(bundle, manifest="0" * 64), StalePlan, "--target jetson --force"),
        (lambda bundle: (written(bundle) / "build.json").write_text("{"), StalePlan, "--target jetson --force"),
    ],
    ids=["nothing", "another bundle", "damaged"],
)
def test_a_plan_that_cannot_be_opened_names_its_case_and_the_command(
    bundle: Bundle, leave: Callable[[Bundle], object], kind: type[EngineError], command: str
) -> None:
    leave(bundle)
    spec = read_decoder_spec(bundle)
    with pytest.raises(EngineError) as caught:
        open_tensorrt_engine(bundle, spec.shape, spec.front_end)
    assert type(caught.value) is kind
    assert caught.value.next_step == f"edgedistill compile {bundle.path} {command}"
