"""What a conversion writes of itself into `config.json`, and masks that need no calibration."""

from __future__ import annotations

from typing import cast

import torch

from sparseinfer import arch
from sparseinfer.config import (
    BudgetRecord,
    CalibrationRecord,
    FinetuningRecord,
    ModelConfig,
    ParentRecord,
    ProjectionName,
    SparsityRecord,
)
from sparseinfer.convert import relu
from sparseinfer.convert.masks import Masks
from sparseinfer.convert.method import Method
from sparseinfer.convert.options import MethodOptions
from sparseinfer.kernels.sketch import GROUP


def constant_masks(config: ModelConfig, method: Method, options: MethodOptions) -> Masks:
    """Masks that need no calibration."""
    if options.stage == 2:
        return Masks(
            inputs={
                name: [torch.zeros(config.inputs_of(name)) for _ in range(config.num_layers)]
                for name in relu.AFTER_NORMS
            }
        )
    constant = _constant(method, options)
    if constant is None:
        return Masks()
    size = config.intermediate_size
    return Masks([torch.full((size,), constant) for _ in range(config.num_layers)])


def _constant(method: Method, options: MethodOptions) -> float | None:
    return method.constant if options.threshold is None else options.threshold


def _mask_text(masks: Masks) -> str:
    if masks.sketch is not None:
        return f"sketch:{masks.sketch},{GROUP}"
    return "gate" if masks.top_k is None else f"topk:{masks.top_k}"


def make_record(
    method: Method,
    options: MethodOptions,
    masks: Masks,
    hidden_act: str,
    sparsity: float | None,
    calibrated: CalibrationRecord | None,
    searched: BudgetRecord | None,
    parent: ParentRecord,
    finetuning: FinetuningRecord | None = None,
) -> SparsityRecord:
    """The record of a conversion.

    Args:
        hidden_act: activation that the converted model runs.
        sparsity: the target, in the method's own words.
        parent: the dense model.
        finetuning: of the converted weights, where they are not the parent's.
    """
    phi, psi = arch.ACTIVATIONS[hidden_act]
    of_neurons = method.target == "neurons"
    return SparsityRecord(
        method=method.name,
        phi=phi,
        psi=psi,
        mask=_mask_text(masks),
        input_thresholds=tuple(cast(ProjectionName, name) for name in masks.inputs),
        shift=options.shift or 0.0,
        input_relu=options.stage == 2,
        has_thresholds=masks.gate is not None,
        target_neuron_sparsity=sparsity if of_neurons else None,
        target_projection_sparsity=None if of_neurons else sparsity,
        threshold=None if calibrated else _constant(method, options),
        calibration=calibrated,
        budget=searched,
        parent=parent,
        finetuning=finetuning,
    )
