"""`edgedistill targets` lists the devices to build for, and `edgedistill doctor` lists what this machine lacks."""

from __future__ import annotations

from .calling import answer, call, refused


def test_targets_are_listed_and_explained() -> None:
    listed = {target["name"]: target for target in answer("targets")["targets"]}
    assert (listed["host"]["available"], listed["jetson-thor"]["available"]) == (True, True)
    assert "jetson-orin-nano" in call("targets").output
    told = call("targets", "jetson-orin-nano").output
    for part in ("TensorRT plan", "sm_87", "6.1 to", "512 MB", "VDD_IN", "int8_r2_drop at most 0.005", "nvpmodel"):
        assert part in told
    assert answer("targets", "jetson-orin-nano") == listed["jetson-orin-nano"]
    refused("targets", "jetson-thro", says=("did you mean 'jetson-thor'",))


def test_the_doctor_names_every_check_in_json_and_in_a_table() -> None:
    checks = answer("doctor")
    assert {"healthy", "checks"} == set(checks)
    assert {"name", "ok", "found", "needed_for", "fix", "required"} == set(checks["checks"][0])
    assert "torch" in call("doctor").output
