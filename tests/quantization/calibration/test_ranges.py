"""A file of ranges is read back unchanged, and refused where it is damaged, foreign or of another student."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from edgedistill.errors import EdgeDistillError, OutputError
from edgedistill.models.files import hash_checkpoint
from edgedistill.models.student import Student
from edgedistill.numerics.tensors import activations
from edgedistill.quantization.calibration.ranges import Ranges, read_ranges, shape_from_size
from edgedistill.quantization.calibration.recipe import load_recipe
from edgedistill.quantization.integers import PER_HEAD

from ...training.sessions import STUDENT

NAMES = activations(shape_from_size(STUDENT))
WINDOW = {"session": "s1", "first_bin": 300, "bins": 256}
RANGES = Ranges(
    values={name: [1.5, 2.0] if name.split(".")[-1] in PER_HEAD else [3.25] for name in NAMES},
    recipe=load_recipe("qat"),
    seed=7,
    checkpoint_sha256="ab" * 32,
    sessions={"s1": "cd" * 32, "s2": None},
    windows=(WINDOW,),
    left_out=({**WINDOW, "reason": "an artefact", "value": 99.5},),
    table=tuple({"name": name, "range": 3.25, "clipped": 1e-4, "noise_db": 40.0} for name in NAMES),
)


def test_written_ranges_are_read_back_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "ranges.json"
    RANGES.write(path)
    assert read_ranges(path, STUDENT) == RANGES
    assert [file.name for file in path.parent.iterdir()] == ["ranges.json"]
    facts = json.loads(path.read_text())
    assert (facts["kind"], facts["format"]) == ("edgedistill ranges", 1)


def test_ranges_that_cannot_be_written_raise_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="the ranges could not be written"):
        RANGES.write(tmp_path / "file" / "ranges.json")


def changed(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(json.dumps(RANGES.to_json()))
    change(facts)
    return facts


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f.update(kind="bundle"), r"holds no ranges[\s\S]*bundle"),
        (lambda f: f.update(format=2), "a later version"),
        (lambda f: f.update(format="1"), "not a whole file"),
        (lambda f: f.pop("values"), r"not a whole file[\s\S]*values"),
        (lambda f: f.pop("checkpoint_sha256"), r"not a whole file[\s\S]*checkpoint_sha256"),
        (lambda f: f.update(values=[1]), "not a whole file"),
        (lambda f: f["values"].update(bin="3"), "'bin' gives no scale"),
        (lambda f: f["values"].update(bin=[0.0]), "'bin' gives no scale"),
        (lambda f: f["values"].update({"layers.0.k": [1.0, -2.0]}), r"'layers\.0\.k', head 1 gives no scale"),
        (lambda f: f["values"].update(bin=[float("inf")]), "'bin' gives no scale"),
        (lambda f: f["values"].update(bin=[float("nan")]), "'bin' gives no scale"),
        (lambda f: f["values"].pop("latent"), "no range for 'latent'"),
        (lambda f: f["values"].update({"layers.0.k": [1.0]}), r"'layers\.0\.k' does not fit"),
        (lambda f: f["recipe"].update(windwos=3), r"windwos[\s\S]*did you mean 'windows'"),
        (lambda f: f.update(windows=[1]), "not a whole file"),
    ],
)
def test_a_changed_file_is_refused_with_the_reason(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], says: str
) -> None:
    path = tmp_path / "ranges.json"
    path.write_text(json.dumps(changed(change)))
    with pytest.raises(EdgeDistillError, match=says):
        read_ranges(path, STUDENT)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null"])
def test_a_file_that_is_not_json_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ranges.json"
    with pytest.raises(EdgeDistillError, match=r"cannot read[\s\S]*edgedistill calibrate"):
        read_ranges(path)
    path.write_bytes(content)
    with pytest.raises(EdgeDistillError, match="ranges"):
        read_ranges(path)


def test_ranges_of_another_checkpoint_are_refused_with_both_hashes() -> None:
    RANGES.require_for("ab" * 32)
    with pytest.raises(EdgeDistillError, match=r"abababab[\s\S]*12341234[\s\S]*edgedistill calibrate"):
        RANGES.require_for("1234" * 16)


def test_a_larger_student_finds_its_missing_layer_named() -> None:
    with pytest.raises(EdgeDistillError, match=r"no range for 'layers\.1\.attn'"):
        RANGES.require_size(replace(STUDENT, layers=2))


def test_the_hash_follows_every_bit_of_the_student() -> None:
    torch.manual_seed(0)
    student = Student(STUDENT, {"s1": 3}, {"s1": "a"}, 4, 2)
    before = hash_checkpoint(student)
    assert before == hash_checkpoint(student)
    weight = student.layers[0].mlp.wup.data  # type: ignore[union-attr]
    weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    assert hash_checkpoint(student) != before
