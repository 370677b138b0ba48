"""The teacher never sees the tokens it has to predict, and it gives one latent for each bin."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgedistill.config import TeacherSize
from edgedistill.models.batch_rows import draws_of_all
from edgedistill.models.teacher import HIDDEN_UNITS, PatchAutoencoder
from edgedistill.models.tokenizer import name_parameter

SIZE = TeacherSize(8, 2, 2, 16, patch=4, span=3, predictor_layers=1, predictor_d=12, mask_share=0.4)
UNITS = 10  # two and a half patches


def autoencoder(counts: bool = True, **changes: int) -> PatchAutoencoder:
    torch.manual_seed(0)
    model = PatchAutoencoder(replace(SIZE, **changes), {"s1": UNITS, "s2": 4}, counts)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def make_generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_bins(length: int, seed: int = 1, batch: int = 2) -> Tensor:
    return torch.randn(batch, length, UNITS, generator=make_generator(seed))


class Watched:
    """Returns the `masked_loss`, with what it compares and where."""

    def __init__(self, model: PatchAutoencoder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.model, mean_loss = model, model.mean_loss

        def remember(guess: Tensor, target: Tensor, counted: Tensor) -> Tensor:
            self.guess, self.target, self.counted = guess, target, counted
            return mean_loss(guess, target, counted)

        monkeypatch.setattr(model, "mean_loss", remember)

    def __call__(self, bins: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        self.model.masked_loss("s1", bins, bins.abs(), draws_of_all(make_generator(seed), len(bins)))
        return self.guess, self.counted


@pytest.mark.parametrize("counts", [True, False], ids=["counts", "values"])
@pytest.mark.parametrize("seed", range(5))
def test_the_loss_covers_only_what_the_encoder_did_not_see(
    counts: bool, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = autoencoder(counts)
    masked, bins = Watched(model, monkeypatch), random_bins(24)
    guess, unseen = masked(bins, seed)
    assert 0.3 < unseen.mean() < 0.9
    hidden = bins_of(unseen, model)
    changed = torch.where(hidden, random_bins(24, 2) * 50, bins)
    assert torch.equal(masked(changed, seed)[0], guess)
    shown = torch.where(hidden, bins, random_bins(24, 2))
    assert not torch.equal(masked(shown, seed)[0], guess)


def bins_of(unseen: Tensor, model: PatchAutoencoder) -> Tensor:
    """Turns (batch, steps, patches, width) into (batch, bins, units), the inverse of `PatchTokenizer.split`."""
    span, patch = SIZE.span, SIZE.patch
    if model.counts:
        bins = unseen.flatten(2).repeat_interleave(span, 1)
    else:
        bins = unseen.unflatten(3, (span, patch)).transpose(2, 3).flatten(3).flatten(1, 2)
    return bins[..., :UNITS] > 0


def test_splitting_into_patches_keeps_every_bin_and_unit() -> None:
    bins = random_bins(24)
    values = autoencoder(counts=False).tokenizer.split("s1", bins)
    assert values.shape == (2, 8, 3, SIZE.span * SIZE.patch)
    back = values.unflatten(3, (SIZE.span, SIZE.patch)).transpose(2, 3).flatten(3).flatten(1, 2)
    assert torch.equal(back[..., :UNITS], bins)
    sums = autoencoder().tokenizer.split("s1", bins).flatten(2)
    torch.testing.assert_close(sums[..., :UNITS], bins.unflatten(1, (8, SIZE.span)).sum(2))
    assert not sums[..., UNITS:].any()


@settings(max_examples=25, deadline=None)
@given(length=st.integers(1, 20), span=st.integers(1, 5), counts=st.booleans())
def test_the_teacher_gives_a_latent_for_every_bin(length: int, span: int, counts: bool) -> None:
    model = autoencoder(counts, span=span)
    latents = model.latents("s1", random_bins(length))
    assert latents.shape == (2, length, SIZE.d)
    assert torch.isfinite(latents).all()
    assert torch.isfinite(
        model.masked_loss("s1", random_bins(length), random_bins(length).abs(), draws_of_all(make_generator(0), 2))
    )


def test_teacher_latents_depend_on_past_and_future_bins() -> None:
    model, bins = autoencoder(), random_bins(30)
    for at in (0, 29):
        other = bins.clone()
        other[:, at] += 5
        assert not torch.equal(model.latents("s1", other)[:, 15], model.latents("s1", bins)[:, 15])


def test_units_that_pad_a_patch_do_not_change_the_loss() -> None:
    """Ten units fill two and a half patches. Predictions for the empty half must not change the loss."""
    model, bins = autoencoder(), random_bins(23)
    loss = model.masked_loss("s1", bins, bins.abs(), draws_of_all(make_generator(0), len(bins)))
    model.offsets[name_parameter("s1")].view(-1)[UNITS:] = 30  # exp(30) spikes a bin
    assert torch.equal(model.masked_loss("s1", bins, bins.abs(), draws_of_all(make_generator(0), len(bins))), loss)
    model.offsets[name_parameter("s1")].view(-1)[UNITS - 1] = 30
    assert model.masked_loss("s1", bins, bins.abs(), draws_of_all(make_generator(0), len(bins))) > 1e6


def test_the_loss_is_least_at_the_mean_rate() -> None:
    rate = torch.linspace(0.02, 0.3, UNITS)
    counts = torch.poisson(rate.expand(8, 300, UNITS), generator=make_generator(0))
    losses = {}
    for factor in (0.5, 1.0, 2.0):
        model = autoencoder()
        for head in model.heads.values():
            head.zero_()  # offsets alone predict
        model.offsets[name_parameter("s1")].zero_()
        model.start_at_mean("s1", rate * factor)
        losses[factor] = model.masked_loss("s1", counts, counts, draws_of_all(make_generator(1), len(counts))).item()
    assert min(losses, key=losses.__getitem__) == 1.0


def test_masks_depend_on_the_random_generator_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    masked, bins = Watched(autoencoder(), monkeypatch), random_bins(60)
    _, first = masked(bins, 3)
    assert torch.equal(masked(bins, 3)[1], first)
    assert not torch.equal(masked(bins, 4)[1], first)
    real = bins_of(torch.ones_like(first), masked.model)
    share = bins_of(first, masked.model).float().mean() / real.float().mean()
    assert abs(share - (SIZE.mask_share + (1 - SIZE.mask_share) * HIDDEN_UNITS)) < 0.1


@pytest.mark.parametrize("span", [1, 3])
def test_features_are_the_mean_over_patches_of_what_predicts_their_units(span: int) -> None:
    """By the head of its patch, the predictor's output gives the log rates of the units of that patch."""
    model, bins = autoencoder(span=span), random_bins(24)
    patches = model.tokenizer.patches["s1"]
    assert patches == 3
    tokens = model.tokenizer("s1", model.values("s1", bins))
    times = model.times(tokens)
    canvas = model.encode(tokens.flatten(1, 2), times)[-1] @ model.to_predictor.T
    outputs = model.run_predictor("s1", canvas, times).unflatten(1, (-1, patches))
    heads = model.heads[name_parameter("s1")].unflatten(0, (patches, -1))
    log_rates = torch.einsum("btpd,pcd->btpc", outputs, heads) + model.offsets[name_parameter("s1")]
    torch.testing.assert_close(log_rates.flatten(1, 2), model.predict("s1", canvas, times), atol=1e-5, rtol=1e-5)
    features = model.features("s1", bins)
    assert features.shape == (2, 24, SIZE.predictor_d)
    middle = features[:, span // 2 :: span]  # interpolation keeps the value of a step in its middle bin
    torch.testing.assert_close(middle, outputs.mean(2), atol=1e-5, rtol=1e-5)
