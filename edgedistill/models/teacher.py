"""Defines the teacher, a bidirectional masked autoencoder over patch tokens that is trained on many sessions.

The input is the bins of one session. The outputs are one vector a bin and, in training, the loss on the tokens that the
encoder did not see: Poisson likelihood for spike counts, squared error for LFP. The vector is a latent, the output of
the encoder, or a feature, the output of the predictor's last layer. Both are means over patches. With LFP in place of
spikes it is the published bidirectional student, with which the streaming one is compared.

Sources: Erturk, Hashemi, Shanechi, NeurIPS 2025 (arXiv 2512.12461); masking after He 2022.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgedistill.config import TeacherSize
from edgedistill.models.batch_rows import RowDraws, mean_where
from edgedistill.models.teacher_heads import TeacherHeads
from edgedistill.models.tokenizer import PatchTokenizer, name_parameter
from edgedistill.models.transformer import RotaryBlock, compute_positions, draw_weight, rms

HIDDEN_UNITS = 0.5  # share of units hidden in each bin of the tokens that are seen (coordinated dropout)
COUNT_LIMIT = 5  # a Poisson model should not chase the bursts of one unit


class PatchAutoencoder(nn.Module):
    """Encodes bins of the sessions in `channels` (session id -> units or channels), and fills in hidden ones.

    `teacher_d` is the width of the targets it follows where it is distilled itself, and 0 for a teacher.
    """

    def __init__(self, size: TeacherSize, channels: Mapping[str, int], counts: bool = True, teacher_d: int = 0) -> None:
        super().__init__()
        self.to_teacher = TeacherHeads(size.d, teacher_d, channels) if teacher_d else None
        self.size, self.counts, self.channels = size, counts, dict(channels)
        self.tokenizer = PatchTokenizer(size.d, size.patch, size.span, channels, counts)
        self.encoder = nn.ModuleList(RotaryBlock(size.d, size.heads, size.ff, size.layers) for _ in range(size.layers))
        self.norm_out = nn.Parameter(torch.ones(size.d))
        self.to_predictor = draw_weight(size.predictor_d, size.d)
        self.mask_token = nn.Parameter(torch.zeros(size.predictor_d))
        self.predictor = nn.ModuleList(
            RotaryBlock(size.predictor_d, size.heads, 2 * size.predictor_d, size.predictor_layers)
            for _ in range(size.predictor_layers)
        )
        self.heads, self.offsets, self.places = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        for session, patches in self.tokenizer.patches.items():
            width = self.tokenizer.width
            self.heads[name_parameter(session)] = draw_weight(patches * width, size.predictor_d, 0.1)
            self.offsets[name_parameter(session)] = nn.Parameter(torch.zeros(patches, width))
            self.places[name_parameter(session)] = nn.Parameter(0.02 * torch.randn(patches, size.predictor_d))

    def start_at_mean(self, session: str, rate: Tensor) -> None:
        """Sets the predicted log rates of a session to those of `rate` (units,), in spikes a bin."""
        with torch.no_grad():
            self.offsets[name_parameter(session)].view(-1)[: len(rate)] = (rate * self.size.span).clamp(min=1e-3).log()

    def encode(self, tokens: Tensor, times: Tensor) -> list[Tensor]:
        """Returns tokens (batch, n, d) at `times` (batch, n) as they are after each layer, the last ones normalized."""
        positions = compute_positions(times, self.size.heads, self.size.d // self.size.heads)
        after = []
        for block in self.encoder:
            tokens = block(tokens, positions)
            after.append(tokens)
        return [*after[:-1], rms(tokens) * self.norm_out]

    def times(self, tokens: Tensor) -> Tensor:
        """Returns the time of each flattened token of (batch, steps, patches, d), counted in tokens."""
        batch, steps, patches, _ = tokens.shape
        return torch.arange(steps, device=tokens.device).repeat_interleave(patches).expand(batch, -1).float()

    def latents(self, session: str, bins: Tensor) -> Tensor:
        """Returns latents (batch, bins, d) of (batch, bins, channels), with nothing masked."""
        return self.pool(session, self.layer_tokens(session, bins)[-1], bins.shape[1])

    def features(self, session: str, bins: Tensor) -> Tensor:
        """Returns the predictor's features (batch, bins, predictor_d) of (batch, bins, channels), with nothing masked.

        They are the means over patches of what the log rates are a linear map of. They decode more than the latents do.
        """
        tokens = self.tokenizer(session, self.values(session, bins))
        times = self.times(tokens)
        canvas = F.linear(self.encode(tokens.flatten(1, 2), times)[-1], self.to_predictor)
        return self.pool(session, self.run_predictor(session, canvas, times), bins.shape[1])

    def layer_latents(self, session: str, bins: Tensor) -> list[Tensor]:
        """Returns the latents after each layer of the encoder. The last ones are those of `latents`."""
        return [self.pool(session, tokens, bins.shape[1]) for tokens in self.layer_tokens(session, bins)]

    def layer_tokens(self, session: str, bins: Tensor) -> list[Tensor]:
        """Returns the tokens (batch, n, d) after each layer of the encoder, with nothing masked."""
        tokens = self.tokenizer(session, self.values(session, bins))
        return self.encode(tokens.flatten(1, 2), self.times(tokens))

    def pool(self, session: str, tokens: Tensor, bins: int) -> Tensor:
        """Returns (batch, bins, d) of tokens (batch, n, d).

        They are means over patches, and interpolated linearly where a token holds several bins.
        """
        means: Tensor = tokens.unflatten(1, (-1, self.tokenizer.patches[session])).mean(2)
        if self.size.span == 1:
            return means
        length = means.shape[1] * self.size.span
        between: Tensor = F.interpolate(means.transpose(1, 2), length, mode="linear", align_corners=False)
        return between.transpose(1, 2)[:, :bins]

    def masked_loss(self, session: str, bins: Tensor, truth: Tensor, draws: RowDraws) -> Tensor:
        """Returns the mean loss over what the encoder did not see: whole tokens, and single units in the others.

        Hidden tokens teach how activity goes on, and hidden units what units share (Keshtkaran and Pandarinath 2019).

        `bins` (batch, bins, channels) are z-scored. `truth` holds the same bins: spikes as counts, and LFP unchanged.
        """
        values, real = self.values(session, bins), self.tokenizer.split(session, torch.ones_like(bins)) > 0
        kept = draws.rand(*values.shape[1:]).to(bins) >= HIDDEN_UNITS
        tokens = self.tokenizer(session, values * kept / (1 - HIDDEN_UNITS))
        batch, steps, patches, d = tokens.shape
        n, times = steps * patches, self.times(tokens)
        order = draws.rand(n).argsort(1).to(bins.device)
        seen = order[:, : max(1, round(n * (1 - self.size.mask_share)))]
        visible = tokens.flatten(1, 2).gather(1, seen[..., None].expand(-1, -1, d))
        shown = F.linear(self.encode(visible, times.gather(1, seen))[-1], self.to_predictor)
        canvas = self.mask_token.expand(batch, n, -1).scatter(
            1, seen[..., None].expand(-1, -1, shown.shape[-1]), shown.to(self.mask_token.dtype)
        )
        guess = self.predict(session, canvas, times).unflatten(1, (steps, patches))
        hidden = torch.ones(batch, n, device=bins.device).scatter(1, seen, 0.0).unflatten(1, (steps, patches))
        unseen = real * torch.maximum(hidden[..., None], 1 - kept.to(hidden))
        return self.mean_loss(guess, self.tokenizer.split(session, truth), unseen)

    def values(self, session: str, bins: Tensor) -> Tensor:
        """Cuts z-scored bins as the tokenizer reads them. Counts are scaled so that their sum has unit variance."""
        split = self.tokenizer.split(session, bins)
        return split / self.size.span**0.5 if self.counts else split

    def predict(self, session: str, canvas: Tensor, times: Tensor) -> Tensor:
        """Predicts log rates or values (batch, n, width) from tokens (batch, n, predictor_d), some of them masked."""
        outputs, patches = self.run_predictor(session, canvas, times), self.tokenizer.patches[session]
        heads = self.heads[name_parameter(session)].unflatten(0, (patches, -1))
        guess: Tensor = torch.einsum("btpd,pcd->btpc", outputs.unflatten(1, (-1, patches)), heads)
        guess = guess + self.offsets[name_parameter(session)]
        return guess.flatten(1, 2)

    def run_predictor(self, session: str, canvas: Tensor, times: Tensor) -> Tensor:
        """Returns the outputs (batch, n, predictor_d) of the predictor's last layer, of tokens of the same shape."""
        n, width = canvas.shape[1:]
        canvas = canvas + self.places[name_parameter(session)].repeat(n // self.tokenizer.patches[session], 1)
        positions = compute_positions(times, self.size.heads, width // self.size.heads)
        for block in self.predictor:
            canvas = block(canvas, positions)
        return rms(canvas)

    def mean_loss(self, guess: Tensor, truth: Tensor, counted: Tensor) -> Tensor:
        """Returns Poisson negative log-likelihood of counts, or squared error of values, where `counted` is 1.

        A truth that is NaN does not count.
        """
        counted, truth = counted * torch.isfinite(truth), torch.nan_to_num(truth)
        if self.counts:
            loss = F.poisson_nll_loss(
                guess, truth.clamp(max=COUNT_LIMIT * self.size.span), log_input=True, reduction="none"
            )
        else:
            loss = (guess - truth).square()
        return mean_where(loss, counted)
