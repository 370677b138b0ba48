"""Attention block by block equals that of all blocks together, with its gradients, for any length and any history."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from edgedistill.models.window_attention import (
    BLOCK,
    BlockwiseAttention,
    attend_at_once,
    build_age_bias_band,
    window_attention,
)


def draw(batch: int, n: int, window: int, live: int, heads: int = 2, head_dim: int = 4) -> list[Tensor]:
    """Returns q, k, v and the age bias; what lies in slots that do not exist must not matter."""
    random = torch.Generator().manual_seed(n)
    q, k, v = (torch.randn(batch, heads, m, head_dim, generator=random) for m in (n, *[window - 1 + n] * 2))
    k[:, :, : window - 1 - live], v[:, :, : window - 1 - live] = 1e3, 1e3
    return [x.requires_grad_() for x in (q, k, v, torch.randn(heads, window, generator=random))]


@pytest.mark.parametrize("n", [1, 31, BLOCK, 129, 150])
@pytest.mark.parametrize(("window", "live"), [(2, 0), (9, 8), (70, 0), (70, 33), (200, 199)])
def test_blocks_equal_all_at_once(n: int, window: int, live: int) -> None:
    inputs = draw(3, n, window, live)
    weight = torch.randn(3, 2, n, 4, generator=torch.Generator().manual_seed(1))
    found, expected = (attend(*inputs, live) for attend in (window_attention, attend_at_once))  # type: ignore[call-arg, arg-type]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    gradients = [torch.autograd.grad((x * weight).sum(), inputs) for x in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_the_gradient_is_that_of_differences() -> None:
    q, k, v, age_bias = (x.detach().double() for x in draw(2, 5, 4, 2))
    inputs = [x.requires_grad_() for x in (q, k[:, :, 1:], v[:, :, 1:], age_bias)]

    def attend(q: Tensor, k: Tensor, v: Tensor, age_bias: Tensor) -> Tensor:
        k, v = (F.pad(x, (0, 0, 1, 0)) for x in (k, v))
        return BlockwiseAttention.apply(q, k, v, build_age_bias_band(age_bias, 2), 2)  # type: ignore[no-any-return, no-untyped-call]

    assert torch.autograd.gradcheck(attend, inputs)
