"""Makes builds small and their measures short, where what counts is how files are written and not what they hold.

A build of the preset nano takes minutes on two cores, and most of them are spent on the linear baselines, on timing and
on the checks of graphs. Here the same code runs on models of a few hundred weights, with one setting for each baseline,
short measures and a compiler that does not optimize.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from edgedistill.assets import asset_folder
from edgedistill.bench import QUICK

SIZES = {"student": "window = 20\ntaps = 2\ndilation = 2\nlags = 2\n"}
PATCHES = "patch = 8\nspan = 2\npredictor_layers = 1\npredictor_d = 8\nmask_share = 0.3\n"


@contextmanager
def quick_measures() -> Iterator[None]:
    """Makes builds fast inside the block: one setting for each linear baseline, short benches and short checks."""
    from edgedistill.bench import intervals
    from edgedistill.pipeline import confidence, graph_checks, written_bundle
    from edgedistill.training import baselines, teacher_targets

    settings = (
        (baselines, "RIDGE_LAGS", (5,)),
        (baselines, "KALMAN_LAGS", (0,)),
        (baselines, "KALMAN_ORDERS", (1,)),
        (baselines, "SMOOTHING_MS", (0,)),
        (teacher_targets, "GRADIENT_SEGMENTS", 16),
        (intervals, "RANDOM_DRAWS", 1),
        (intervals, "BANKS", 1),
        (written_bundle, "QUICK", replace(QUICK, steps=10)),
        (confidence, "PIECES", 3),
        (graph_checks, "CHECKED_BINS", 120),
        (graph_checks, "REFERENCE_BINS", 48),
    )
    with ExitStack() as stack:
        for module, name, value in settings:
            stack.enter_context(patch.object(module, name, value))
        yield


def write_preset(path: Path, d: int = 8) -> Path:
    """Writes a preset whose models have a few hundred weights."""
    text = 'name = "tiny"\n'
    for model in ("student", "teacher", "patch_student"):
        width = d if model == "student" else 8
        text += f"[{model}]\nd = {width}\nlayers = 1\nheads = 2\nff = 8\n" + SIZES.get(model, PATCHES)
    for training in ("teacher_training", "training"):
        text += f"[{training}]\nbins_per_step = 256\nsegment_bins = 128\nburn_in = 16\nsteps = 40\n"
    path.write_text(text)
    return path


def write_quick_host(path: Path) -> Path:
    """Writes the target `host` in plain C without optimization: the same bits, compiled in a tenth of the time."""
    host = (asset_folder("targets") / "host.toml").read_text()
    path.write_text(host.replace('"-mtune=native"', '"-O0"').replace('ops = "native"', 'ops = "scalar"'))
    return path
