"""A bundle has its name only when it is compiled, measured, judged and signed. Until then the old one has it."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cpu.small_builds import write_quick_host
from edgedistill.bundle import load_signing_key, open_bundle, require_signature
from edgedistill.errors import OutputError
from edgedistill.pipeline import written_bundle
from edgedistill.pipeline.written_bundle import BundleContents, write_and_judge
from edgedistill.target import load_target

from ..bundles import manifest, write_test_bundle
from ..signatures import make_keys


@pytest.fixture
def contents(tmp_path: Path, own_cache: Path) -> BundleContents:
    """Returns what the bundle `out/a.edge` is made of, where an older bundle lies."""
    write_quick_host(tmp_path / "host.toml")
    source = write_test_bundle(tmp_path / "source.edge")
    shutil.copytree(source.path, tmp_path / "out/a.edge")
    files = {name: source.read(name) for name in source.names}
    facts = {name: value for name, value in manifest().items() if name not in ("target", "gates", "metrics")}
    return BundleContents(tmp_path / "out/a.edge", load_target(str(tmp_path / "host.toml")), files, {}, facts)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_old_bundle_stays_until_the_new_one_is_judged_and_signed(
    contents: BundleContents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    old, seen = everything(contents.out), []

    def looking(call: Callable[..., Any]) -> Callable[..., Any]:
        def looked(*arguments: object) -> object:
            assert everything(contents.out) == old
            seen.append(call.__name__)
            return call(*arguments)

        return looked

    for name in ("bench", "compile_or_prepare", "compile_spike_student", "sign_bundle"):
        monkeypatch.setattr(written_bundle, name, looking(getattr(written_bundle, name)))
    private, public = make_keys(tmp_path)
    caplog.set_level("INFO")
    written = write_and_judge(
        BundleContents(**{**vars(contents), "key": load_signing_key(private)})  # type: ignore[arg-type]
    )
    assert seen == ["compile_or_prepare", "bench", "compile_or_prepare", "compile_spike_student", "sign_bundle"]
    bundle = open_bundle(contents.out)
    assert require_signature(bundle, public) == written.signed_by
    assert json.loads((contents.out / "manifest.json").read_text())["gates"]
    assert written.compiled is not None
    assert written.compiled.folder == contents.out / "build" / contents.target.name
    assert written.compiled.folder.is_dir()
    assert [path.name for path in contents.out.parent.iterdir()] == ["a.edge"]
    told = [*caplog.messages, *(data.decode(errors="replace") for name, data in everything(contents.out).items())]
    assert not any(".partial" in text for text in told)


@pytest.mark.parametrize("failing", ["bench", pytest.param("compile_spike_student", marks=pytest.mark.variant)])
def test_a_disk_that_fills_up_leaves_the_old_bundle_and_names_the_place(
    contents: BundleContents, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    old = everything(contents.out)

    def full(bundle: Any, *_: object) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded", str(bundle.path / "file"))

    monkeypatch.setattr(written_bundle, failing, full)
    with pytest.raises(OutputError, match="your quota on this disk is used up") as caught:
        write_and_judge(contents)
    assert caught.value.what == f"{contents.out}: the bundle could not be written"
    assert everything(contents.out) == old
    assert [path.name for path in contents.out.parent.iterdir()] == ["a.edge"]


def test_the_command_that_finishes_a_bundle_names_its_final_place(contents: BundleContents) -> None:
    if (jetson := load_target("jetson")) and find_spec("tensorrt"):
        pytest.skip("this machine may be able to build a plan")
    written = write_and_judge(BundleContents(**{**vars(contents), "target": jetson}))  # type: ignore[arg-type]
    assert written.compiled is not None
    assert written.compiled.lacking is not None
    assert f"edgedistill compile {contents.out} --target jetson" in str(written.compiled.lacking)
    assert ".partial" not in str(written.compiled.lacking)
    assert written.compiled.folder == contents.out / "build/jetson"
