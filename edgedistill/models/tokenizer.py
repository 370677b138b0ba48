"""Makes tokens from bins, with weights for each session, because no two sessions record the same units.

The input is the bins of one session (batch, bins, channels). `BinTokenizer` makes one token a bin for the student.
`PatchTokenizer` makes one token for each span of bins and patch of channels or units, for the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgedistill.models.transformer import draw_weight

PREFIX = "s_"


def name_parameter(name: str) -> str:
    """Turns a session id or array name into a parameter name, which may hold no dots nor be the name of a method."""
    return PREFIX + "".join(c if c.isalnum() else f"_{ord(c):x}_" for c in name)


def is_named_after_a_session(parameter: str) -> bool:
    """Returns whether a parameter of a model, by its full name, belongs to one session or array."""
    return any(part.startswith(PREFIX) for part in parameter.split("."))


def stack_lags(bins: Tensor, lags: list[int]) -> Tensor:
    """Turns (…, bins, channels) into (…, bins, len(lags) * channels) in the order [lag, channel], 0 before bin 0."""
    length = bins.shape[-2]
    return torch.cat([F.pad(bins, (0, 0, lag, 0))[..., :length, :] for lag in lags], -1)


class BinTokenizer(nn.Module):
    """Maps the last `taps` bins to a token, linearly and with a map for each array.

    The map of a session is that of its array, which sessions with the same channels of the same subject share. A day
    that is adapted to may add a learned deviation. In training it stays 0, because a map for each session overfits.
    """

    def __init__(self, d: int, taps: int, dilation: int, channels: Mapping[str, int], arrays: Mapping[str, str]):
        super().__init__()
        self.d, self.lags = d, [tap * dilation for tap in range(taps)]
        self.channels, self.arrays = dict(channels), dict(arrays)
        self.base, self.deviation = nn.ParameterDict(), nn.ParameterDict()
        self.bias = nn.Parameter(torch.zeros(d))
        for session, array in arrays.items():
            if name_parameter(array) not in self.base:
                self.base[name_parameter(array)] = draw_weight(d, taps * channels[session])
            zeros = torch.zeros(d, taps * channels[session])
            self.deviation[name_parameter(session)] = nn.Parameter(zeros, requires_grad=False)
        self.turns: dict[str, Tensor] = {}  # array -> (taps * channels, taps * channels), while a student is trained

    def weight(self, session: str) -> Tensor:
        """Returns the map (d, taps * channels) of one session."""
        summed: Tensor = self.array_map(self.arrays[session]) + self.deviation[name_parameter(session)]
        return summed

    def array_map(self, array: str) -> Tensor:
        """Returns the map (d, taps * channels) of one array, multiplied by the matrix in `turns` where there is one."""
        base: Tensor = self.base[name_parameter(array)]
        if array not in self.turns:
            return base
        turn = self.turns[array] = self.turns[array].to(base.device)
        with torch.autocast(base.device.type, enabled=False):  # both factors hold more than bfloat16 does
            return base @ turn

    @torch.no_grad()
    def keep_turned_maps(self) -> None:
        """Puts the product in the place of each map that `turns` multiplies, and forgets `turns`."""
        for array in list(self.turns):
            self.base[name_parameter(array)].copy_(self.array_map(array))
            del self.turns[array]

    def forward(self, session: str, bins: Tensor) -> Tensor:
        """Turns (batch, bins, channels) into tokens (batch, bins, d)."""
        return F.linear(stack_lags(bins, self.lags), self.weight(session), self.bias)


class PatchTokenizer(nn.Module):
    """Makes one token for each `span` bins and `patch` channels or units, with a patch embedding for each session.

    Counts are summed over the span, because a bin of 10 ms rarely holds a spike, rates hardly change within a span, and
    there are fewer weights to learn. Values of LFP are kept bin by bin.
    """

    def __init__(self, d: int, patch: int, span: int, channels: Mapping[str, int], counts: bool) -> None:
        super().__init__()
        self.patch, self.span, self.counts = patch, span, counts
        self.width = patch if counts else span * patch  # numbers in one token
        self.patches = {session: -(-count // patch) for session, count in channels.items()}
        self.maps, self.position = nn.ParameterDict(), nn.ParameterDict()
        for session, patches in self.patches.items():
            maps = torch.stack([draw_weight(d, self.width) for _ in range(patches)])
            self.maps[name_parameter(session)] = nn.Parameter(maps.detach())
            self.position[name_parameter(session)] = nn.Parameter(0.02 * torch.randn(patches, d))

    def split(self, session: str, bins: Tensor) -> Tensor:
        """Cuts (batch, bins, channels) into (batch, bins / span, patches, width), with zeros at the ends."""
        patches = self.patches[session]
        fill = (0, patches * self.patch - bins.shape[2], 0, -bins.shape[1] % self.span)
        split = F.pad(bins, fill).unflatten(2, (patches, self.patch)).unflatten(1, (-1, self.span))
        tokens: Tensor = split.sum(2) if self.counts else split.transpose(2, 3).flatten(3)
        return tokens

    def forward(self, session: str, values: Tensor) -> Tensor:
        """Turns (batch, steps, patches, width) from `split`, about unit variance, into (batch, steps, patches, d)."""
        tokens: Tensor = torch.einsum("btpc,pdc->btpd", values, self.maps[name_parameter(session)])
        tokens = tokens + self.position[name_parameter(session)]
        return tokens
