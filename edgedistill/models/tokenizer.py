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

COUNT_LEVELS = 6  # spike counts are clipped to 0..5
COUNT_EMBEDDING = 4


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
        return self.base[slot(self.arrays[session])] + self.deviation[slot(session)]

    def forward(self, session: str, bins: Tensor) -> Tensor:
        """(batch, bins, channels) -> (batch, bins, d)."""
        return F.linear(lagged(bins, self.lags), self.weight(session), self.bias)


class PatchTokenizer(nn.Module):
    """One token for each bin and patch of `patch` channels, with a patch embedding of the session's own.

    `counts`: clipped spike counts through a shared embedding of the count; else z-scored values through
    the last `taps` bins, `dilation` apart.
    """

    def __init__(
        self, d: int, patch: int, channels: Mapping[str, int], counts: bool, taps: int = 5, dilation: int = 2
    ) -> None:
        super().__init__()
        self.patch, self.counts = patch, counts
        self.lags = [tap * dilation for tap in range(taps)]
        self.per_channel = COUNT_EMBEDDING if counts else taps
        self.level = nn.Parameter(torch.randn(COUNT_LEVELS, COUNT_EMBEDDING)) if counts else None
        self.patches = {session: -(-count // patch) for session, count in channels.items()}
        self.maps, self.position = nn.ParameterDict(), nn.ParameterDict()
        for session, patches in self.patches.items():
            maps = [weight(d, patch * self.per_channel) for _ in range(patches)]
            self.maps[slot(session)] = nn.Parameter(torch.stack(list(maps)))
            self.position[slot(session)] = nn.Parameter(0.02 * torch.randn(patches, d))

    def split(self, session: str, bins: Tensor) -> Tensor:
        """(batch, bins, channels) -> (batch, bins, patches, patch); the last patch is filled with zeros."""
        missing = self.patches[session] * self.patch - bins.shape[-1]
        return F.pad(bins, (0, missing)).unflatten(-1, (self.patches[session], self.patch))

    def forward(self, session: str, bins: Tensor) -> Tensor:
        """(batch, bins, channels) -> (batch, bins, patches, d)."""
        if self.level is not None:
            levels = self.split(session, bins).long().clamp(0, COUNT_LEVELS - 1)
            values = self.level[levels]  # (batch, bins, patches, patch, embedding)
        else:
            values = torch.stack([self.split(session, lagged(bins, [lag])) for lag in self.lags], -1)
        return torch.einsum("btpf,pdf->btpd", values.flatten(-2), self.maps[slot(session)]) + self.position[slot(session)]
