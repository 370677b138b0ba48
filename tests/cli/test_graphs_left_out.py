"""Every command that reads graphs names those that a build marked unusable."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgedistill.bundle import GraphVerdict
from edgedistill.errors import BundleError
from edgedistill.runtime import Decoder

from ..bundles import write_test_bundle
from .calling import answer, call, refused

LEFT_OUT = {"usable": False, "reason": "an output is off", "largest_output_deviation": 3.5, "r2_difference": -0.2}
FINE = {"usable": True, "reason": None, "integers_off_share": 0.0031, "largest_integer_difference": 2}


@pytest.mark.usefixtures("busy_machine")
def test_a_graph_that_the_build_left_out_is_told_by_every_command(tmp_path: Path, session: Path) -> None:
    graphs = {"student.onnx": FINE, "student.int8.onnx": LEFT_OUT, "subjects/spike-student/student.onnx": LEFT_OUT}
    path = write_test_bundle(tmp_path / "off.edge", graphs=graphs).path
    unmeasured = GraphVerdict(usable=True).to_json()
    assert answer("inspect", path)["graphs"] == {name: unmeasured | graph for name, graph in graphs.items()}
    text = call("inspect", path).output
    for part in ("student.int8.onnx", "an output is off", "0.310", "3.5e+00", "-0.20000"):
        assert part in text
    says = ("'onnxruntime-int8' may not be used", "an output is off", "onnxruntime, oracle")
    refused("run", path, session, "--engine", "onnxruntime-int8", says=says)
    refused("bench", path, "--engine", "onnxruntime-int8", says=("as unusable", "an output is off"))
    found = answer("bench", path, "--steps", 5, "--closed-loop", 0.05)
    assert [row["name"] for row in found["subjects"]] == [
        *("lfp-student-fp32", "spike-student-int8", "onnxruntime-dynamic-int8", "torch-eager")
    ]
    absent = {one["name"]: one["reason"] for one in found["absent"]}
    assert absent["lfp-student-int8"] == "`edgedistill build` marked student.int8.onnx as unusable: an output is off"
    assert "spike-student/student.onnx as unusable" in absent["spike-student"]
    drop = next(gate for gate in found["gates"] if gate["name"] == "int8_r2_drop")
    assert (drop["ok"], "as unusable" in drop["reason"]) == (None, True)


def test_a_bundle_without_verdicts_may_use_all_its_graphs(bundle: Path) -> None:
    assert answer("inspect", bundle)["graphs"] == {}
    assert Decoder.open(bundle, "onnxruntime-int8").info.engine == "onnxruntime-int8"


def test_verdicts_that_make_no_sense_are_refused_and_newer_figures_ignored(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"graphs: 'student.int8.onnx' is not what a build writes"):
        write_test_bundle(tmp_path / "odd.edge", graphs={"student.int8.onnx": "off"})
    with pytest.raises(BundleError, match=r"graphs: 'student.int8.onnx' is not what a build writes"):
        Decoder.open(tmp_path / "odd.edge", "onnxruntime-int8")
    newer = write_test_bundle(tmp_path / "new.edge", graphs={"student.int8.onnx": {"usable": True, "sharpness": 3}})
    assert Decoder.open(newer.path, "onnxruntime-int8").info.engine == "onnxruntime-int8"
