"""A wheel of NVIDIA's that was not fetched skips a test with the reason, and fails it where wheels are required."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.tensorrt.wheels import RTX

from .nvidia_wheels import REQUIRED, require_wheels


def test_a_missing_wheel_skips_the_test_and_in_ci_fails_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEDISTILL_TENSORRT_WHEELS", str(tmp_path))
    monkeypatch.delenv(REQUIRED, raising=False)
    with pytest.raises(pytest.skip.Exception, match="make setup"):
        require_wheels(RTX)
    monkeypatch.setenv(REQUIRED, "1")
    with pytest.raises(pytest.fail.Exception, match=RTX):
        require_wheels(RTX)
