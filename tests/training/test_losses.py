"""Losses agree with their definitions, and hiding changes exactly what it should."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedistill.models.batch_rows import draws_of_all
from edgedistill.training.alignment import make_aligner
from edgedistill.training.augment import hide_bins
from edgedistill.training.distill import make_student, student_loss
from edgedistill.training.losses import Objective, known_mse

from .sessions import STUDENT, session


def make_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=make_generator(seed))


def test_unknown_behavior_does_not_change_the_loss() -> None:
    target, guess = numbers(2, 30, 2), numbers(2, 30, 2, seed=1).requires_grad_()
    holes = target.clone()
    holes[:, 10:20] = torch.nan
    known_mse(guess, holes).backward()
    assert guess.grad is not None
    assert torch.isfinite(guess.grad).all()
    assert not guess.grad[:, 10:20].any()
    kept = torch.cat([(guess - target)[:, :10], (guess - target)[:, 20:]], 1)
    assert known_mse(guess, holes).item() == pytest.approx(kept.square().mean().item(), rel=1e-5)
    assert known_mse(guess, torch.full_like(target, torch.nan)) == 0


def test_burn_in_and_bins_that_were_shown_do_not_change_the_loss() -> None:
    student = make_student([session()], "lfp", STUDENT, 4, seed=0)
    latents, clean, target = numbers(2, 40, 8), numbers(2, 40, 3), numbers(2, 40, 4)
    align = make_aligner(Objective(), STUDENT, [], None)
    hidden = (torch.arange(40) % 4 == 0).float()[None, :, None].expand(2, -1, 1)

    def loss(objective: Objective, clean: torch.Tensor, target: torch.Tensor) -> float:
        compared = ([clean] if objective.reconstruction else []) + ([target] if objective.alignment else [])
        return student_loss(student, session().id, objective, align, [latents], hidden, compared, 10).item()

    early, shown, late = clean.clone(), clean.clone(), clean.clone()
    early[:, :10] += 9
    shown[:, 13] += 9
    late[:, 12] += 9
    rebuild, follow = Objective(reconstruction=1.0), Objective(alignment=1.0)
    assert loss(rebuild, early, target) == loss(rebuild, shown, target) == loss(rebuild, clean, target)
    assert loss(rebuild, late, target) > loss(rebuild, clean, target)
    moved = target.clone()
    moved[:, :10] *= -1
    assert loss(follow, clean, moved) == loss(follow, clean, target)
    unknown = clean.clone()
    unknown[:, 12] = torch.nan
    some = (torch.arange(40) != 12).float()[None, :, None]
    student_hidden = student_loss(student, session().id, rebuild, align, [latents], hidden * some, [clean], 10).item()
    assert loss(rebuild, unknown, target) == pytest.approx(student_hidden, rel=1e-6)
    both = Objective(reconstruction=2.0, alignment=3.0)
    expected = 2 * loss(rebuild, clean, target) + 3 * loss(follow, clean, target)
    assert loss(both, clean, target) == pytest.approx(expected, rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 100), share=st.sampled_from([0.1, 0.3, 0.5, 0.8]))
def test_hidden_bins_are_zero_and_about_as_many_as_asked_for(seed: int, share: float) -> None:
    bins = numbers(20, 1000, 2) + 10
    out, hidden = hide_bins(bins, share, draws_of_all(make_generator(seed), len(bins)))
    assert hidden.shape == (20, 1000, 1)
    gone = hidden[..., 0].bool()
    assert not out[gone].any()
    assert torch.equal(out[~gone], bins[~gone])
    assert abs(hidden.mean().item() - share) < 0.06
    again = hide_bins(bins, share, draws_of_all(make_generator(seed), len(bins)))[1]
    assert torch.equal(again, hidden)


def test_nothing_is_hidden_at_share_zero() -> None:
    bins = numbers(4, 100, 2)
    out, hidden = hide_bins(bins, 0.0, draws_of_all(make_generator(), len(bins)))
    assert not hidden.any()
    assert torch.equal(out, bins)
