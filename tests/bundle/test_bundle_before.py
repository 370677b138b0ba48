"""A bundle of the previous version can be read and decodes as before. Its compiled files are refused by an error."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edgedistill.bundle import open_bundle
from edgedistill.bundle.build_record import FORMAT, read_record
from edgedistill.bundle.contents import (
    read_decoder_spec,
    read_holdout,
    read_range_table,
    read_reference,
    read_spike_student,
    read_teacher_facts,
)
from edgedistill.cli.app import main
from edgedistill.compile.c.library import compile_c_library
from edgedistill.errors import EngineError, NotCompiled
from edgedistill.measure.score import score_kinematics
from edgedistill.runtime import Decoder

from ..compile.engines import quick_host

BEFORE = Path(__file__).parent / "data" / "before-0.1.edge.zip"  # the README.md beside this file says how it was made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with zipfile.ZipFile(BEFORE) as archive:
        archive.extractall(tmp_path)
    return tmp_path / "before.edge"


def test_every_file_of_it_is_read() -> None:
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


def test_inspect_shows_what_its_manifest_says() -> None:
    told = CliRunner().invoke(main, ["inspect", str(BEFORE), "--json"])
    assert told.exit_code == 0, told.output
    with zipfile.ZipFile(BEFORE) as archive:
        manifest = json.loads(archive.read("before.edge/manifest.json"))
    found = json.loads(told.stdout)
    manifest["frontend"]["left_out"] = []  # that version knew no such setting
    keys = ("name", "created_by", "target", "preset", "recipe", "group_delay_ms", "model", "frontend")
    for key in (*keys, "channel_ids", "outputs", "metrics", "gates", "provenance"):
        assert found[key] == manifest[key]
    assert found["session"] == manifest["session"] | {"start": None}
    assert found["channels"] is None
    assert (found["format"], found["sha256"], found["rate"]) == (1, manifest["sha256"], "500/1")
    assert found["files"] == sorted(manifest["files"])


@pytest.mark.parametrize("engine", ["oracle", "onnxruntime-int8"])
def test_its_int8_student_decodes_to_the_kinematics_of_its_reference(engine: str) -> None:
    bundle = open_bundle(BEFORE)
    decoder, reference = Decoder(bundle, engine), read_reference(bundle)
    assert reference is not None
    decoder.import_state({f"state_{name}": array for name, array in reference.start.items()})
    found = np.stack([decoder.step(bin) for bin in reference.bins])
    if engine == "oracle":
        assert found.tobytes() == reference.kinematics.tobytes()
    else:  # an engine whose results are only near adds in another order
        assert np.abs(found - reference.kinematics).max() < 0.1 * reference.kinematics.std(axis=0).min()


def test_its_float_student_decodes_its_holdout_as_well_as_its_manifest_says() -> None:
    bundle = open_bundle(BEFORE)
    holdout, decoder = read_holdout(bundle), Decoder(bundle, "onnxruntime")
    first = holdout.score_from
    found = np.stack([decoder.step(bin) for bin in holdout.bins])[first:]
    assert bundle.manifest.metrics is not None
    assert score_kinematics(found, holdout.kinematics[first:], "").r2 == pytest.approx(
        bundle.manifest.metrics["deployed_r2"], abs=1e-4
    )


def test_what_was_compiled_of_it_is_refused_by_name_with_the_command_that_compiles_again(folder: Path) -> None:
    bundle = open_bundle(folder)
    with pytest.raises(EngineError, match=r"'build\.json' was written by an older edgedistill") as caught:
        Decoder(bundle)
    assert not isinstance(caught.value, NotCompiled)
    assert caught.value.got == "format 1, edgedistill 0.1.0"
    assert caught.value.next_step == f"edgedistill compile {folder} --target host"


def test_compile_makes_it_anew(folder: Path) -> None:
    bundle = open_bundle(folder)
    assert compile_c_library(bundle, quick_host()).compiled
    record = read_record(folder / "build" / "host")
    assert (record.format, record.manifest) == (FORMAT, bundle.sha256)
    assert len(record.fingerprint.digest) == 64
    reference, decoder = read_reference(bundle), Decoder(bundle)
    assert reference is not None
    assert decoder.info.engine == "c"
    decoder.import_state({f"state_{name}": array for name, array in reference.start.items()})
    found = np.stack([decoder.step(bin) for bin in reference.bins])
    assert found.tobytes() == reference.kinematics.tobytes()
