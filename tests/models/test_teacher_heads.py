"""Each session has a map to the teacher of its own, and a new day begins with the mean of them."""

from __future__ import annotations

import torch

from edgedistill.models.teacher_heads import TeacherHeads


def test_each_session_has_a_linear_map_of_its_own() -> None:
    heads, latents = TeacherHeads(4, 3, ("a/1", "b.2")), torch.randn(2, 5, 4)
    first, second = heads("a/1", latents), heads("b.2", latents)
    assert first.shape == (2, 5, 3)
    assert not torch.allclose(first, second)
    first.sum().backward()
    touched = {name for name, one in heads.named_parameters() if one.grad is not None}
    assert len(touched) == 2


def test_a_new_session_has_the_mean_of_the_others() -> None:
    heads, latents = TeacherHeads(4, 3, ("a", "b")), torch.randn(2, 5, 4)
    heads.add("c")
    torch.testing.assert_close(heads("c", latents), (heads("a", latents) + heads("b", latents)) / 2)
