"""Withholds labels, so that a student learns behavior from the first minutes of one session, and fills in the rest.

Sessions go in and come out with less behavior. Nothing else changes: teacher, alignment and statistics of the inputs
need no labels and see everything. Where spikes were recorded beside the field, a decoder of spikes that was fitted on
the few labels can then label the rest of the training block, because spikes need fewer labels than the field does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from edgedistill.scratch import release_pages
from edgedistill.training.batches import TrainingSession
from edgedistill.training.evaluate import STILL, Array, unscale_behavior

BINS_PER_MINUTE = 6000


@dataclass(frozen=True)
class FewLabels:
    """Says of which session a student has learned behavior, and from how many minutes of labels."""

    session: str
    minutes: float


def withhold_labels(
    sessions: Sequence[TrainingSession], target: TrainingSession, minutes: float | None
) -> tuple[TrainingSession, ...]:
    """Returns the sessions with labels of `target` alone, and of these only `minutes` in its training block.

    None keeps all labels of all sessions.
    """
    if minutes is None:
        return tuple(sessions)
    return tuple(keep_first_labels(s, minutes) if s is target else replace(s, behavior=None) for s in sessions)


def keep_first_labels(session: TrainingSession, minutes: float) -> TrainingSession:
    """Returns the session with only the first `minutes` of known behavior in its training block, and z-scored by them.

    Minutes count bins in which all outputs are known, from the bin on from which a training uses the block. Behavior of
    the other blocks stays, because settings are chosen on one and scores come from the other.
    """
    behavior, train = unscale_behavior(session), session.split.train
    known = session.settled + np.flatnonzero(np.isfinite(behavior[session.settled : train.stop]).all(1))
    kept = known[: round(minutes * BINS_PER_MINUTE)]
    withheld = np.ones(train.stop - train.start, np.bool_)
    withheld[kept - train.start] = False
    mean, std = behavior[kept].mean(0), behavior[kept].std(0)
    std = np.where(std > STILL**0.5 * np.abs(mean), std, 1.0)
    behavior[train][withheld] = np.nan
    scaled = torch.from_numpy(((behavior - mean) / std).astype(np.float32))
    return replace(session, behavior=scaled, scale=(mean, std))


def fill_in_labels(session: TrainingSession, decoded: Array) -> TrainingSession:
    """Returns the session with `decoded` (T, K), in the unit of the behavior, where its training block has no label.

    Labels that are known stay, and so do the other blocks, on which settings are chosen and scores are taken.
    """
    assert session.behavior is not None
    mean, std = session.scale
    behavior, block = session.behavior.clone(), slice(session.settled, session.split.train.stop)
    unknown = ~torch.isfinite(behavior[block]).all(1) & session.valid[block]
    scaled = torch.from_numpy(((decoded[block] - mean) / std).astype(np.float32))
    behavior[block][unknown] = scaled[unknown]
    return replace(session, behavior=behavior)


def find_labelled(session: TrainingSession) -> torch.Tensor:
    """Returns the usable bins (T,) of the training block in which all outputs are known."""
    if session.behavior is None:
        return torch.zeros_like(session.valid)
    block = torch.zeros_like(session.valid)
    block[session.settled : session.split.train.stop] = True
    found = torch.isfinite(session.behavior).all(1) & session.valid & block
    release_pages()
    return found


def are_labels_scarce(sessions: Sequence[TrainingSession]) -> bool:
    """Returns whether less than half of the bins that training can use have a label.

    A batch drawn from anywhere would then teach hardly any behavior.
    """
    known = sum(int(find_labelled(s).sum()) for s in sessions)
    return 2 * known < sum(int(s.valid[s.settled : s.split.train.stop].sum()) for s in sessions)


def select_labelled(sessions: Sequence[TrainingSession]) -> list[TrainingSession]:
    """Returns the sessions with labels in the training block, in which only bins with labels count as usable."""
    found = [replace(s, valid=find_labelled(s)) for s in sessions]
    return [s for s in found if bool(s.valid.any())]
