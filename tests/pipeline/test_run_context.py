"""A run says what it trains on, and whether the same training gives the same bits again."""

from __future__ import annotations

import logging

import pytest
import torch

from edgedistill.pipeline.run_context import Provenance, provenance_of
from edgedistill.training import batches


def test_a_training_on_a_cpu_can_be_repeated() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine trains on its GPU")
    assert provenance_of([]).to_json()["training"] == {"device": "cpu", "repeatable": True}


def test_a_training_on_a_gpu_says_that_it_cannot(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(batches, "find_training_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "some GPU")
    with caplog.at_level(logging.INFO):
        assert provenance_of([]).to_json()["training"] == {"device": "some GPU", "repeatable": False}
    assert "training on some GPU" in caplog.text


def test_a_student_of_an_earlier_version_does_not_say_what_trained_it() -> None:
    assert "training" not in Provenance({}, {}).to_json()
