"""Bundles of older formats can be inspected. Whatever would decode one is refused by name, with the next step."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgedistill.bench import bench
from edgedistill.bundle import FORMAT, Bundle, open_bundle
from edgedistill.bundle.contents import (
    read_decoder_spec,
    read_deviation_model,
    read_holdout,
    read_range_table,
    read_reference,
    read_smoothing_model,
    read_spatial_model,
    read_spike_student,
    read_teacher_facts,
)
from edgedistill.cli.app import main
from edgedistill.compile.c.library import compile_c_library
from edgedistill.errors import BundleError
from edgedistill.runtime import Decoder

from ..compile.engines import quick_host

DATA = Path(__file__).parent / "data"  # its README.md says how the bundles were made
BEFORE = DATA / "before-0.1.edge.zip"
BEFORE_BY_FORMAT = {1: BEFORE, 2: DATA / "before-0.2-format-2.edge.zip"}
WRITTEN_BY = {1: "edgedistill 0.1.0", 2: "edgedistill 0.2.0"}


@pytest.fixture(params=BEFORE_BY_FORMAT)
def format_(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def folder(tmp_path: Path, format_: int) -> Path:
    with zipfile.ZipFile(BEFORE_BY_FORMAT[format_]) as archive:
        archive.extractall(tmp_path)
    return tmp_path / "before.edge"


def test_what_says_how_it_was_built_is_read() -> None:
    bundle = open_bundle(BEFORE)
    manifest, spec = bundle.manifest, read_decoder_spec(bundle)
    assert (manifest.created_by, manifest.engine, manifest.target) == ("edgedistill 0.1.0", "c", "host")
    assert manifest.session is not None
    assert (manifest.session.id, manifest.recipe, manifest.graphs) == ("sim00-day02", "percentile", {})
    assert [gate.ok for gate in manifest.gates or ()] == [True, True]
    assert manifest.provenance is not None
    assert list(manifest.provenance.sessions) == ["sim00-day01", "sim00-day02"]
    assert (spec.shape.channels, float(spec.front_end.rate), spec.output_units) == (4, 500, ("cm/s", "cm/s"))
    assert spec.group_delay_ms == pytest.approx(manifest.group_delay_ms)
    spikes = read_spike_student(bundle)
    assert spikes.normalization is not None
    assert len(spikes.normalization.mean) == spikes.shape.channels == 10
    facts = read_teacher_facts(bundle)
    assert set(facts) == {"spike-teacher", "spike-teacher-published"}
    assert all(teacher.params > 0 and teacher.window > 0 for teacher in facts.values())
    assert "layers.0.q" in {row.name for row in read_range_table(bundle)}
    assert read_reference(bundle) is not None


def test_format_2_is_read_too() -> None:
    bundle = open_bundle(BEFORE_BY_FORMAT[2])
    manifest, spec = bundle.manifest, read_decoder_spec(bundle)
    assert manifest.confidence is not None
    assert (manifest.smoothing, manifest.smoothing_delay_ms) == (None, None)
    assert (spec.shape.channels, spec.front_end.fill_sweeps) == (4, 8)
    assert read_reference(bundle) is not None


def test_inspect_shows_what_its_manifest_says_and_that_it_is_old(format_: int) -> None:
    before = BEFORE_BY_FORMAT[format_]
    told = CliRunner().invoke(main, ["inspect", str(before), "--json"])
    assert told.exit_code == 0, told.output
    with zipfile.ZipFile(before) as archive:
        manifest = json.loads(archive.read("before.edge/manifest.json"))
    found = json.loads(told.stdout)
    for key in ("name", "created_by", "target", "preset", "recipe", "group_delay_ms", "model"):
        assert found[key] == manifest[key]
    for key in ("channel_ids", "outputs", "metrics", "gates", "provenance"):
        assert found[key] == manifest[key]
    assert {key: found["frontend"][key] for key in manifest["frontend"]} == manifest["frontend"]
    assert found["session"] == {"start": None} | manifest["session"]
    assert found["channels"] == manifest.get("channels")
    assert (found["format"], found["sha256"], found["rate"]) == (format_, manifest["sha256"], "500/1")
    assert found["files"] == sorted(manifest["files"])
    words = CliRunner().invoke(main, ["inspect", str(before)])
    assert "problem" in words.output
    assert "can no longer be decoded" in words.output


REFUSED: dict[str, Callable[[Bundle], object]] = {
    **{engine: lambda bundle, engine=engine: Decoder(bundle, engine) for engine in ("oracle", "onnxruntime", "c")},
    "the engine it was built for": Decoder,
    "its holdout": read_holdout,
    "its array": lambda bundle: read_spatial_model(bundle, read_decoder_spec(bundle).front_end),
    "its deviations": lambda bundle: read_deviation_model(bundle, 1, 1),
    "its smoothing": lambda bundle: read_smoothing_model(bundle, read_decoder_spec(bundle).shape),
    "a C library": lambda bundle: compile_c_library(bundle, quick_host()),
    "a bench": bench,
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_would_decode_it_is_refused_by_name_with_the_next_step(folder: Path, format_: int, what: str) -> None:
    with pytest.raises(BundleError, match=r"before\.edge: a bundle of an older format is no longer decoded") as caught:
        REFUSED[what](open_bundle(folder))
    assert caught.value.got == f"format {format_}, {WRITTEN_BY[format_]}"
    assert ("lost channels" if format_ == 1 else "smoothed") in str(caught.value.causes)
    assert caught.value.expected == f"format {FORMAT}"
    assert "edgedistill build" in str(caught.value.next_step)
    assert f"edgedistill inspect {folder}" in str(caught.value.next_step)


@pytest.mark.parametrize("command", [["run", "{}", "-"], ["bench", "{}"], ["compile", "{}", "--target", "host"]])
def test_every_command_that_would_decode_it_says_so(folder: Path, command: list[str]) -> None:
    told = CliRunner().invoke(main, [word.format(folder) for word in command])
    assert told.exit_code == 1
    assert "no longer decoded" in told.output
    assert "next:" in told.output
