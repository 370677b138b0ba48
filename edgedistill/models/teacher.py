"""The teacher: a bidirectional masked autoencoder over patch tokens, trained on many sessions.

Comes in: one session's bins. Goes out: latents (one vector a bin, the mean over patches) and, in training,
the loss on the tokens the encoder did not see: Poisson likelihood for spike counts, squared error for LFP.
Fed LFP instead of spikes it is the published bidirectional student, the yardstick for the streaming one.

Source: Erturk, Hashemi, Shanechi, NeurIPS 2025 (arXiv 2512.12461); masking after He 2022.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgedistill.config import TeacherSize
from edgedistill.models.tokenizer import COUNT_LEVELS, PatchTokenizer, slot
from edgedistill.models.transformer import RotaryBlock, rms, rotary_angles, weight


class PatchAutoencoder(nn.Module):
    """Masked autoencoder of `size` over the sessions in `channels` (session id -> units or channels)."""

    def __init__(self, size: TeacherSize, channels: Mapping[str, int], counts: bool = True) -> None:
        super().__init__()
        self.size, self.counts, self.channels = size, counts, dict(channels)
        self.tokenizer = PatchTokenizer(size.d, size.patch, channels, counts)
        self.encoder = nn.ModuleList(
            RotaryBlock(size.d, size.heads, size.ff, size.layers) for _ in range(size.layers)
        )
        self.norm_out = nn.Parameter(torch.ones(size.d))
        self.to_predictor = weight(size.predictor_d, size.d)
        self.mask_token = nn.Parameter(torch.zeros(size.predictor_d))
        self.predictor = nn.ModuleList(
            RotaryBlock(size.predictor_d, size.heads, 2 * size.predictor_d, size.predictor_layers)
            for _ in range(size.predictor_layers)
        )
        self.heads, self.offsets, self.places = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        for session, patches in self.tokenizer.patches.items():
            self.heads[slot(session)] = weight(patches * size.patch, size.predictor_d, 0.1)
            self.offsets[slot(session)] = nn.Parameter(torch.zeros(patches * size.patch))
            self.places[slot(session)] = nn.Parameter(0.02 * torch.randn(patches, size.predictor_d))

    def encode(self, tokens: Tensor, bins: Tensor) -> Tensor:
        """Tokens (batch, n, d) at `bins` (batch, n) -> normalised features (batch, n, d)."""
        angles = rotary_angles(bins, self.size.d // self.size.heads)
        for block in self.encoder:
            tokens = block(tokens, angles)
        return rms(tokens) * self.norm_out

    def latents(self, session: str, bins: Tensor) -> Tensor:
        """(batch, bins, channels) -> (batch, bins, d), nothing masked, mean over patches."""
        tokens = self.tokenizer(session, bins)
        batch, length, patches, _ = tokens.shape
        at = torch.arange(length, device=bins.device).repeat_interleave(patches).expand(batch, -1)
        return self.encode(tokens.flatten(1, 2), at.float()).unflatten(1, (length, patches)).mean(2)

    def masked_loss(self, session: str, bins: Tensor, random: torch.Generator) -> Tensor:
        """Mean loss over the tokens the encoder did not see; `random` chooses them."""
        tokens = self.tokenizer(session, bins)
        batch, length, patches, d = tokens.shape
        n = length * patches
        at = torch.arange(length, device=bins.device).repeat_interleave(patches).float().expand(batch, -1)
        order = torch.rand(batch, n, generator=random).argsort(1).to(bins.device)
        seen = order[:, : max(1, round(n * (1 - self.size.mask_share)))]
        visible = tokens.flatten(1, 2).gather(1, seen[..., None].expand(-1, -1, d))
        features = F.linear(self.encode(visible, at.gather(1, seen)), self.to_predictor)
        place = self.places[slot(session)].repeat(length, 1)  # (n, predictor_d), bin-major like the tokens
        canvas = self.mask_token.expand(batch, n, -1).scatter(
            1, seen[..., None].expand(-1, -1, features.shape[-1]), features.to(self.mask_token.dtype)
        )
        canvas, angles = canvas + place, rotary_angles(at, self.size.predictor_d // self.size.heads)
        for block in self.predictor:
            canvas = block(canvas, angles)
        heads = self.heads[slot(session)].unflatten(0, (patches, -1))
        guess = torch.einsum("btpd,pcd->btpc", rms(canvas).unflatten(1, (length, patches)), heads)
        guess = guess.flatten(2) + self.offsets[slot(session)]
        hidden = torch.ones(batch, n, device=bins.device).scatter(1, seen, 0.0)
        hidden = hidden.unflatten(1, (length, patches)).repeat_interleave(self.size.patch, 2)
        return self.mean_loss(guess, bins, hidden)

    def mean_loss(self, guess: Tensor, bins: Tensor, hidden: Tensor) -> Tensor:
        """Poisson negative log-likelihood of counts, or squared error of values, where `hidden` is 1."""
        channels = bins.shape[-1]
        guess, hidden = guess[..., :channels], hidden[..., :channels]
        if self.counts:
            target = bins.clamp(max=COUNT_LEVELS - 1)
            loss = F.poisson_nll_loss(guess, target, log_input=True, reduction="none")
        else:
            loss = (guess - bins).square()
        return (loss * hidden).sum() / hidden.sum().clamp(min=1)
