"""The teacher's window graph agrees with PyTorch on the last bin of the window, for all patches and spans."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch

from edgedistill.config import TeacherSize
from edgedistill.errors import EngineError
from edgedistill.models.teacher import PatchAutoencoder
from edgedistill.quantization.onnx_graph.teacher_window import graph_from_teacher, make_timing_graph

PREDICTOR = {"predictor_layers": 1, "predictor_d": 12, "mask_share": 0.2}
SIZES = {
    "one patch": TeacherSize(d=16, layers=2, heads=2, ff=24, patch=8, span=4, **PREDICTOR),
    "patches": TeacherSize(d=24, layers=1, heads=3, ff=20, patch=3, span=1, **PREDICTOR),
}
OUTPUTS = 2


def made(size: TeacherSize, units: int, counts: bool) -> PatchAutoencoder:
    torch.manual_seed(0)
    teacher = PatchAutoencoder(size, {"monday": units, "tuesday": 3}, counts=counts)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return teacher


@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("kind", SIZES)
def test_the_graph_computes_the_teachers_kinematics_of_the_last_bin(kind: str, counts: bool) -> None:
    size, units, window = SIZES[kind], 7, 20
    teacher, rng = made(size, units, counts), np.random.default_rng(1)
    weight, bias = rng.normal(size=(OUTPUTS, size.d)).astype("f4"), rng.normal(size=OUTPUTS).astype("f4")
    graph = graph_from_teacher(teacher, "monday", window, weight, bias).SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    for _ in range(3):
        bins = rng.normal(size=(window, units)).astype("f4")
        with torch.no_grad():
            latent = teacher.latents("monday", torch.from_numpy(bins)[None])[0, -1].numpy()
        (found,) = session.run(None, {"counts": bins})
        np.testing.assert_allclose(found, weight @ latent + bias, rtol=2e-5, atol=2e-5)


def test_a_window_that_is_not_whole_tokens_is_refused() -> None:
    teacher = made(SIZES["one patch"], 7, True)
    with pytest.raises(EngineError, match="multiple of 4"):
        graph_from_teacher(teacher, "monday", 18, np.zeros((1, 16), "f4"), np.zeros(1, "f4"))


def test_a_graph_for_timing_is_small_and_runs() -> None:
    size = TeacherSize(d=128, layers=2, heads=2, ff=256, patch=8, span=4, **PREDICTOR)
    graph = make_timing_graph(size, 7, 40, OUTPUTS).SerializeToString()
    whole = graph_from_teacher(made(size, 7, True), "monday", 40, np.zeros((2, 128), "f4"), np.zeros(2, "f4"))
    assert len(graph) < 60_000 < len(whole.SerializeToString()) / 10
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"counts": np.ones((40, 7), "f4")})
    assert found.shape == (OUTPUTS,)


def test_a_graph_for_timing_is_the_same_whatever_was_drawn_before() -> None:
    size = TeacherSize(d=16, layers=1, heads=2, ff=16, patch=8, span=4, **PREDICTOR)
    torch.manual_seed(1)
    first = make_timing_graph(size, 7, 8, OUTPUTS).SerializeToString()
    drawn = torch.rand(1)
    assert make_timing_graph(size, 7, 8, OUTPUTS).SerializeToString() == first
    torch.manual_seed(1)
    assert torch.rand(1) == drawn
