"""The content of a build record decides whether a build is opened, and which type of error is raised if it is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgedistill.bundle import Bundle
from edgedistill.bundle.build_record import ABI_VERSION, FORMAT, BuildRecord, Fingerprint, check_fits, read_record
from edgedistill.bundle.contents import read_decoder_spec
from edgedistill.errors import EngineError, NotCompiled, OnlyPrepared, StalePlan
from edgedistill.machine.processor import read_architecture
from edgedistill.runtime.build_choice import choose_build
from edgedistill.runtime.tensorrt_engine import open_tensorrt_engine

from ..compile.engines import write_engine_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_engine_bundle(tmp_path / "a.edge", "slow")


def record_of(bundle: Bundle, **changes: object) -> BuildRecord:
    facts = Fingerprint(read_architecture(), "tensorrt", (), "CUDA 12.6", (), "0" * 64)
    record = BuildRecord(
        FORMAT, "jetson", "test", bundle.sha256, ABI_VERSION, "slow_1", "libed_slow_1.so", facts, {}, {}, "tensorrt"
    )
    return replace(record, **changes)  # type: ignore[arg-type]


def written(bundle: Bundle, target: str = "jetson", **changes: object) -> Path:
    """Writes a build into the bundle that consists of nothing but its record."""
    folder = bundle.path / "build" / target
    folder.mkdir(parents=True)
    record_of(bundle, **changes).write(folder)
    return folder


def test_a_record_is_read_as_it_was_written(bundle: Bundle) -> None:
    folder = written(bundle, notes=("checked",))
    assert read_record(folder) == record_of(bundle, notes=("checked",))
    check_fits(folder, read_record(folder), bundle)


def test_a_folder_without_a_record_is_not_compiled(bundle: Bundle) -> None:
    with pytest.raises(NotCompiled):
        read_record(bundle.path / "build" / "jetson")


def test_builds_of_other_engines_only_are_not_compiled(bundle: Bundle) -> None:
    written(bundle, "cuda", engine="cuda")
    with pytest.raises(NotCompiled):
        choose_build(bundle, "jetson", "tensorrt", check_fits)


def test_what_does_not_fit_is_told_before_that_nothing_is_compiled(bundle: Bundle) -> None:
    written(bundle, "board", abi=99)
    with pytest.raises(EngineError, match="ABI 99"):
        choose_build(bundle, "jetson", "tensorrt", check_fits)


def test_sources_alone_are_only_prepared(bundle: Bundle) -> None:
    folder = written(bundle, library="")
    with pytest.raises(OnlyPrepared):
        check_fits(folder, read_record(folder), bundle)


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
        (lambda bundle: written(bundle, library=""), OnlyPrepared, "--target jetson"),
        (lambda bundle: written(bundle, manifest="0" * 64), StalePlan, "--target jetson --force"),
        (lambda bundle: (written(bundle) / "build.json").write_text("{"), StalePlan, "--target jetson --force"),
    ],
    ids=["nothing", "prepared", "another bundle", "damaged"],
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
