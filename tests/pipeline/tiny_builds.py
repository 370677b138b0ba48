"""Provides builds of models with a few hundred weights, on three short sessions, for the tests of this folder."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgedistill import pipeline as stages
from edgedistill.bundle import open_bundle
from edgedistill.pipeline import BuildOptions, BuildResult
from edgedistill.runtime import Decoder

DAYS = ("sim00-day01", "sim00-day02", "sim00-day03")


def options(home: Path, out: Path, **changes: Any) -> BuildOptions:
    target, preset = str(home / "host.toml"), str(home / "tiny.toml")
    usual = BuildOptions(target, (home / "data",), out, preset, steps=6, work=home / "work")
    return replace(usual, **changes)


READS = {"read-sim00_day01", "read-sim00_day02", "read-sim00_day03"}
STUDENTS = {"spike-student", "distilled", "deployed"}
CALIBRATED = {"calibrate", "calibrate-spike-student"}
TEACHER = {"teacher", "teacher-readout"}
LINEAR = {"linear-baselines"}
NEVER_KEPT = {
    *("teacher latents", "score teacher", "score spike-student", "score distilled", "score distilled, smoothed"),
    *("score deployed", "quantize", "quantize-spike-student", "smooth outputs", "deviations", "graphs"),
    *("reference and holdout", "engine and gates"),
}


def ran(result: BuildResult) -> set[str]:
    """Returns the names of the stages that ran although they could have been kept."""
    return {stage.name for stage in result.stages if not stage.cached} - NEVER_KEPT


def check_raw_frames(bundle: Path) -> None:
    """Checks that raw frames decode to the same outputs as bins, beginning with the stored state of the front end."""
    opened, decoder, by_bins = open_bundle(bundle), Decoder.open(bundle), Decoder.open(bundle)
    with np.load(io.BytesIO(opened.read("holdout.npz"))) as holdout:
        decoder.import_state({name: holdout[name] for name in holdout if name.startswith("fe_")})
        outputs = decoder.push(holdout["frames"][:1500])
        assert outputs[0].bin == holdout["first_bin"]
        assert len(holdout["frames"]) // 5 == len(holdout["bins"])
        assert len(holdout["bins"]) == len(holdout["counts"]) == len(holdout["kinematics"])
        for output, bin_ in zip(outputs, holdout["bins"], strict=False):
            np.testing.assert_allclose(output.kinematics, by_bins.step(bin_), rtol=0, atol=1e-2)


class Killed(BaseException):
    """Stands for Ctrl-C, as an exception that no code catches."""


def refused(
    home: Path,
    tmp_path: Path,
    error: type[Exception],
    says: str,
    run: Callable[..., object] = stages.build,
    **changes: Any,
) -> None:
    """Checks that a build with other options raises `error`, whose message matches `says`."""
    changes = {"out": tmp_path / "x.edge", **changes}
    with pytest.raises(error, match=says):
        run(options(home, **changes))
