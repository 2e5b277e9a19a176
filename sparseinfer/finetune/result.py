"""From the last state of a run to a checkpoint that everything else takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparseinfer import arch
from sparseinfer.checkpoint.layout import FINETUNING, Progress
from sparseinfer.checkpoint.writer import write_tuned
from sparseinfer.config import FinetuningRecord, SparsityRecord
from sparseinfer.convert.card import model_card
from sparseinfer.convert.masks import Masks
from sparseinfer.convert.methods import choose_method
from sparseinfer.convert.options import MethodOptions
from sparseinfer.convert.record import make_record
from sparseinfer.finetune.metrics import Step
from sparseinfer.finetune.request import Subject, hidden_act
from sparseinfer.finetune.settings import ObjectiveSettings
from sparseinfer.version import __version__

_LAST_STEPS = 0.02
"""Part of the run over which the record's sparsity is a mean: single steps are noisy."""


def layer_sparsity(steps: Sequence[Step]) -> tuple[float, ...]:
    """Mean neuron sparsity of each layer over the last steps."""
    last = steps[-max(1, round(_LAST_STEPS * len(steps))) :]
    rows = torch.tensor([step.layers for step in last], dtype=torch.float64)
    return tuple(rows.mean(0).tolist())


def write_sparse(
    subject: Subject,
    objective: ObjectiveSettings,
    weights: Mapping[str, Tensor],
    out: Path,
    tuned: FinetuningRecord,
    *,
    metrics: Path | None,
    force: bool,
    progress: Progress,
) -> None:
    """Writes the result, without FATReLU's thresholds.

    Args:
        weights: by name; rounded to the type of the subject's weights.
        metrics: of the run, to be kept beside the weights.

    Raises:
        OutputError: it cannot be written.
    """
    act = hidden_act(objective)
    options = MethodOptions(shift=objective.soft_threshold)
    method = choose_method("relu" if act == arch.OWN_RELU else act, options)
    if objective.top_k is not None:
        method = choose_method("topk", MethodOptions())
    record = make_record(
        method,
        options,
        Masks(top_k=objective.top_k),
        act,
        None,
        None,
        None,
        subject.parent,
        tuned,
    )
    _write(subject, weights, out, act, record, model_card(
        out.name, subject.resolved.name, method, record
    ), metrics, force, progress)  # fmt: skip


def write_dense(
    subject: Subject,
    weights: Mapping[str, Tensor],
    out: Path,
    facts: Mapping[str, Any],
    *,
    metrics: Path,
    force: bool,
    progress: Progress,
) -> None:
    """Writes the dense control, an ordinary checkpoint.

    Args:
        facts: of its training, for the card.
    """
    lines = [
        f"# {out.name}",
        "",
        f"`{subject.resolved.name}`, fine-tuned by sparseinfer {__version__} as a dense control: "
        "the same tokens as a sparse model beside it, its own activation, nothing but the language "
        "modelling loss.",
        "",
        *(f"- {name}: {value}" for name, value in facts.items()),
        "",
    ]
    act = subject.dense.raw.get("hidden_act", "silu")
    _write(subject, weights, out, act, None, "\n".join(lines), metrics, force, progress)


def _write(
    subject: Subject,
    weights: Mapping[str, Tensor],
    out: Path,
    act: str,
    record: SparsityRecord | None,
    card: str,
    metrics: Path | None,
    force: bool,
    progress: Progress,
) -> None:
    write_tuned(
        subject.start,
        weights,
        out,
        hidden_act=act,
        record=record,
        card=card,
        dtype=subject.start.dtype,
        files={} if metrics is None else {FINETUNING: metrics},
        force=force,
        progress=progress,
    )
