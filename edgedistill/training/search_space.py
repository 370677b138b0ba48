"""Says what a search over the settings of a training looks for.

A preset's training and the objective of a task go in. The design of a study comes out, and functions that put the
settings of a trial back into a training and an objective. Every row of a table is searched in the same way: its
schedule, how much of its input is damaged, and, where it follows a teacher, how.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgedistill.config import ALIGNMENTS, Alignment, TrainingConfig
from edgedistill.training.losses import Objective
from edgedistill.training.study import Dimension, Settings, StudyDesign

NO_TEACHER = "none"
SLOWER = 0.5  # times the learning rate of the preset, in the second trial
RECONSTRUCTIONS = (0.0, 0.1, 1.0)  # weights of the inputs' reconstruction
SCHEDULE = ("learning_rate", "weight_decay", "damaged_share")  # keys of a preset's [training]


def plan_search(
    config: TrainingConfig, objective: Objective | None = None, *, augmented: bool = True, seed: int = 0
) -> StudyDesign:
    """Returns the plan of a search over a training and what it is trained on.

    The first trials are the preset as it is, the preset with half its learning rate, and, where behavior is learned
    beside the teacher, the preset without the teacher. `augmented` says whether the inputs are damaged in training.
    """
    space = (*space_of_schedule(config, augmented), *(() if objective is None else space_of_objective(objective)))
    own = list_settings(config, objective, space)
    first = [own, {**own, "learning_rate": SLOWER * config.learning_rate}]
    if objective is not None and may_leave_teacher_out(objective):
        first.append({key: own[key] for key in own if key != "alignment_weight"} | {"alignment": NO_TEACHER})
    return StudyDesign(space, tuple(first), seed, spared_steps=config.steps // 3)


def space_of_schedule(config: TrainingConfig, augmented: bool) -> tuple[Dimension, ...]:
    """Returns what is searched of a training: learning rate, weight decay, and the share of damaged segments."""
    rate, decay, share = config.learning_rate, config.weight_decay, config.damaged_share
    dimensions = [Dimension("learning_rate", rate / 5, 2 * rate, log=True)]
    dimensions.append(Dimension("weight_decay", min(0.005, decay), max(0.5, decay), log=decay > 0))
    if augmented and (config.channel_dropout or config.bank_loss or config.gain_drift or config.noise):
        dimensions.append(Dimension("damaged_share", 0.0, max(0.5, share)))
    return tuple(dimensions)


def space_of_objective(objective: Objective) -> tuple[Dimension, ...]:
    """Returns what is searched of an objective that follows a teacher, and nothing for another.

    Only the ratios of its weights matter. The weight of behavior therefore stays, or without behavior that of the
    alignment. Where behavior is learned, no teacher at all is among the choices.
    """
    if not objective.alignment:
        return ()
    optional = may_leave_teacher_out(objective)
    dimensions = [Dimension("alignment", choices=(*ALIGNMENTS, NO_TEACHER) if optional else ALIGNMENTS)]
    if optional:
        low, high = min(0.05, objective.alignment), max(5.0, objective.alignment)
        without = ("alignment", NO_TEACHER)
        dimensions.append(Dimension("alignment_weight", low, high, log=True, unless=without))
    if objective.behavior or objective.reconstruction:
        choices = tuple(sorted({*RECONSTRUCTIONS, objective.reconstruction}))
        dimensions.append(Dimension("reconstruction", choices=choices))
    return tuple(dimensions)


def may_leave_teacher_out(objective: Objective) -> bool:
    """Returns whether something is learned without the teacher, too, that decodes: the behavior."""
    return objective.alignment > 0 and objective.behavior > 0


def list_settings(config: TrainingConfig, objective: Objective | None, space: Sequence[Dimension]) -> Settings:
    """Returns the settings in `space` as they are in a training and an objective."""
    own: dict[str, float | str] = {key: getattr(config, key) for key in SCHEDULE}
    if objective is not None:
        own |= {"alignment": objective.aligned_by.kind, "alignment_weight": objective.alignment}
        own["reconstruction"] = objective.reconstruction
    return {dimension.name: own[dimension.name] for dimension in space}


def training_with(config: TrainingConfig, settings: Settings) -> TrainingConfig:
    """Returns a training with the settings of a trial."""
    return replace(
        config,
        learning_rate=float(settings.get("learning_rate", config.learning_rate)),
        weight_decay=float(settings.get("weight_decay", config.weight_decay)),
        damaged_share=float(settings.get("damaged_share", config.damaged_share)),
    )


def objective_with(objective: Objective, settings: Settings) -> Objective:
    """Returns an objective with the settings of a trial. An alignment of the same kind keeps its centring."""
    kind = str(settings.get("alignment", objective.aligned_by.kind))
    changed = replace(objective, reconstruction=float(settings.get("reconstruction", objective.reconstruction)))
    if kind == NO_TEACHER:
        return replace(changed, alignment=0.0)
    aligned_by = objective.aligned_by if kind == objective.aligned_by.kind else Alignment(kind)
    weight = float(settings.get("alignment_weight", objective.alignment))
    return replace(changed, alignment=weight, aligned_by=aligned_by)
