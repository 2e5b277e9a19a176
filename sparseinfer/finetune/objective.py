"""The loss of a pass, part by part.

L = (1 - w) LM + w KL + lambda R + v D, where LM is the cross-entropy of the next token, KL that of
the dense parent's distribution of it to the student's, R the sum over layers of the L1 norm of
neuron outputs phi(gate) * up (ProSparse, 2402.13516, eq. 2) as a mean over tokens and neurons, and
D the mean over layers of the FFN outputs' relative squared distance from the parent's.

The paper does not say what its norm is divided by. A sum over neurons would make its lambdas (up to
0.2) a hundred times the language modelling loss; a mean makes them a tenth of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from sparseinfer.finetune.ffn import Record
from sparseinfer.finetune.settings import ObjectiveSettings


@dataclass(frozen=True)
class Loss:
    """A loss and what it is made of.

    Attributes:
        total: to be minimised.
        parts: detached scalars by name: lm, kl, l1 (R), ffn (D); those that were computed.
    """

    total: Tensor
    parts: dict[str, Tensor]


def loss_of(
    logits: Tensor,
    ids: Tensor,
    record: Record,
    settings: ObjectiveSettings,
    strength: float,
    parent_logits: Tensor | None,
) -> Loss:
    """
    Args:
        logits: [B, T, V] of the student.
        ids: int64 [B, T].
        record: of the pass that gave them.
        strength: lambda.
        parent_logits: [B, T, V] of the dense parent; needed where `settings.distill` is above 0.
    """
    parts: dict[str, Tensor] = {}
    total = torch.zeros((), device=logits.device)
    rows = logits[:, :-1].flatten(0, 1)
    if settings.distill < 1:
        parts["lm"] = next_token_loss(rows, ids[:, 1:].flatten())
        total = total + (1 - settings.distill) * parts["lm"]
    if parent_logits is not None:
        parts["kl"] = divergence(rows, parent_logits[:, :-1].flatten(0, 1))
        total = total + settings.distill * parts["kl"]
    if record.l1:
        parts["l1"] = torch.stack(record.l1).sum()
        if strength:
            total = total + strength * parts["l1"]
    if record.distance:
        parts["ffn"] = torch.stack(record.distance).mean()
        total = total + settings.distill_ffn * parts["ffn"]
    return Loss(total, {name: part.detach() for name, part in parts.items()})


def next_token_loss(rows: Tensor, wanted: Tensor) -> Tensor:
    """Mean cross-entropy in nats, fp32.

    Args:
        rows: [N, V] logits.
        wanted: int64 [N].
    """
    return cross_entropy(rows.float(), wanted)


def divergence(rows: Tensor, parent: Tensor) -> Tensor:
    """Mean over rows of KL(parent || student) in nats, fp32 (distillation at temperature 1,
    1503.02531).

    Args:
        rows, parent: [N, V] logits.
    """
    student = log_softmax(rows.float(), dim=-1)
    teacher = log_softmax(parent.float(), dim=-1)
    return kl_div(student, teacher, reduction="batchmean", log_target=True)
