"""The runs of a fine-tuning: the model that is tuned, and its controls; what sets them apart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sparseinfer.finetune.folder import RunFolder
from sparseinfer.finetune.request import Request, Subject, side_folder
from sparseinfer.finetune.schedule import LambdaSchedule
from sparseinfer.finetune.settings import ObjectiveSettings
from sparseinfer.finetune.strength import NONE, Scheduled, Steered, Strength
from sparseinfer.finetune.text import Text
from sparseinfer.finetune.warm_start import WarmLayer

RunName = Literal["tuned", "dense", "plain-relu"]


@dataclass(frozen=True)
class Job:
    """What the runs of a fine-tuning share.

    Attributes:
        request: settled, the number of tokens known.
        warm: layers of the warm start; none without.
    """

    subject: Subject
    request: Request
    folder: RunFolder
    text: Text
    warm: tuple[WarmLayer, ...]


def names_of(request: Request) -> tuple[RunName, ...]:
    """In the order in which they are trained."""
    return ("tuned", "dense", "plain-relu") if request.controls else ("tuned",)


def target_of(name: RunName, out: Path) -> Path:
    """The folder that a run's checkpoint goes to."""
    return out if name == "tuned" else side_folder(out, name)


def objective_of(name: RunName, request: Request) -> ObjectiveSettings | None:
    """What a run minimises; None: the dense model's language modelling loss, as the control has."""
    if name == "tuned":
        return request.objective
    return None if name == "dense" else ObjectiveSettings(act="relu", objective="relu")


def begins_warm(name: RunName, request: Request) -> bool:
    """Whether a run begins at the warm start: plain ReLU does where that was made for ReLU."""
    if not request.warm_start:
        return False
    return name == "tuned" or (
        name == "plain-relu" and request.objective.act in ("relu", "fatrelu")
    )


def strength_of(objective: ObjectiveSettings | None, steps: int) -> Strength:
    """
    Raises:
        ConfigError: stages of lambda that end after the run.
    """
    if objective is None or objective.objective != "prosparse":
        return NONE
    if objective.target_sparsity is not None:
        return Steered(objective.target_sparsity, steps)
    assert objective.schedule is not None  # filled in when it was checked
    return Scheduled(LambdaSchedule.of(objective.schedule, steps))
