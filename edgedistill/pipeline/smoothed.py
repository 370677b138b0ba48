"""Fits the filters that smooth the outputs of a bundle's students and ridge, and scores the decoders with them.

Trained models and their integers go in. A filter for each comes out, with the held-out R² of what the decoder then
gives out. The filter of a student is fitted on what its INT8 version decodes, because that is what ships.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgedistill.bundle.manifest import Smoothing
from edgedistill.frontend import FrontEndConfig
from edgedistill.numerics import Int8Model
from edgedistill.numerics.smoothing import SmoothingModel
from edgedistill.pipeline.quantized import Int8Student
from edgedistill.pipeline.trained import TrainedStudent
from edgedistill.quantization.exact_torch import run_exact_stream
from edgedistill.training.baselines import LaggedRidge
from edgedistill.training.batches import TrainingSession
from edgedistill.training.evaluate import Array, r2_score, unscale_behavior
from edgedistill.training.lagged_features import LaggedFeatures
from edgedistill.training.output_filter import NONE, OutputFilter, fit_output_filter
from edgedistill.training.student_tasks import compute_features

NOT_WANTED = "--smooth none"
NO_LABELS = "labels of the session may not be used"


@dataclass(frozen=True, eq=False)
class SmoothedStudent:
    """Holds the filter of a student's outputs, and the R² of what it then gives out."""

    model: SmoothingModel | None  # None: the outputs stay as they are
    smoothing: Smoothing  # what the manifest says of it
    r2: float  # of the float student on the test block
    int8_r2: float  # of the student in INT8


def smooth_student(trained: TrainedStudent, int8: Int8Student, wanted: str) -> SmoothedStudent:
    """Returns the filter for a student's outputs. `wanted` is one of KINDS.

    There is none where none is wanted, where labels must not be used, and where the raw outputs decode the validation
    block at least as well.
    """
    raw = trained.r2, int8.quantized.score.r2
    if wanted == NONE or not trained.may_use_labels:
        note = NOT_WANTED if wanted == NONE else NO_LABELS
        return SmoothedStudent(None, Smoothing(NONE, note=note), *raw)
    session, modality = trained.session, trained.task.modality
    decoded = decode_session(int8.quantized.model, session, modality)
    fitted = fit_for_session(decoded, session)
    if fitted.model is None:
        return SmoothedStudent(None, describe_filter(fitted), *raw)
    plain = trained.readout(compute_features(trained.student, trained.task, session))
    r2 = (score_filtered(fitted, one, session) for one in (plain, decoded))
    return SmoothedStudent(fitted.model, describe_filter(fitted), *r2)


def smooth_ridge(ridge: LaggedRidge, session: TrainingSession, wanted: str) -> SmoothingModel | None:
    """Returns the filter for a lagged ridge on LFP, or None as `smooth_student` does."""
    if wanted == NONE:
        return None
    bins = session.inputs("lfp").numpy()
    seen = LaggedFeatures(np.zeros((len(bins), 0)), bins, ridge.lags)
    return fit_for_session(ridge.readout(seen), session).model


def decode_session(model: Int8Model, session: TrainingSession, modality: str = "lfp") -> Array:
    """Returns the raw outputs (T, K) of a student in INT8, streamed from the first bin of the session."""
    return run_exact_stream(model.shape, model.tensors, session.inputs(modality))[1].double().numpy()


def fit_for_session(decoded: Array, session: TrainingSession) -> OutputFilter:
    """Returns the best filter of what was decoded (T, K) of a session."""
    return fit_output_filter(decoded, unscale_behavior(session), session.split, session.settled)


def score_filtered(fitted: Callable[[Array], Array], decoded: Array, session: TrainingSession) -> float:
    """Returns the mean R² of filtered outputs on the test block."""
    test = session.split.test
    return float(np.mean(r2_score(fitted(decoded)[test], unscale_behavior(session)[test])))


def describe_filter(fitted: OutputFilter) -> Smoothing:
    """Returns what the manifest says of a filter."""
    return Smoothing(fitted.kind, fitted.order, fitted.noise, fitted.validation_r2, fitted.raw_validation_r2)


def find_delay_ms(model: SmoothingModel | None, frontend: FrontEndConfig) -> float:
    """Returns the delay of a filter, and 0 without one."""
    return 0.0 if model is None else model.delay_ms(frontend.bin_ms)
