"""The latent of a window's last bin is that of the teacher for this window, and a read-out decodes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from edgedistill.models.teacher import PatchAutoencoder
from edgedistill.training.evaluate import r2_score, unscale_behavior
from edgedistill.training.teacher_window import WINDOWS, compute_window_latents, fit_last_bin_readout, spread_ends

from .sessions import TEACHER, UNITS, session

WINDOW = 40


@pytest.fixture(scope="module")
def teacher() -> PatchAutoencoder:
    torch.manual_seed(0)
    return PatchAutoencoder(TEACHER, {"s1": UNITS})


def test_the_latent_of_a_windows_last_bin_depends_on_its_window_alone(teacher: PatchAutoencoder) -> None:
    bins = session().inputs("spikes")
    found = compute_window_latents(teacher, "s1", bins, [10, 500], WINDOW)
    with torch.no_grad():
        whole = teacher.latents("s1", bins[None, 500 - WINDOW + 1 : 501])[0, -1]
        early = torch.cat([torch.zeros(WINDOW - 11, UNITS), bins[:11]])
        start = teacher.latents("s1", early[None])[0, -1]
    torch.testing.assert_close(found[1], whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[0], start, rtol=1e-5, atol=1e-6)
    later = bins.clone()
    later[501:] = 7.0
    assert torch.equal(compute_window_latents(teacher, "s1", later, [10, 500], WINDOW), found)


def test_the_other_bins_of_a_window_are_not_kept(teacher: PatchAutoencoder, monkeypatch: pytest.MonkeyPatch) -> None:
    joined, cat = [], torch.cat

    def watched(parts: Any, *dim: int) -> torch.Tensor:
        joined.append([(part.untyped_storage().nbytes(), part.nbytes) for part in parts])
        return cat(parts, *dim)

    monkeypatch.setattr(torch, "cat", watched)
    compute_window_latents(teacher, "s1", session().inputs("spikes"), list(range(100, 170)), WINDOW)
    assert len(joined[-1]) > 1
    assert all(held == used for held, used in joined[-1])


def test_the_last_bin_readout_decodes_movement_without_the_test_block(teacher: PatchAutoencoder) -> None:
    known = session()
    readout = fit_last_bin_readout(teacher, known, WINDOW)
    ends = np.arange(known.split.test.start, known.split.test.stop, 5)
    latents = compute_window_latents(teacher, "s1", known.inputs("spikes"), ends, WINDOW).double().numpy()
    assert min(r2_score(readout(latents), unscale_behavior(known)[ends])) > 0.1  # untrained: counts shine through
    assert known.behavior is not None
    known.behavior[known.split.test] = 1e6
    again = fit_last_bin_readout(teacher, known, WINDOW)
    assert np.array_equal(again.weight, readout.weight)


def test_every_window_of_a_readout_ends_in_a_label_even_where_there_are_few() -> None:
    behavior = np.full((100_000, 2), np.nan)
    behavior[30_001:30_121], behavior[80_000:] = 0.0, 0.0
    few, many = spread_ends(behavior, (slice(0, 80_000), slice(80_000, 100_000)))
    np.testing.assert_array_equal(few, np.arange(30_001, 30_121))
    assert len(many) == pytest.approx(WINDOWS / 5, rel=0.05)
    whole = spread_ends(np.zeros((100_000, 2)), (slice(0, 80_000), slice(80_000, 100_000)))
    assert [set(np.diff(block).tolist()) for block in whole] == [{67}, {67}]
