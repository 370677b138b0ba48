"""Checks paths, sessions and names before the training, so that a user does not wait for hours to see an error.

Each function raises an error, or returns without one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from edgedistill.data.bins import SessionBins
from edgedistill.errors import ConfigError, OutputError, RecordingError, did_you_mean
from edgedistill.files import output_error, require_replaceable
from edgedistill.models.files import refuse_other_files
from edgedistill.staging import opened_folder, stage
from edgedistill.training.batches import MIN_LABELLED_BINS, TrainingSession, find_unlabelled_block
from edgedistill.training.few_labels import BINS_PER_MINUTE

OTHER_OUT = "choose another --out"


def require_writable(out: Path) -> None:
    """Raises OutputError where no result could be written to `out`. Leaves nothing behind but missing folders above.

    The result is made in a hidden folder of the same kind.
    """
    if not out.name:
        raise OutputError(f"{out}: not a name for a result", next_step=f"{OTHER_OUT}, such as decoder.edge")
    try:
        require_replaceable(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        with opened_folder(out.parent) as inside, stage(inside, out.name) as staging:
            os.mkdir(out.name, dir_fd=staging.new)
    except OSError as error:
        raise output_error(out, "the result", error, OTHER_OUT) from error


def require_folder(out: Path) -> None:
    """Raises OutputError where no model could be written to `out`. A model is a folder."""
    require_writable(out)
    if out.exists() and not out.is_dir():
        raise OutputError(
            f"{out}: there is a file here",
            expected="a path that is free, or the folder of a model to replace",
            next_step=OTHER_OUT,
        )
    refuse_other_files(out)


def choose_session(sessions: Sequence[TrainingSession], wanted: str | None) -> TrainingSession:
    """Returns the session with the id `wanted`, or the latest without an id.

    Raises RecordingError for an unknown id.
    """
    if wanted is None:
        return sessions[-1]
    known = {session.id: session for session in sessions}
    if wanted not in known:
        raise RecordingError(f"unknown session '{wanted}'", expected=did_you_mean(wanted, known))
    return known[wanted]


def require_label_minutes(minutes: float | None) -> None:
    """Raises ConfigError where `minutes` of labels are too few to fit a read-out on. None means all labels."""
    if minutes is not None and not MIN_LABELLED_BINS / BINS_PER_MINUTE <= minutes < math.inf:
        raise ConfigError(
            "no read-out can be fitted on so many minutes of labels",
            got=f"--label-minutes {minutes:g}",
            expected=f"at least {MIN_LABELLED_BINS / BINS_PER_MINUTE:.3g}, or no such option for all labels",
            next_step="for a decoder without a label of its session: edgedistill distill with other sessions of the "
            "array, then edgedistill build with --student and without --probe, which takes their read-out",
        )


def require_labels(session: TrainingSession, bins: SessionBins) -> None:
    """Raises RecordingError where no read-out of `session`, made from `bins`, could be fitted and scored."""
    if block := find_unlabelled_block(session):
        raise RecordingError(
            f"{bins.path}: no known behavior in the {block} block",
            got=f"less than one second of it in bins that can be used; {bins.coverage.to_text()}",
            expected="known behavior in all three blocks of the session: training, validation and test",
            causes=[
                "most of the block is left out, for one of the reasons above",
                "tracking began late or was lost",
                "the behavior is that of a part of the recording",
            ],
            next_step="leave this session out, choose another with --session, or another series with --behavior",
        )
