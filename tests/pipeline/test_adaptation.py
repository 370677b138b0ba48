"""A bundle is adapted to another day of its array: what the day shows is learned, everything else stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgedistill.pipeline import BuildResult
from edgedistill.pipeline.adaptation import AdaptOptions, AdaptResult, adapt_bundle
from edgedistill.pipeline.another_day import StretchOptions

DAY = "sim00_day02.nwb"


def adapted(home: Path, first: BuildResult, out: Path, file: Path | None = None, **changes: Any) -> AdaptResult:
    stretch = StretchOptions(file or home / "data" / DAY, **changes)
    return adapt_bundle(AdaptOptions(first.bundle, out, stretch))


def test_a_bundle(home: Path, first: BuildResult, tmp_path: Path) -> None:
    result = adapted(home, first, tmp_path / "x.edge", to_s=60.0)
    print(result.to_json())
    result = adapted(home, first, tmp_path / "y.edge")
    print(result.to_json())
    result = adapted(home, first, tmp_path / "z.edge", labels=True)
    print(result.to_json())
    assert 0
