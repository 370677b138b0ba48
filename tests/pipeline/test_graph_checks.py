"""What a build holds its INT8 graphs against: a graph that computes something else is named and never shipped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch

from edgedistill.data.bins import Split
from edgedistill.errors import EdgeDistillError
from edgedistill.numerics import Oracle
from edgedistill.pipeline.graph_checks import PLAIN_GRAPH, PLUGIN_GRAPH, reference, require_spike_graphs
from edgedistill.quantization.onnx_graph import graph_for_plugin, graph_from_integers
from edgedistill.training.batches import TrainingSession

from ..numerics.students import SMALL, random_bins, random_model

MODEL = random_model(SMALL)
START, STOP = 300, 500
BINS = random_bins(SMALL, 600)


@dataclass
class Session:
    """As much of a TrainingSession as the checks read."""

    split: Split
    scale: tuple[np.ndarray, np.ndarray]

    def inputs(self, modality: str) -> torch.Tensor:
        assert modality in ("lfp", "spikes")
        return torch.from_numpy(BINS)


def session() -> TrainingSession:
    blocks = {"train": slice(0, 200), "validation": slice(200, 290), "test": slice(START, STOP)}
    spread = Oracle(MODEL).run(BINS).std(0)
    return cast(TrainingSession, Session(Split(**cast(Any, blocks)), (np.zeros_like(spread), spread)))


def files() -> dict[str, bytes]:
    return {
        PLAIN_GRAPH: graph_from_integers(SMALL, MODEL.tensors).SerializeToString(),
        PLUGIN_GRAPH: graph_for_plugin(SMALL, MODEL.tensors).SerializeToString(),
    }


def spoiled(name: str) -> dict[str, bytes]:
    """The age biases of layer 0 are those of nobody, or the bias of the embedding: both forms still load."""
    found = files()
    model = onnx.load_model_from_string(found[name])
    size = (SMALL.heads, SMALL.window) if name == PLUGIN_GRAPH else (SMALL.d,)
    tensor = next(t for t in model.graph.initializer if tuple(t.dims) == size and t.data_type == 1)
    values = onnx.numpy_helper.to_array(tensor) + np.arange(size[-1], dtype=np.float32)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return found | {name: model.SerializeToString()}


def test_good_graphs_pass_and_the_reference_is_the_oracles() -> None:
    require_spike_graphs(MODEL, session(), files())
    held = reference(MODEL, session(), files())
    oracle = Oracle(MODEL)
    oracle.run(BINS[:START])
    assert np.array_equal(held["bins"], BINS[START:STOP])  # no further than the test block
    assert all(np.array_equal(held[f"start_{name}"], state) for name, state in oracle.export_state().items())
    assert np.array_equal(held["kinematics"], oracle.run(BINS[START:STOP]))
    assert all(np.array_equal(held[f"state_{name}"], state) for name, state in oracle.export_state().items())


@pytest.mark.parametrize("name", [PLAIN_GRAPH, PLUGIN_GRAPH])
def test_a_graph_that_computes_something_else_is_named(name: str) -> None:
    with pytest.raises(EdgeDistillError, match=rf"{name} does not compute what the oracle computes"):
        reference(MODEL, session(), spoiled(name))
    with pytest.raises(EdgeDistillError, match=rf"{name} does not compute what the oracle computes"):
        require_spike_graphs(MODEL, session(), spoiled(name))
