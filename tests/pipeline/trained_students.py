"""Provides students of the shipped presets, trained for some steps on a small session and quantized as in `build`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from edgedistill.bundle import GraphVerdict
from edgedistill.config import StudentShape, load_preset
from edgedistill.errors import EngineError
from edgedistill.models.student import Student
from edgedistill.numerics import Int8Model
from edgedistill.pipeline.graph_checks import (
    FLOAT_GRAPH,
    HALF_GRAPH,
    PLAIN_GRAPH,
    PLUGIN_GRAPH,
    judge_float_graphs,
    judge_int8_graphs,
    refuse_graph,
)
from edgedistill.pipeline.student_files import GRAPHS
from edgedistill.quantization.calibration.range_search import calibrate
from edgedistill.quantization.calibration.recipe import DEFAULT_RECIPE, load_recipe
from edgedistill.quantization.deployment import quantize_for_session, weights_from_student
from edgedistill.quantization.onnx_graph import graph_for_plugin, graph_from_integers, graph_from_student
from edgedistill.training.batches import TrainingSession, training_session_from_bins
from edgedistill.training.distill import make_student, train_student
from edgedistill.training.evaluate import Readout
from edgedistill.training.losses import SUPERVISED
from edgedistill.training.student_tasks import score_student

from ..training.sessions import GAP, session_bins

CHANNELS = 12
NOISE_UV = 200.0  # so much that the last bins alone decode little, and the student's memory is needed
LEAST_RECIPE = replace(load_recipe(DEFAULT_RECIPE), windows=8, window_bins=128, finetune=None)


@dataclass(frozen=True, eq=False)
class Trained:
    """Holds a student and what a build makes from it."""

    student: Student
    readout: Readout
    session: TrainingSession
    shape: StudentShape
    model: Int8Model
    r2: float  # of the INT8 student
    files: dict[str, bytes]
    unwritten: dict[str, GraphVerdict]

    def judge_or_refuse(self, files: dict[str, bytes] | None = None) -> dict[str, GraphVerdict]:
        """Returns the verdicts on its graphs, or on other graphs in their place."""
        given = self.files if files is None else files
        verdicts = judge_float_graphs(self.student, self.readout, self.session, self.shape, given)
        verdicts |= self.unwritten | judge_int8_graphs(self.model, self.session, given)
        return {name: verdicts[name] for name in GRAPHS if name in verdicts}


def small_session(
    seed: int = 0, scale: float = 1.0, offset: float = 0.0, still: tuple[int, ...] = ()
) -> TrainingSession:
    """Returns a session with behavior `scale` times as large plus `offset`. Outputs in `still` never move."""
    made = session_bins(seed=seed, channels=CHANNELS)
    assert made.behavior is not None
    assert made.lfp is not None
    lfp = made.lfp + NOISE_UV * np.random.default_rng(seed + 100).normal(size=made.lfp.shape)
    behavior = made.behavior.astype(np.float64) * scale + offset
    behavior[:, list(still)] = offset
    return training_session_from_bins(replace(made, lfp=lfp, behavior=behavior.astype(np.float32)), GAP)


def trained(preset: str, steps: int, session: TrainingSession, seed: int = 0) -> Trained:
    """Returns a student of `preset` after `steps` optimizer steps on the behavior of `session`."""
    chosen = load_preset(preset)
    student = make_student([session], "lfp", chosen.student, 4, seed)
    if steps:
        config = replace(chosen.training, steps=steps, bins_per_step=512, segment_bins=256, burn_in=32, eval_every=50)
        latents = {session.id: torch.zeros(len(session.inputs("lfp")), 4)}
        student = train_student(student, [session], "lfp", SUPERVISED, config, seed, latents)
    student = student.eval()
    readout = score_student(student, "deployed", session)[0]
    ranges = calibrate(student, [session], "lfp", LEAST_RECIPE, seed)
    quantized = quantize_for_session(student, session, "lfp", readout, ranges)
    weights, shape = weights_from_student(student, session.id, readout)
    model = quantized.model
    files = {
        FLOAT_GRAPH: graph_from_student(shape, weights).SerializeToString(),
        PLAIN_GRAPH: graph_from_integers(shape, model.tensors).SerializeToString(),
        PLUGIN_GRAPH: graph_for_plugin(shape, model.tensors).SerializeToString(),
    }
    unwritten = {}
    try:
        files[HALF_GRAPH] = graph_from_student(shape, weights, "float16").SerializeToString()
    except EngineError as error:
        unwritten[HALF_GRAPH] = refuse_graph(error)
    return Trained(student, readout, session, shape, model, quantized.score.r2, files, unwritten)
