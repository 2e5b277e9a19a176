"""The model that is trained and the dense parent that it learns from, as transformers has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, silu

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.errors import CheckpointError
from sparseinfer.finetune.activations import Activation, Phases, phases, relu2
from sparseinfer.finetune.ffn import Record, TrainedFfn
from sparseinfer.finetune.memory import OF_WEIGHTS, telling_memory
from sparseinfer.finetune.settings import ObjectiveSettings
from sparseinfer.sources.quiet import quiet_transformers

_OWN: dict[str, Activation] = {"silu": silu, "relu": relu, "relu2": relu2}
"""phi of a model -> what it computes."""


@dataclass
class Student:
    """A transformers model whose FFNs are `TrainedFfn`s.

    Attributes:
        model: in fp32.
        phases: gate activations by part of the run.
        record: what the FFNs of the newest pass recorded.
    """

    model: nn.Module
    ffns: list[TrainedFfn]
    phases: Phases
    record: Record

    def at(self, part: float) -> None:
        """Sets the activation of a part of the run, in [0, 1]."""
        activation = self.phases.at(part)
        for ffn in self.ffns:
            ffn.activation = activation


def load_student(
    checkpoint: Checkpoint,
    settings: ObjectiveSettings | None,
    *,
    start: Mapping[str, Tensor] | None = None,
    parent: nn.Module | None = None,
    with_l1: bool = False,
) -> Student:
    """
    Args:
        settings: None trains the model with its own activation: the dense control.
        start: tensors, by their names in the checkpoint, in place of the checkpoint's.
        parent: the dense parent, where FFN outputs are compared with it.
        with_l1: record the L1 norm of neuron outputs.

    Raises:
        CheckpointError: transformers refuses the checkpoint.
    """
    model: Any = load_model(checkpoint, torch.float32)
    if start:
        with torch.no_grad():
            for name, tensor in start.items():
                model.get_parameter(name).copy_(tensor)
    record = Record()
    phi, psi = checkpoint.config.phi, checkpoint.config.psi
    chosen = Phases(_OWN[phi], _OWN[phi]) if settings is None else phases(settings)
    ffns = []
    for index, layer in enumerate(model.model.layers):
        ffn = TrainedFfn(
            layer.mlp,
            chosen.first,
            record,
            up_relu=psi == "relu" if settings is None else settings.act == "drelu",
            with_l1=with_l1,
            rests=settings is not None or phi != "silu",
            parent=None if parent is None else _mlp(parent, index),
        )
        layer.mlp = ffn
        ffns.append(ffn)
    return Student(model, ffns, chosen, record)


def load_parent(checkpoint: Checkpoint, dtype: torch.dtype) -> nn.Module:
    """The dense parent, frozen.

    Raises:
        CheckpointError: transformers refuses the checkpoint.
    """
    return load_model(checkpoint, dtype).eval().requires_grad_(False)


def load_model(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    *,
    attention: str | None = None,
    advice: str = OF_WEIGHTS,
) -> nn.Module:
    """The checkpoint as transformers runs it, without a cache.

    Args:
        attention: transformers' name of an implementation; None: its choice.
        advice: what to do where there is too little memory.

    Raises:
        CheckpointError: transformers refuses the checkpoint.
        ConfigError: out of memory.
    """
    import transformers

    import sparseinfer.modeling  # noqa: F401 - registers our own activations

    chosen = {} if attention is None else {"attn_implementation": attention}
    try:
        with telling_memory("while loading the model", advice), quiet_transformers():
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                checkpoint.path, dtype=dtype, local_files_only=True, **chosen
            )
    except (ArithmeticError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{checkpoint.path}: transformers refuses it: {reason}") from error
    model.config.use_cache = False
    return model


def _mlp(model: nn.Module, layer: int) -> nn.Module:
    return model.get_submodule(f"model.layers.{layer}.mlp")
