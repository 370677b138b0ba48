"""Bins to tokens, with weights of each session's own: no two sessions record the same units.

Comes in: one session's bins (batch, bins, channels). Goes out: `BinTokenizer` gives one token a bin
(the student), `PatchTokenizer` one token a bin and patch of channels or units (the teacher).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgedistill.models.transformer import weight


def slot(name: str) -> str:
    """A session id or array name as a parameter name, which may hold no dots and must not shadow a method."""
    return "s_" + "".join(c if c.isalnum() else f"_{ord(c):x}_" for c in name)


def lagged(bins: Tensor, lags: list[int]) -> Tensor:
    """(…, bins, channels) -> (…, bins, len(lags) * channels), [lag, channel]; zeros before the first bin."""
    length = bins.shape[-2]
    return torch.cat([F.pad(bins, (0, 0, lag, 0))[..., :length, :] for lag in lags], -1)


class BinTokenizer(nn.Module):
    """One linear map a session from the last `taps` bins to a token.

    Sessions of one array (the same channels) share a base map and differ by a learned deviation, so that
    another day of that array can be decoded with the base alone.
    """

    def __init__(self, d: int, taps: int, dilation: int, channels: Mapping[str, int], arrays: Mapping[str, str]):
        super().__init__()
        self.d, self.lags = d, [tap * dilation for tap in range(taps)]
        self.channels, self.arrays = dict(channels), dict(arrays)
        self.base, self.deviation = nn.ParameterDict(), nn.ParameterDict()
        self.bias = nn.Parameter(torch.zeros(d))
        for session, array in arrays.items():
            if slot(array) not in self.base:
                self.base[slot(array)] = weight(d, taps * channels[session])
            self.deviation[slot(session)] = nn.Parameter(torch.zeros(d, taps * channels[session]))

    def weight(self, session: str) -> Tensor:
        """(d, taps * channels) for one session."""
        summed: Tensor = self.base[slot(self.arrays[session])] + self.deviation[slot(session)]
        return summed

    def forward(self, session: str, bins: Tensor) -> Tensor:
        """(batch, bins, channels) -> (batch, bins, d)."""
        return F.linear(lagged(bins, self.lags), self.weight(session), self.bias)


class PatchTokenizer(nn.Module):
    """One token for each `span` bins and `patch` channels or units, with a patch embedding of the session's own.

    A bin of 10 ms holds a spike or none, so counts are summed over the span: fewer weights to learn, and the
    rates hardly change within it. Values are kept bin by bin.
    """

    def __init__(self, d: int, patch: int, span: int, channels: Mapping[str, int], counts: bool) -> None:
        super().__init__()
        self.patch, self.span, self.counts = patch, span, counts
        self.width = patch if counts else span * patch  # numbers in one token
        self.patches = {session: -(-count // patch) for session, count in channels.items()}
        self.maps, self.position = nn.ParameterDict(), nn.ParameterDict()
        for session, patches in self.patches.items():
            maps = torch.stack([weight(d, self.width) for _ in range(patches)])
            self.maps[slot(session)] = nn.Parameter(maps.detach())
            self.position[slot(session)] = nn.Parameter(0.02 * torch.randn(patches, d))

    def split(self, session: str, bins: Tensor) -> Tensor:
        """(batch, bins, channels) -> (batch, bins / span, patches, width), filled with zeros at the ends."""
        patches = self.patches[session]
        fill = (0, patches * self.patch - bins.shape[2], 0, -bins.shape[1] % self.span)
        split = F.pad(bins, fill).unflatten(2, (patches, self.patch)).unflatten(1, (-1, self.span))
        tokens: Tensor = split.sum(2) if self.counts else split.transpose(2, 3).flatten(3)
        return tokens

    def forward(self, session: str, values: Tensor) -> Tensor:
        """(batch, steps, patches, width) from `split`, of about unit variance -> (batch, steps, patches, d)."""
        tokens: Tensor = torch.einsum("btpc,pdc->btpd", values, self.maps[slot(session)])
        tokens = tokens + self.position[slot(session)]
        return tokens
