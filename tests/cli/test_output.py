"""Progress is shown on a terminal and nowhere else."""

from __future__ import annotations

import io
import sys

import pytest

from edgedistill.cli.output import show_training


def test_progress_goes_to_a_terminal_only_and_holds_loss_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    with show_training() as report:
        assert report is None
    screen.isatty = lambda: True  # type: ignore[method-assign]
    with show_training() as report:
        assert report is not None
        report("teacher", 1, 10, 0.75, 1e-3)
        report("teacher", 4, 10, 0.5, 2e-3)
        report("sessions", 1, 2, float("nan"), float("nan"))
    for word in ("teacher", "4/10", "loss 0.5", "lr 2.0e-03", "1/2", "0:"):
        assert word in screen.getvalue()
    assert "nan" not in screen.getvalue()
